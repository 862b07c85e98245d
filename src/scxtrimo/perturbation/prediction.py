"""Predictions of a perturbation model."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Literal

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ..data.counts import log_normalized
from ..data.vocabulary import preview
from .effect_data import Controls
from .effect_tables import change_means, effects_anndata
from .groups import complete_column, population_codes
from .query import Effects, PerturbationQueryMixin

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
        return list(self._trained_effects().names.targets)

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
        targets = np.array(effects.names.targets)
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
            list of these. By default those of the training. The order of the genes is no matter.
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
        effects = self._trained_effects()
        if unknown_targets not in ("raise", "average"):
            raise ValueError(f"unknown_targets={unknown_targets!r} must be 'raise' or 'average'.")
        targets = self._asked(perturbations)
        if unknown_targets == "raise":
            self._check_known(effects, targets)
        if adata is not None and population is not None:
            raise ValueError("Give either `population` or `adata`, not both.")
        if adata is None:
            populations, trained = self._known_populations(effects, population)
            controls = Controls(*(part[trained] for part in effects.model.controls))
            n_cells = self._n_controls(effects)[trained]
        else:
            data = self._validate_anndata(adata)
            codes, populations = self._control_codes(data)
            controls, n_cells = self._other_controls(effects, data, codes, len(populations))
            trained = np.full(len(populations), -1)
        groups = [(p, genes) for p in range(len(populations)) for genes in targets]
        model = effects.model
        query = self._query(
            effects, groups, controls, torch.from_numpy(trained), torch.from_numpy(n_cells)
        ).as_seen_in(model.mixed.design)
        parts = [
            model.predict(query.rows(rows), controls)
            for rows in torch.arange(len(groups)).split(ROWS_PER_PREDICTION)
        ]
        effect, std, score = (torch.cat(tensors).numpy() for tensors in zip(*parts, strict=True))
        row = np.array([p for p, _ in groups])
        known = set(effects.names.targets)
        obs = pd.DataFrame(
            {
                "perturbation": [self._names.name(genes) for _, genes in groups],
                "population": [populations[p] for p in row],
                "n_targets": [len(genes) for _, genes in groups],
                "n_unknown": [sum(gene not in known for gene in genes) for _, genes in groups],
                "n_control_cells": n_cells[row],
                "is_trained": model.mixed.is_trained(query.design).numpy(),
            }
        )
        genes = np.asarray(self.vocabulary.gene_ids)[model.gene_ids]
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
        control cells that express it, or, where all do already, all rise alike. All control
        cells are held in memory as a dense matrix.

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
        mean = self.predict([perturbation], population, adata, unknown_targets)
        if mean.n_obs > 1:
            raise ValueError(
                f"There are {mean.n_obs} populations, {preview(mean.obs['population'])}: name one "
                "with `population=`, or give cells of one as `adata`."
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
        model = self._trained_effects().model
        values = self._expression(data, rows, model.gene_ids.numpy())
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
        elif isinstance(perturbations, str | tuple | Real):
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

    def _check_known(self, effects: Effects, targets: list[tuple[str, ...]]) -> None:
        known = effects.names.targets
        genes = sorted({gene for of_one in targets for gene in of_one} - set(known))
        if not genes:
            return
        _, features = self._target_vectors(effects, genes)
        unknown = [g for g, f in zip(genes, features, strict=True) if not bool((f != 0).any())]
        if unknown:
            raise ValueError(
                f"Nothing is known about {preview(unknown)}: not perturbed in the training "
                f"({preview(known)} were), and without features. Train with "
                "`target_features=` or `relations=` that have these genes, or accept the average "
                'of all perturbations with `unknown_targets="average"`.'
            )

    def _n_controls(self, effects: Effects) -> np.ndarray:
        """Return the control cells of every population of the training."""
        mixed = effects.model.mixed
        n_controls = np.zeros(len(effects.names.populations), dtype=np.int64)
        n_controls[mixed.population_g.numpy()] = mixed.n_controls_g.numpy()
        return np.maximum(n_controls, 1)  # one without perturbed cells has no group that says it

    def _known_populations(
        self, effects: Effects, population: str | Sequence[str] | None
    ) -> tuple[list[str], np.ndarray]:
        known = list(effects.names.populations)
        if population is None:
            asked = known
        elif isinstance(population, list | tuple | np.ndarray | pd.Index):
            asked = [str(name) for name in population]
        else:
            asked = [str(population)]
        if missing := [name for name in asked if name not in known]:
            raise ValueError(
                f"population={preview(missing)} is not one of the training, {preview(known)}. "
                "For other cells pass their control cells as `adata`."
            )
        if len(set(asked)) < len(asked) or not asked:
            raise ValueError(f"population={asked} must name at least one, each once.")
        return asked, np.array([known.index(name) for name in asked])

    def _control_codes(self, adata: AnnData) -> tuple[np.ndarray, list[str]]:
        """Return the population of control cells, -1 for perturbed ones, and their names.

        All are control cells if it is not said which are perturbed.
        """
        args = self.registry_["setup_args"]
        key, population_key = args["perturbation_key"], args["population_key"]
        codes, names = population_codes(
            adata, population_key if population_key in adata.obs else None
        )
        if key not in adata.obs:
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

    def _expression(self, adata: AnnData, rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return log-normalised expression of genes of the vocabulary, 0 if not measured."""
        columns = self._columns_of(adata)[genes]
        totals = self._totals(adata)
        counts = self._reader(adata).read(rows)
        logged = log_normalized(counts, None if totals is None else totals[rows])
        values = np.zeros((len(rows), len(genes)))
        values[:, columns >= 0] = logged[:, columns[columns >= 0]].toarray()
        return values
