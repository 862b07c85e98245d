"""The configuration of a pretraining run, as typed dataclasses and as YAML."""

from __future__ import annotations

import json
import os
import typing
from contextlib import suppress
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, TypeVar

import yaml
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt

from .._validation import Validated
from ..config import SIZES, XTrimoGeneConfig
from ..nn.ranges import Fraction, Probability
from ..train.plan import MaskingConfig, OptimizerConfig
from .plan import OnNonFinite
from .stream import OnDamage

T = TypeVar("T")


@dataclass(frozen=True)
class DataConfig(Validated):
    """The cells, and how many of them make a step.

    Parameters
    ----------
    store
        Path or URL of a store that :func:`~scxtrimo.pretraining.write_store` wrote.
    batch_size, tokens_per_batch
        Cells per batch, or expressed genes instead, which makes batches more alike.
    batches_per_step
        Batches per step of the optimiser, over all devices; by default one per device. A run may
        be resumed with another number of devices that divides this number.
    window_size, chunk_size
        Cells that are shuffled together, over all devices, and neighbours that are read at once.
    on_damage
        What to do with cells that cannot be read: ``"raise"`` or ``"skip"``.
    study_key
        Column of ``obs`` in the store, for instance ``"source"``, the file. The decoder of the
        counts is told the study, so that the cell vector need not hold it. The saved model
        predicts for an average study.
    balance
        How far studies count equally: 0 if every cell counts as much, 1 if every study does.
    thinning, panels
        Part of the cells that lose counts, up to nine tenths, as if sequenced less deeply, and
        part that lose genes, as if measured with a panel; anew in every epoch.
    max_cells
        Train on a random part of so many cells, for instance to learn what more of them bring.

    Examples
    --------
    >>> scxtrimo.DataConfig(store="cells.zarr", tokens_per_batch=200_000).batch_size
    256
    """

    store: str
    batch_size: PositiveInt = 256
    tokens_per_batch: PositiveInt | None = None
    batches_per_step: PositiveInt | None = None
    window_size: PositiveInt = 4096
    chunk_size: PositiveInt = 256
    on_damage: OnDamage = "raise"
    study_key: str | None = None
    balance: Probability = 0.0
    thinning: Fraction = 0.0
    panels: Fraction = 0.0
    max_cells: PositiveInt | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.balance and self.study_key is None:
            raise ValueError(f"balance={self.balance} needs a study_key, such as 'source'.")


@dataclass(frozen=True)
class EngineConfig(Validated):
    """The devices, and how they share the work.

    Parameters
    ----------
    accelerator, devices, num_nodes
        See :class:`lightning.pytorch.Trainer`.
    strategy
        ``"auto"``, which uses DDP for several devices, ``"ddp"``, or ``"fsdp2"``, which shards the
        parameters and cannot be changed when a run is resumed.
    precision
        ``"32-true"``, ``"bf16-mixed"`` or ``"bf16-true"``; by default the second on a GPU and the
        first elsewhere.
    recompute, compile
        Recompute the activations of the encoder layers in the backward pass, which saves memory
        and takes time; compile these layers.
    gradient_clip_val
        Largest norm of the gradient.
    on_non_finite
        What to do in a step whose gradient is not finite: ``"raise"`` or ``"skip"``.

    Examples
    --------
    >>> scxtrimo.EngineConfig(devices=8, strategy="fsdp2").recompute
    False
    """

    accelerator: str = "auto"
    devices: int | str | list[int] = "auto"
    num_nodes: PositiveInt = 1
    strategy: Literal["auto", "ddp", "fsdp2"] = "auto"
    precision: Literal["32-true", "bf16-mixed", "bf16-true"] | None = None
    recompute: bool = False
    compile: bool = False
    gradient_clip_val: PositiveFloat = 1.0
    on_non_finite: OnNonFinite = "raise"


@dataclass(frozen=True)
class RecordConfig(Validated):
    """Logs, validation and checkpoints.

    Parameters
    ----------
    log_every_n_steps, checkpoint_every_n_steps
        Steps per entry of the history and the logs, and from one checkpoint to the next, which
        must be a multiple.
    validate_every_n_steps
        Steps from one pass over the held-out cells to the next; 0 for none.
    keep
        How many checkpoints are kept; -1 for all.
    loggers, progress_bar
        Any of ``"csv"``, ``"tensorboard"`` and ``"wandb"``; whether to show a progress bar.

    Examples
    --------
    >>> scxtrimo.RecordConfig(loggers=("csv", "tensorboard")).keep
    3
    """

    log_every_n_steps: PositiveInt = 50
    validate_every_n_steps: NonNegativeInt = 1000
    checkpoint_every_n_steps: PositiveInt = 500
    keep: int = 3
    loggers: tuple[str, ...] = ("csv",)
    progress_bar: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.checkpoint_every_n_steps % self.log_every_n_steps:
            raise ValueError(
                f"checkpoint_every_n_steps={self.checkpoint_every_n_steps} must be a multiple of "
                f"log_every_n_steps={self.log_every_n_steps}, so that a resumed run has the same "
                "history."
            )
        if self.keep < -1 or self.keep == 0:
            raise ValueError(f"keep={self.keep} must be positive, or -1 for all.")
        if unknown := sorted(set(self.loggers) - {"csv", "tensorboard", "wandb"}):
            known = "choose from csv, tensorboard and wandb"
            raise ValueError(f"loggers={unknown} are unknown; {known}.")


