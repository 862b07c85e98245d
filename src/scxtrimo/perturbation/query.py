"""From names of perturbations and control cells to what an effect model takes."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from anndata import AnnData
from scvi import REGISTRY_KEYS
from torch.nn import functional as F

from .._logging import logger
from ..data.counts import RowReader
from ..data.fields import CountsField
from ..model.base import XTrimoGeneBase
from .design import Design
from .effect_data import NEVER, Controls, EffectSizes, Query
from .effects import EffectModel
from .group_moments import GroupMoments, group_moments
from .groups import Group, PerturbationNames, library_sizes
from .mixed_effects import cosine
from .module import XTrimoGenePerturbationModule

MAX_ENCODED = 1000


@dataclass(frozen=True)
class EffectNames:
    """What the numbers of an ``EffectModel`` stand for.

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


@dataclass(frozen=True)
class Effects:
    """An effect model on the processor, with the names of what it knows."""

    model: EffectModel
    names: EffectNames


class PerturbationQueryMixin(XTrimoGeneBase):
    """Control cells, perturbed genes and their features."""

    module: XTrimoGenePerturbationModule
    _effect_names: EffectNames | None = None

    @property
    def _names(self) -> PerturbationNames:
        args = self.registry_["setup_args"]
        return PerturbationNames(args["control"], args["separator"])

    def _trained_effects(self) -> Effects:
        """Return the effect model; raise if there is none yet."""
        model = self.module.effects
        if model is None or self._effect_names is None:
            raise ValueError("No effects were learned yet. Call `model.train()` first.")
        # It is small: what it is asked takes longer to move to another device than to compute.
        on_processor = model.gene_sd.device.type == "cpu"
        return Effects(model if on_processor else deepcopy(model).cpu(), self._effect_names)

    def _extra_state(self) -> dict[str, Any]:
        if self.module.effects is None or self._effect_names is None:
            return {}
        return {"sizes": asdict(self.module.effects.sizes), "names": asdict(self._effect_names)}

    def _restore_extra_state(self, state: dict[str, Any]) -> None:
        if not state:
            return
        try:
            blocks = tuple(state["sizes"]["named_blocks"])
            sizes = EffectSizes(**(state["sizes"] | {"named_blocks": blocks}))
            names = EffectNames(**{k: tuple(v) for k, v in state["names"].items()})
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"What the model knows of perturbations is damaged: {error}"
            ) from error
        if (len(names.targets), len(names.populations), len(names.named)) != (
            sizes.n_targets,
            sizes.n_populations,
            sizes.n_named,
        ):
            raise ValueError(
                "What the model knows of perturbations is damaged: names are missing."
            )
        self.module.effects, self._effect_names = EffectModel(sizes), names

    def _moments(
        self, adata: AnnData, codes: np.ndarray, n_groups: int, genes: np.ndarray
    ) -> GroupMoments:
        """Return the expression of groups of registered cells.

        Genes are positions in the vocabulary; those that the data do not have are NaN.
        """
        columns = self._columns_of(adata)[genes]
        is_measured = columns >= 0
        chunks, totals = self._reader(adata).chunks(), self._totals(adata)
        moments = group_moments(chunks, codes, n_groups, totals, columns[is_measured])
        full = []
        for values in moments[1:]:
            wide = np.full((n_groups, len(genes)), np.nan)
            wide[:, is_measured] = values
            full.append(wide)
        return GroupMoments(moments.n_cells, *full)

    def _reader(self, adata: AnnData) -> RowReader:
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        return RowReader(manager.get_from_registry(REGISTRY_KEYS.X_KEY))

    def _columns_of(self, adata: AnnData) -> np.ndarray:
        """Return the column of every gene of the vocabulary, -1 if the data do not have it."""
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
        gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        columns = np.full(len(self.vocabulary), -1)
        used = np.flatnonzero(gene_of_column >= 0)
        columns[gene_of_column[used]] = used
        return columns

    def _totals(self, adata: AnnData) -> np.ndarray | None:
        """Return the total counts of all cells; ``None`` if they are the sums of the rows."""
        key = self.registry_["setup_args"]["library_size_key"]
        return None if key is None else library_sizes(adata, key)

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
            vectors = self.get_latent_representation(adata, rows.tolist())
            latent.append(np.asarray(vectors).mean(axis=0))
            embedded = self.get_contextual_gene_embeddings(
                adata, rows.tolist(), list(names), source="encoder"
            )
            context.append(np.asarray(embedded, dtype=np.float32))
        return (
            moments,
            torch.from_numpy(np.stack(latent).astype(np.float32)),
            torch.from_numpy(np.stack(context)),
        )

    def _other_controls(
        self, effects: Effects, adata: AnnData, codes: np.ndarray, n_populations: int
    ) -> tuple[Controls, np.ndarray]:
        """Return control cells of other data, and how many; of genes they lack, those known."""
        model = effects.model
        moments, latent, context = self._read_controls(
            adata, codes, n_populations, model.gene_ids.numpy()
        )
        n_missing = int(np.isnan(moments.mean[0]).sum())
        if n_missing and self.registry_["setup_args"]["library_size_key"] is None:
            logger.warning(
                f"The control cells lack {n_missing:,} of the model's genes, so that the sums of "
                "their counts are smaller and their expression seems larger. Train with "
                "`library_size_key=` and give the total counts of all genes in this column."
            )

        def filled(values: np.ndarray, known: torch.Tensor) -> torch.Tensor:
            tensor = torch.from_numpy(values.astype(np.float32))
            return torch.where(tensor.isnan(), known.mean(dim=0), tensor)

        controls = Controls(
            filled(moments.mean, model.control_mean),
            filled(moments.expressing, model.control_expressing),
            latent,
            torch.stack([model.project_context(part) for part in context]),
        )
        return controls, moments.n_cells

    def _embeddings(self) -> torch.Tensor:
        """Return gene embeddings of the vocabulary, centred and of unit length."""
        weights = self.module.net.gene_embeddings.detach().float().cpu()
        return F.normalize(weights - weights.mean(dim=0))

    def _target_vectors(
        self, effects: Effects, genes: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return embeddings and all features of genes; 0 where there are none."""
        embeddings, lookup = self._embeddings(), self.vocabulary.lookup()
        embedded = _rows_or_zeros(embeddings, [lookup.get(gene, -1) for gene in genes])
        row = {name: i for i, name in enumerate(effects.names.named)}
        features = _rows_or_zeros(
            effects.model.named_features, [row.get(gene, -1) for gene in genes]
        )
        blocks = [embedded] if effects.model.sizes.n_embedding else []
        return embedded, torch.cat([*blocks, features], dim=1)

    def _query(
        self,
        effects: Effects,
        groups: Sequence[Group],
        controls: Controls,
        trained_p: torch.Tensor,
        n_controls_p: torch.Tensor,
    ) -> Query:
        """Return what to predict, as a model sees it that has seen nothing.

        Parameters
        ----------
        effects
            The model.
        groups
            Population and perturbed genes of each.
        controls
            The populations.
        trained_p
            Which of the training populations they are, -1 for another.
        n_controls_p
            Their numbers of control cells.
        """
        model = effects.model
        known = {target: i for i, target in enumerate(effects.names.targets)}
        genes = sorted({gene for _, targets in groups for gene in targets})
        place = {gene: i for i, gene in enumerate(genes)}
        embedded, features = self._target_vectors(effects, genes)
        cosines = cosine(embedded, self._embeddings()[model.gene_ids])
        shape = (len(groups), max(len(targets) for _, targets in groups))
        gene_gt = torch.full(shape, -1)
        one_hot_gtk = torch.zeros(*shape, len(known))
        for i, (_, targets) in enumerate(groups):
            for j, target in enumerate(targets):
                gene_gt[i, j] = place[target]
                if target in known:
                    one_hot_gtk[i, j, known[target]] = 1
        is_target_gt = (gene_gt >= 0).float()
        feature_gtf = _rows_or_zeros(features, gene_gt.flatten().tolist()).view(*shape, -1)
        affinity_gtn = _rows_or_zeros(cosines, gene_gt.flatten().tolist()).view(*shape, -1)
        population = torch.tensor([p for p, _ in groups])
        of_populations = (
            model.similarity(controls.latent_pz)[population],
            trained_p[population],
            n_controls_p[population].float(),
        )
        design = Design(
            one_hot_gtk.sum(dim=1),
            is_target_gt.sum(dim=1),
            feature_gtf.sum(dim=1),
            *of_populations,
        )
        singles = Design(
            one_hot_gtk.flatten(0, 1),
            is_target_gt.flatten(),
            feature_gtf.flatten(0, 1),
            *(part.repeat_interleave(shape[1], dim=0) for part in of_populations),
        )
        return Query(design, singles, torch.full(shape, NEVER), affinity_gtn, population)


def _rows_or_zeros(table: torch.Tensor, rows: list[int]) -> torch.Tensor:
    """Return rows of a table, zeros for -1."""
    padded = torch.cat([table, torch.zeros(1, table.shape[1])])
    return padded[torch.tensor(rows)]
