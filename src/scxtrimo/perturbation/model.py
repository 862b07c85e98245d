"""Effects of perturbations for AnnData."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
from torch import Tensor
from torch.nn import functional as F
from tqdm.auto import tqdm

from .._logging import logger
from .._validation import check
from ..data.columns import preview
from ..data.counts import RowReader
from ..data.fields import CategoryField, CountsField
from ..model.base import PROGRESS_SECONDS, XTrimoGeneBase
from ..model.derive import derive_model
from ..model.xtrimogene import XTrimoGene
from ..nn.ragged import RaggedBatch
from ..nn.xtrimogene import XTrimoGeneModule
from .effects import HERE, NEVER, Controls, Design, EffectModel, EffectNames, EffectSizes, Query
from .groups import (
    CellCounts,
    CellGroups,
    Group,
    GroupMoments,
    LibrarySizeField,
    Perturbation,
    PerturbationField,
    PerturbationNames,
    choose_populations,
    complete_column,
    group_cells,
    library_sizes,
    parse_perturbations,
    pooled_sd,
    population_codes,
)
from .relations import feature_table
from .tools import change_means, effects_anndata
from .training import EffectsConfig, LeftOut, fit_effects, may_correct

UnknownTargets = Literal["raise", "average"]
N_CONTEXT = 8
MAX_ENCODED = 1000
GROUPS_PER_PREDICTION = 64


class XTrimoGenePerturbationModule(XTrimoGeneModule):
    """The encoder with an ``EffectModel``, which is ``None`` until effects are learned."""

    effects: EffectModel | None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.effects = None  # its sizes depend on the perturbations of the training


class XTrimoGenePerturbation(XTrimoGeneBase):
    """Effects of perturbed genes, alone and in combination, on the expression of all genes.

    Learned from control cells and perturbed cells, for instance of a Perturb-seq screen; predicts
    the effects of genes and combinations that were not measured on the mean expression of a
    population of control cells: with a linear mixed model, and a network that corrects it where
    this helps on perturbations that were left out. Perturbed genes need not be measured ones.

    The encoder :cite:p:`Gong2023` contributes the similarity of populations, gene embeddings as
    features of the perturbed genes, and inputs of the correction. Where none of these is needed,
    it is not trained, and predictions do not depend on it; ``print(model)`` says so.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size, config, registry, pretrained, seed, **hyperparameters
        See :class:`XTrimoGene`.

    Examples
    --------
    >>> scxtrimo.model.XTrimoGenePerturbation.setup_anndata(perturbed_cells, "condition")
    >>> model = scxtrimo.model.XTrimoGenePerturbation(perturbed_cells, size="tiny")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict("GENE1+GENE2").layers["effect"].shape
    (1, 60)
    """

    _module_cls = XTrimoGenePerturbationModule
    module: XTrimoGenePerturbationModule
    _held_out: AnnData | None = None

    @classmethod
    def _own_fields(cls, args: Mapping[str, Any], roles: Mapping[str, Any]) -> list[Any]:
        names = PerturbationNames(args["control"], args["separator"])
        own: list[Any] = [PerturbationField(args["perturbation_key"], names)]
        if args["population_key"] is not None:
            own.append(CategoryField("population", args["population_key"]))
        if args["library_size_key"] is not None:
            own.append(LibrarySizeField("library_size", args["library_size_key"]))
        return super()._own_fields(args, roles) + own

    @classmethod
    def setup_anndata(  # type: ignore[override]
        cls,
        adata: AnnData | MuData,
        perturbation_key: str,
        control: str = "control",
        separator: str = "+",
        population_key: str | None = None,
        library_size_key: str | None = None,
        layer: str | None = None,
        batch_key: str | None = None,
        labels_key: str | None = None,
        categorical_covariate_keys: Sequence[str] | None = None,
        gene_id_key: str | None = None,
        modality: str | None = None,
        **kwargs: Any,
    ) -> None:
        """Register counts, perturbations and populations, and check them.

        Parameters
        ----------
        adata
            Data with raw counts, see :meth:`XTrimoGene.setup_anndata`.
        perturbation_key
            Column of ``adata.obs`` with the perturbed gene or genes of a cell, or the control.
        control
            Value of this column for unperturbed cells; ignored as a part of a combination, as in
            ``"KLF1+control"``.
        separator
            Text between the genes of a combination.
        population_key
            Column of ``adata.obs`` with cell lines, cell types or donors that may respond
            differently, each with control cells; by default all cells are one population.
        library_size_key
            Column of ``adata.obs`` with the total counts of the cells, if ``adata`` has only some
            of the genes; by default the sums of its counts.
        layer, batch_key, labels_key, categorical_covariate_keys, gene_id_key, modality, **kwargs
            See :meth:`XTrimoGene.setup_anndata`. Effects are not corrected for batches.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGenePerturbation.setup_anndata(perturbed_cells, "condition")
        """
        setup_args = {name: value for name, value in locals().items() if name != "kwargs"}
        cls._register(adata, cls._get_setup_method_args(**setup_args), **kwargs)

    @classmethod
    def from_xtrimogene_model(
        cls,
        model: XTrimoGene,
        adata: AnnData | MuData,
        perturbation_key: str,
        control: str = "control",
        separator: str = "+",
        population_key: str | None = None,
        library_size_key: str | None = None,
        *,
        min_gene_overlap: float | None = None,
        seed: int | None = None,
    ) -> XTrimoGenePerturbation:
        """Return a perturbation model with the encoder of a trained or published model.

        The encoder stays as it is; its gene embeddings are features of the targets.

        Parameters
        ----------
        model
            The model; it is copied.
        adata
            Control and perturbed cells, with any genes in any order.
        perturbation_key, control, separator, population_key, library_size_key
            See :meth:`setup_anndata`.
        min_gene_overlap
            Smallest acceptable fraction of the model's genes; by default that of the model.
        seed
            See :class:`XTrimoGene`; by default that of the model.

        Returns
        -------
        The model, to be trained on the perturbations.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGene.setup_anndata(perturbed_cells)
        >>> model = scxtrimo.model.XTrimoGene(perturbed_cells, size="tiny")
        >>> model.train(max_epochs=1, enable_progress_bar=False)
        >>> derive = scxtrimo.model.XTrimoGenePerturbation.from_xtrimogene_model
        >>> derive(model, perturbed_cells, "condition").train()
        """
        own = {
            "perturbation_key": perturbation_key,
            "control": control,
            "separator": separator,
            "population_key": population_key,
            "library_size_key": library_size_key,
        }
        fields, config = cls._own_fields(own, {"labels_key": None}), model.config_
        return derive_model(
            cls, model, adata, own, fields, config, seed=seed, min_gene_overlap=min_gene_overlap
        )

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        *,
        target_features: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        relations: pd.DataFrame | None = None,
        effects: EffectsConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the encoder if it is needed and was not trained yet, then learn the effects.

        Parameters
        ----------
        max_epochs
            Epochs of :meth:`XTrimoGene.train`, if the encoder is trained.
        target_features
            Features of genes that can be perturbed, genes as index, for instance
            ``XTrimoGene.get_gene_embeddings()`` of a model that knows more genes; several kinds as
            a mapping. Their weight is learned.
        relations
            Edges between such genes with the columns ``source``, ``target`` and, optionally,
            ``weight``, see :func:`scxtrimo.pp.relations_from_gene_sets`.
        effects
            Folds and training of the correction.
        **kwargs
            See :meth:`XTrimoGene.train`.

        Examples
        --------
        >>> perturbation_model.train(effects=scxtrimo.perturbation.EffectsConfig(n_steps=20))
        """
        config = check("effects", effects or EffectsConfig(), EffectsConfig)
        if self.adata_manager is None:
            raise ValueError(
                "The model has no data to train on; load it with `load(..., adata=...)`."
            )
        adata = self._validate_anndata()
        args = self.registry_["setup_args"]
        cells = group_cells(adata, self._names, args["perturbation_key"], args["population_key"])
        conditions = {names for _, names in cells.groups}
        if len(conditions) < 2:
            raise ValueError(
                f"adata.obs[{args['perturbation_key']!r}] has the single perturbation "
                f"{self._names.name(*conditions)!r}, from which others cannot be predicted. "
                "Measure its effect with `scxtrimo.tl.perturbation_effects`."
            )
        named = feature_table(target_features, relations, cells.targets)
        embedded = sum(target in self.vocabulary.lookup() for target in cells.targets) > 1
        corrects = may_correct(config, len(conditions))
        encode = embedded or corrects or len(cells.populations) > 1
        self._train_encoder(encode, max_epochs, kwargs)
        with self._progress_as_asked(kwargs):
            model, query, observed = self._measure_effects(adata, cells, named, embedded, encode)
        is_silent = kwargs.get("enable_progress_bar") is False
        with tqdm(desc="Learning effects", delay=PROGRESS_SECONDS, disable=is_silent) as bar:
            held_out, predicted = fit_effects(model, query, config, self.seed_, bar)
        # The state of the model changes only here, after everything that can fail.
        self._held_out = self._held_out_anndata(model, cells, held_out, predicted, observed)
        self.module.effects = model.to(self.device)
        self.module.eval()
        n_single = sum(len(names) == 1 for names in conditions)
        weights = ", ".join(f"{weight:.2f}" for weight in model.gate[[HERE, NEVER]].tolist())
        logger.info(
            f"Learned the effects of {n_single} single genes and {len(conditions) - n_single} "
            f"combinations in {len(cells.populations)} populations; weight of the correction "
            f"without and with unseen targets: {weights}."
        )

    def _train_encoder(self, encode: bool, max_epochs: int | None, arguments: Any) -> None:
        """Train the encoder if effects use it and it was not trained yet."""
        if encode and not self.is_trained_:
            super().train(max_epochs, **arguments)
            return
        unused = sorted(arguments.keys() - {"enable_progress_bar"})
        unused += ["max_epochs"] * (max_epochs is not None)
        said = f": {unused} are not used" if unused else ""
        if not self.is_trained_:
            if self.history is None:
                self.history_: dict[str, pd.DataFrame] = {}
            logger.info(
                "The encoder is not trained, as it contributes nothing to the predictions (one "
                "population, fewer than two perturbed genes that the model knows, no "
                f"correction){said}."
            )
        elif unused:
            logger.info(f"The encoder is trained already{said}.")

    def _measure_effects(
        self, adata: AnnData, cells: CellGroups, named: pd.DataFrame, embedded: bool, encode: bool
    ) -> tuple[EffectModel, Query, tuple[np.ndarray, np.ndarray]]:
        """Return an effect model with all that is measured, its groups, and their effects."""
        genes = np.flatnonzero(self._measured_genes(adata).cpu().numpy())
        perturbed = self._cells(adata).moments(cells.codes, genes)
        codes = cells.control_codes
        moments, latent, context = self._read_controls(adata, codes, genes, encode)
        names = EffectNames(tuple(cells.targets), tuple(cells.populations), tuple(named.index))
        named_blocks = named.columns.get_level_values(0).value_counts(sort=False)
        sizes = EffectSizes(
            n_groups=len(cells.groups),
            n_targets=len(names.targets),
            n_populations=len(cells.populations),
            n_genes=len(genes),
            n_latent=latent.shape[1],
            n_hidden=context.shape[2],
            n_context=N_CONTEXT,
            n_embedding=self.config_.n_hidden if embedded else 0,
            n_named=len(named),
            named_blocks=tuple(named_blocks.tolist()),
        )
        model = EffectModel(sizes, names)
        sd = pooled_sd(perturbed, moments)
        model.gene_ids.copy_(torch.from_numpy(genes))
        model.named_features.copy_(torch.tensor(named.to_numpy(np.float32)))
        model.gene_sd.copy_(torch.from_numpy(sd))
        controls = model.set_controls(moments, latent, context)
        everyone = np.arange(len(cells.populations))
        query = self._query(model, cells.groups, controls, everyone, moments.n_cells)
        observed = perturbed.mean - moments.mean[[p for p, _ in cells.groups]]
        effects_gn = torch.from_numpy(observed).float() / model.gene_sd
        model.mixed.set(query.design, effects_gn, torch.from_numpy(perturbed.n_cells).float())
        return model, query, (observed, sd / np.sqrt(perturbed.n_cells)[:, None])

    def _held_out_anndata(
        self,
        model: EffectModel,
        cells: CellGroups,
        held_out: LeftOut,
        predicted: Sequence[Tensor],
        observed: Sequence[np.ndarray],
    ) -> AnnData:
        """Return predictions for groups left out beside what was observed."""
        population = np.array([cells.groups[i][0] for i in held_out.group])
        targets = [np.array(cells.groups[i][1]) for i in held_out.group]
        unseen = [
            genes[seen[: len(genes)] == NEVER]
            for genes, seen in zip(targets, held_out.seen_gt.numpy(), strict=True)
        ]
        obs = pd.DataFrame(
            {
                "perturbation": [self._names.name(genes) for genes in targets],
                "population": np.array(cells.populations)[population],
                "left_out": held_out.left_out,
                "unseen_targets": [self._names.separator.join(genes) for genes in unseen],
            }
        )
        adata = effects_anndata(
            obs,
            np.asarray(self.vocabulary.gene_ids)[model.gene_ids],
            *(values.numpy() for values in predicted),
            model.control_mean.numpy()[population],
            named_by=("population", "left_out", "unseen_targets"),
        )
        for name, values in zip(("observed", "observed_std"), observed, strict=True):
            adata.layers[name] = values[held_out.group].astype(np.float32)
        return adata

    @property
    def held_out(self) -> AnnData:
        """Predictions for the training perturbations by models that have not seen them.

        A perturbation is left out with some others (``obs["left_out"] == "perturbation"``), with
        all that share a target (``"target"``), or in one of several populations
        (``"population"``); ``obs["unseen_targets"]`` are its targets not seen at all. The layer
        ``observed`` is the measured effect, ``observed_std`` its standard error without the noise
        of the control cells. Large screens have a random part. It is not saved with the model, and
        not for publication: the weight of the correction and the calibration were chosen on it.

        Examples
        --------
        >>> held_out = perturbation_model.held_out
        >>> sorted(held_out.obs["left_out"].unique())
        ['perturbation', 'target']
        """
        if self._held_out is None:
            raise ValueError(
                "The model was not trained since it was loaded: call `model.train()`."
            )
        return self._held_out

    @property
    def targets(self) -> list[str]:
        """Genes that were perturbed in the training, alone or with others.

        Examples
        --------
        >>> perturbation_model.targets[:2]
        ['GENE1', 'GENE2']
        """
        return list(self._trained_effects().names.targets)

    @property
    def perturbations(self) -> list[str]:
        """Perturbations of the training, without the control.

        Examples
        --------
        >>> "GENE1" in perturbation_model.perturbations
        True
        """
        model = self._trained_effects()
        rows = np.unique(model.mixed.targets_gt.numpy(), axis=0)
        targets = np.array(model.names.targets)
        return sorted(self._names.name(targets[row > 0]) for row in rows)

    def predict(
        self,
        perturbations: Perturbation | Sequence[Perturbation] | None = None,
        population: str | Sequence[str] | None = None,
        adata: AnnData | None = None,
        unknown_targets: UnknownTargets = "raise",
    ) -> AnnData:
        """Predict the effects of perturbations on the mean expression of cells.

        Parameters
        ----------
        perturbations
            A name such as ``"KLF1"`` or ``"KLF1+BAK1"``, a tuple of genes perturbed together, or a
            list of these; by default those of the training. The order of genes does not matter.
        population
            Populations of the training, by default all.
        adata
            Control cells of other populations, with any genes in any order; one population unless
            ``adata.obs`` has the column ``population_key``. Perturbed cells are left out.
        unknown_targets
            For genes that were never perturbed in the training and have no features: ``"raise"``,
            or ``"average"`` to predict the common effect of all perturbations.

        Returns
        -------
        AnnData with a row per perturbation and population and a column per measured gene. ``X`` is
        the mean log-normalised expression after the perturbation; the layer ``effect`` its
        difference to that of the control cells (layer ``control``), ``std`` the standard deviation
        of this prediction; ``score`` the effect over its standard deviation, noise of the control
        cells included. ``obs`` has the numbers of targets (``n_targets``) and of those never
        perturbed in the training (``n_unknown``), and whether the training had this perturbation
        (``is_trained``).

        Examples
        --------
        >>> effects = perturbation_model.predict(["GENE1+GENE2", ("GENE2", "GENE3")])
        >>> effects.obs_names.tolist()
        ['GENE1+GENE2', 'GENE2+GENE3']
        """
        model = self._trained_effects()
        if unknown_targets not in ("raise", "average"):
            raise ValueError(f"unknown_targets={unknown_targets!r} must be 'raise' or 'average'.")
        asked = self.perturbations if perturbations is None else perturbations
        targets = parse_perturbations(self._names, asked)
        if unknown_targets == "raise":
            self._check_known(model, targets)
        if adata is not None and population is not None:
            raise ValueError("Give either `population` or `adata`, not both.")
        if adata is None:
            populations, trained = choose_populations(model.names.populations, population)
            controls = Controls(*(part[trained] for part in model.controls))
            n_controls = np.zeros(len(model.names.populations), dtype=np.int64)
            n_controls[model.mixed.population_g.numpy()] = model.mixed.n_controls_g.numpy()
            # Their number is not known for a population without perturbed cells.
            n_cells = np.maximum(n_controls, 1)[trained]
        else:
            data = self._validate_anndata(adata)
            codes, populations = self._control_codes(data)
            genes, encode = model.gene_ids.numpy(), model.uses_encoder
            moments, latent, context = self._read_controls(data, codes, genes, encode)
            n_missing = int(np.isnan(moments.mean[0]).sum())
            if n_missing and self.registry_["setup_args"]["library_size_key"] is None:
                logger.warning(
                    f"The control cells lack {n_missing:,} of the model's genes, so that the sums "
                    "of their counts are smaller and their expression seems larger. Train with "
                    "`library_size_key=` and give the total counts of all genes in this column."
                )
            controls, n_cells = model.controls_of(moments, latent, context), moments.n_cells
            trained = np.full(len(populations), -1)
        groups = [(p, names) for p in range(len(populations)) for names in targets]
        query = self._query(model, groups, controls, trained, n_cells)
        query = query.as_seen_in(model.mixed.design)
        parts = [
            model.predict(query.rows(rows), controls)
            for rows in torch.arange(len(groups)).split(GROUPS_PER_PREDICTION)
        ]
        effect, std, score = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        row = np.array([p for p, _ in groups])
        known = set(model.names.targets)
        obs = pd.DataFrame(
            {
                "perturbation": [self._names.name(names) for _, names in groups],
                "population": [populations[p] for p in row],
                "n_targets": [len(names) for _, names in groups],
                "n_unknown": [len(set(names) - known) for _, names in groups],
                "n_control_cells": n_cells[row],
                "is_trained": model.mixed.is_trained(query.design).numpy(),
            }
        )
        gene_ids = np.asarray(self.vocabulary.gene_ids)[model.gene_ids]
        return effects_anndata(obs, gene_ids, effect, std, score, controls.mean_pn.numpy()[row])

    def predict_cells(
        self,
        perturbation: Perturbation,
        population: str | None = None,
        adata: AnnData | None = None,
        unknown_targets: UnknownTargets = "raise",
        n_cells: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Draw perturbed cells from control cells, with the mean of ``predict``.

        Of a gene that goes down, expressing cells lose their expression at random; of one that
        goes up, other cells take over that of expressing ones, or, where all express it, all are
        shifted. All control cells are held in memory as a dense matrix.

        Parameters
        ----------
        perturbation, population, adata, unknown_targets
            See :meth:`predict`; a single perturbation and population.
        n_cells
            Number of cells to draw, with replacement; by default every control cell once.
        seed
            Seed of the draws; by default that of the model.

        Returns
        -------
        AnnData of log-normalised expression; ``obs["control_cell"]`` is the origin of a cell.

        Examples
        --------
        >>> cells = perturbation_model.predict_cells("GENE1+GENE2", n_cells=20)
        >>> cells.n_obs
        20
        """
        mean = self.predict([perturbation], population, adata, unknown_targets)
        if mean.n_obs > 1:
            raise ValueError(
                f"There are {mean.n_obs} populations, {preview(mean.obs['population'])}: name one "
                "with `population=`, or pass cells of one as `adata`."
            )
        data = self._validate_anndata(adata)
        codes, populations = self._control_codes(data)
        name = mean.obs["population"].iloc[0]
        if name not in populations:
            raise ValueError(
                f"The data of this model have no control cells of {name!r}; pass them as `adata`."
            )
        rows = np.flatnonzero(codes == populations.index(name))
        rng = np.random.default_rng(self.seed_ if seed is None else seed)
        if n_cells is not None:
            rows = rng.choice(rows, n_cells)
        genes = self._trained_effects().gene_ids.numpy()
        values = self._cells(data).expression(rows, genes)
        drawn = change_means(values, np.asarray(mean.X)[0], rng)
        cells = data.obs_names[rows].to_numpy()
        index = cells if n_cells is None else np.arange(n_cells).astype(str)
        perturbation = mean.obs["perturbation"].iloc[0]
        obs = pd.DataFrame({"perturbation": perturbation, "control_cell": cells}, index)
        return AnnData(drawn, obs=obs, var=mean.var.copy())

    def _batches(self, *args: Any, **kwargs: Any) -> Iterator[tuple[slice, RaggedBatch]]:
        self._check_encoder()
        return super()._batches(*args, **kwargs)

    def _genes(self, gene_list: Sequence[str] | None) -> np.ndarray:
        self._check_encoder()
        return super()._genes(gene_list)

    def _check_encoder(self) -> None:
        """Raise if the encoder was not trained because the effects do not use it."""
        effects = self.module.effects
        if not self.is_trained_ and effects is not None and not effects.uses_encoder:
            raise ValueError(
                "The encoder of this model was not trained, as the effects do not use it. Train "
                "an `XTrimoGene` on the same cells to embed them."
            )

    def __repr__(self) -> str:
        effects = self.module.effects
        if effects is None:
            return f"{super().__repr__()}\n  effects: not learned"
        sizes = effects.sizes
        uses = {
            "similarity of populations": sizes.n_populations > 1,
            "gene embeddings": sizes.n_embedding > 0,
            "correction": bool(effects.gate.any()),
        }
        used = ", ".join(name for name, is_used in uses.items() if is_used)
        untrained = "" if self.is_trained_ else ", so it was not trained"
        return (
            f"{super().__repr__()}\n  effects: {sizes.n_targets} perturbed genes, "
            f"{sizes.n_populations} populations, {sizes.n_genes:,} genes\n"
            "  encoder in the predictions: "
            f"{used or f'none, they are the same for any encoder{untrained}'}"
        )

    @property
    def _names(self) -> PerturbationNames:
        args = self.registry_["setup_args"]
        return PerturbationNames(args["control"], args["separator"])

    def _trained_effects(self) -> EffectModel:
        """Return the effect model on the CPU; raise if there is none yet."""
        model = self.module.effects
        if model is None:
            raise ValueError("No effects were learned yet. Call `model.train()` first.")
        # Moving queries to another device takes longer than this small model.
        return model if model.gene_sd.device.type == "cpu" else deepcopy(model).cpu()

    def _gene_vectors(self) -> Tensor:
        """Return the gene embeddings, centred and of unit length."""
        weights = self.module.net.gene_embeddings.detach().float().cpu()
        return F.normalize(weights - weights.mean(dim=0))

    def _target_vectors(self, model: EffectModel, genes: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings and all features of genes; 0 where there are none."""
        lookup = self.vocabulary.lookup()
        embedded = _rows(self._gene_vectors(), [lookup.get(gene, -1) for gene in genes])
        named = _rows(model.named_features, _places(model.names.named, genes))
        blocks = [embedded] if model.sizes.n_embedding else []
        return embedded, torch.cat([*blocks, named], dim=1)

    def _check_known(self, model: EffectModel, targets: Sequence[tuple[str, ...]]) -> None:
        """Raise if a gene was neither perturbed in the training nor has features."""
        known = model.names.targets
        genes = sorted({gene for of_one in targets for gene in of_one} - set(known))
        is_known = (self._target_vectors(model, genes)[1] != 0).any(dim=1).tolist()
        if not all(is_known):
            unknown = [gene for gene, known in zip(genes, is_known, strict=True) if not known]
            raise ValueError(
                f"Nothing is known about {preview(unknown)}: not perturbed in the training "
                f"({preview(known)} were), and without features. Train with "
                "`target_features=` or `relations=` that have these genes, or accept the average "
                'of all perturbations with `unknown_targets="average"`.'
            )

    def _query(
        self,
        model: EffectModel,
        groups: Sequence[Group],
        controls: Controls,
        trained_p: np.ndarray,
        n_controls_p: np.ndarray,
    ) -> Query:
        """Return groups as a model that saw nothing sees them; new populations are ``-1``."""
        table = pd.DataFrame([targets for _, targets in groups])  # None beyond the last target
        shape, gene_s = table.shape, table.to_numpy(object).ravel()
        genes = sorted({gene for _, targets in groups for gene in targets})
        place_s, known = _places(genes, gene_s), model.names.targets
        embedded, features = self._target_vectors(model, genes)
        cosines = F.normalize(embedded) @ F.normalize(self._gene_vectors()[model.gene_ids]).T
        population_g = torch.tensor([p for p, _ in groups])
        of_populations = (
            model.similarity(controls.latent_pz)[population_g],
            torch.from_numpy(trained_p)[population_g],
            torch.from_numpy(n_controls_p)[population_g].float(),
        )
        singles = Design(
            (_places(known, gene_s)[:, None] == torch.arange(len(known))).float(),
            (place_s >= 0).float(),
            _rows(features, place_s),
            *(part.repeat_interleave(shape[1], dim=0) for part in of_populations),
        )
        counts, numbers, sums = (part.unflatten(0, shape).sum(dim=1) for part in singles[:3])
        design = Design(counts, numbers, sums, *of_populations)
        affinity_gtn = _rows(cosines, place_s).unflatten(0, shape)
        return Query(design, singles, torch.full(shape, NEVER), affinity_gtn, population_g)

    def _extra_state(self) -> dict[str, Any]:
        effects = self.module.effects
        if effects is None:
            return {}
        return {"sizes": asdict(effects.sizes), "names": effects.names._asdict()}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        try:
            blocks = tuple(state["sizes"]["named_blocks"])
            sizes = EffectSizes(**(state["sizes"] | {"named_blocks": blocks}))
            names = EffectNames(**{key: tuple(value) for key, value in state["names"].items()})
        except (KeyError, TypeError) as error:
            raise ValueError(f"The saved effects of perturbations are damaged: {error}") from error
        if tuple(map(len, names)) != (sizes.n_targets, sizes.n_populations, sizes.n_named):
            raise ValueError("The saved effects of perturbations are damaged: names are missing.")
        self.module.effects = EffectModel(sizes, names)

    def _cells(self, adata: AnnData) -> CellCounts:
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
        gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        used = np.flatnonzero(gene_of_column >= 0)
        columns = np.full(len(self.vocabulary), -1)
        columns[gene_of_column[used]] = used
        reader = RowReader(manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        totals = library_sizes(adata, self.registry_["setup_args"]["library_size_key"])
        return CellCounts(reader, columns, totals)

    def _control_codes(self, adata: AnnData) -> tuple[np.ndarray, list[str]]:
        """Return the population of control cells, -1 for perturbed ones, and their names."""
        args = self.registry_["setup_args"]
        key, by = args["perturbation_key"], args["population_key"]
        codes, names = population_codes(adata, by if by in adata.obs else None)
        if key not in adata.obs:  # all are control cells
            return codes, names
        labels = complete_column(adata, key)
        is_control = np.array([not self._names.targets(label) for label in labels])
        if not is_control.any():
            raise ValueError(
                f"adata.obs[{key!r}] has no control cells {self._names.control!r}; it has "
                f"{preview(labels.unique())}."
            )
        kept = np.unique(codes[is_control])
        return np.where(is_control, np.searchsorted(kept, codes), -1), [names[i] for i in kept]

    def _read_controls(
        self, adata: AnnData, codes: np.ndarray, genes: np.ndarray, encode: bool
    ) -> tuple[GroupMoments, Tensor, Tensor]:
        """Return expression, latent representation and gene embeddings (0 and NaN if unused)."""
        moments = self._cells(adata).moments(codes, genes)
        n_populations = len(moments.n_cells)
        if not encode:
            shape = (n_populations, len(genes), self.config_.n_context)
            return moments, torch.zeros(n_populations, 1), torch.full(shape, torch.nan)
        names = np.asarray(self.vocabulary.gene_ids)[genes].tolist()
        rng = np.random.default_rng(self.seed_)
        source: Any = "encoder" if self.config_.n_inducing is None else "decoder"
        is_told = source == "encoder" or self.config_.has_imputation
        latent, context = [], []
        for population in range(n_populations):
            rows = np.flatnonzero(codes == population)
            if len(rows) > MAX_ENCODED:
                rows = np.sort(rng.choice(rows, MAX_ENCODED, replace=False))
            latent.append(self.get_latent_representation(adata, rows.tolist()).mean(axis=0))
            embedded = np.full((len(genes), self.config_.n_context), np.nan)
            if is_told:
                embedded = self.get_contextual_gene_embeddings(
                    adata, rows.tolist(), gene_list=names, source=source
                )
            context.append(np.asarray(embedded, dtype=np.float32))
        latent_pz = torch.from_numpy(np.stack(latent).astype(np.float32))
        return moments, latent_pz, torch.from_numpy(np.stack(context))


def _places(names: Sequence[str], genes: Any) -> Tensor:
    """Return the places of genes among names, -1 for those that are not."""
    return torch.from_numpy(pd.Index(list(names), dtype=object).get_indexer(genes))


def _rows(table: Tensor, numbers: Any) -> Tensor:
    """Return rows of a table, zeros for the number -1."""
    padded = torch.cat([table, torch.zeros(1, table.shape[1])])
    return padded[torch.as_tensor(numbers, dtype=torch.int64)]
