"""Effects of perturbations for AnnData."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import asdict
from numbers import Real
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from mudata import MuData
from scvi import REGISTRY_KEYS
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
from .effects import HERE, NEVER, Controls, EffectModel, EffectNames, EffectSizes, Query
from .groups import (
    CellCounts,
    CellGroups,
    GroupMoments,
    LibrarySizeField,
    PerturbationField,
    PerturbationNames,
    complete_column,
    group_cells,
    library_sizes,
    pooled_sd,
    population_codes,
)
from .query import Effects, effects_from_json
from .relations import feature_table
from .tools import change_means, effects_anndata
from .training import EffectsConfig, LeftOut, fit_effects, may_correct, n_stages

Perturbation = str | Sequence[str]
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
    features of the perturbed genes, and inputs of the correction. With one population, fewer than
    two perturbed genes that the model knows, and no correction, it is not trained, and predictions
    are bit-identical whatever its weights. ``print(model)`` says which is the case.

    Parameters
    ----------
    adata
        Data registered with :meth:`setup_anndata`.
    size, config, registry, seed, **hyperparameters
        See :class:`XTrimoGene`.

    Examples
    --------
    >>> import scxtrimo
    >>> adata = perturbed_cells
    >>> scxtrimo.model.XTrimoGenePerturbation.setup_anndata(adata, perturbation_key="condition")
    >>> model = scxtrimo.model.XTrimoGenePerturbation(adata, size="tiny")
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict("GENE1+GENE2").layers["effect"].shape
    (1, 60)
    """

    _module_cls = XTrimoGenePerturbationModule
    module: XTrimoGenePerturbationModule
    _held_out: AnnData | None = None

    @classmethod
    def _own_fields(cls, args: Mapping[str, Any], roles: Mapping[str, Any]) -> list[Any]:
        return super()._own_fields(args, roles) + perturbation_fields(args)

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

        Raises
        ------
        ValueError
            If there are no control cells or no perturbed ones, a name has an empty part or a gene
            twice, or as :meth:`XTrimoGene.setup_anndata` does.

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
        fields, config = perturbation_fields(own), model.config_
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

        Raises
        ------
        ValueError
            If a population has no control cells, or features or relations are not as described.

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
        conditions = {targets for _, targets in cells.groups}
        if len(conditions) < 2:
            raise ValueError(
                f"adata.obs[{args['perturbation_key']!r}] has the single perturbation "
                f"{self._names.name(*conditions)!r}, from which others cannot be predicted. "
                "Measure its effect with `scxtrimo.tl.perturbation_effects`."
            )
        targets = sorted({target for names in conditions for target in names})
        named = feature_table(target_features, relations, targets)
        encode = (
            len(cells.populations) > 1
            or self._n_embedding(targets) > 0
            or may_correct(config, len(conditions))
        )
        self._train_encoder(encode, max_epochs, kwargs)
        with self._progress_as_asked(kwargs):
            model, query, observed = self._measure_effects(adata, cells, targets, named, encode)
        with tqdm(
            total=n_stages(model, config),
            desc="Learning effects",
            delay=PROGRESS_SECONDS,
            disable=kwargs.get("enable_progress_bar") is False,
        ) as bar:
            held_out, predicted = fit_effects(model, query, config, self.seed_, bar.update)
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

    def _n_embedding(self, targets: Sequence[str]) -> int:
        """Return the width of gene embeddings as features of targets; 0 if too few have any."""
        lookup = self.vocabulary.lookup()
        return self.config_.n_hidden if sum(target in lookup for target in targets) > 1 else 0

    def _measure_effects(
        self,
        adata: AnnData,
        cells: CellGroups,
        targets: list[str],
        named: pd.DataFrame,
        encode: bool,
    ) -> tuple[EffectModel, Query, tuple[np.ndarray, np.ndarray]]:
        """Return an effect model with all that is measured, its groups, and their effects."""
        genes = np.flatnonzero(self._measured_genes(adata).cpu().numpy())
        perturbed = self._cells(adata).moments(cells.codes, genes)
        codes = cells.control_codes
        moments, latent, context = self._read_controls(adata, codes, genes, encode)
        names = EffectNames(tuple(targets), tuple(cells.populations), tuple(named.index))
        named_blocks = named.columns.get_level_values(0).value_counts(sort=False)
        sizes = EffectSizes(
            n_groups=len(cells.groups),
            n_targets=len(targets),
            n_populations=len(cells.populations),
            n_genes=len(genes),
            n_latent=latent.shape[1],
            n_hidden=context.shape[2],
            n_context=N_CONTEXT,
            n_embedding=self._n_embedding(targets),
            n_named=len(named),
            named_blocks=tuple(named_blocks.tolist()),
        )
        model = EffectModel(sizes, names)
        sd = pooled_sd(perturbed, moments)
        model.gene_ids.copy_(torch.from_numpy(genes))
        model.named_features.copy_(torch.tensor(named.to_numpy(np.float32)))
        model.gene_sd.copy_(torch.from_numpy(sd))
        model.set_context_axes(context.flatten(0, 1))
        controls = model.controls_of(moments, latent, context)
        model.set_controls(controls)
        everyone = torch.arange(len(cells.populations))
        n_controls = torch.from_numpy(moments.n_cells)
        query = self._effects_of(model).query(cells.groups, controls, everyone, n_controls)
        observed = perturbed.mean - moments.mean[[p for p, _ in cells.groups]]
        model.mixed.set(
            query.design,
            torch.from_numpy(observed).float() / model.gene_sd,
            torch.from_numpy(perturbed.n_cells).float(),
        )
        return model, query, (observed, sd / np.sqrt(perturbed.n_cells)[:, None])

    def _held_out_anndata(
        self,
        model: EffectModel,
        cells: CellGroups,
        held_out: LeftOut,
        predicted: Sequence[torch.Tensor],
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

        Every perturbation of every population is predicted by a model without this and some other
        perturbations (``obs["left_out"] == "perturbation"``), without all perturbations with one
        of its targets (``"target"``) and, if there are several populations, with this perturbation
        in others only (``"population"``); ``obs["unseen_targets"]`` are those of its targets not
        seen at all. The layer ``observed`` is the measured effect, ``observed_std`` its standard
        error without the noise of the control cells. Of large screens it has a random part. It is
        not saved with the model, and not for publication: the weight of the correction and the
        calibration were chosen on it.

        Raises
        ------
        ValueError
            If the model was not trained since it was loaded.

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
        return list(self._trained_effects().model.names.targets)

    @property
    def perturbations(self) -> list[str]:
        """Perturbations of the training, without the control.

        Examples
        --------
        >>> "GENE1" in perturbation_model.perturbations
        True
        """
        effects = self._trained_effects()
        rows = np.unique(effects.model.mixed.targets_gt.numpy(), axis=0)
        targets = np.array(effects.model.names.targets)
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

        Raises
        ------
        ValueError
            If a population or gene is unknown, or there are no control cells.

        Examples
        --------
        >>> effects = perturbation_model.predict(["GENE1+GENE2", ("GENE2", "GENE3")])
        >>> effects.obs_names.tolist()
        ['GENE1+GENE2', 'GENE2+GENE3']
        """
        effects = self._trained_effects()
        model = effects.model
        if unknown_targets not in ("raise", "average"):
            raise ValueError(f"unknown_targets={unknown_targets!r} must be 'raise' or 'average'.")
        asked = self.perturbations if perturbations is None else perturbations
        targets = parse_perturbations(self._names, asked)
        if unknown_targets == "raise":
            effects.check_known(targets)
        if adata is not None and population is not None:
            raise ValueError("Give either `population` or `adata`, not both.")
        if adata is None:
            populations, trained = choose_populations(model.names.populations, population)
            controls = Controls(*(part[trained] for part in model.controls))
            n_cells = effects.n_controls[trained]
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
        in_training, n_controls = torch.from_numpy(trained), torch.from_numpy(n_cells)
        query = effects.query(groups, controls, in_training, n_controls)
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

        Raises
        ------
        ValueError
            If there are several populations, or as :meth:`predict` does.

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
        genes = self._trained_effects().model.gene_ids.numpy()
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
        uses = {
            "similarity of populations": effects.sizes.n_populations > 1,
            "gene embeddings": effects.sizes.n_embedding > 0,
            "correction": bool(effects.gate.any()),
        }
        used = ", ".join(name for name, is_used in uses.items() if is_used)
        untrained = "" if self.is_trained_ else ", so it was not trained"
        return (
            f"{super().__repr__()}\n"
            f"  effects: {effects.sizes.n_targets} perturbed genes, "
            f"{effects.sizes.n_populations} populations, {effects.sizes.n_genes:,} genes\n"
            "  encoder in the predictions: "
            f"{used or f'none, they are the same for any encoder{untrained}'}"
        )

    @property
    def _names(self) -> PerturbationNames:
        args = self.registry_["setup_args"]
        return PerturbationNames(args["control"], args["separator"])

    def _trained_effects(self) -> Effects:
        """Return the effect model; raise if there is none yet."""
        model = self.module.effects
        if model is None:
            raise ValueError("No effects were learned yet. Call `model.train()` first.")
        # On the CPU: moving queries to another device takes longer than this small model.
        on_cpu = model.gene_sd.device.type == "cpu"
        return self._effects_of(model if on_cpu else deepcopy(model).cpu())

    def _effects_of(self, model: EffectModel) -> Effects:
        weights = self.module.net.gene_embeddings.detach().float().cpu()
        embeddings = F.normalize(weights - weights.mean(dim=0))
        return Effects(model, embeddings, self.vocabulary.lookup())

    def _extra_state(self) -> dict[str, Any]:
        effects = self.module.effects
        if effects is None:
            return {}
        return {"sizes": asdict(effects.sizes), "names": effects.names._asdict()}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        if state:
            self.module.effects = effects_from_json(state)

    def _cells(self, adata: AnnData) -> CellCounts:
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
        gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        used = np.flatnonzero(gene_of_column >= 0)
        columns = np.full(len(self.vocabulary), -1)
        columns[gene_of_column[used]] = used
        key = self.registry_["setup_args"]["library_size_key"]
        totals = None if key is None else library_sizes(adata, key)
        return CellCounts(
            RowReader(manager.get_from_registry(REGISTRY_KEYS.X_KEY)), columns, totals
        )

    def _control_codes(self, adata: AnnData) -> tuple[np.ndarray, list[str]]:
        """Return the population of control cells, -1 for perturbed ones, and their names."""
        args = self.registry_["setup_args"]
        key, population_key = args["perturbation_key"], args["population_key"]
        codes, names = population_codes(
            adata, population_key if population_key in adata.obs else None
        )
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
    ) -> tuple[GroupMoments, torch.Tensor, torch.Tensor]:
        """Return expression, latent representation and gene embeddings (0 and NaN if unused)."""
        moments = self._cells(adata).moments(codes, genes)
        n_populations = len(moments.n_cells)
        if not encode:
            shape = (n_populations, len(genes), self.config_.n_hidden)
            return moments, torch.zeros(n_populations, 1), torch.full(shape, torch.nan)
        names = np.asarray(self.vocabulary.gene_ids)[genes]
        rng = np.random.default_rng(self.seed_)
        latent, context = [], []
        for population in range(n_populations):
            rows = np.flatnonzero(codes == population)
            if len(rows) > MAX_ENCODED:
                rows = np.sort(rng.choice(rows, MAX_ENCODED, replace=False))
            vectors = self.get_latent_representation(adata, rows.tolist())
            latent.append(np.asarray(vectors).mean(axis=0))
            embedded = self.get_contextual_gene_embeddings(
                adata, rows.tolist(), gene_list=list(names), source="encoder"
            )
            context.append(np.asarray(embedded, dtype=np.float32))
        latent_pz = torch.from_numpy(np.stack(latent).astype(np.float32))
        return moments, latent_pz, torch.from_numpy(np.stack(context))


def parse_perturbations(
    names: PerturbationNames, perturbations: Perturbation | Sequence[Perturbation]
) -> list[tuple[str, ...]]:
    """Return the genes of perturbations to predict; each must be named once."""
    if isinstance(perturbations, str | tuple | Real):
        perturbations = [perturbations]
    targets = [names.targets(name) for name in perturbations]
    if not targets:
        raise ValueError("perturbations is empty: name at least one.")
    if twice := [names.name(t) for t in targets if targets.count(t) > 1]:
        raise ValueError(f"perturbations names {preview(set(twice))} more than once.")
    if () in targets:
        raise ValueError(
            f"perturbations has {names.control!r}, which is the control and has no effect: leave "
            "it out."
        )
    return targets


def choose_populations(
    known: Sequence[str], population: str | Sequence[str] | None
) -> tuple[list[str], np.ndarray]:
    """Return populations of the training, by default all, and their numbers."""
    known = asked = list(known)
    if population is not None:
        asked = [str(name) for name in np.atleast_1d(np.asarray(population, dtype=object))]
    if missing := [name for name in asked if name not in known]:
        raise ValueError(
            f"population={preview(missing)} is not one of the training, {preview(known)}. "
            "For other cells pass their control cells as `adata`."
        )
    if len(set(asked)) < len(asked) or not asked:
        raise ValueError(f"population={asked} must name at least one, each once.")
    return asked, np.array([known.index(name) for name in asked])


def perturbation_fields(args: Mapping[str, Any]) -> list[Any]:
    """Return the fields with perturbations, populations and total counts."""
    names = PerturbationNames(args["control"], args["separator"])
    fields: list[Any] = [PerturbationField(args["perturbation_key"], names)]
    if args["population_key"] is not None:
        fields.append(CategoryField("population", args["population_key"]))
    if args["library_size_key"] is not None:
        fields.append(LibrarySizeField(args["library_size_key"]))
    return fields
