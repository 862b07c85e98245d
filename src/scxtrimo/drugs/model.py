"""What models of drugs and cell lines share: set-up, training and prediction."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from .. import __version__
from .._logging import logger
from ..checkpoint.native import read_model, write_model
from ..data.columns import canonical
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP
from ..model.files import _load_tensors
from ..model.registration import own_view
from .module import DrugConfig, DrugModule, MoleculeWidths, ResponseBase, ScreenScale
from .molecules import (
    FINGERPRINT_BITS,
    WIDTHS,
    Molecule,
    canonical_smiles,
    parent_smiles,
    read_molecules,
)
from .screen import (
    Expression,
    LinePanel,
    LineSetup,
    check_table,
    drugs_of,
    places_of,
    setup_lines,
    setup_of,
    split_rows,
    target_of,
    task_of,
    warn_of_conflicts,
)
from .training import (
    DrugRows,
    DrugTraining,
    calibrate,
    choose_own_weight,
    draw_newcomers,
    fit,
    predict_members,
)

REQUIRED = {
    *("config", "setup", "seed", "task", "is_trained", "genes", "line_names", "smiles"),
    *("drugs_by_name", "drug_keys", "line_key", "target_key", "history"),
}


class DrugSavingMixin:
    """``save`` and ``load``."""

    module: DrugModule
    config: DrugConfig
    setup: LineSetup
    panel: LinePanel
    seed: int
    task: str
    is_trained: bool
    line_names: list[str]
    smiles: np.ndarray
    drugs_by_name: dict[str, str] | None
    drug_keys: list[str]
    line_key: str
    target_key: str
    history: dict[str, pd.Series]
    validation_rows: np.ndarray
    _screen: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    _query_lines: AnnData | None
    adata: AnnData | None

    def save(
        self, dir_path: str | os.PathLike, prefix: str | None = None, overwrite: bool = False
    ) -> None:
        """Save the model, with the expression of its cell lines but not its screen.

        Parameters
        ----------
        dir_path
            Directory; created if needed.
        prefix
            Prefix of the file names.
        overwrite
            Replace a model that is there. If saving fails, the old one survives.

        Raises
        ------
        FileExistsError
            If there is a model already and ``overwrite`` is false.
        OSError
            If the directory cannot be written or the disk is full.

        Examples
        --------
        >>> synergy.save("my_synergy")
        """
        metadata = {
            "model_class": type(self).__name__,
            "scxtrimo_version": __version__,
            "config": asdict(self.config),
            "setup": asdict(self.setup),
            "seed": self.seed,
            "task": self.task,
            "is_trained": self.is_trained,
            "genes": list(self.panel.gene_ids),
            "line_names": self.line_names,
            "smiles": self.smiles.tolist(),
            "drugs_by_name": self.drugs_by_name,
            "drug_keys": self.drug_keys,
            "line_key": self.line_key,
            "target_key": self.target_key,
            "history": {name: values.tolist() for name, values in self.history.items()},
        }
        tensors = self.module.state_dict() | {
            "panel.mean": torch.from_numpy(self.panel.mean_g),
            "panel.scale": torch.from_numpy(self.panel.scale_g),
        }
        write_model(dir_path, tensors, metadata, prefix or "", overwrite)

    @classmethod
    def load(
        cls,
        dir_path: str | os.PathLike,
        adata: AnnData | None = None,
        accelerator: str = "auto",
        device: int | str = "auto",
        prefix: str | None = None,
    ) -> Self:
        """Load a saved model. Nothing in its files is executed.

        Parameters
        ----------
        dir_path
            Directory with the saved model.
        adata
            Cell lines to predict for by default, with any genes in any order; by default those
            that the model was made with, which are saved with it.
        accelerator, device
            Where to put the model; see :meth:`scvi.model.base.BaseModelClass.load`.
        prefix
            Prefix of the file names.

        Returns
        -------
        The model, ready to predict.

        Raises
        ------
        FileNotFoundError
            If there is no model.
        ValueError
            If the files are truncated, damaged, foreign, from a newer version or of another class.

        Examples
        --------
        >>> synergy.save("my_synergy")
        >>> loaded = scxtrimo.model.XTrimoGeneSynergy.load("my_synergy")
        >>> loaded.predict(screen).equals(synergy.predict(screen))
        True
        """
        tensors, metadata = read_model(dir_path, prefix or "")
        found = metadata.get("model_class")
        if found != cls.__name__:
            raise ValueError(f"{dir_path} holds a model of class {found}, not {cls.__name__}.")
        if missing := sorted(REQUIRED - metadata.keys()):
            raise ValueError(f"{dir_path} lacks {missing} and cannot be loaded. Save again.")
        torch_device = parse_device_args(
            accelerator, device, return_device="torch", validate_single_device=True
        )[2]
        model = cls.__new__(cls)
        model._restore(tensors, metadata, dir_path)
        model.module.to(torch_device).eval()
        if adata is not None:
            model._attach(adata)
        return model

    def _restore(
        self, tensors: dict[str, torch.Tensor], stored: dict[str, Any], path: str | os.PathLike
    ) -> None:
        """Become the model that was saved."""
        for name in ("seed", "task", "is_trained", "line_names", "drugs_by_name"):
            setattr(self, name, stored[name])
        for name in ("drug_keys", "line_key", "target_key"):
            setattr(self, name, stored[name])
        try:
            self.config, self.setup = DrugConfig(**stored["config"]), LineSetup(**stored["setup"])
            mean_g, scale_g = (tensors.pop(f"panel.{name}").numpy() for name in ("mean", "scale"))
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"The model in {path} has settings this scxtrimo does not know ({error}). "
                "Update it: `pip install --upgrade scxtrimo`."
            ) from error
        self.panel = LinePanel(tuple(stored["genes"]), mean_g, scale_g)
        # Another RDKit may write the same structure in another way.
        canonical = canonical_smiles(stored["smiles"], f"SMILES of the model in {path}")
        self.smiles = np.array([canonical[text] for text in stored["smiles"]], dtype=str)
        self.history = {
            name: pd.Series(v, pd.RangeIndex(len(v), name="epoch"), name=name)
            for name, v in stored["history"].items()
        }
        self.molecules = read_molecules(stored["smiles"])
        self.module = self._make_module()
        _load_tensors(self, tensors, path)
        self.adata = self._screen = self._query_lines = None

    def _make_module(self) -> DrugModule:
        raise NotImplementedError

    def _attach(self, lines: AnnData) -> None:
        raise NotImplementedError


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


class DrugModelBase(DrugPredictionMixin):
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
        Fields of :class:`~scxtrimo.drugs.DrugConfig`.
    """

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
        self.drugs_by_name = None if drugs is None else by_name(drugs)
        if self.drugs_by_name is not None:  # a drug that is not used may have no structure
            used = set(map(canonical, screen[list(drug_keys)].to_numpy(dtype=object).ravel()))
            self.drugs_by_name = {
                name: smiles
                for name, smiles in self.drugs_by_name.items()
                if name in used or isinstance(smiles, str)
            }
        if not isinstance(seed, int | np.integer) or seed < 0:
            raise ValueError(f"seed={seed!r} must be a whole number, not negative.")
        self.setup, self.seed, self.adata = setup, int(seed), lines
        self.config = DrugConfig(**hyperparameters)
        target_n = target_of(screen, target_key)
        self.task = task_of(target_n, task, target_key)
        logger.info(f"{type(self).__name__}: {target_key!r} is learned by {self.task}.")
        self.line_names = [str(name) for name in lines.obs_names]
        lines_n = places_of(self.line_names, screen[line_key])
        smiles_nd = drugs_of(screen, drug_keys, self.drugs_by_name)
        # Sorted, so that the order of rows and columns does not matter.
        places, self.smiles = pd.factorize(smiles_nd.ravel(), sort=True)
        drugs_nd = places.astype(np.int64).reshape(smiles_nd.shape)
        warn_of_conflicts(drugs_nd, lines_n, target_n, self.task)
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
        if isinstance(adata, AnnData):
            own_view(adata)
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

        Of synergy twice: a training without a quarter of the drugs and lines says how much of a
        prediction for new ones is to be their own, and how much that of known ones.

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
            Fields of :class:`~scxtrimo.drugs.DrugTraining`.

        Raises
        ------
        ValueError
            If an argument is impossible, or there are too few rows.
        FloatingPointError
            If the loss is NaN or infinite.

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
        parents_d = pd.factorize(np.array(parent_smiles(self.smiles.tolist())))[0]
        is_held_out_n = split_rows(
            drugs_nd, lines_n, validate_on, validation_size, self.seed, parents_d
        )
        if not is_held_out_n.any() or is_held_out_n.all():
            raise ValueError(
                f"{len(target_n)} rows cannot be split for validate_on={validate_on!r}: no rows "
                "would be left on one side."
            )
        if len(np.unique(target_n[~is_held_out_n])) < 2:
            raise ValueError(
                f"Without the validation rows the column {self.target_key!r} holds nothing but "
                f"{target_n[~is_held_out_n][0]:g}. Lower `validation_size`, or choose another "
                "`validate_on` or `seed`."
            )
        before = self.module
        try:
            own_weight = self._own_weights(
                ~is_held_out_n, parents_d, how, torch_device, enable_progress_bar
            )
            losses = self._fit(
                ~is_held_out_n, is_held_out_n, how, torch_device, enable_progress_bar
            )
            self.module.own_weight.copy_(own_weight)
            self._calibrate(is_held_out_n, torch_device)
        except BaseException:
            self.module = before  # what was trained before stays whole
            raise
        epochs = pd.RangeIndex(len(losses["train_loss"]), name="epoch")
        self.history = {name: pd.Series(v, epochs, name=name) for name, v in losses.items()}
        self.validation_rows, self.is_trained = np.flatnonzero(is_held_out_n), True

    def _fit(
        self,
        is_trained_n: np.ndarray,
        is_held_out_n: np.ndarray,
        how: DrugTraining,
        device: torch.device,
        enable_progress_bar: bool,
        description: str = "Training",
    ) -> dict[str, list[float]]:
        """Train a new module on some rows and stop by others."""
        self.module = self._start(is_trained_n)
        return fit(
            self.module,
            self._training_rows(),
            is_trained_n,
            is_held_out_n,
            self.task == "classification",
            how,
            self.seed,
            device,
            enable_progress_bar,
            description,
        )

    def _own_weights(
        self,
        is_trained_n: np.ndarray,
        parents_d: np.ndarray,
        how: DrugTraining,
        device: torch.device,
        enable_progress_bar: bool,
    ) -> torch.Tensor:
        """Return how much of a prediction for new drugs and for new lines is its own.

        It is chosen with a training without a quarter of the drugs and lines.
        """
        weights = torch.full((2,), 0.5)
        if isinstance(self.module.base, ResponseBase):  # its base knows what to do
            return weights
        assert self._screen is not None
        drugs_nd, lines_n, _ = self._screen
        drawn = draw_newcomers(parents_d[drugs_nd], lines_n, is_trained_n, self.seed)
        if drawn is None:
            return weights
        known = np.flatnonzero(drawn.is_known_n)
        stop_n = np.zeros(len(lines_n), dtype=bool)
        stop_n[np.random.default_rng(self.seed).permutation(known)[: max(len(known) // 10, 1)]] = (
            True
        )
        target_n = self._screen[2]
        if len(np.unique(target_n[drawn.is_known_n & ~stop_n])) < 2:
            return weights
        self._fit(
            *(drawn.is_known_n & ~stop_n, stop_n, how, device, enable_progress_bar),
            description="Training without some drugs and lines",
        )
        data, known_rows = self._training_rows(), self._known_rows()
        assert data.target_n is not None
        for i, is_judge_n in enumerate((drawn.has_new_drug_n, drawn.has_new_line_n)):
            judges = torch.from_numpy(np.flatnonzero(is_judge_n))
            if not len(judges):
                continue
            z = []
            for weight in (1.0, 0.0):
                self.module.own_weight.fill_(weight)
                z_kn, _ = predict_members(self.module, data, device, judges, known_rows)
                z.append(z_kn.double().mean(0).numpy())
            is_classification = self.task == "classification"
            chosen = choose_own_weight(
                z[0], z[1], data.target_n[judges].numpy(), is_classification
            )
            if chosen is not None:
                weights[i] = chosen
        return weights

    def _calibrate(self, is_held_out_n: np.ndarray, device: torch.device) -> None:
        if self.task == "classification":
            rows = torch.from_numpy(np.flatnonzero(is_held_out_n))
            calibrate(self.module, self._training_rows(), rows, device)

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


class XTrimoGeneSynergy(DrugModelBase):
    """Synergy of two drugs in a cell line.

    Both drugs are read as graphs of atoms (graph attention of PyTorch Geometric) and by their
    fingerprints, the bulk expression of the cell line by xTrimoGene's encoder. What is known of
    the drugs is joined regardless of their order, so that predictions are exactly symmetric.
    Several members predict together; their mean is calibrated on rows that were not trained on.

    A drug or line that was trained on has a memory besides its structure or expression. One that
    was not is read by these alone, and its predictions are drawn to the mean of those for the
    known ones in its place.

    Parameters
    ----------
    lines
        Cell lines x genes, registered with :meth:`setup_anndata`.
    screen
        Measurements: two drugs, a cell line and a label or score per row. Repeats are allowed and
        stay together when rows are set apart for validation. A drug with itself is allowed.
    drug1_key, drug2_key
        Columns of ``screen`` with the drugs, as SMILES or, with ``drugs``, as names.
    line_key
        Column with the cell line, by its name in ``lines.obs_names``.
    label_key
        Column with the label (0 and 1, or booleans) or with a continuous score.
    drugs
        SMILES by name (a mapping or Series), if the columns hold names.
    task
        ``"classification"``, ``"regression"``, or ``"auto"``: the former where there are only 0
        and 1.
    seed
        Of all that is drawn: the same seed gives the same model.
    **hyperparameters
        Fields of :class:`~scxtrimo.drugs.DrugConfig`.

    Raises
    ------
    ValueError
        If columns, drugs or cell lines are not there, SMILES invalid, labels missing or all the
        same, or a hyper-parameter impossible.
    ImportError
        If RDKit or PyTorch Geometric is missing: ``pip install "scxtrimo[drug]"``.

    Notes
    -----
    The encoder: xTrimoGene :cite:p:`Gong2023`. Graphs of drugs with attention beside the
    expression of a cell line, and the data of the benchmark: DeepDDS :cite:p:`Wang2021`.

    Examples
    --------
    >>> scxtrimo.model.XTrimoGeneSynergy.setup_anndata(lines, expression="values")
    >>> model = scxtrimo.model.XTrimoGeneSynergy(lines, screen, n_members=2)
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> swapped = screen.rename(columns={"drug1": "drug2", "drug2": "drug1"})
    >>> bool((model.predict(screen)["probability"] == model.predict(swapped)["probability"]).all())
    True
    """

    result_name = "predicted_score"

    def __init__(
        self,
        lines: AnnData,
        screen: pd.DataFrame,
        drug1_key: str = "drug1",
        drug2_key: str = "drug2",
        line_key: str = "cell",
        label_key: str = "label",
        drugs: Mapping[str, str] | pd.Series | None = None,
        *,
        task: str = "auto",
        seed: int = 0,
        **hyperparameters: Any,
    ) -> None:
        keys = [drug1_key, drug2_key]
        if drug1_key == drug2_key:
            raise ValueError(f"drug1_key and drug2_key are both {drug1_key!r}: name two columns.")
        super().__init__(
            lines, screen, keys, line_key, label_key, drugs, task, seed, hyperparameters
        )


class XTrimoGeneDrugResponse(DrugModelBase):
    """Response of a cell line to a drug, such as ln IC50.

    The network predicts what simple models miss: mean and spread of every drug, and a completed
    table of lines and drugs, in which new lines are placed by their expression and new drugs by
    their structure (``ResponseBase``). Where validation rows say that the
    network adds nothing, the simple models are what remains.

    Parameters
    ----------
    lines
        Cell lines x genes, registered with :meth:`setup_anndata`.
    screen
        Measurements: a drug, a cell line and a response per row. Repeats are allowed and stay
        together when rows are set apart for validation.
    drug_key
        Column of ``screen`` with the drug, as SMILES or, with ``drugs``, as name.
    line_key
        Column with the cell line, by its name in ``lines.obs_names``.
    response_key
        Column with the response, in any unit; predictions are in the same.
    drugs
        SMILES by name (a mapping or Series), if the column holds names. Names with one SMILES are
        one drug.
    seed
        Of all that is drawn: the same seed gives the same model.
    **hyperparameters
        Fields of :class:`~scxtrimo.drugs.DrugConfig`. Unlike there, ``drug_input`` is
        ``"fingerprint"``, as graphs of hundreds of drugs cost most of the time, and
        ``n_members`` is 2.

    Raises
    ------
    ValueError
        If columns, drugs or cell lines are not there, SMILES invalid, responses missing or all the
        same, or a hyper-parameter impossible.
    ImportError
        If RDKit or PyTorch Geometric is missing: ``pip install "scxtrimo[drug]"``.

    Notes
    -----
    The task is that of DeepCDR :cite:p:`Liu2020`, the encoder that of xTrimoGene
    :cite:p:`Gong2023`.

    Examples
    --------
    >>> scxtrimo.model.XTrimoGeneDrugResponse.setup_anndata(lines, expression="values")
    >>> model = scxtrimo.model.XTrimoGeneDrugResponse(
    ...     lines, screen, drug_key="drug1", response_key="score", n_members=2
    ... )
    >>> model.train(max_epochs=1, enable_progress_bar=False)
    >>> model.predict(screen).columns[-2:].tolist()
    ['predicted_response', 'predicted_std']
    """

    # The network starts from what simple models know, and has little to add.
    training_defaults: ClassVar[dict[str, Any]] = {"max_epochs": 8, "lr": 1e-3}

    def __init__(
        self,
        lines: AnnData,
        screen: pd.DataFrame,
        drug_key: str = "drug",
        line_key: str = "cell",
        response_key: str = "y",
        drugs: Mapping[str, str] | pd.Series | None = None,
        *,
        seed: int = 0,
        **hyperparameters: Any,
    ) -> None:
        super().__init__(
            *(lines, screen, [drug_key], line_key, response_key, drugs),
            task="regression",
            seed=seed,
            hyperparameters={"drug_input": "fingerprint", "n_members": 2} | hyperparameters,
        )
