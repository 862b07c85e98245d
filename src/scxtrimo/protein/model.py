"""xTrimoPGLM: a protein language model that understands and generates."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Literal, Self

import h5py
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import scvi
import torch
import zarr
from anndata import AnnData
from pydantic import PositiveFloat, PositiveInt
from scvi.model._utils import parse_device_args
from scvi.train._logger import SimpleLogger
from tqdm.auto import tqdm

from .. import __version__
from .._logging import logger
from .._validation import Seed, check
from ..checkpoint.native import read_model, write_model
from ..data.columns import get_column
from ..model.training import NOT_COMPLETED
from ..nn.ranges import NonNegativeFloat, PositiveProbability
from ..train.trainer import (
    history_from_dict,
    history_to_dict,
    join_histories,
    later_epochs,
    logged_history,
    quiet_lightning,
)
from . import contacts, generation, scores, training
from .contacts import ContactHead
from .embedding import (
    POOLINGS,
    Pooling,
    Reading,
    default_max_tokens,
    residue_states,
)
from .network import SIZES, Layer, XTrimoPGLMConfig, XTrimoPGLMNet
from .objective import ProteinObjective
from .published import Quantized, read_published, write_published
from .scores import Strategy
from .sequences import SEQUENCE, Long, Proteins, Sequences
from .tokenizer import SMASK, Tokenizer

SETUP_KEY = "scxtrimo_proteins"
AUTO, BLANK = "auto", "_"
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
REQUIRED = {"model_class", "config", "seed", "size", "is_trained", "history", "sequence_key"}


class XTrimoPGLM:
    """A protein language model (Chen et al. 2024).

    Parameters
    ----------
    adata
        Proteins, one a row, registered with :meth:`setup_anndata`. Without, the model has no data
        to train on; its other methods take sequences.
    size
        One of :data:`~scxtrimo.protein.SIZES`; by default ``"tiny"`` or ``"small"``, by how many
        residues there are.
    config
        All hyper-parameters, instead of ``size``.
    seed
        Seed of weights, examples and samples; by default ``scvi.settings.seed``, or 0.
    **hyperparameters
        Fields of :class:`~scxtrimo.model.XTrimoPGLMConfig` that differ from those of ``size``.

    Examples
    --------
    >>> proteins = scxtrimo.read_fasta("proteins.fasta")
    >>> scxtrimo.model.XTrimoPGLM.setup_anndata(proteins, sequence_key="sequence")
    >>> model = scxtrimo.model.XTrimoPGLM(proteins, size="tiny")
    >>> model.train(max_epochs=2, enable_progress_bar=False)
    >>> proteins.obsm["X_pglm"] = model.get_latent_representation()
    """

    def __init__(
        self,
        adata: AnnData | None = None,
        size: str = AUTO,
        config: XTrimoPGLMConfig | None = None,
        seed: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        self.adata, self.sequence_key = adata, SEQUENCE
        if adata is not None:
            self.sequence_key = _setup_of(adata)
        self.seed_ = check("seed", scvi.settings.seed or 0 if seed is None else seed, Seed)
        if config is None:
            if size == AUTO:
                n_residues = 0 if adata is None else self._own_proteins().lengths.sum()
                size = training.choose_size(int(n_residues))
                logger.info(f"Chose size {size!r} for {n_residues:,} residues.")
            if size not in SIZES:
                raise ValueError(
                    f"size={size!r} is unknown; choose 'auto' or one of {list(SIZES)}."
                )
            config = SIZES[size]
        elif size != AUTO:
            raise ValueError("Give either `size` or `config`, not both.")
        else:
            size = "custom"
        try:
            self.config = replace(config, **hyperparameters)
        except TypeError:
            known = list(XTrimoPGLMConfig.__dataclass_fields__)
            unknown = sorted(hyperparameters.keys() - set(known))
            raise TypeError(f"Unknown hyper-parameters {unknown}; choose from {known}.") from None
        self.size_, self.is_trained_ = size, False
        self.history: dict[str, pd.DataFrame] | None = None
        self.stored_config: dict[str, Any] | None = None  # of a published checkpoint
        self._net: XTrimoPGLMNet | None = None
        self.contact_head_: ContactHead | None = None

    @property
    def net(self) -> XTrimoPGLMNet:
        """The network, made when it is first needed.

        Examples
        --------
        >>> proteins_model.net.config.n_layers
        2
        """
        if self._net is None:
            # It may be needed first without gradients, and be trained later.
            with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed_)
                self._net = XTrimoPGLMNet(self.config).eval()
                training.initialize(self._net)
        return self._net

    @classmethod
    def setup_anndata(cls, adata: AnnData, sequence_key: str = SEQUENCE) -> None:
        """Register proteins, and check them.

        Parameters
        ----------
        adata
            One protein a row.
        sequence_key
            Column of ``adata.obs`` with the sequences, in one-letter code.

        Raises
        ------
        ValueError
            If a sequence is empty, has no known residue, or characters that are no residues.

        Examples
        --------
        >>> scxtrimo.model.XTrimoPGLM.setup_anndata(proteins)
        """
        if not isinstance(adata, AnnData):
            raise TypeError(f"`adata` must be an AnnData, not {type(adata).__name__}.")
        get_column(adata.obs, "adata.obs", sequence_key)
        Proteins.read(adata, sequence_key)
        adata.uns[SETUP_KEY] = {"sequence_key": sequence_key}

    def _own_proteins(self) -> Proteins:
        if self.adata is None:
            raise ValueError("The model has no data: pass sequences, or an AnnData of proteins.")
        return Proteins.read(self.adata, self.sequence_key)

    def _proteins(self, proteins: Sequences | None) -> Proteins:
        if proteins is None:
            return self._own_proteins()
        key = self.sequence_key
        if isinstance(proteins, AnnData) and SETUP_KEY in proteins.uns:
            key = _setup_of(proteins)
        return Proteins.read(proteins, key)

    def __repr__(self) -> str:
        c = self.config
        n = sum(p.numel() for p in self.net.parameters())
        positions = "two kinds of positions" if c.rotary_2d else "one kind of positions"
        state = "trained" if self.is_trained_ else "not trained"
        return (
            f"XTrimoPGLM {self.size_!r} with {n:,} parameters, {state}\n"
            f"  {c.n_layers} layers of width {c.n_hidden}, {c.n_heads} heads; {positions}\n"
            f"  objective: {c.objective}; seed: {self.seed_}"
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are.

        Examples
        --------
        >>> proteins_model.device
        device(type='cpu')
        """
        return self.net.output_layer.weight.device

    def to_device(self, device: str | torch.device) -> None:
        """Move the weights.

        Parameters
        ----------
        device
            For instance ``"cuda:0"``.

        Examples
        --------
        >>> proteins_model.to_device("cpu")
        """
        self.net.to(device)

    def train(
        self,
        max_epochs: int | None = None,
        objective: ProteinObjective | None = None,
        lr: float | None = None,
        tokens_per_batch: int = 8192,
        train_size: float = 0.9,
        accelerator: str = "auto",
        devices: int | list[int] | str = "auto",
        **trainer_kwargs: Any,
    ) -> None:
        """Train on the proteins of the model, or go on with a network that was trained.

        Parameters
        ----------
        max_epochs
            Passes over the training proteins; by default about 2,000 steps, at most 200 passes.
        objective
            How much of the training goes to masked residues, to spans to fill in and to whole
            sequences; by default half, a quarter and a quarter, or what the network is for alone.
        lr
            Learning rate; by default 0.002 at width 64, and inversely with the width.
        tokens_per_batch
            Residues of a step.
        train_size
            Part of the proteins to train on; the others are held out. Proteins of one family may
            be in both.
        accelerator, devices
            See :class:`lightning.pytorch.Trainer`.
        **trainer_kwargs
            Passed to :class:`lightning.pytorch.Trainer`.

        Raises
        ------
        FloatingPointError
            If the loss is not finite. The weights are then as they were before.

        Examples
        --------
        >>> proteins_model.train(max_epochs=1, enable_progress_bar=False)
        >>> sorted(proteins_model.history)[:2]
        ['generation_loss_train', 'generation_loss_validation']
        """
        proteins = self._own_proteins()
        max_epochs = check("max_epochs", max_epochs, PositiveInt | None)
        tokens_per_batch = check("tokens_per_batch", tokens_per_batch, PositiveInt)
        train_size = check("train_size", train_size, PositiveProbability)
        lr = check("lr", lr, PositiveFloat | None) or training.default_lr(self.config)
        objective = self._objective(objective)
        order = np.random.default_rng(self.seed_).permutation(len(proteins.ids))
        n_train = max(1, round(train_size * len(order)))
        rows = np.sort(order[:n_train]), np.sort(order[n_train:])
        options = objective, tokens_per_batch, self.config.max_length - 2, self.seed_
        fitted = training.Examples([proteins.ids[i] for i in rows[0]], *options)
        held_out = training.Examples([proteins.ids[i] for i in rows[1]], *options, True)
        if max_epochs is None:
            max_epochs = int(np.clip(round(training.STEPS / len(fitted)), 1, training.MAX_EPOCHS))
        n_steps = max_epochs * len(fitted)
        logger.info(
            f"Training {self.size_!r} on {n_train:,} of {len(order):,} proteins: {max_epochs} "
            f"epochs, {n_steps:,} steps of about {tokens_per_batch:,} residues, learning rate "
            f"{lr:g}."
        )
        plan = training.ProteinPlan(self.net, objective, lr, n_steps)
        settings: dict[str, Any] = {
            "max_epochs": max_epochs,
            "accelerator": accelerator,
            "devices": devices,
            "gradient_clip_val": 1.0,
            "enable_checkpointing": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "limit_val_batches": 1.0 if len(rows[1]) else 0,
            "logger": SimpleLogger(),
        } | trainer_kwargs
        before = {k: v.detach().cpu().clone() for k, v in self.net.state_dict().items()}
        self.net.train()
        try:
            with quiet_lightning():
                trainer = pl.Trainer(**settings)
                trainer.fit(plan, training.loader(fitted), training.loader(held_out))
            if trainer.interrupted:
                raise KeyboardInterrupt
        except BaseException:
            self.net.load_state_dict(before)
            logger.warning(NOT_COMPLETED)
            raise
        finally:
            self.net.eval()
        earlier = self.history or {}
        self.history = join_histories(earlier, later_epochs(earlier, logged_history(trainer)))
        self.is_trained_ = True
        self.contact_head_ = None  # of other weights

    def _objective(self, given: ProteinObjective | None) -> ProteinObjective:
        only = {"masked": (1.0, 0.0, 0.0), "causal": (0.0, 0.0, 1.0)}.get(self.config.objective)
        if only is None:
            return given or ProteinObjective()
        if given is not None and (given.mix > 0).tolist() != [part > 0 for part in only]:
            raise ValueError(
                f"{given} does not go with a network whose objective is {self.config.objective!r}."
            )
        return given or ProteinObjective(*only)

    @torch.inference_mode()
    def get_latent_representation(
        self,
        proteins: Sequences | None = None,
        *,
        pooling: Pooling = "mean",
        layer: Layer = -1,
        long: Long = "window",
        window: int | None = None,
        max_tokens: int | None = None,
        out: str | os.PathLike | None = None,
    ) -> np.ndarray | list[np.ndarray] | Path:
        """Return representations of proteins or of their residues.

        The end of a sequence, and nothing else that is no residue, is read with it; only
        ``pooling="eos"`` returns it. Results do not depend on what else is in a batch.

        Parameters
        ----------
        proteins
            AnnData, one sequence, or several, by name if it is a mapping; by default the model's
            own proteins.
        pooling
            ``"mean"`` or ``"max"`` over residues, the end of the sequence (``"eos"``), or
            ``"residue"``, one row for every residue.
        layer
            Block, from 1; 0 for the embedding; -1 for the last one after its norm, ``"pre_norm"``
            before it.
        long
            What to do with proteins longer than ``window``: read them in windows that overlap by a
            quarter and average (``"window"``), raise an ``"error"``, ``"truncate"`` them, or read
            them as a whole (``"full"``), whose memory grows with their length.
        window
            Residues that are read at once; by default as many as the network was trained on.
        max_tokens
            Residues of a batch; by default 1,024, on a GPU 131,072.
        out
            File to stream to, ``.h5`` or ``.zarr``; its name is returned.

        Returns
        -------
        float32 array of shape ``(n_proteins, n_hidden)``; with ``pooling="residue"`` a list with
        an array of shape ``(n_residues, n_hidden)`` for each protein. In a file, ``embeddings``
        with the attribute ``names``, or one data set for each protein, by name.

        Examples
        --------
        >>> proteins_model.get_latent_representation(["MKTAYIAK", "MTYKL"]).shape
        (2, 64)
        >>> proteins_model.get_latent_representation("MKTAYIAK", pooling="residue")[0].shape
        (8, 64)
        """
        pooling = check("pooling", pooling, Pooling)
        how = self._reading(layer, long, window, max_tokens)
        read = self._proteins(proteins)
        states = self._with_progress(residue_states(self.net, read, how), len(read.ids))
        if pooling == "residue":
            if out is not None:
                return _stream(Path(out), read.names, ((i, x.numpy()) for i, x, _ in states))
            parts = {i: x.numpy() for i, x, _ in states}
            return [parts[i] for i in range(len(read.ids))]
        pooled = np.empty((len(read.ids), self.config.n_hidden), dtype=np.float32)
        for i, of_residues, of_end in states:
            pooled[i] = POOLINGS[pooling](of_residues, of_end).numpy()
        return pooled if out is None else _store(Path(out), read.names, pooled)

    def _reading(
        self, layer: Layer, long: Long, window: int | None, max_tokens: int | None
    ) -> Reading:
        n_layers = self.config.n_layers
        if isinstance(layer, str):
            check("layer", layer, Layer)
        else:
            layer = int(check("layer", layer, int))
            if not -1 <= layer <= n_layers:
                raise ValueError(
                    f"layer={layer} must be from 0 to {n_layers}, -1 for the last or 'pre_norm'."
                )
        window = check("window", window, PositiveInt | None)
        max_tokens = check("max_tokens", max_tokens, PositiveInt | None)
        return Reading(layer, check("long", long, Long), window, max_tokens)

    def _with_progress(self, items: Iterator[Any], n: int) -> Iterator[Any]:
        return iter(tqdm(items, "Embedding", n, unit="protein", delay=3, leave=False))

    @torch.inference_mode()
    def score_mutations(
        self,
        wild_type: str,
        mutations: Sequence[str] | pd.DataFrame | Literal["all"] = "all",
        *,
        strategy: Strategy | Literal["auto"] = "auto",
        offset: int = 1,
    ) -> pd.DataFrame:
        """Score variants of a protein; higher is more likely.

        Parameters
        ----------
        wild_type
            Sequence that the variants are made of.
        mutations
            Variants as ``"A24C"``, several substitutions as ``"A24C:G56D"``, deletions as
            ``"A24del"`` or ``"A24_G26del"``, insertions as ``"A24_G25insMK"``; a data frame with
            them in the column ``mutant`` (ProteinGym's), or ``"all"`` single substitutions.
        strategy
            ``"masked"``: log-ratio of new and old residue where the place is masked.
            ``"wild-type"``: where it is not, which takes one pass for all. Those of several
            substitutions are added. ``"pseudo-likelihood"`` and ``"causal"``: the log-likelihood
            of the variant less that of the wild type, every residue given all others or those
            before it. By default ``"masked"`` or ``"causal"``, by what the network was trained
            for, and a likelihood if residues are inserted or deleted.
        offset
            Number of the first residue of ``wild_type``.

        Returns
        -------
        The data frame that was given, or one of ``mutant``, with the column ``score``.

        Raises
        ------
        ValueError
            If a variant is written in another way, its old residue is not that of the wild type,
            or the network was not trained for ``strategy``.

        Examples
        --------
        >>> proteins_model.score_mutations("MKTAYIAK", ["K2R", "K2R:T3S"])["mutant"].tolist()
        ['K2R', 'K2R:T3S']
        """
        offset = check("offset", offset, int)
        read = Proteins.read({"wild type": wild_type})
        sequence, ids = read.sequences[0], read.ids[0]
        frame = mutations.copy() if isinstance(mutations, pd.DataFrame) else None
        if frame is not None:
            names = get_column(frame, "mutations", "mutant").astype(str).tolist()
        elif isinstance(mutations, str):
            is_all = mutations == "all"
            names = scores.all_substitutions(sequence, offset) if is_all else [mutations]
        else:
            names = [str(name) for name in mutations]
        variants = scores.check_variants(names, sequence, offset)
        is_aligned = all(variant.is_aligned for variant in variants)
        if strategy == AUTO:
            is_causal = self.config.objective == "causal"
            strategy = "causal" if is_causal else "masked" if is_aligned else "pseudo-likelihood"
        strategy = check("strategy", strategy, Strategy)
        scores.check_strategy(self.net, strategy)
        if not is_aligned and strategy in ("masked", "wild-type"):
            first = next(variant.name for variant in variants if not variant.is_aligned)
            raise ValueError(
                f"strategy={strategy!r} cannot score {first!r}, which inserts or deletes "
                "residues: use 'pseudo-likelihood' or 'causal'."
            )
        if strategy in ("masked", "wild-type"):
            found = scores.marginals(
                self.net, ids, variants, strategy, default_max_tokens(self.net)
            )
        else:
            whole = Proteins.read([sequence, *(variant.sequence for variant in variants)])
            sums = scores.log_likelihoods(
                self.net, whole, strategy == "causal", default_max_tokens(self.net)
            )
            found = np.array([of_one.sum() for of_one in sums[1:]]) - sums[0].sum()
        frame = pd.DataFrame({"mutant": names}) if frame is None else frame
        return frame.assign(score=found.astype(float))

    def mutation_matrix(
        self, wild_type: str, *, strategy: Strategy | Literal["auto"] = "auto", offset: int = 1
    ) -> pd.DataFrame:
        """Score all single substitutions.

        Parameters
        ----------
        wild_type, strategy, offset
            See :meth:`score_mutations`.

        Returns
        -------
        Data frame, residues in rows and the 20 amino acids in columns; 0 for the wild type. Drawn
        by :func:`scxtrimo.pl.mutation_map`.

        Examples
        --------
        >>> proteins_model.mutation_matrix("MKTAYIAK").shape
        (8, 20)
        """
        table = self.score_mutations(wild_type, "all", strategy=strategy, offset=offset)
        sequence = Proteins.read({"wild type": wild_type}).sequences[0]
        return scores.substitution_matrix(sequence, table.set_index("mutant")["score"], offset)

    @torch.inference_mode()
    def perplexity(
        self,
        proteins: Sequences | None = None,
        *,
        strategy: Literal["auto", "pseudo-likelihood", "causal"] = "auto",
    ) -> pd.Series:
        """Return how surprised the network is by proteins: the exponential of its mean loss.

        Parameters
        ----------
        proteins
            See :meth:`get_latent_representation`.
        strategy
            Every residue given those before it (``"causal"``) or all others
            (``"pseudo-likelihood"``, one pass for each residue); by default by what the network
            was trained for.

        Returns
        -------
        Perplexities per residue, by name.

        Examples
        --------
        >>> proteins_model.perplexity({"a": "MKTAYIAK"}, strategy="causal").index.tolist()
        ['a']
        """
        if strategy == AUTO:
            strategy = "pseudo-likelihood" if self.config.objective == "masked" else "causal"
        strategy = check("strategy", strategy, Literal["pseudo-likelihood", "causal"])
        scores.check_strategy(self.net, strategy)
        read = self._proteins(proteins)
        found = scores.log_likelihoods(
            self.net, read, strategy == "causal", default_max_tokens(self.net)
        )
        return pd.Series(list(map(scores.perplexity, found)), read.names, name="perplexity")

    @torch.inference_mode()
    def generate(
        self,
        prompts: str | Sequence[str] = "",
        n: int = 1,
        *,
        top_p: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        max_length: int = 256,
        seed: int | None = None,
        constrained: bool = True,
    ) -> pd.DataFrame:
        """Generate sequences from left to right.

        Parameters
        ----------
        prompts
            How they begin; empty for anything.
        n
            Sequences for each prompt.
        top_p, temperature, top_k
            Nucleus: draw among the most likely residues that have this probability together.
            Above 1 probabilities become more even; 0 takes the most likely residue. Draw among
            so many.
        max_length
            Residues at most, with the prompt.
        seed
            Seed; by default that of the model.
        constrained
            Whether to draw amino acids and the end alone; otherwise all tokens that the network
            knows, as the published code does.

        Returns
        -------
        Data frame with ``prompt``, ``sequence``, ``ended`` (whether the network ended it) and the
        ``perplexity`` of the sequence.

        Examples
        --------
        >>> proteins_model.generate("MKT", n=2, max_length=20)["sequence"].str[:3].tolist()
        ['MKT', 'MKT']
        """
        scores.check_strategy(self.net, "causal")
        n = check("n", n, PositiveInt)
        max_length = check("max_length", max_length, PositiveInt)
        sampling = self._sampling(top_p, temperature, top_k, constrained)
        seed = self.seed_ if seed is None else check("seed", seed, Seed)
        given = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [Proteins.read([one]).ids[0] if one else np.zeros(0, np.int64) for one in given]
        if wrong := [one for one, row in zip(given, ids, strict=True) if len(row) >= max_length]:
            raise ValueError(
                f"max_length={max_length} is no more than the {len(wrong[0])} residues of the "
                f"prompt {wrong[0]!r}: raise it."
            )
        rows = [row for row in ids for _ in range(n)]
        with tqdm(total=len(rows), desc="Generating", unit="protein", delay=3, leave=False) as bar:
            made = generation.generate(self.net, rows, sampling, max_length, seed, bar.update)
        tokenizer = Tokenizer()
        table = pd.DataFrame(
            {
                "prompt": [one for one in given for _ in range(n)],
                "sequence": [tokenizer.decode(row) for row in made],
                "ended": [len(row) < max_length for row in made],
            }
        )
        return table.assign(perplexity=self._perplexities(made))

    def _perplexities(self, made: list[np.ndarray]) -> list[float]:
        """Return perplexities from left to right; NaN of nothing."""
        known = [row for row in made if len(row)]
        read = Proteins(pd.RangeIndex(len(known)), [], known)
        found = scores.log_likelihoods(self.net, read, True, default_max_tokens(self.net))
        of_known = map(scores.perplexity, found)
        return [next(of_known) if len(row) else np.nan for row in made]

    @torch.inference_mode()
    def infill(
        self,
        protein: str,
        n: int = 1,
        *,
        top_p: float = 1.0,
        temperature: float = 1.0,
        top_k: int | None = None,
        max_span: int = 39,
        seed: int | None = None,
    ) -> pd.DataFrame:
        """Fill in blanks of a protein, one after the other, given all that is there.

        Parameters
        ----------
        protein
            Sequence with an underscore for each blank, whatever the length of what is missing.
        n
            How many times.
        top_p, temperature, top_k, seed
            See :meth:`generate`.
        max_span
            Residues in a blank at most; in training there were 39.

        Returns
        -------
        Data frame with ``sequence`` and its ``perplexity``.

        Raises
        ------
        ValueError
            If there is no blank, or the network was not trained to fill them.

        Examples
        --------
        >>> proteins_model.infill("MKT_YIAK_R", n=2)["sequence"].str[:3].tolist()
        ['MKT', 'MKT']
        """
        if self.config.objective != "unified" or not self.config.rotary_2d:
            raise ValueError(
                f"This network was trained on {self.config.objective} residues, not to fill in "
                "blanks: use a model with objective='unified'."
            )
        if BLANK not in protein:
            raise ValueError(f"protein={protein!r} has no blank: write '{BLANK}' for each.")
        parts = protein.split(BLANK)
        Proteins.read(["".join(parts)])  # says what is wrong with it, if anything
        tokenizer, rows = Tokenizer(), []
        for part in parts:
            rows += [tokenizer(part) if part.strip() else np.zeros(0, np.int64), [SMASK]]
        sampling = self._sampling(top_p, temperature, top_k, True)
        seed = self.seed_ if seed is None else check("seed", seed, Seed)
        made = generation.infill(
            self.net,
            np.concatenate(rows[:-1]).astype(np.int64),
            check("n", n, PositiveInt),
            sampling,
            check("max_span", max_span, PositiveInt),
            seed,
        )
        perplexity = self._perplexities(made)
        sequences = [tokenizer.decode(row) for row in made]
        return pd.DataFrame({"sequence": sequences, "perplexity": perplexity})

    def _sampling(
        self, top_p: float, temperature: float, top_k: int | None, constrained: bool
    ) -> generation.Sampling:
        return generation.Sampling(
            top_p=check("top_p", top_p, PositiveProbability),
            temperature=check("temperature", temperature, NonNegativeFloat),
            top_k=check("top_k", top_k, PositiveInt | None),
            constrained=check("constrained", constrained, bool),
        )

    @torch.inference_mode()
    def get_attention(self, protein: str) -> np.ndarray:
        """Return attention among the residues of a protein.

        Parameters
        ----------
        protein
            Its sequence.

        Returns
        -------
        float32 array of shape ``(n_layers, n_heads, n_residues, n_residues)``; what goes to the
        end of the sequence is left out.

        Examples
        --------
        >>> proteins_model.get_attention("MKTAYIAK").shape
        (2, 4, 8, 8)
        """
        scores.check_strategy(self.net, "masked")
        return contacts.attention_maps(self.net, Proteins.read([protein]).ids[0])

    @torch.inference_mode()
    def fit_contact_head(
        self, proteins: Sequences, structures: Mapping[str, Any] | Sequence[Any]
    ) -> None:
        """Learn from known structures which heads attend to residues in contact.

        A logistic regression on the attention of all heads, symmetric and corrected for rows and
        columns; some twenty structures suffice (Rao et al. 2021).

        Parameters
        ----------
        proteins
            See :meth:`get_latent_representation`.
        structures
            For each protein, by name or in their order: coordinates of beta carbons in angstrom,
            shape ``(n_residues, 3)``, of which two are in contact below 8; or contacts, 0 and 1,
            shape ``(n_residues, n_residues)``. NaN where unknown.

        Examples
        --------
        >>> import numpy as np
        >>> coordinates = np.cumsum(np.tile([[1.5, 0, 0], [0, 3, 0], [-2, 0, 1.0]], (20, 1)), 0)
        >>> proteins_model.fit_contact_head(["MKTAY" * 12], [coordinates])
        >>> proteins_model.predict_contacts("MKTAYIAK").shape
        (8, 8)
        """
        scores.check_strategy(self.net, "masked")
        read = Proteins.read(proteins, self.sequence_key)
        names = [str(name) for name in read.names]
        known = [
            contacts.known_contacts(one, len(ids), repr(name))
            for one, ids, name in zip(
                contacts.of_names(structures, names), read.ids, names, strict=True
            )
        ]
        self.contact_head_ = contacts.fit(self.net, read.ids, known)

    @torch.inference_mode()
    def predict_contacts(self, protein: str) -> np.ndarray:
        """Return how likely residues are in contact.

        Parameters
        ----------
        protein
            Its sequence.

        Returns
        -------
        Symmetric float32 array of shape ``(n_residues, n_residues)``; residues less than six apart
        were not learned from. Drawn by :func:`scxtrimo.pl.contacts`.

        Raises
        ------
        ValueError
            If :meth:`fit_contact_head` was not called.

        Examples
        --------
        >>> contacts = np.zeros((60, 60))
        >>> contacts[10, 40] = contacts[20, 50] = 1
        >>> proteins_model.fit_contact_head(["MKTAY" * 12], [contacts])
        >>> float(proteins_model.predict_contacts("MKTAYIAK").max()) < 1
        True
        """
        if self.contact_head_ is None:
            raise ValueError(
                "Call `fit_contact_head(proteins, structures)` first: which heads attend to "
                "contacts is learned from some twenty structures."
            )
        return contacts.predict(self.net, self.contact_head_, Proteins.read([protein]).ids[0])

    @classmethod
    def from_published(
        cls,
        folder: str | os.PathLike,
        adata: AnnData | None = None,
        *,
        dtype: Dtype = "auto",
        device: str = AUTO,
        quantized: Quantized = "dequantize",
    ) -> Self:
        """Load a published checkpoint; nothing is downloaded, and no code of it runs.

        Parameters
        ----------
        folder
            Folder with ``config.json`` and the weights (``.safetensors`` or ``.bin``, in one file
            or several).
        adata
            Proteins to train on, registered with :meth:`setup_anndata`.
        dtype
            Type of the weights; by default that of the file.
        device
            Where they go; by default to a GPU if there is one.
        quantized
            Unpack four-bit weights once (``"dequantize"``), or keep them ``"packed"`` and unpack
            layer by layer.

        Returns
        -------
        The model.

        Raises
        ------
        ValueError
            If a file is damaged, or tensors are missing, too many or of other shapes.

        Examples
        --------
        >>> scxtrimo.model.XTrimoPGLM.from_published("nowhere")
        Traceback (most recent call last):
        FileNotFoundError: nowhere is no published checkpoint: it has no config.json...
        """
        wanted = check("dtype", dtype, Dtype)
        quantized = check("quantized", quantized, Quantized)
        place = parse_device_args(device, AUTO, "torch", True)[2] if device == AUTO else device
        net, stored = read_published(folder, DTYPES.get(wanted), place, quantized)
        model = cls(adata, config=net.config)
        model._net, model.stored_config = net, stored
        model.is_trained_ = True
        model.size_ = Path(folder).expanduser().resolve().name
        return model

    def to_published(self, folder: str | os.PathLike) -> None:
        """Write the model in the published format.

        Parameters
        ----------
        folder
            New folder.

        Examples
        --------
        >>> proteins_model.to_published("published")
        """
        write_published(self.net, folder, self.stored_config)

    def save(
        self, dir_path: str | os.PathLike, prefix: str | None = None, overwrite: bool = False
    ) -> None:
        """Save the model as safetensors and JSON.

        Parameters
        ----------
        dir_path, prefix
            Directory, created if needed; prefix of the file names.
        overwrite
            Whether to replace a model that is there.

        Examples
        --------
        >>> proteins_model.save("my_proteins")
        """
        head = self.contact_head_
        metadata = {
            "model_class": type(self).__name__,
            "scxtrimo_version": __version__,
            "config": asdict(self.config),
            "seed": self.seed_,
            "size": self.size_,
            "is_trained": self.is_trained_,
            "sequence_key": self.sequence_key,
            "history": history_to_dict(self.history or {}),
            "stored_config": self.stored_config,
            "contact_head": head
            and {"weights": head.weights.tolist(), "intercept": head.intercept},
        }
        write_model(dir_path, self.net.state_dict(), metadata, prefix or "", overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike,
        adata: AnnData | None = None,
        prefix: str | None = None,
    ) -> Self:
        """Load a model that was saved.

        Parameters
        ----------
        dir_path, prefix
            See :meth:`save`.
        adata
            Proteins, for methods that are called without any.

        Returns
        -------
        The model.

        Examples
        --------
        >>> proteins_model.save("my_proteins", overwrite=True)
        >>> scxtrimo.model.XTrimoPGLM.load("my_proteins").config.n_layers
        2
        """
        tensors, metadata = read_model(dir_path, prefix or "")
        if missing := sorted(REQUIRED - metadata.keys()):
            raise ValueError(f"The model in {dir_path} lacks {missing}: it is of another kind.")
        if metadata["model_class"] != cls.__name__:
            raise ValueError(
                f"The model in {dir_path} is a {metadata['model_class']}, not a {cls.__name__}."
            )
        if adata is not None and SETUP_KEY not in adata.uns:
            cls.setup_anndata(adata, metadata["sequence_key"])
        model = cls(adata, config=XTrimoPGLMConfig(**metadata["config"]), seed=metadata["seed"])
        model.net.load_state_dict(tensors)
        model.size_, model.is_trained_ = metadata["size"], metadata["is_trained"]
        model.history = history_from_dict(metadata["history"]) or None
        model.stored_config = metadata.get("stored_config")
        if (head := metadata.get("contact_head")) is not None:
            model.contact_head_ = ContactHead(np.array(head["weights"]), head["intercept"])
        return model


def _setup_of(adata: AnnData) -> str:
    try:
        return str(adata.uns[SETUP_KEY]["sequence_key"])
    except KeyError:
        raise ValueError(
            "Call `XTrimoPGLM.setup_anndata(adata, sequence_key=...)` first, with the AnnData of "
            "proteins."
        ) from None


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """Open a file to write arrays to."""
    path = path.expanduser()
    if path.suffix in (".h5", ".hdf5"):
        with h5py.File(path, "w") as file:
            yield file
    elif path.suffix == ".zarr":
        yield zarr.open_group(str(path), mode="w")
    else:
        raise ValueError(f"out={str(path)!r} must end in .h5 or .zarr.")


def _store(path: Path, names: Iterable[object], pooled: np.ndarray) -> Path:
    with _opened(path) as file:
        file["embeddings"] = pooled
        file.attrs["names"] = [str(name) for name in names]
    return path


def _stream(path: Path, names: pd.Index, arrays: Iterator[tuple[int, np.ndarray]]) -> Path:
    """Write a data set for each protein, whose name has no slash in it."""
    with _opened(path) as file:
        for i, array in arrays:
            file[str(names[i]).replace("/", "_")] = array
    return path