@dataclass(frozen=True)
class PretrainConfig(Validated):
    """A pretraining run.

    Parameters
    ----------
    data, engine, record
        The cells; the devices; logs and checkpoints.
    out
        Directory of the run: configuration, checkpoints, logs, and finally the model.
    size
        One of :data:`scxtrimo.model.SIZES`, or ``"auto"``.
    model, optimizer, masking
        Single fields that differ from those of ``size`` or from the defaults of
        :meth:`scxtrimo.model.XTrimoGene.train`, see :class:`~scxtrimo.model.XTrimoGeneConfig`,
        :class:`~scxtrimo.train.OptimizerConfig` (by default with 1,000 steps of warm-up) and
        :class:`~scxtrimo.train.MaskingConfig`.
    steps, epochs, tokens, seed
        How long to train (give one of the three; tokens are expressed genes); seed of everything.

    Examples
    --------
    >>> data = scxtrimo.DataConfig("cells.zarr")
    >>> config = scxtrimo.PretrainConfig(data, out="run", size="3m", epochs=2)
    >>> with open("run.yaml", "w") as file:
    ...     _ = file.write(config.to_yaml())
    >>> scxtrimo.PretrainConfig.from_yaml("run.yaml") == config
    True
    """

    data: DataConfig
    out: str
    size: str = "auto"
    model: dict[str, Any] = field(default_factory=dict)
    optimizer: dict[str, Any] = field(default_factory=dict)
    masking: dict[str, Any] = field(default_factory=dict)
    steps: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    tokens: PositiveFloat | None = None
    engine: EngineConfig = field(default_factory=EngineConfig)
    record: RecordConfig = field(default_factory=RecordConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        lengths = {"steps": self.steps, "epochs": self.epochs, "tokens": self.tokens}
        given = {name: value for name, value in lengths.items() if value is not None}
        if len(given) != 1:
            raise ValueError(f"Give one of steps, epochs and tokens; got {given or 'none'}.")
        if self.size not in ("auto", *SIZES):
            known = f"choose 'auto' or one of {list(SIZES)}"
            raise ValueError(f"size={self.size!r} is unknown; {known}.")
        # Check these now, not after the cells were read.
        named = SIZES["small" if self.size == "auto" else self.size]
        from_dict(XTrimoGeneConfig, asdict(named) | self.model, "model")
        from_dict(OptimizerConfig, self.optimizer, "optimizer")
        from_dict(MaskingConfig, self.masking, "masking")

    @classmethod
    def from_yaml(cls, path: str | os.PathLike) -> PretrainConfig:
        """Read a configuration.

        Parameters
        ----------
        path
            A YAML file with the fields of this class, nested in the same way.

        Returns
        -------
        The configuration, checked.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist.")
        try:
            stored = yaml.safe_load(path.read_text(encoding="utf-8"))
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if stored is None:
            raise ValueError(f"{path} is empty.")
        return from_dict(cls, stored, str(path))

    def to_yaml(self) -> str:
        """Write the configuration as YAML.

        Returns
        -------
        What :meth:`from_yaml` reads.
        """
        return yaml.safe_dump(json.loads(json.dumps(asdict(self))), sort_keys=False)


def from_dict(cls: type[T], stored: Any, where: str) -> T:
    """Make a dataclass from a nested mapping; errors name the place (``where``) and the field."""
    if not isinstance(stored, dict):
        wanted = f"a mapping with the fields of {cls.__name__}"
        raise ValueError(f"{where} must be {wanted}, not {stored!r}.")
    hints = typing.get_type_hints(cls)
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    values = {}
    for name, value in stored.items():
        if name not in known:
            similar = get_close_matches(str(name), known, 1)
            hint = f"Did you mean {similar[0]!r}?" if similar else f"Choose from {known}."
            raise ValueError(f"{where} has an unknown field {name!r}. {hint}")
        hint = hints[name]
        if is_dataclass(hint):
            values[name] = from_dict(hint, value, f"{where}: {name}")  # type: ignore[arg-type]
        elif typing.get_origin(hint) is tuple and not isinstance(value, list | tuple):
            raise ValueError(f"{where}: {name}={value!r} must be a list.")
        else:
            values[name] = _as_number(value, _kinds(hint))
    try:
        return cls(**values)
    except (TypeError, ValueError) as error:
        reason = str(error).replace("__init__() ", "").removesuffix(".")
        raise ValueError(f"{where}: {reason}.") from error


def _kinds(hint: Any) -> set[Any]:
    """Return the types that a hint is made of."""
    arguments = typing.get_args(hint)
    return set().union(*map(_kinds, arguments)) if arguments else {hint}


def _as_number(value: Any, kinds: set[Any]) -> Any:
    """Make texts such as 1e-4, which YAML does not take for numbers, the number of a field."""
    if isinstance(value, list | tuple):
        return [_as_number(item, kinds) for item in value]
    if isinstance(value, str) and kinds & {int, float}:
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    return value
