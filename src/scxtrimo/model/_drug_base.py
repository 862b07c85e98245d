"""What models of drugs and cell lines share: set-up, training and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from ..data.cell_lines import Expression, LinePanel, LineSetup, places_of, setup_lines, setup_of
from ..data.molecules import FINGERPRINT_BITS, WIDTHS, Molecule, read_molecules
from ..data.screen import check_table, drugs_of, split_rows, target_of, task_of
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP
from ..module.drugs import DrugConfig, DrugModule
from ..module.response_base import ResponseBase, ScreenScale
from ..nn.molecules import MoleculeWidths
from ..train.drugs import DrugRows, DrugTraining, fit, predict_members
from ._drug_saving import DrugSavingMixin


class DrugModelBase(DrugSavingMixin):
    """A model of what drugs do to cell lines.

    Parameters
    ----------
    lines
        Cell lines x genes, registered with :meth:`setup_anndata`.
    screen
        One measurement per row.
    drug_keys
        Columns of ``screen`` with the drugs.
    line_key, target_key
        Columns of ``screen`` with the cell line and with what was measured.
    drugs
        SMILES by name, if the columns hold names.
    task
        ``"classification"``, ``"regression"`` or ``"auto"``.
    seed
        Of all that is drawn.
    hyperparameters
        Fields of :class:`~scxtrimo.module.DrugConfig`.
    """

    result_name = "response"
    training_defaults: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        lines: AnnData,
        screen: pd.DataFrame,
        drug_keys: Sequence[str],
        line_key: str,
        target_key: str,
        drugs: Mapping[str, str] | pd.Series | None,
        task: str,
        seed: int,
        hyperparameters: dict[str, Any],
    ) -> None:
        setup = setup_of(lines) if isinstance(lines, AnnData) else None
        if setup is None:
            raise ValueError(
                f"Call `{type(self).__name__}.setup_anndata(lines)` first, with the AnnData of "
                "cell lines x genes."
            )
        check_table(screen, [*drug_keys, line_key, target_key])
        self.drug_keys, self.line_key, self.target_key = list(drug_keys), line_key, target_key
        self.drugs_by_name = None if drugs is None else _by_name(drugs)
        self.setup, self.seed, self.adata = setup, int(seed), lines
        self.config = DrugConfig(**hyperparameters)
        target_n = target_of(screen, target_key)
        self.task = task_of(target_n, task, target_key)
        self.line_names = [str(name) for name in lines.obs_names]
        lines_n = places_of(self.line_names, screen[line_key].astype(str).tolist())
        smiles_nd = drugs_of(screen, drug_keys, self.drugs_by_name)
        # Sorted, so that the order of rows and columns does not matter.
        self.smiles, places = np.unique(smiles_nd.astype(str), return_inverse=True)
        drugs_nd = places.reshape(smiles_nd.shape)
        is_used_l = np.isin(np.arange(lines.n_obs), lines_n)
        n_genes, n_linear = self.config.n_genes, self.config.n_linear_genes
        n_known = n_genes if len(self.drug_keys) == 2 else max(n_genes, n_linear)
        self.panel = LinePanel.choose(lines, setup, is_used_l, n_known)
        self.molecules = read_molecules(self.smiles.tolist())
        self.module = self._make_module()
        values_lg = torch.from_numpy(self.panel.standardize(lines, setup, 0.0))
        self.module.line_values.copy_(values_lg)
        read = np.sort(np.argsort(-self.panel.scale_g, kind="stable")[:n_genes])
        self.module.read_genes.copy_(torch.from_numpy(read))
        self._screen = drugs_nd, lines_n, target_n
        self._query_lines = None
        self.is_trained = False
        self.history: dict[str, pd.Series] = {}

    def _make_module(self) -> DrugModule:
        """Return the module with random weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            n_genes = len(self.panel.gene_ids)
            sizes = len(self.smiles), len(self.line_names), n_genes, len(self.drug_keys)
            return DrugModule(*sizes, MoleculeWidths(*WIDTHS), self.config).eval()

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        expression: Expression = "auto",
        gene_id_key: str | None = None,
    ) -> None:
        """Say where the bulk expression of the cell lines is, and check it.

        Parameters
        ----------
        adata
            Cell lines x genes. Lines are known by their ``obs_names``.
        layer
            Layer with the expression; by default ``X``.
        expression
            ``"tpm"`` (a log2 is taken), ``"counts"`` (scaled to a million per line, then a log2),
            ``"values"`` (any real numbers, such as z-scores or logarithms, taken as they are) or
            ``"auto"``: negative values or none above 100 are ``"values"``, whole numbers
            ``"counts"``, anything else ``"tpm"``.
        gene_id_key
            Column of ``adata.var`` with the identifiers of the genes, or ``"var_names"``; by
            default the latter.

        Raises
        ------
        ValueError
            If values are missing, infinite or, where they cannot be, negative; or names of lines
            or genes are there twice.

        Examples
        --------
        >>> scxtrimo.model.XTrimoGeneSynergy.setup_anndata(lines, expression="values")
        """
        setup_lines(adata, layer, expression, gene_id_key)

    def train(
        self,
        max_epochs: int | None = None,
        *,
        validation_size: float = 0.1,
        validate_on: str = "rows",
        accelerator: str = "auto",
        device: int | str = "auto",
        enable_progress_bar: bool = True,
        **training: Any,
    ) -> None:
        """Train from the beginning, and calibrate on the validation rows.

        Parameters
        ----------
        max_epochs
            Epochs; by default 20 for synergy and 8 for responses. Training stops earlier where
            the validation loss has not improved for ``patience`` epochs; the best weights are
            kept.
        validation_size
            Part of what ``validate_on`` names that is not trained on.
        validate_on
            What validation rows have that training rows do not: ``"rows"``, just the measurement;
            ``"pairs"``, the drugs together; ``"drugs"``, at least one of the drugs; ``"lines"``,
            the cell line. Name what the predictions are for: stopping and calibration follow.
        accelerator, device
            See :meth:`scvi.model.base.BaseModelClass.train`.
        enable_progress_bar
            Whether to show one.
        **training
            Fields of :class:`~scxtrimo.train.DrugTraining`.

        Raises
        ------
        ValueError
            If an argument is impossible, or there are too few rows.
        FloatingPointError
            If the loss is no number any more.

        Examples
        --------
        >>> synergy.train(max_epochs=1, enable_progress_bar=False)
        >>> sorted(synergy.history)
        ['train_loss', 'validation_loss']
        """
        if self._screen is None:
            raise ValueError("A loaded model has no screen to train on. Make a new one of it.")
        if max_epochs is not None:
            training["max_epochs"] = max_epochs
        how = DrugTraining(**(self.training_defaults | training))
        torch_device = parse_device_args(
            accelerator, device, return_device="torch", validate_single_device=True
        )[2]
        drugs_nd, lines_n, target_n = self._screen
        is_held_out_n = split_rows(drugs_nd, lines_n, validate_on, validation_size, self.seed)
        if not is_held_out_n.any() or is_held_out_n.all():
            raise ValueError(
                f"{len(target_n)} rows cannot be split for validate_on={validate_on!r}: no rows "
                "would be left on one side."
            )
        before = self.module
        try:
            self.module = self._start(~is_held_out_n)
            losses = fit(
                self.module,
                self._training_rows(),
                is_held_out_n,
                self.task == "classification",
                how,
                self.seed,
                torch_device,
                enable_progress_bar,
            )
        except BaseException:
            self.module = before  # what was trained before stays whole
            raise
        epochs = pd.RangeIndex(len(losses["train_loss"]), name="epoch")
        self.history = {name: pd.Series(v, epochs, name=name) for name, v in losses.items()}
        self.validation_rows, self.is_trained = np.flatnonzero(is_held_out_n), True

    def _start(self, is_trained_n: np.ndarray) -> DrugModule:
        """Return a module with all that is known of the training rows before training."""
        assert self._screen is not None
        drugs_nd, lines_n, target_n = (part[is_trained_n] for part in self._screen)
        module = self._make_module()
        for name in ("line_values", "read_genes"):
            getattr(module, name).copy_(getattr(self.module, name))
        module.drug_is_known[np.unique(drugs_nd)] = True
        module.line_is_known[np.unique(lines_n)] = True
        features_df = np.stack([molecule.features_f for molecule in self.molecules])
        module.start_from_data(features_df[np.unique(drugs_nd)], module.line_is_known.numpy())
        if isinstance(module.base, ResponseBase):
            fingerprints, values_lg = features_df[:, :FINGERPRINT_BITS], module.line_values.numpy()
            rows = drugs_nd[:, 0], lines_n, target_n
            module.base.fit(fingerprints, values_lg, *rows, self.seed)
        elif self.task == "regression":
            module.base.fit(target_n)
        return module

    def _training_rows(self) -> DrugRows:
        assert self._screen is not None
        drugs_nd, lines_n, target_n = self._screen
        rows = self._rows(self.molecules, self._known_drugs(), drugs_nd, lines_n, None)
        if self.task == "regression":
            offset_n, scale_n = self._offset_and_scale(rows)
            target_n = (target_n - offset_n) / scale_n
        rows.target_n = torch.from_numpy(target_n).float()
        return rows

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
        is calibrated; ``"score"`` or ``"response"`` in units of the screen otherwise) and
        ``"std"``, the standard deviation among the members of the ensemble, which is about the
        model and not about noise of the measurement.

        Raises
        ------
        ValueError
            If the model is not trained, SMILES are invalid, names of drugs or lines unknown,
            columns missing, or too few genes are there.

        Examples
        --------
        >>> table = synergy.predict(screen.head(3))
        >>> [column for column in table if column not in screen]
        ['probability', 'std']
        """
        if not self.is_trained:
            raise ValueError("The model is not trained. Call `model.train()` first.")
        check_table(pairs, [*self.drug_keys, self.line_key], "pairs")
        names_of_drugs = self.drugs_by_name
        if drugs is not None:
            names_of_drugs = (names_of_drugs or {}) | _by_name(drugs)
        smiles_nd = drugs_of(pairs, self.drug_keys, names_of_drugs)
        smiles, places = np.unique(smiles_nd.astype(str), return_inverse=True)
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
        lines_n = places_of(names, pairs[self.line_key].astype(str).tolist())
        rows = self._rows(molecules, known_d, places.reshape(smiles_nd.shape), lines_n, given)
        device = self.module.temperature.device
        known = self._known_rows()
        z_kn = predict_members(self.module, rows, device, None, known).double().numpy()
        return self._add_results(pairs, rows, z_kn)

    def _attach(self, lines: AnnData) -> None:
        """Predict for these lines unless others are given."""
        self._read_lines(lines, DEFAULT_MIN_GENE_OVERLAP)  # what is wrong with them shows now
        self.adata = self._query_lines = lines

    def _read_lines(self, lines: AnnData, min_overlap: float) -> tuple[list[str], np.ndarray]:
        setup = setup_of(lines) or LineSetup(None, self.setup.expression, None)
        if setup.expression != self.setup.expression:
            raise ValueError(
                f'The model was trained on expression="{self.setup.expression}", these lines are '
                f'set up as "{setup.expression}". Both must be of the same kind.'
            )
        values_lg = self.panel.standardize(lines, setup, min_overlap)
        return [str(name) for name in lines.obs_names], values_lg

    def _add_results(self, pairs: pd.DataFrame, rows: DrugRows, z_kn: np.ndarray) -> pd.DataFrame:
        result = pairs.copy()
        if self.task == "classification":
            temperature = float(self.module.temperature)
            result["probability"] = _sigmoid(z_kn.mean(0) / temperature)
            result["std"] = _sigmoid(z_kn / temperature).std(0)
            return result
        offset_n, scale_n = self._offset_and_scale(rows)
        result[self.result_name] = z_kn.mean(0) * scale_n + offset_n
        result["std"] = z_kn.std(0) * scale_n
        return result

    @property
    def validation(self) -> pd.DataFrame:
        """Truth and predictions for the validation rows of the screen, to look at calibration."""
        if not self.is_trained or self._screen is None:
            raise ValueError("Only a model that was trained here has validation rows.")
        rows = self._training_rows()
        held_out = torch.from_numpy(self.validation_rows)
        device = self.module.temperature.device
        known = self._known_rows()
        z_kn = predict_members(self.module, rows, device, held_out, known).double().numpy()
        rows.drugs_nd, rows.lines_n = rows.drugs_nd[held_out], rows.lines_n[held_out]
        truth = pd.DataFrame({"truth": self._screen[2][self.validation_rows]})
        return self._add_results(truth.set_axis(self.validation_rows), rows, z_kn)

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.module.parameters())
        return (
            f"{type(self).__name__} for {self.task} with {n_parameters:,} parameters, "
            f"{'trained' if self.is_trained else 'not trained'}\n"
            f"  drugs: {len(self.smiles):,} ({self.config.drug_input}); cell lines: "
            f"{len(self.line_names):,} ({self.setup.expression}); genes: "
            f"{len(self.panel.gene_ids):,}\n"
            f"  members: {self.config.n_members}; seed: {self.seed}"
        )


def _by_name(drugs: Mapping[str, str] | pd.Series) -> dict[str, str]:
    if not isinstance(drugs, Mapping | pd.Series):
        raise TypeError(
            f"`drugs` must be a mapping or Series of SMILES by name, not {type(drugs).__name__}."
        )
    return {str(name): smiles for name, smiles in drugs.items()}


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 0.5 * (1 + np.tanh(0.5 * z))
