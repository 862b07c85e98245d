"""Prediction with models of drugs and cell lines."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import torch
from anndata import AnnData

from ..data.columns import canonical
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP
from .cell_lines import LineSetup, places_of, setup_of
from .molecules import Molecule, read_molecules
from .response_base import ResponseBase, ScreenScale
from .rows import DrugRows
from .saving import DrugSavingMixin
from .screen import check_table, drugs_of
from .training import predict_members


class DrugPredictionMixin(DrugSavingMixin):
    """``predict``, and rows of tables as the network reads them."""

    result_name = "predicted_response"

    def _known_drugs(self) -> np.ndarray:
        return np.where(self.module.drug_is_known.cpu(), np.arange(len(self.smiles)), -1)

    def _rows(
        self,
        molecules: list[Molecule],
        known_d: np.ndarray,
        drugs_nd: np.ndarray,
        lines_n: np.ndarray,
        lines: tuple[list[str], np.ndarray] | None,
    ) -> DrugRows:
        """Return rows with their drugs and lines, by default the lines of the model."""
        is_known_l = self.module.line_is_known.cpu().numpy()
        place = {name: i for i, name in enumerate(self.line_names) if is_known_l[i]}
        if lines is None:
            lines = self.line_names, self.module.line_values.cpu().numpy()
        known_l = np.array([place.get(name, -1) for name in lines[0]], dtype=np.int64)
        read_genes = self.module.read_genes.cpu().numpy()
        arrays = known_d, lines[1], known_l, read_genes, drugs_nd, lines_n
        return DrugRows(molecules, *(torch.from_numpy(array) for array in arrays))

    def _known_rows(self) -> DrugRows | None:
        """Return the known drugs and lines, where those stand in for new ones."""
        if isinstance(self.module.base, ResponseBase):
            return None
        none = np.zeros((0, len(self.drug_keys)), dtype=np.int64), np.zeros(0, dtype=np.int64)
        return self._rows(self.molecules, self._known_drugs(), *none, None)

    def _offset_and_scale(self, rows: DrugRows) -> tuple[np.ndarray, np.ndarray]:
        """Return what the predictions of the network are relative to, for every row."""
        base, n = self.module.base, len(rows.lines_n)
        if isinstance(base, ScreenScale):
            return np.full(n, float(base.mean)), np.full(n, float(base.std))
        features = np.stack([molecule.features_f for molecule in rows.molecules])
        inputs = torch.from_numpy(features), rows.known_d, rows.values_lg, rows.known_l
        device = self.module.temperature.device
        table_ld, scale_d = (
            tensor.cpu().double().numpy() for tensor in base(*(x.to(device) for x in inputs))
        )
        drug_n = rows.drugs_nd[:, 0].numpy()
        return table_ld[rows.lines_n.numpy(), drug_n], scale_d[drug_n]

    def predict(
        self,
        pairs: pd.DataFrame,
        lines: AnnData | None = None,
        drugs: Mapping[str, str] | pd.Series | None = None,
        min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
    ) -> pd.DataFrame:
        """Predict what drugs do to cell lines, known or new.

        Parameters
        ----------
        pairs
            Table with the columns of the drugs and the line that the screen had. Drugs may be new.
        lines
            Expression of cell lines, with any genes in any order, of the same kind (TPM, ...) as
            in training unless :meth:`setup_anndata` was called for it. By default the lines that
            the model was made with. A line with the name of one that was trained on is taken for
            that line.
        drugs
            SMILES of more drugs by name, where the columns hold names.
        min_gene_overlap
            Smallest acceptable part of the genes that the model reads.

        Returns
        -------
        A copy of the table with a column for the prediction (``"probability"`` for classes, which
        is calibrated; ``"predicted_score"`` or ``"predicted_response"`` in units of the screen
        otherwise) and ``"predicted_std"``, the standard deviation among the members of the
        ensemble and, where a drug or line is new, among the known ones in its place. It is about
        the model and not about noise of the measurement.

        Raises
        ------
        ValueError
            If the model is not trained, SMILES are invalid, names of drugs or lines unknown,
            columns missing, or too few genes are there.

        Examples
        --------
        >>> table = synergy.predict(screen.head(3))
        >>> [column for column in table if column not in screen]
        ['probability', 'predicted_std']
        """
        if not self.is_trained:
            raise ValueError("The model is not trained. Call `model.train()` first.")
        check_table(pairs, [*self.drug_keys, self.line_key], "pairs")
        names_of_drugs = self.drugs_by_name
        if drugs is not None:
            names_of_drugs = joined_names(names_of_drugs or {}, by_name(drugs))
        smiles_nd = drugs_of(pairs, self.drug_keys, names_of_drugs)
        places, smiles = pd.factorize(smiles_nd.ravel(), sort=True)
        place = {text: i for i, text in enumerate(self.smiles)}
        known_all = self._known_drugs()
        known_d = np.array([known_all[place[s]] if s in place else -1 for s in smiles.tolist()])
        new = read_molecules([s for s in smiles.tolist() if s not in place])
        new_molecules = iter(new)
        molecules = [
            self.molecules[place[s]] if s in place else next(new_molecules)
            for s in smiles.tolist()
        ]
        lines = self._query_lines if lines is None else lines
        given = None if lines is None else self._read_lines(lines, min_gene_overlap)
        names = self.line_names if given is None else given[0]
        lines_n = places_of(names, pairs[self.line_key])
        rows = self._rows(
            molecules, known_d, places.astype(np.int64).reshape(smiles_nd.shape), lines_n, given
        )
        device = self.module.temperature.device
        known = self._known_rows()
        return self._add_results(
            pairs, rows, *predict_members(self.module, rows, device, None, known)
        )

    def to_device(self, device: str | int | torch.device) -> None:
        """Move the model.

        Parameters
        ----------
        device
            For instance ``"cpu"`` or ``"cuda:0"``.

        Examples
        --------
        >>> synergy.to_device("cpu")
        """
        self.module.to(torch.device(device))

    def _attach(self, lines: AnnData) -> None:
        """Predict for these lines unless others are given."""
        self._read_lines(lines, DEFAULT_MIN_GENE_OVERLAP)  # what is wrong with them shows now
        self.adata = self._query_lines = lines

    def _read_lines(self, lines: AnnData, min_overlap: float) -> tuple[list[str], np.ndarray]:
        setup = setup_of(lines) or LineSetup(self.setup.layer, self.setup.expression, None)
        if setup.expression != self.setup.expression:
            raise ValueError(
                f'The model was trained on expression="{self.setup.expression}", these lines are '
                f'set up as "{setup.expression}". Both must be of the same kind.'
            )
        values_lg = self.panel.standardize(lines, setup, min_overlap)
        is_read_g = np.isfinite(values_lg[0])[self.module.read_genes.cpu().numpy()]
        if is_read_g.mean() < max(min_overlap, 1e-9):
            raise ValueError(
                f"Only {is_read_g.mean():.1%} of the {len(is_read_g)} genes the encoder reads are "
                f"in `lines` (min_gene_overlap={min_overlap:g}). Lower it, or take a panel with "
                "more genes that vary between lines."
            )
        return [str(name) for name in lines.obs_names], values_lg

    def _add_results(
        self, pairs: pd.DataFrame, rows: DrugRows, z_kn: torch.Tensor, spread_n: torch.Tensor
    ) -> pd.DataFrame:
        result = pairs.copy()
        z_n = z_kn.double().mean(0).numpy()
        std_n = np.sqrt(z_kn.double().var(0, correction=0).numpy() + spread_n.double().numpy())
        if self.task == "classification":
            temperature = float(self.module.temperature)
            p_n = _sigmoid(z_n / temperature + float(self.module.log_odds))
            result["probability"] = p_n
            first_order_n = p_n * (1 - p_n) * std_n / temperature
            # no probability with this mean can spread more
            result["predicted_std"] = np.minimum(first_order_n, np.sqrt(p_n * (1 - p_n)))
            return result
        offset_n, scale_n = self._offset_and_scale(rows)
        result[self.result_name] = z_n * scale_n + offset_n
        result["predicted_std"] = std_n * scale_n
        return result

    @property
    def validation(self) -> pd.DataFrame:
        """Truth and predictions for the validation rows of the screen, to look at calibration.

        Raises
        ------
        ValueError
            If the model was not trained since it was loaded.

        Examples
        --------
        >>> synergy.validation.columns.tolist()
        ['truth', 'probability', 'predicted_std']
        """
        if not self.is_trained or self._screen is None:
            raise ValueError("Only a model that was trained here has validation rows.")
        rows = self._training_rows()
        held_out = torch.from_numpy(self.validation_rows)
        device = self.module.temperature.device
        known = self._known_rows()
        z_kn, spread_n = predict_members(self.module, rows, device, held_out, known)
        rows.drugs_nd, rows.lines_n = rows.drugs_nd[held_out], rows.lines_n[held_out]
        truth = pd.DataFrame({"truth": self._screen[2][self.validation_rows]})
        return self._add_results(truth.set_axis(self.validation_rows), rows, z_kn, spread_n)

    def _training_rows(self) -> DrugRows:
        assert self._screen is not None
        drugs_nd, lines_n, target_n = self._screen
        rows = self._rows(self.molecules, self._known_drugs(), drugs_nd, lines_n, None)
        if self.task == "regression":
            offset_n, scale_n = self._offset_and_scale(rows)
            target_n = (target_n - offset_n) / scale_n
        rows.target_n = torch.from_numpy(target_n).float()
        return rows


def by_name(drugs: Mapping[str, str] | pd.Series) -> dict[str, str]:
    """Return SMILES by the name of the drug."""
    if not isinstance(drugs, Mapping | pd.Series):
        raise TypeError(
            f"`drugs` must be a mapping or Series of SMILES by name, not {type(drugs).__name__}."
        )
    result: dict[str, str] = {}
    for name, smiles in drugs.items():
        result = joined_names(result, {canonical(name): smiles})
    return result


def joined_names(known: Mapping[str, str], new: Mapping[str, str]) -> dict[str, str]:
    """Return SMILES by name of both; a name cannot stand for two.

    Raises
    ------
    ValueError
        If a name has another SMILES than before.
    """
    for name, smiles in new.items():
        if name in known and known[name] != smiles and not pd.isna(smiles):
            raise ValueError(
                f"The drug {name!r} has two SMILES in `drugs`, {known[name]!r} and {smiles!r}. "
                "Give every drug a name of its own."
            )
    return dict(known) | dict(new)


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))
