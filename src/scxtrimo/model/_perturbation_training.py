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
from ..data.effects import MIN_SD, effects_anndata
from ..data.vocabulary import preview
from ..module import Controls, EffectModel, EffectSizes
from ..train import EffectsConfig, HeldOut, fit_effects, n_stages, relation_features
from ._batches import PROGRESS_SECONDS
from ._perturbation_query import EffectNames, Group, PerturbationQueryMixin

N_CONTEXT = 8
MAX_FEATURES = 64


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
        :class:`~scxtrimo.module.EffectModel`; :attr:`held_out` keeps what was predicted for
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
        >>> perturbation_model.train(effects=scxtrimo.train.EffectsConfig(n_steps=20))
        """
        config = effects or EffectsConfig()
        if self.adata_manager is None:
            raise ValueError(
                "The model has no data to train on; load it with `load(..., adata=...)`."
            )
        adata = self._validate_anndata()
        named = _feature_tables(target_features, relations)
        groups, group_codes, control_codes, populations = self._training_groups(adata)
        if not self.is_trained_:
            super().train(max_epochs, **kwargs)
        elif max_epochs is not None or kwargs:
            unused = sorted(kwargs) + ["max_epochs"] * (max_epochs is not None)
            logger.info(f"The network is trained already: {unused} are not used.")
        model, controls, observed, std = self._make_effects(
            adata, groups, group_codes, control_codes, populations, named
        )
        query = self._query(groups, model.similarity(model.latent), torch.arange(len(populations)))
        effects_gn = torch.from_numpy(observed).float() / model.gene_sd
        n_cells = torch.from_numpy(np.bincount(group_codes[group_codes >= 0])).float()
        n_controls = torch.from_numpy(np.bincount(control_codes[control_codes >= 0])).float()
        model.mixed.set(query.design, effects_gn, n_cells, n_controls)
        with tqdm(total=n_stages(config), desc="Learning effects", delay=PROGRESS_SECONDS) as bar:
            held_out = fit_effects(model, query, config, self.seed_, bar.update)
        self._held_out = self._held_out_anndata(held_out, groups, populations, observed, std)
        model.to(self.device)
        self.module.eval()
        weights = ", ".join(f"{w:.2f}" for w in model.gate.tolist())
        logger.info(
            f"Learned effects of {len(groups)} groups of perturbed cells; weight of the "
            f"correction without and with unseen targets: {weights}."
        )

    def _training_groups(
        self, adata: AnnData
    ) -> tuple[list[Group], np.ndarray, np.ndarray, list[str]]:
        """Return groups of cells with the same perturbation and population, and who is in them."""
        perturbation, conditions = self._perturbation_codes(adata)
        population, populations = self._population_codes(adata)
        is_control = perturbation == conditions.index(())
        control_codes = np.where(is_control, population, -1)
        without = sorted(set(range(len(populations))) - set(control_codes.tolist()))
        if without:
            key = self.registry_["setup_args"]["population_key"]
            names = preview([populations[i] for i in without])
            raise ValueError(
                f"The populations {names} of adata.obs[{key!r}] have no control cells: effects "
                "need something to be compared with. Leave these cells out."
            )
        pairs = sorted(set(zip(population[~is_control], perturbation[~is_control], strict=True)))
        lookup = {pair: i for i, pair in enumerate(pairs)}
        group_codes = np.array(
            [lookup.get(pair, -1) for pair in zip(population, perturbation, strict=True)]
        )
        groups = [(int(p), conditions[c]) for p, c in pairs]
        return groups, group_codes, control_codes, populations

    def _make_effects(
        self,
        adata: AnnData,
        groups: list[Group],
        group_codes: np.ndarray,
        control_codes: np.ndarray,
        populations: list[str],
        named: pd.DataFrame,
    ) -> tuple[EffectModel, Controls, np.ndarray, np.ndarray]:
        """Make an effect model with all that is measured, and return observed effects."""
        genes = np.flatnonzero(self._measured_genes(adata).cpu().numpy())
        perturbed = self._moments(adata, group_codes, len(groups), genes)
        moments, latent, context = self._read_controls(
            adata, control_codes, len(populations), genes
        )
        targets = sorted({target for _, names in groups for target in names})
        n_known = sum(target in self.vocabulary.lookup() for target in targets)
        widths = named.columns.get_level_values(0)
        sizes = EffectSizes(
            n_groups=len(groups),
            n_targets=len(targets),
            n_populations=len(populations),
            n_genes=len(genes),
            n_latent=latent.shape[1],
            n_hidden=context.shape[2],
            n_context=N_CONTEXT,
            n_embedding=self.config_.n_hidden if n_known > 1 else 0,
            n_named=len(named),
            named_blocks=tuple(int((widths == name).sum()) for name in widths.unique()),
        )
        model = self.module.make_effects(sizes).cpu()
        self._effect_names = EffectNames(tuple(targets), tuple(populations), tuple(named.index))
        model.gene_ids.copy_(torch.from_numpy(genes))
        model.named_features.copy_(torch.from_numpy(named.to_numpy(np.float32)))
        degrees = [np.maximum(m.n_cells - 1, 0) for m in (perturbed, moments)]
        within = sum(d @ m.variance for d, m in zip(degrees, (perturbed, moments), strict=True))
        variance = within / max(sum(d.sum() for d in degrees), 1)
        sd = np.sqrt(variance + MIN_SD**2)
        model.gene_sd.copy_(torch.from_numpy(sd))
        model.set_context_axes(context.flatten(0, 1))
        controls = self._make_controls(moments, latent, context)
        model.set_controls(controls)
        population = np.array([p for p, _ in groups])
        observed = perturbed.mean - moments.mean[population]
        std = sd / np.sqrt(perturbed.n_cells)[:, None]
        return model, controls, observed, std

    def _held_out_anndata(
        self,
        held_out: HeldOut,
        groups: list[Group],
        populations: list[str],
        observed: np.ndarray,
        std: np.ndarray,
    ) -> AnnData:
        rows = held_out.group
        obs = pd.DataFrame(
            {
                "perturbation": [self._names.name(groups[i][1]) for i in rows],
                "population": [populations[groups[i][0]] for i in rows],
                "left_out": np.where(held_out.without_targets, "target", "perturbation"),
                "unseen_targets": [
                    self._names.separator.join(
                        np.asarray(groups[i][1])[is_unseen[: len(groups[i][1])]]
                    )
                    for i, is_unseen in zip(rows, held_out.is_unseen, strict=True)
                ],
            }
        )
        model, _ = self._trained_effects()
        genes = np.asarray(self.vocabulary.gene_ids)[model.gene_ids.cpu()]
        control = model.control_mean.cpu().numpy()[[groups[i][0] for i in rows]]
        adata = effects_anndata(
            obs,
            genes,
            held_out.predicted,
            held_out.std,
            held_out.score,
            control,
            named_by=("population", "left_out", "unseen_targets"),
        )
        adata.layers["observed"] = observed[rows].astype(np.float32)
        adata.layers["observed_std"] = std[rows].astype(np.float32)
        return adata

    @property
    def held_out(self) -> AnnData:
        """What was predicted for the training perturbations without having seen them.

        Every perturbation of every population at least twice: predicted by a model that has seen
        all but this perturbation, and by models that have seen none with one of its targets
        (``obs["left_out"]`` is ``"perturbation"`` or ``"target"``). ``obs["unseen_targets"]`` says
        which of the targets were then not seen in any other perturbation. The layer ``observed``
        is the truth, ``observed_std`` how far it is off for want of cells, the control cells
        taken as they are. It is not saved with the model.

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


