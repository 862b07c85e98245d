"""From names of perturbations and control cells to what an effect model takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..data.columns import preview
from .effects import NEVER, Controls, Design, EffectModel, EffectNames, EffectSizes, Query
from .groups import Group


@dataclass(frozen=True)
class Effects:
    """An effect model on the CPU, with the gene embeddings behind its numbers."""

    model: EffectModel
    embeddings: Tensor  # of the vocabulary, centred and of unit length
    lookup: Mapping[str, int]  # from names of genes to rows of the embeddings

    @property
    def n_controls(self) -> np.ndarray:
        """Numbers of control cells of the training populations."""
        mixed = self.model.mixed
        n_controls = np.zeros(len(self.model.names.populations), dtype=np.int64)
        n_controls[mixed.population_g.numpy()] = mixed.n_controls_g.numpy()
        return np.maximum(n_controls, 1)  # not known for a population without perturbed cells

    def target_vectors(self, genes: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return embeddings and all features of genes; 0 where there are none."""
        row = {name: i for i, name in enumerate(self.model.names.named)}
        embedded, named = (
            _rows_or_zeros(
                table, torch.tensor([rows.get(gene, -1) for gene in genes], dtype=torch.int64)
            )
            for table, rows in ((self.embeddings, self.lookup), (self.model.named_features, row))
        )
        blocks = [embedded] if self.model.sizes.n_embedding else []
        return embedded, torch.cat([*blocks, named], dim=1)

    def check_known(self, targets: Sequence[tuple[str, ...]]) -> None:
        """Raise if a gene was neither perturbed in the training nor has features."""
        known = self.model.names.targets
        genes = sorted({gene for of_one in targets for gene in of_one} - set(known))
        _, features = self.target_vectors(genes)
        unknown = [g for g, f in zip(genes, features, strict=True) if not bool((f != 0).any())]
        if unknown:
            raise ValueError(
                f"Nothing is known about {preview(unknown)}: not perturbed in the training "
                f"({preview(known)} were), and without features. Train with "
                "`target_features=` or `relations=` that have these genes, or accept the average "
                'of all perturbations with `unknown_targets="average"`.'
            )

    def query(
        self,
        groups: Sequence[Group],
        controls: Controls,
        trained_p: Tensor,
        n_controls_p: Tensor,
    ) -> Query:
        """Return groups of cells as a model that has seen nothing sees them.

        ``trained_p`` is the number of a population in the training, -1 for another one.
        """
        known = {target: i for i, target in enumerate(self.model.names.targets)}
        genes = sorted({gene for _, targets in groups for gene in targets})
        place = {gene: i for i, gene in enumerate(genes)}
        embedded, features = self.target_vectors(genes)
        cosines = F.normalize(embedded) @ F.normalize(self.embeddings[self.model.gene_ids]).T
        shape = (len(groups), max(len(targets) for _, targets in groups))
        padded = [[*targets, *[""] * (shape[1] - len(targets))] for _, targets in groups]
        place_s = torch.tensor([place.get(gene, -1) for row in padded for gene in row])
        known_s = torch.tensor([known.get(gene, -1) for row in padded for gene in row])
        population_g = torch.tensor([p for p, _ in groups])
        of_populations = (
            self.model.similarity(controls.latent_pz)[population_g],
            trained_p[population_g],
            n_controls_p[population_g].float(),
        )
        singles = Design(
            (known_s[:, None] == torch.arange(len(known))).float(),
            (place_s >= 0).float(),
            _rows_or_zeros(features, place_s),
            *(part.repeat_interleave(shape[1], dim=0) for part in of_populations),
        )
        counts, numbers, sums = (part.unflatten(0, shape).sum(dim=1) for part in singles[:3])
        return Query(
            Design(counts, numbers, sums, *of_populations),
            singles,
            torch.full(shape, NEVER),
            _rows_or_zeros(cosines, place_s).unflatten(0, shape),
            population_g,
        )


def _rows_or_zeros(table: Tensor, rows: Tensor) -> Tensor:
    """Return rows of a table, zeros for -1."""
    return torch.cat([table, torch.zeros(1, table.shape[1])])[rows]


def effects_from_json(state: dict[str, Any]) -> EffectModel:
    """Return an effect model whose tensors are still to be loaded."""
    try:
        blocks = tuple(state["sizes"]["named_blocks"])
        sizes = EffectSizes(**(state["sizes"] | {"named_blocks": blocks}))
        names = EffectNames(**{key: tuple(value) for key, value in state["names"].items()})
    except (KeyError, TypeError) as error:
        raise ValueError(f"The saved effects of perturbations are damaged: {error}") from error
    if tuple(map(len, names)) != (sizes.n_targets, sizes.n_populations, sizes.n_named):
        raise ValueError("The saved effects of perturbations are damaged: names are missing.")
    return EffectModel(sizes, names)
