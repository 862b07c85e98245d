"""Training of a perturbation model: the network, then the effects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from tqdm.auto import tqdm

from .._logging import logger
from ..model.batches import PROGRESS_SECONDS
from .effect_data import HERE, NEVER, Controls, EffectSizes, Query
from .effect_tables import effects_anndata
from .effects import EffectModel
from .group_moments import pooled_sd
from .groups import CellGroups, group_cells
from .query import EffectNames, Effects, PerturbationQueryMixin
from .target_features import feature_table
from .training import EffectsConfig, HeldOut, fit_effects, n_stages

N_CONTEXT = 8


class PerturbationTrainingMixin(PerturbationQueryMixin):
    """``train`` of a perturbation model."""

    _held_out: AnnData | None = None

    def train(  # type: ignore[override]
        self,
        max_epochs: int | None = None,
        *,
        target_features: pd.DataFrame | Mapping[str, pd.DataFrame] | None = None,
        relations: pd.DataFrame | None = None,
        effects: EffectsConfig | None = None,
        **kwargs: Any,
    ) -> None:
        """Train the network on all cells if it was not trained yet, then learn the effects.

        Effects are learned by a linear mixed model and a network that corrects it as far as this
        helps on perturbations that were left out in turn, see
        ``EffectModel``; :attr:`held_out` keeps what was predicted for
        these.

        Parameters
        ----------
        max_epochs
            Epochs of :meth:`XTrimoGene.train`, if the network was not trained yet; by default
            chosen from the number of cells.
        target_features
            Features of genes that can be perturbed, genes as index: embeddings of another model,
            for instance ``XTrimoGene.get_gene_embeddings()`` of one that knows more genes. Several
            kinds as a mapping. They are what is known about targets that were never perturbed; how
            much they say is learned.
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
        if effects is not None and not isinstance(effects, EffectsConfig):
            raise TypeError(
                f"effects={effects!r} must be of type scxtrimo.perturbation.EffectsConfig."
            )
        config = effects or EffectsConfig()
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
                f"{self._names.name(*conditions)!r}. One says nothing about others; "
                "measure it with `scxtrimo.tl.perturbation_effects`."
            )
        targets = sorted({target for names in conditions for target in names})
        named = feature_table(target_features, relations, targets)
        if not self.is_trained_:
            super().train(max_epochs, **kwargs)
        elif max_epochs is not None or kwargs:
            unused = sorted(kwargs) + ["max_epochs"] * (max_epochs is not None)
            logger.info(f"The network is trained already: {unused} are not used.")
        with self._progress_as_asked(kwargs):
            learned, query, observed = self._measure_effects(adata, cells, targets, named)
        model = learned.model
        n_rounds = n_stages(model, config)
        with tqdm(
            total=n_rounds,
            desc="Learning effects",
            delay=PROGRESS_SECONDS,
            disable=kwargs.get("enable_progress_bar") is False,
        ) as bar:
            held_out = fit_effects(model, query, config, self.seed_, bar.update)
        # Nothing failed: only now is anything replaced.
        self._held_out = self._held_out_anndata(learned, held_out, cells, observed)
        self.module.effects, self._effect_names = model.to(self.device), learned.names
        self.module.eval()
        n_single = sum(len(names) == 1 for names in conditions)
        weights = ", ".join(f"{weight:.2f}" for weight in model.gate[[HERE, NEVER]].tolist())
        logger.info(
            f"Learned the effects of {n_single} single genes and {len(conditions) - n_single} "
            f"combinations in {len(cells.populations)} populations; weight of the correction "
            f"without and with unseen targets: {weights}."
        )

    def _measure_effects(
        self, adata: AnnData, cells: CellGroups, targets: list[str], named: pd.DataFrame
    ) -> tuple[Effects, Query, tuple[np.ndarray, np.ndarray]]:
        """Return an effect model with all that is measured, its groups, and their effects."""
        genes = np.flatnonzero(self._measured_genes(adata).cpu().numpy())
        n_groups, n_populations = len(cells.groups), len(cells.populations)
        perturbed = self._moments(adata, cells.codes, n_groups, genes)
        moments, latent, context = self._read_controls(
            adata, cells.control_codes, n_populations, genes
        )
        n_known = sum(target in self.vocabulary.lookup() for target in targets)
        kinds = named.columns.get_level_values(0)
        model = EffectModel(
            EffectSizes(
                n_groups=n_groups,
                n_targets=len(targets),
                n_populations=n_populations,
                n_genes=len(genes),
                n_latent=latent.shape[1],
                n_hidden=context.shape[2],
                n_context=N_CONTEXT,
                n_embedding=self.config_.n_hidden if n_known > 1 else 0,
                n_named=len(named),
                named_blocks=tuple(int((kinds == name).sum()) for name in kinds.unique()),
            )
        )
        names = EffectNames(tuple(targets), tuple(cells.populations), tuple(named.index))
        effects = Effects(model, names)
        sd = pooled_sd(perturbed, moments)
        model.gene_ids.copy_(torch.from_numpy(genes))
        model.named_features.copy_(torch.tensor(named.to_numpy(np.float32)))
        model.gene_sd.copy_(torch.from_numpy(sd))
        model.set_context_axes(context.flatten(0, 1))
        controls = Controls(
            torch.from_numpy(moments.mean).float(),
            torch.from_numpy(moments.expressing).float(),
            latent,
            torch.stack([model.project_context(part) for part in context]),
        )
        model.set_controls(controls)
        everyone, n_controls = torch.arange(n_populations), torch.from_numpy(moments.n_cells)
        query = self._query(effects, cells.groups, controls, everyone, n_controls)
        observed = perturbed.mean - moments.mean[[p for p, _ in cells.groups]]
        model.mixed.set(
            query.design,
            torch.from_numpy(observed).float() / model.gene_sd,
            torch.from_numpy(perturbed.n_cells).float(),
        )
        return effects, query, (observed, sd / np.sqrt(perturbed.n_cells)[:, None])

    def _held_out_anndata(
        self,
        effects: Effects,
        held_out: HeldOut,
        cells: CellGroups,
        observed: tuple[np.ndarray, np.ndarray],
    ) -> AnnData:
        population = np.array([cells.groups[i][0] for i in held_out.group])
        targets = [np.array(cells.groups[i][1]) for i in held_out.group]
        unseen = [
            genes[is_unseen[: len(genes)]]
            for genes, is_unseen in zip(targets, held_out.is_unseen, strict=True)
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
            np.asarray(self.vocabulary.gene_ids)[effects.model.gene_ids],
            held_out.predicted,
            held_out.std,
            held_out.score,
            effects.model.control_mean.numpy()[population],
            named_by=("population", "left_out", "unseen_targets"),
        )
        for name, values in zip(("observed", "observed_std"), observed, strict=True):
            adata.layers[name] = values[held_out.group].astype(np.float32)
        return adata

    @property
    def held_out(self) -> AnnData:
        """What was predicted for the training perturbations without having seen them.

        Every perturbation of every population, predicted by models that have not seen it: by one
        without this and some other perturbations (``obs["left_out"] == "perturbation"``), by one
        without all that have one of its targets (``"target"``) and, if there are several
        populations, by one that has seen it in others only (``"population"``).
        ``obs["unseen_targets"]`` says which of its targets were then not seen at all. The layer
        ``observed`` is the truth, ``observed_std`` how far it is off for want of cells, the
        control cells taken as they are. Of screens with more than some hundred perturbations a
        part, drawn at random. It is not saved with the model.

        The network that embeds genes and populations has seen all cells, and the variances, the
        weight of the correction and the calibration were chosen with these very predictions: for
        figures to publish, set perturbations aside before training.

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
            raise ValueError("The model was not trained since it was loaded.")
        return self._held_out