def _feature_tables(
    target_features: pd.DataFrame | Mapping[str, pd.DataFrame] | None,
    relations: pd.DataFrame | None,
) -> pd.DataFrame:
    """Return all features side by side, with the kind as upper level of the columns."""
    if target_features is None:
        tables = {}
    elif isinstance(target_features, pd.DataFrame):
        tables = {"target_features": target_features}
    else:
        tables = dict(target_features)
    checked = {name: _standardized(table, name) for name, table in tables.items()}
    if relations is not None:
        checked["relations"] = _unit_length(relation_features(relations))
    if not checked:
        return pd.DataFrame()
    joined = pd.concat(checked, axis=1).fillna(0.0)
    return joined.astype(np.float32)


def _standardized(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return centred features of about unit length, at most 64: principal components."""
    if not isinstance(table, pd.DataFrame):
        raise TypeError(f"{name} must be a DataFrame with genes as index, not {type(table)}.")
    table = table.set_axis(table.index.astype(str), axis=0)
    if not table.index.is_unique:
        raise ValueError(
            f"{name} has genes twice: {preview(table.index[table.index.duplicated()])}."
        )
    values = table.to_numpy(np.float64)
    if not np.isfinite(values).all():
        raise ValueError(f"{name} has NaN or infinite values; leave these genes out.")
    values = values - values.mean(axis=0)
    if values.shape[1] > MAX_FEATURES:
        left, sizes, _ = np.linalg.svd(values, full_matrices=False)
        values = (left * sizes)[:, :MAX_FEATURES]
    return _unit_length(pd.DataFrame(values, index=table.index))


def _unit_length(table: pd.DataFrame) -> pd.DataFrame:
    length = np.sqrt(np.square(table).sum(axis=1))
    return table.div(length.where(length > 0, 1.0), axis=0)
