"""From names of perturbations and control cells to what an effect model takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS
from torch.nn import functional as F

from ..data import (
    CategoryField,
    CountsField,
    PerturbationField,
    PerturbationNames,
    RowReader,
    group_moments,
)
from ..data.perturbations import PERTURBATION, POPULATION, GroupMoments, library_sizes
from ..module import Controls, EffectModel, EffectSizes, Query, XTrimoGenePerturbationModule
from ..nn import Design, cosine
from ._base import XTrimoGeneBase

MAX_ENCODED = 1000
ALL_CELLS = "all"


@dataclass(frozen=True)
class EffectNames:
    """What the numbers of an :class:`~scxtrimo.module.EffectModel` stand for.

    Parameters
    ----------
    targets
        Perturbed genes of the training.
    populations
        Populations of cells.
    named
        Genes with features of the user.
    """

    targets: tuple[str, ...]
    populations: tuple[str, ...]
    named: tuple[str, ...] = ()


Group = tuple[int, tuple[str, ...]]
"""Row of a population, and the perturbed genes."""


class PerturbationQueryMixin(XTrimoGeneBase):
    """Control cells, perturbed genes and their features."""

    module: XTrimoGenePerturbationModule
    _effect_names: EffectNames | None = None

    @property
    def _names(self) -> PerturbationNames:
        args = self.registry_["setup_args"]
        return PerturbationNames(args["control"], args["separator"])

    def _trained_effects(self) -> tuple[EffectModel, EffectNames]:
        """Return the effect model; raise if there is none yet."""
        if self.module.effects is None or self._effect_names is None:
            raise ValueError("No effects were learned yet. Call `model.train()` first.")
        return self.module.effects, self._effect_names

    def _extra_state(self) -> dict[str, Any]:
        if self.module.effects is None or self._effect_names is None:
            return {}
        return {"sizes": asdict(self.module.effects.sizes), "names": asdict(self._effect_names)}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        sizes = dict(state["sizes"])
        sizes["named_blocks"] = tuple(sizes["named_blocks"])
        self.module.make_effects(EffectSizes(**sizes))
        self._effect_names = EffectNames(**{k: tuple(v) for k, v in state["names"].items()})

    def _moments(
        self, adata: AnnData, codes: np.ndarray, n_groups: int, genes: np.ndarray
    ) -> GroupMoments:
        """Return the expression of groups of registered cells.

        Genes are positions in the vocabulary; those that the data do not have are NaN.
        """
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        reader = RowReader(manager.get_from_registry(REGISTRY_KEYS.X_KEY))
        state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
        gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        column_of_gene = np.full(len(self.vocabulary), -1)
        used = np.flatnonzero(gene_of_column >= 0)
        column_of_gene[gene_of_column[used]] = used
        columns = column_of_gene[genes]
        is_measured = columns >= 0
        key = self.registry_["setup_args"]["library_size_key"]
        if key is not None:
            totals = library_sizes(adata, key)
        else:
            totals = np.concatenate([_totals(chunk[:, used]) for chunk in reader.chunks()])
        chunks = (chunk[:, columns[is_measured]] for chunk in reader.chunks())
        moments = group_moments(chunks, codes, n_groups, totals)
        full = []
        for values in moments[1:]:
            wide = np.full((n_groups, len(genes)), np.nan)
            wide[:, is_measured] = values
            full.append(wide)
        return GroupMoments(moments.n_cells, *full)

    def _perturbation_codes(self, adata: AnnData) -> tuple[np.ndarray, list[tuple[str, ...]]]:
        """Return the perturbation of every cell, -1 if unknown, and the genes of each."""
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        state = manager.get_state_registry(PERTURBATION)
        labels = [self._names.targets(name) for name in state[PerturbationField.MAPPING_KEY]]
        conditions = sorted(set(labels))
        place = np.array([conditions.index(label) for label in labels])
        codes = np.asarray(state[CategoryField.CODES_KEY])
        return np.where(codes >= 0, place[codes], -1), conditions

    def _population_codes(self, adata: AnnData) -> tuple[np.ndarray, list[str]]:
        """Return the population of every cell, and the names of the populations."""
        key = self.registry_["setup_args"]["population_key"]
        if key is None or key not in adata.obs:
            return np.zeros(adata.n_obs, dtype=np.int64), [ALL_CELLS]
        names = sorted(adata.obs[key].astype(str).unique())
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        if POPULATION in manager.data_registry and adata.obs[key].isna().any():
            raise ValueError(f"adata.obs[{key!r}] has missing values; give them a category.")
        lookup = {name: i for i, name in enumerate(names)}
        return adata.obs[key].astype(str).map(lookup).to_numpy(np.int64), names

    def _read_controls(
        self, adata: AnnData, codes: np.ndarray, n_populations: int, genes: np.ndarray
    ) -> tuple[GroupMoments, torch.Tensor, torch.Tensor]:
        """Return expression, latent representation and gene embeddings of control cells.

        The last two come from at most a thousand cells of each population.
        """
        moments = self._moments(adata, codes, n_populations, genes)
        names = np.asarray(self.vocabulary.gene_ids)[genes]
        rng = np.random.default_rng(self.seed_)
        latent, context = [], []
        for population in range(n_populations):
            rows = np.flatnonzero(codes == population)
            if len(rows) > MAX_ENCODED:
                rows = np.sort(rng.choice(rows, MAX_ENCODED, replace=False))
            latent.append(
                np.asarray(self.get_latent_representation(adata, rows.tolist())).mean(axis=0)
            )
            embedded = self.get_contextual_gene_embeddings(
                adata, rows.tolist(), list(names), source="encoder"
            )
            context.append(np.asarray(embedded, dtype=np.float32))
        return (
            moments,
            torch.from_numpy(np.stack(latent).astype(np.float32)),
            torch.from_numpy(np.stack(context)),
        )

    def _make_controls(
        self, moments: GroupMoments, latent: torch.Tensor, context: torch.Tensor
    ) -> Controls:
        """Return control cells; of genes that they lack, the average of the training."""
        effects = self.module.effects
        assert effects is not None

        def filled(values: np.ndarray, known: torch.Tensor) -> torch.Tensor:
            tensor = torch.from_numpy(values.astype(np.float32))
            return torch.where(tensor.isnan(), known.cpu().mean(dim=0), tensor)

        return Controls(
            filled(moments.mean, effects.control_mean),
            filled(moments.expressing, effects.control_expressing),
            latent,
            torch.stack([effects.project_context(part) for part in context]),
        )

    def _embeddings(self) -> torch.Tensor:
        """Return gene embeddings of the vocabulary, centred and of unit length."""
        weights = self.module.net.gene_embeddings.detach().float().cpu()
        return F.normalize(weights - weights.mean(dim=0))

    def _target_vectors(self, genes: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings and all features of genes; 0 where there are none."""
        effects, names = self._trained_effects()
        embeddings, lookup = self._embeddings(), self.vocabulary.lookup()
        place = [lookup.get(gene, -1) for gene in genes]
        padded = torch.cat([embeddings, torch.zeros(1, embeddings.shape[1])])
        embedded = padded[torch.tensor(place)]
        row = {name: i for i, name in enumerate(names.named)}
        table = effects.named_features.cpu()
        table = torch.cat([table, torch.zeros(1, table.shape[1])])
        named = table[torch.tensor([row.get(gene, -1) for gene in genes])]
        blocks = [embedded] if effects.sizes.n_embedding else []
        return embedded, torch.cat([*blocks, named], dim=1)

    def _query(
        self, groups: Sequence[Group], similarity_pp: torch.Tensor, trained_p: torch.Tensor
    ) -> Query:
        """Return what to predict.

        Parameters
        ----------
        groups
            Population and perturbed genes of each.
        similarity_pp
            Similarity of the populations to those of the training.
        trained_p
            Which of the training populations they are, -1 for another.
        """
        effects, names = self._trained_effects()
        known = {target: i for i, target in enumerate(names.targets)}
        genes = sorted({gene for _, targets in groups for gene in targets})
        place = {gene: i for i, gene in enumerate(genes)}
        embedded, features = self._target_vectors(genes)
        max_targets = max(len(targets) for _, targets in groups)
        population = torch.tensor([p for p, _ in groups])
        shape = (len(groups), max_targets)
        one_hot = torch.zeros(*shape, len(known))
        is_target = torch.zeros(shape)
        single_features = torch.zeros(*shape, features.shape[1])
        of_genes = self._embeddings()[effects.gene_ids.cpu()]
        affinity = torch.zeros(*shape, len(of_genes))
        cosines = cosine(embedded, of_genes)
        for i, (_, targets) in enumerate(groups):
            for j, target in enumerate(targets):
                is_target[i, j] = 1
                if target in known:
                    one_hot[i, j, known[target]] = 1
                single_features[i, j] = features[place[target]]
                affinity[i, j] = cosines[place[target]]
        of_populations = similarity_pp[population], trained_p[population]
        design = Design(
            one_hot.sum(dim=1), is_target.sum(dim=1), single_features.sum(dim=1), *of_populations
        )
        singles = Design(
            one_hot.flatten(0, 1),
            is_target.flatten(),
            single_features.flatten(0, 1),
            *(part.repeat_interleave(max_targets, dim=0) for part in of_populations),
        )
        return Query(design, singles, one_hot.sum(dim=2) > 0, affinity, population)


def _totals(counts: sparse.csr_matrix) -> np.ndarray:
    return np.asarray(counts.sum(axis=1, dtype=np.float64)).ravel()
