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
        embedded = _vectors(self.embeddings, self.lookup, genes)
        named = _vectors(self.model.named_features, _numbers(self.model.names.named), genes)
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
        known = _numbers(self.model.names.targets)
        genes = sorted({gene for _, targets in groups for gene in targets})
        place = _numbers(genes)
        embedded, features = self.target_vectors(genes)
        cosines = F.normalize(embedded) @ F.normalize(self.embeddings[self.model.gene_ids]).T
        shape = (len(groups), max(len(targets) for _, targets in groups))
        padded = [[*targets, *[""] * (shape[1] - len(targets))] for _, targets in groups]
        gene_s = [gene for row in padded for gene in row]
        known_s = torch.tensor([known.get(gene, -1) for gene in gene_s])
        population_g = torch.tensor([p for p, _ in groups])
        of_populations = (
            self.model.similarity(controls.latent_pz)[population_g],
            trained_p[population_g],
            n_controls_p[population_g].float(),
        )
        singles = Design(
            (known_s[:, None] == torch.arange(len(known))).float(),
            torch.tensor([gene != "" for gene in gene_s]).float(),
            _vectors(features, place, gene_s),
            *(part.repeat_interleave(shape[1], dim=0) for part in of_populations),
        )
        counts, numbers, sums = (part.unflatten(0, shape).sum(dim=1) for part in singles[:3])
        return Query(
            Design(counts, numbers, sums, *of_populations),
            singles,
            torch.full(shape, NEVER),
            _vectors(cosines, place, gene_s).unflatten(0, shape),
            population_g,
        )


def _numbers(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}


def _vectors(table: Tensor, rows: Mapping[str, int], genes: Sequence[str]) -> Tensor:
    """Return the rows of genes in a table, zeros for those that it lacks."""
    padded = torch.cat([table, torch.zeros(1, table.shape[1])])
    return padded[torch.tensor([rows.get(gene, -1) for gene in genes], dtype=torch.int64)]


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
