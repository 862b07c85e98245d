"""Predictions of a perturbation model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse
from scvi import REGISTRY_KEYS

from ..data import RowReader
from ..data.effects import change_means, effects_anndata
from ..data.fields import CountsField
from ..data.perturbations import library_sizes, log_normalized
from ..data.vocabulary import preview
from ..module import Controls
from ._perturbation_query import PerturbationQueryMixin

Perturbation = str | Sequence[str]
UnknownTargets = Literal["raise", "average"]
ROWS_PER_PREDICTION = 64


class PerturbationPredictionMixin(PerturbationQueryMixin):
    """``predict``."""

    @property
    def targets(self) -> list[str]:
        """Genes that were perturbed in the training, alone or with others.

        Examples
        --------
        >>> perturbation_model.targets[:2]
        ['GENE1', 'GENE2']
        """
        return list(self._trained_effects()[1].targets)

    @property
    def perturbations(self) -> list[str]:
        """Perturbations of the training, without the control.

        Examples
        --------
        >>> "GENE1" in perturbation_model.perturbations
        True
        """
        return sorted({name for _, name in self._measured()})

    def _measured(self) -> set[tuple[str, str]]:
        """Return populations and perturbations of the training."""
        effects, names = self._trained_effects()
        mixed = effects.mixed
        return {
            (names.populations[p], self._names.name(names.targets[i] for i in np.flatnonzero(row)))
            for p, row in zip(
                mixed.population_g.tolist(), mixed.targets_gt.cpu().numpy(), strict=True
            )
        }

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
            Names such as ``"KLF1"`` or ``"KLF1+BAK1"``, or tuples of genes. By default those of
            the training. The order of the genes is no matter.
        population
            Populations of the training, by default all.
        adata
            Control cells of another population, with any genes in any order; the more than one
            population of ``population_key``, if it has this column. Cells that are perturbed
            according to ``perturbation_key`` are left out.
        unknown_targets
            What to do with genes that were never perturbed in the training and of which no
            features are known, see :meth:`train`: ``"raise"``, or ``"average"`` to predict what
            all perturbations have in common.

        Returns
        -------
        AnnData with a row per perturbation and population and a column per measured gene. ``X`` is
        the mean log-normalised expression after the perturbation; the layer ``effect`` its
        difference to that of the control cells (layer ``control``), ``std`` the standard deviation
        of this prediction; ``score`` the effect in units of its standard deviation, where the
        control cells have noise, too. ``obs`` says how many targets there are (``n_targets``), how
        many of them were never perturbed in the training (``n_unknown``), and if this very
        perturbation was (``is_trained``).

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
        effects, names = self._trained_effects()
        if unknown_targets not in ("raise", "average"):
            raise ValueError(f"unknown_targets={unknown_targets!r} must be 'raise' or 'average'.")
        targets = self._asked(perturbations)
        if unknown_targets == "raise":
            self._check_known(targets)
        if adata is not None:
            if population is not None:
                raise ValueError("Give either `population` or `adata`, not both.")
            controls, populations, n_cells = self._other_controls(adata)
            trained = torch.full((len(populations),), -1)
        else:
            populations, trained = self._known_populations(population)
            controls = Controls(*(part.cpu()[trained] for part in effects.controls))
            n_cells = effects.mixed.n_controls_p.cpu()[trained].numpy()
        groups = [(p, genes) for p in range(len(populations)) for genes in targets]
        similarity = effects.cpu().similarity(controls.latent_pz)
        query = self._query(groups, similarity, trained)
        parts = [
            effects.predict(query.rows(rows), controls)
            for rows in torch.arange(len(groups)).split(ROWS_PER_PREDICTION)
        ]
        effects.to(self.device)
        effect, std, score = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        row = np.array([p for p, _ in groups])
        known = set(names.targets)
        seen = self._measured() if adata is None else set()
        obs = pd.DataFrame(
            {
                "perturbation": [self._names.name(genes) for _, genes in groups],
                "population": [populations[p] for p, _ in groups],
                "n_targets": [len(genes) for _, genes in groups],
                "n_unknown": [sum(gene not in known for gene in genes) for _, genes in groups],
                "n_control_cells": n_cells[row].astype(int),
            }
        )
        obs["is_trained"] = [
            pair in seen for pair in zip(obs["population"], obs["perturbation"], strict=True)
        ]
        genes = np.asarray(self.vocabulary.gene_ids)[effects.gene_ids.cpu()]
        return effects_anndata(obs, genes, effect, std, score, controls.mean_pn.numpy()[row])

    def predict_cells(
        self,
        perturbation: Perturbation,
        population: str | None = None,
        adata: AnnData | None = None,
        unknown_targets: UnknownTargets = "raise",
        n_cells: int | None = None,
        seed: int | None = None,
    ) -> AnnData:
        """Draw cells as they would be after a perturbation, from control cells.

        Their mean is that of :meth:`predict`. Of a gene that goes down, expressing cells lose
        their expression at random; of one that goes up, other cells take over the expression of
        control cells that express it, or, where all do already, all rise alike.

        Parameters
        ----------
        perturbation, population, adata, unknown_targets
            See :meth:`predict`; a single perturbation and population.
        n_cells
            How many cells to draw, with replacement; by default every control cell once.
        seed
            Seed of the draws; by default that of the model.

        Returns
        -------
        AnnData of log-normalised expression (CSR, float32); ``obs["control_cell"]`` says which
        control cell each was drawn from, and is its name if each was drawn once.

        Examples
        --------
        >>> cells = perturbation_model.predict_cells("GENE1+GENE2", n_cells=20)
        >>> cells.n_obs
        20
        """
        effects, names = self._trained_effects()
        mean = self.predict([perturbation], population, adata, unknown_targets)
        if mean.n_obs > 1:
            raise ValueError(
                f"There are {mean.n_obs} populations, {preview(mean.obs['population'])}: name one."
            )
        data = self._validate_anndata(adata)
        rows = self._control_rows(data)
        codes, populations = self._population_codes(data)
        if len(populations) > 1:
            rows = rows[codes[rows] == populations.index(mean.obs["population"].iloc[0])]
        rng = np.random.default_rng(self.seed_ if seed is None else seed)
        if n_cells is not None:
            rows = rng.choice(rows, n_cells)
        values = self._expression(data, rows, effects.gene_ids.cpu().numpy())
        drawn = change_means(values, np.asarray(mean.X)[0], rng)
        names = data.obs_names[rows].to_numpy()
        obs = pd.DataFrame(
            {"perturbation": mean.obs["perturbation"].iloc[0], "control_cell": names}
        )
        return AnnData(
            drawn,
            obs=obs.set_axis(names if n_cells is None else obs.index.astype(str), axis=0),
            var=mean.var.copy(),
        )

    def _asked(
        self, perturbations: Perturbation | Sequence[Perturbation] | None
    ) -> list[tuple[str, ...]]:
        if perturbations is None:
            perturbations = self.perturbations
        elif isinstance(perturbations, str):
            perturbations = [perturbations]
        targets = [self._names.targets(name) for name in perturbations]
        if not targets:
            raise ValueError("perturbations is empty: name at least one.")
        if twice := [self._names.name(t) for t in targets if targets.count(t) > 1]:
            raise ValueError(f"perturbations names {preview(set(twice))} more than once.")
        if () in targets:
            raise ValueError(
                f"{self._names.control!r} is the control, of which there is no effect to predict."
            )
        return targets

    def _check_known(self, targets: list[tuple[str, ...]]) -> None:
        _, names = self._trained_effects()
        genes = sorted({gene for of_one in targets for gene in of_one} - set(names.targets))
        if not genes:
            return
        _, features = self._target_vectors(genes)
        unknown = [g for g, f in zip(genes, features, strict=True) if not bool((f != 0).any())]
        if unknown:
            raise ValueError(
                f"Nothing is known about {preview(unknown)}: not perturbed in the training "
                f"({preview(names.targets)} were), and without features. Train with "
                "`target_features=` or `relations=` that have these genes, or accept the average "
                'of all perturbations with `unknown_targets="average"`.'
            )

    def _known_populations(
        self, population: str | Sequence[str] | None
    ) -> tuple[list[str], torch.Tensor]:
        known = list(self._trained_effects()[1].populations)
        asked = [population] if isinstance(population, str) else list(population or known)
        if missing := [name for name in asked if name not in known]:
            raise ValueError(
                f"population={preview(missing)} is not one of the training, {preview(known)}. "
                "For other cells pass their control cells as `adata`."
            )
        return asked, torch.tensor([known.index(name) for name in asked])

    def _control_rows(self, adata: AnnData) -> np.ndarray:
        """Return the rows of control cells; all cells, if it is not said which are perturbed."""
        key = self.registry_["setup_args"]["perturbation_key"]
        if key not in adata.obs:
            return np.arange(adata.n_obs)
        rows = np.flatnonzero(adata.obs[key].astype(str) == self._names.control)
        if len(rows) == 0:
            raise ValueError(
                f"adata.obs[{key!r}] has no control cells {self._names.control!r}; it has "
                f"{preview(adata.obs[key].unique())}."
            )
        return rows

    def _other_controls(self, adata: AnnData) -> tuple[Controls, list[str], np.ndarray]:
        effects, _ = self._trained_effects()
        data = self._validate_anndata(adata)
        rows = self._control_rows(data)
        codes, populations = self._population_codes(data)
        kept = np.unique(codes[rows])
        place = np.full(len(populations), -1)
        place[kept] = np.arange(len(kept))
        control_codes = np.full(data.n_obs, -1)
        control_codes[rows] = place[codes[rows]]
        moments, latent, context = self._read_controls(
            data, control_codes, len(kept), effects.gene_ids.cpu().numpy()
        )
        effects.cpu()
        controls = self._make_controls(moments, latent, context)
        return controls, [populations[i] for i in kept], moments.n_cells

    def _expression(self, adata: AnnData, rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return log-normalised expression of genes of the vocabulary, 0 if not measured."""
        manager = self.get_anndata_manager(adata, required=True)
        assert manager is not None
        counts = RowReader(manager.get_from_registry(REGISTRY_KEYS.X_KEY)).read(rows)
        state = manager.get_state_registry(REGISTRY_KEYS.X_KEY)
        gene_of_column = np.asarray(state[CountsField.COLUMN_TO_GENE_KEY])
        used = np.flatnonzero(gene_of_column >= 0)
        to_genes = sparse.csr_matrix(
            (np.ones(len(used)), (used, gene_of_column[used])),
            shape=(len(gene_of_column), len(self.vocabulary)),
        )
        key = self.registry_["setup_args"]["library_size_key"]
        totals = None if key is None else library_sizes(adata, key)[rows]
        logged = log_normalized(sparse.csr_matrix(counts @ to_genes), totals)
        return logged[:, genes].toarray()
