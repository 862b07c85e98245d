"""Training, with defaults that depend on the data and the device."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np
import torch
from pydantic import PositiveFloat, PositiveInt
from scvi import REGISTRY_KEYS
from scvi.model._utils import parse_device_args

from .._logging import logger
from .._validation import check
from ..config import choose_size
from ..data.dataset import threads_for, torch_threads
from ..data.fields import CategoryField
from ..latent import Explained, gene_statistics, start_from, start_from_pretrained
from ..nn.ranges import Fraction, PositiveProbability
from ..train.plan import (
    FinetuningConfig,
    MaskingConfig,
    OptimizerConfig,
    XTrimoGenePlan,
    finetuned,
)
from ..train.progress import CellProgress
from ..train.splitter import RaggedDataSplitter
from ..train.trainer import (
    AverageWeights,
    ResumeCheckpoint,
    StopWhenLevel,
    XTrimoGeneRunner,
    as_list,
    check_resumed,
    quiet_lightning,
)
from .files import INDEX_SETS, SavedModel
from .registration import AUTO, hash_texts


def default_batch_size(n_cells: int) -> int:
    """Return the default number of cells per batch: small data need many small steps."""
    return 64 if n_cells < 20_000 else 128 if n_cells < 100_000 else 256


def default_max_epochs(n_cells: int, batch_size: int) -> int:
    """Return the epochs of 800 steps for 2,600 cells; steps grow as the square root of cells.

    For a training without validation cells or with the published objective, which has no other
    criterion to end.
    """
    n_steps = 800 * math.sqrt(max(n_cells / 2_600, 1))
    return int(np.clip(round(n_steps * batch_size / n_cells), 3, 200))


MAX_STEPS = 1000
STEPS_PER_EPOCH = 50  # at most, so that large data are validated before they have been read once
STEPS_TO_JUDGE = 100
STEPS_TO_AVERAGE = 50


@dataclass(frozen=True)
class Rounds:
    """How a training that ends by itself is divided: epochs of few steps, and validations."""

    steps_per_epoch: int
    epochs_per_validation: int

    @classmethod
    def of(cls, n_batches: int) -> Rounds:
        """Divide a training whose cells make so many batches."""
        steps = min(n_batches, STEPS_PER_EPOCH)
        return cls(steps, max(1, round(STEPS_PER_EPOCH / steps)))

    @property
    def max_epochs(self) -> int:
        """Epochs of ``MAX_STEPS`` steps."""
        return -(-MAX_STEPS // self.steps_per_epoch)

    @property
    def window(self) -> int:
        """Validations that are compared to see whether anything is still gained."""
        return -(-STEPS_TO_JUDGE // (self.steps_per_epoch * self.epochs_per_validation))


def default_lr(n_hidden: int) -> float:
    """Return the default learning rate: 0.001 at width 64, and inversely with the width."""
    return 1e-3 * min(1.0, 64 / n_hidden)


Adaptation = Literal["auto", "fit", "finetune", "scratch"]
ENOUGH = 0.9  # of what components know of cells, to keep a pretrained network
OF_THE_NETWORK = (
    *("module", "config_", "size_", "pretrained_", "provenance_", "is_trained_", "history_"),
)
NOT_COMPLETED = "Training was not completed: the model is as it was before."


def as_epochs(max_epochs: float | None, name: str = "max_epochs") -> int | None:
    """Return a number of epochs, which tutorials compute as a fraction."""
    if max_epochs is None:
        return None
    return max(1, round(check(name, max_epochs, PositiveFloat)))


def _rows_of_split(name: str, doc: str) -> Any:
    """Return a property with the rows of one set of the split."""

    def get(model: TrainedModel) -> np.ndarray | None:
        return model._rows_now(getattr(model, name))

    def put(model: TrainedModel, rows: np.ndarray | None) -> None:
        setattr(model, name, rows)

    return property(get, put, doc=doc)


class TrainedModel(SavedModel):
    """``train``, and which cells were trained on."""

    _shows_progress = True

    def train(
        self,
        max_epochs: int | None = None,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        train_size: float | None = None,
        validation_size: float | None = None,
        shuffle_set_split: bool = True,
        batch_size: int | None = None,
        tokens_per_batch: int | None = None,
        early_stopping: bool = False,
        checkpoint_dir: str | os.PathLike | None = None,
        ckpt_path: str | os.PathLike | None = None,
        optimizer: OptimizerConfig | None = None,
        masking: MaskingConfig | None = None,
        finetuning: FinetuningConfig | None = None,
        adapt: Adaptation = "auto",
        datasplitter_kwargs: dict[str, Any] | None = None,
        plan_kwargs: dict[str, Any] | None = None,
        **trainer_kwargs: Any,
    ) -> None:
        """Train the model.

        A model that starts from a pretrained network is adapted to the cells in seconds. If this
        says little more of them than their principal components do, a network is trained from
        scratch, and the better of both is kept. The criterion needs no labels: how much of one
        half of the counts of held-out cells the representation of the other half predicts.

        Without a pretrained network, the first training starts from statistics of the training
        cells; a further one goes on from the present weights. If training is interrupted, the
        model is left as it was before.

        Parameters
        ----------
        max_epochs
            Passes over the training cells, rounded. By default training goes on until the
            validation loss falls no more, in epochs of at most 50 steps, and at most 1,000 steps;
            the weights are then averages over the last steps.
        accelerator, devices
            See :class:`scvi.train.Trainer`.
        train_size, validation_size, shuffle_set_split
            See :class:`scvi.dataloaders.DataSplitter`. By default nine tenths are trained on.
        batch_size
            Cells per step. By default 64, and more for large data.
        tokens_per_batch
            Expressed genes per step, instead of a number of cells: memory and time of a step then
            depend less on the depths of its cells.
        early_stopping
            Stop when the validation loss has not fallen for ``early_stopping_patience`` epochs.
        checkpoint_dir
            Directory for ``last.ckpt``, written after every epoch, to go on from.
        ckpt_path
            A ``last.ckpt`` to go on from, with the same arguments otherwise. On a CPU the result
            is that of an uninterrupted training.
        optimizer, masking
            Optimiser, schedule and masking. A model with the published objective is masked as
            published by default.
        finetuning
            What to freeze, learning rates by layer and low-rank adapters, for a trained model.
        adapt
            What to do with a pretrained network: ``"fit"`` the latent space alone; ``"finetune"``
            the network on the cells; forget it and train from ``"scratch"``. By default as
            described above, or ``"finetune"`` if ``max_epochs``, ``optimizer``, ``masking`` or
            ``plan_kwargs`` say how to train.
        datasplitter_kwargs
            Passed to :class:`scvi.dataloaders.DataSplitter`, for instance ``external_indexing``.
        plan_kwargs
            Single fields of ``optimizer`` and ``masking``, for instance ``{"lr": 3e-4}``.
        **trainer_kwargs
            Passed to :class:`scvi.train.Trainer`. ``gradient_clip_val`` is 1 unless given, and
            ``precision`` ``"bf16-mixed"`` on CUDA. ``logger`` adds loggers.

        Raises
        ------
        ValueError
            If the model has no data, or ``ckpt_path`` is of a training on other data.
        FileNotFoundError
            If ``ckpt_path`` does not exist.

        Examples
        --------
        >>> model = scxtrimo.model.XTrimoGene(adata, size="tiny")
        >>> model.train(max_epochs=2, plan_kwargs={"lr": 5e-4}, enable_progress_bar=False)
        >>> len(model.history["validation_loss"])
        2
        """
        if self.adata_manager is None:
            raise ValueError(
                "The model has no data to train on; load it with `load(..., adata=...)`."
            )
        self._validate_anndata()
        n_cells = self.adata.n_obs
        if batch_size is not None and tokens_per_batch is not None:
            raise ValueError("Give either `batch_size` or `tokens_per_batch`, not both.")
        if batch_size is None:
            batch_size = default_batch_size(n_cells)
        batch_size = check("batch_size", batch_size, PositiveInt)
        tokens_per_batch = check("tokens_per_batch", tokens_per_batch, PositiveInt | None)
        max_epochs = as_epochs(max_epochs)
        set_epochs = max_epochs is not None
        adapt = check("adapt", adapt, Adaptation)
        check("early_stopping", early_stopping, bool)
        for name, value, cls in (
            ("optimizer", optimizer, OptimizerConfig),
            ("masking", masking, MaskingConfig),
            ("finetuning", finetuning, FinetuningConfig),
        ):
            if value is not None and not isinstance(value, cls):
                raise TypeError(f"{name}={value!r} must be of type scxtrimo.train.{cls.__name__}.")
        check("train_size", train_size, PositiveProbability | None)
        check("validation_size", validation_size, Fraction | None)
        if ckpt_path is not None:
            check_resumed(ckpt_path, self._trained_on())
        device = parse_device_args(accelerator, devices, return_device="torch")[2]
        splitter = RaggedDataSplitter(
            self.adata_manager,
            train_size=train_size,
            validation_size=validation_size,
            shuffle_set_split=shuffle_set_split,
            batch_size=batch_size,
            tokens_per_batch=tokens_per_batch,
            seed=self.seed_,
            **({"pin_memory": device.type == "cuda"} | (datasplitter_kwargs or {})),
        )
        splitter.setup()
        if tokens_per_batch is not None:
            batch_size = max(1, round(splitter.n_train / splitter.n_batches))
            longest = int(splitter.n_tokens.max())
            if tokens_per_batch < 2 * longest:
                warnings.warn(
                    f"tokens_per_batch={tokens_per_batch:,} is less than twice the {longest:,} "
                    "genes of the longest cell: some batches will have more tokens.",
                    UserWarning,
                    stacklevel=2,
                )
        rounds: Rounds | None = None
        if not set_epochs and splitter.n_val and self.config_.has_bottleneck:
            rounds = Rounds.of(splitter.n_batches)
        if max_epochs is None:
            max_epochs = rounds.max_epochs if rounds else default_max_epochs(n_cells, batch_size)
        if early_stopping and splitter.n_val == 0:
            raise ValueError(
                f"early_stopping=True needs validation cells, but none of the {n_cells:,} cells "
                "is left for them. Lower `train_size` or name some in `external_indexing`."
            )
        if finetuning is not None:
            finetuning.check(self.config_.n_layers)
            if not self.is_trained_ and ckpt_path is None:
                raise ValueError("finetuning= is for a model that was trained before.")
        starts_here = not self.is_trained_ and ckpt_path is None
        if adapt == AUTO and (set_epochs or optimizer or masking or plan_kwargs):
            adapt = "finetune"
        elif adapt != AUTO and not (starts_here and self.pretrained_):
            raise ValueError(
                f"adapt={adapt!r} is for a model that starts from a pretrained network and was "
                "not trained yet."
            )
        usual = {"final_lr_fraction": 1.0} if rounds else {}
        given_callbacks = as_list(trainer_kwargs.pop("callbacks", None))
        defaults: dict[str, Any] = {
            "gradient_clip_val": 1.0,
            "check_val_every_n_epoch": 1,
            "early_stopping_monitor": "validation_loss",
            "early_stopping_patience": 10,
            "precision": "bf16-mixed" if device.type == "cuda" else "32-true",
        }
        length = f"{max_epochs} epochs"
        if rounds is not None:
            length = f"at most {max_epochs} epochs of {rounds.steps_per_epoch} steps"
            defaults["limit_train_batches"] = rounds.steps_per_epoch
            defaults["check_val_every_n_epoch"] = rounds.epochs_per_validation
        settings = defaults | trainer_kwargs
        has_bar = settings.get("enable_progress_bar", True)
        has_bar = has_bar and settings.get("simple_progress_bar", True)
        settings |= {"simple_progress_bar": False} if has_bar else {}
        size = f"{batch_size} cells"
        if tokens_per_batch is not None:
            size = f"about {tokens_per_batch:,} tokens ({size})"

        def make_runner() -> XTrimoGeneRunner:
            plan = self._make_plan(optimizer, masking, finetuning, plan_kwargs or {}, usual)
            plan.trained_on = self._trained_on()
            callbacks = list(given_callbacks)
            if rounds is not None:
                callbacks += [AverageWeights(STEPS_TO_AVERAGE), StopWhenLevel(rounds.window)]
            if checkpoint_dir is not None:
                callbacks.append(ResumeCheckpoint(checkpoint_dir))
            if has_bar:
                may_stop = early_stopping or rounds is not None
                callbacks.append(CellProgress(splitter.n_train / splitter.n_batches, may_stop))
            return XTrimoGeneRunner(
                self,
                training_plan=plan,
                data_splitter=splitter,
                max_epochs=max_epochs,
                accelerator=accelerator,
                devices=devices,
                early_stopping=early_stopping,
                ckpt_path=ckpt_path,
                callbacks=callbacks,
                **settings,
            )

        with quiet_lightning():
            runner = make_runner()  # before any work: it checks the arguments of the trainer
        with (
            quiet_lightning(),
            torch_threads(threads_for(self.config_.n_hidden)),
            self._progress_as_asked(trainer_kwargs),
            self._unchanged_if_interrupted(),
        ):
            self._split_cells = self.adata.obs_names
            fitted: Explained | None = None
            before: dict[str, Any] = {}
            if starts_here and self.pretrained_ and adapt in (AUTO, "fit"):
                fitted = self._fit_pretrained(splitter, device)
                if adapt == "fit" or fitted is None or fitted.knowledge >= ENOUGH:
                    return
                logger.info(
                    f"{self.pretrained_!r} knows little of these cells: {fitted.knowledge:.0%} of "
                    "what their components say. A network is trained from scratch, to keep the "
                    "better one."
                )
            if starts_here and self.pretrained_ and adapt != "finetune":
                before = self._start_from_scratch()
                runner = make_runner()
            plan = runner.training_plan
            logger.info(
                f"Training {self.size_!r} on {splitter.n_train:,} of {n_cells:,} cells: "
                f"{length}, batches of {size}, learning rate "
                f"{plan.optimizer_config.lr:g}, seed {self.seed_}, on {device}."
            )
            if ckpt_path is None:
                self._prepare_training(splitter.train_idx)
            # Lightning keeps the mode it finds, and that of a trained model is eval.
            self.module.train()
            with finetuned(self.module.net, plan.finetuning, self.seed_):
                runner()
            trained = self._finish_training(splitter.train_idx, splitter.val_idx)
            if fitted is not None and trained is not None:
                self._keep_better(fitted, trained, before)

    def _fit_pretrained(self, splitter: RaggedDataSplitter, device: Any) -> Explained | None:
        """Fit the latent space to a pretrained network, whose weights stay as they are."""
        self._prepare_training(splitter.train_idx)
        self.to_device(device)
        self.module.eval()
        self.history_, self.is_trained_ = {}, True
        explained = self._finish_training(splitter.train_idx, splitter.val_idx)
        rows = splitter.train_idx, splitter.val_idx, splitter.test_idx
        for name, rows_of_set in zip(INDEX_SETS, rows, strict=True):
            setattr(self, name, rows_of_set)
        return explained

    def _start_from_scratch(self) -> dict[str, Any]:
        """Take a network with random weights; return what is needed to take the former back."""
        before = {name: getattr(self, name) for name in OF_THE_NETWORK}
        own = {name: getattr(self.config_, name) for name in self._own_hyperparameters}
        size = choose_size(self.adata.n_obs, torch.cuda.is_available())
        self.size_, self.config_ = size, self._config_cls.from_size(size, **own)
        self.pretrained_, self.provenance_, self.is_trained_ = None, {}, False
        self.module = self._make_module()
        return before

    def _keep_better(self, fitted: Explained, trained: Explained, before: dict[str, Any]) -> None:
        """Keep what predicts more of held-out counts: the network trained now, or that before."""
        ways = {"trained from scratch": trained, repr(before["pretrained_"]): fitted}
        kept = max(ways, key=lambda way: ways[way].representation)
        if ways[kept] is fitted:
            for name, value in before.items():
                setattr(self, name, value)
        shown = ", ".join(f"{way} {ways[way].representation:.2%}" for way in ways)
        logger.info(f"Of the variance of held-out halves: {shown}. Kept: {kept}.")

    train_indices = _rows_of_split(
        "train_indices_",
        """Rows of the cells trained on, in the present data; ``None`` if these have none of them.

        Examples
        --------
        >>> model.train_indices.shape
        (630,)
        """,
    )
    validation_indices = _rows_of_split(
        "validation_indices_",
        """Rows of the present data that were held out, wherever these cells are now.

        Examples
        --------
        >>> model.validation_indices.shape
        (70,)
        """,
    )
    test_indices = _rows_of_split(
        "test_indices_",
        """Rows of the present data that were neither trained on nor held out.

        Examples
        --------
        >>> len(model.test_indices)
        0
        """,
    )

    def _rows_now(self, rows: np.ndarray | None) -> np.ndarray | None:
        """Return where cells of the split are now; ``None`` if that cannot be said."""
        if rows is None or self.adata is None:
            return rows
        present, trained = self.adata.obs_names, self._split_cells
        if isinstance(trained, str):
            if hash_texts(present) != trained:
                return None
            self._split_cells = trained = present
        if trained is None:
            return None
        if present is trained or present.equals(trained):
            return rows
        if not (present.is_unique and trained.is_unique):
            return None
        places = present.get_indexer(trained[rows])
        found = np.sort(places[places >= 0])
        return found if len(found) else None

    @contextmanager
    def _progress_as_asked(self, trainer_kwargs: Mapping[str, Any]) -> Iterator[None]:
        """Show no progress bars where the trainer is to show none."""
        before = self._shows_progress
        self._shows_progress = bool(trainer_kwargs.get("enable_progress_bar", True)) and before
        try:
            yield
        finally:
            self._shows_progress = before

    def _trained_on(self) -> dict[str, str]:
        """Return hashes of what a training that goes on must find as it was."""
        assert self.adata_manager is not None
        hashes = {
            "hyper-parameters": hash_texts(sorted(asdict(self.config_).items())),
            "genes": hash_texts(self.vocabulary.gene_ids),
            "cells": hash_texts(self.adata.obs_names),
        }
        for key, field in self.adata_manager.registry["field_registries"].items():
            state = field["state_registry"]
            if CategoryField.CODES_KEY in state and key != REGISTRY_KEYS.LABELS_KEY:
                parts = (
                    *state[CategoryField.MAPPING_KEY],
                    state[CategoryField.CODES_KEY].tolist(),
                )
                hashes[f"categories of {key!r}"] = hash_texts(parts)
        return hashes

    @contextmanager
    def _unchanged_if_interrupted(self, *attributes: str) -> Iterator[None]:
        """Give the model back as it was, if what is done to it does not come to an end."""
        names = (*OF_THE_NETWORK, "_split_cells", *(f"{n}_" for n in INDEX_SETS))
        before = {name: getattr(self, name) for name in (*names, *attributes)}
        weights = {k: v.detach().to("cpu", copy=True) for k, v in self.module.state_dict().items()}
        was_trained, device = self.module.training, self.device
        try:
            yield
        except BaseException as error:
            for name, value in before.items():
                setattr(self, name, value)
            self.to_device(device)  # Lightning moves what it trained
            self.module.load_state_dict(weights)
            self.module.train(was_trained)
            if NOT_COMPLETED not in getattr(error, "__notes__", ()):  # said once
                logger.warning(NOT_COMPLETED)
                error.add_note(NOT_COMPLETED)
            raise

    def _prepare_training(self, rows: np.ndarray) -> None:
        """Take from the training cells what the first training starts from."""
        is_new = not self.is_trained_
        has_mean = bool(self.module.mean_expression.any())  # published weights come without
        if not is_new and has_mean:
            return
        config, space = self.config_, self.module.latent_space
        n_components = 0 if space is None or not is_new else len(space.measured_weight)
        n_embedding = config.n_hidden if is_new and config.pca_initialization else 0
        if self.pretrained_ is not None:
            n_embedding = n_components
        statistics = gene_statistics(
            self.adata_manager,
            rows,
            n_genes=self.module.n_genes,
            n_components=n_components,
            n_embedding=n_embedding,
            n_input_genes=config.n_input_genes,
            seed=self.seed_,
        )
        if not is_new:
            self.module.mean_expression.copy_(statistics["mean_expression"])
            return
        if space is not None and not statistics["components"]:
            raise ValueError(
                f"{len(rows)} training cells and {int(statistics['is_read'].sum())} genes to "
                'read have no principal components. Pass `latent_space="bottleneck"` to the '
                "model to do without."
            )
        start = start_from if self.pretrained_ is None else start_from_pretrained
        start(self.module, statistics)

    def _finish_training(self, rows: np.ndarray, held_out: np.ndarray) -> Explained | None:
        """Fit what is fitted to the trained network, its training cells and held-out cells."""
        return None

    def compile(self, **kwargs: Any) -> None:
        """Compile the encoder layers, for training and for embedding.

        On a CPU it does not pay. A saved model is not compiled when it is loaded.

        Parameters
        ----------
        **kwargs
            Passed to :func:`torch.compile`; ``dynamic`` is true unless given.

        Examples
        --------
        >>> model.compile()  # doctest: +SKIP
        """
        for layer in self.module.net.encoder.layers:
            layer.compile(**({"dynamic": True} | kwargs))

    def _make_plan(
        self,
        optimizer: OptimizerConfig | None,
        masking: MaskingConfig | None,
        finetuning: FinetuningConfig | None,
        plan_kwargs: dict[str, Any],
        usual: dict[str, Any] | None = None,
    ) -> XTrimoGenePlan:
        known = sorted(f.name for cls in (OptimizerConfig, MaskingConfig) for f in fields(cls))
        if unknown := sorted(set(plan_kwargs) - set(known)):
            raise TypeError(f"Unknown plan_kwargs {unknown}; choose from {known}.")
        if (optimizer or masking) and plan_kwargs:
            raise TypeError("Give either `optimizer` and `masking` or `plan_kwargs`, not both.")
        settings: dict[str, Any] = {"lr": default_lr(self.config_.n_hidden)} | (usual or {})
        if self.config_.has_bottleneck:
            # What is predicted at another depth must be right over all genes.
            settings["natural_weights"] = self.config_.read_depth_aware
        else:
            settings |= asdict(MaskingConfig.published())
        settings |= plan_kwargs

        def configured(cls: type) -> Any:
            return cls(**{f.name: settings[f.name] for f in fields(cls) if f.name in settings})

        return self._plan_class()(
            self.module,
            optimizer or configured(OptimizerConfig),
            masking or configured(MaskingConfig),
            seed=self.seed_,
            finetuning=finetuning,
            **self._plan_arguments(),
        )

    def _plan_class(self) -> type[XTrimoGenePlan]:
        return XTrimoGenePlan

    def _plan_arguments(self) -> dict[str, Any]:
        """Return what the training plan of this class takes beyond :class:`XTrimoGenePlan`."""
        return {}
