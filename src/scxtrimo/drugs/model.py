"""Models of what drugs do to cell lines: synergy of two drugs, and response to one."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from functools import partial
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
import scvi
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from .. import __version__
from .._logging import logger
from .._validation import Seed, check
from ..checkpoint.native import read_model, write_model
from ..data.vocabulary import DEFAULT_MIN_GENE_OVERLAP
from ..model.files import _load_tensors
from . import screen as tables
from . import training as fitting
from .module import DrugConfig, DrugModule, ResponseBase
from .molecules import FINGERPRINT_BITS, canonical_smiles, parent_smiles, read_molecules
from .screen import Expression, LinePanel, LineSetup
from .training import DrugRows, DrugTraining, History

SAVED = ("task", "line_names", "drugs_by_name", "drug_keys", "line_key", "target_key")
REQUIRED = {*SAVED, "seed", "is_trained", "config", "setup", "genes", "smiles", "history"}
parse_device = partial(parse_device_args, return_device="torch", validate_single_device=True)


class DrugModelBase:
    """What models of one and of two drugs share."""

    training_defaults: ClassVar[dict[str, Any]] = {}
    result_name: ClassVar[str]
    adata: AnnData | None
    history: dict[str, pd.DataFrame] | None  # losses by epoch, as scvi-tools has them

    def __init__(
        self,
        lines: AnnData,
        screen: pd.DataFrame,
        keys: tuple[list[str], str, str],
        drugs: Mapping[str, str] | pd.Series | None,
        task: str,
        seed: int | None,
        hyperparameters: dict[str, Any],
    ) -> None:
        setup = tables.setup_of(lines) if isinstance(lines, AnnData) else None
        if setup is None:
            raise ValueError(
                f"Call `{type(self).__name__}.setup_anndata(lines)` first, with the AnnData of "
                "cell lines x genes."
            )
        self.drug_keys, self.line_key, self.target_key = drug_keys, line_key, target_key = keys
        tables.check_table(screen, [*drug_keys, line_key, target_key])
        names = tables.smiles_by_name(drugs)
        self.seed_ = check("seed", scvi.settings.seed or 0 if seed is None else seed, Seed)
        self.adata, self.setup = lines, setup
        self.config = DrugConfig(**hyperparameters)
        target_n, self.task = tables.target_of(screen, target_key, task)
        logger.info(f"{type(self).__name__}: {target_key!r} is learned by {self.task}.")
        self.line_names = [str(name) for name in lines.obs_names]
        lines_n = tables.places_of(self.line_names, screen[line_key])
        self.smiles, drugs_nd = tables.drugs_of(screen, drug_keys, names)
        # Drugs that are not in the screen may lack a structure.
        self.drugs_by_name = names and {k: v for k, v in names.items() if isinstance(v, str)}
        if self.task == "classification":
            tables.warn_of_conflicts(drugs_nd, lines_n, target_n)
        n_genes, n_linear = self.config.n_genes, self.config.n_linear_genes
        n_known = n_genes if len(drug_keys) == 2 else max(n_genes, n_linear)
        self.panel = LinePanel.choose(lines, setup, np.unique(lines_n), n_known)
        self.molecules = read_molecules(self.smiles.tolist())
        self.module = self._make_module()
        values_lg = self.panel.standardize(lines, setup, 0.0)
        self.module.line_values.copy_(torch.from_numpy(values_lg))
        read = np.sort(np.argsort(-self.panel.scale_g, kind="stable")[:n_genes])
        self.module.read_genes.copy_(torch.from_numpy(read))
        self._screen: Any = drugs_nd, lines_n, target_n  # a loaded model has none
        self.is_trained_, self.history = False, None

    def _make_module(self) -> DrugModule:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed_)
            sizes = len(self.panel.gene_ids), len(self.drug_keys)
            return DrugModule(len(self.smiles), len(self.line_names), *sizes, self.config).eval()

    @classmethod
    def setup_anndata(
        cls,
        adata: AnnData,
        layer: str | None = None,
        expression: Expression = "auto",
        gene_id_key: str | None = None,
    ) -> None:
        """Register the bulk expression of cell lines, and check it.

        Parameters
        ----------
        adata
            Cell lines x genes. Lines are identified by their ``obs_names``.
        layer
            Layer with the expression; by default ``X``.
        expression
            ``"tpm"`` (log2 is taken), ``"counts"`` (scaled to a million per line, then log2),
            ``"values"`` (logarithms or z-scores, used as they are) or ``"auto"``: ``"values"`` if
            any is negative or none above 100, ``"counts"`` if all are whole, else ``"tpm"``.
        gene_id_key
            Column of ``adata.var`` with gene identifiers, or ``"var_names"``, the default.
        """
        tables.setup_lines(adata, LineSetup(layer, expression, gene_id_key))

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
        """Train from scratch, and calibrate on the validation rows.

        Parameters
        ----------
        max_epochs
            Largest number of epochs; by default 20 for synergy and 8 for responses. The weights
            with the best validation loss are kept.
        validation_size
            Fraction of what ``validate_on`` names that is held out.
        validate_on
            What is new in validation rows: ``"rows"``, the measurement only; ``"pairs"``, the
            combination of drugs; ``"drugs"``, at least one of the drugs; ``"lines"``, the cell
            line. Choose what you will predict: early stopping and calibration depend on it.
        accelerator, device, enable_progress_bar
            See :meth:`scvi.model.base.BaseModelClass.train`.
        **training
            Fields of :class:`~scxtrimo.drugs.DrugTraining`.

        Raises
        ------
        FloatingPointError
            If the loss is NaN or infinite.
        """
        if self._screen is None:
            raise ValueError(
                "A loaded model has no screen to train on. Create a new model with the screen."
            )
        if max_epochs is not None:
            training["max_epochs"] = max_epochs
        how = DrugTraining(**(self.training_defaults | training))
        on = {"device": parse_device(accelerator, device)[2], "progress_bar": enable_progress_bar}
        fit_rows = partial(fitting.fit, training=how, seed=self.seed_, **on)
        drugs_nd, lines_n, target_n = self._screen
        parents_d = pd.factorize(np.array(parent_smiles(self.smiles.tolist())))[0]
        split = validate_on, validation_size, self.seed_
        is_held_out_n = tables.split_rows(drugs_nd, lines_n, parents_d, *split)
        if len(np.unique(target_n[~is_held_out_n])) < 2:
            raise ValueError(
                f"The {(~is_held_out_n).sum()} rows left for training do not differ in the column "
                f"{self.target_key!r}. Lower `validation_size`, or choose another `validate_on` "
                "or `seed`."
            )
        own_weight = self._own_weights(fit_rows, ~is_held_out_n, parents_d)
        module, history = self._fit(fit_rows, ~is_held_out_n, is_held_out_n)
        module.own_weight.copy_(own_weight)
        if self.task == "classification":
            fitting.calibrate(module, self._training_rows(module).at(is_held_out_n))
        # An earlier training stays intact unless all this comes to an end.
        self.module, self.history, self.is_trained_ = module, history, True
        self.validation_rows = np.flatnonzero(is_held_out_n)

    def _fit(
        self, fit_rows: partial[History], is_trained_n: np.ndarray, is_held_out_n: np.ndarray
    ) -> tuple[DrugModule, History]:
        """Train a new module on some rows, with early stopping by others."""
        drugs_nd, lines_n, target_n = (part[is_trained_n] for part in self._screen)
        module = self._make_module()
        module.line_values.copy_(self.module.line_values)
        module.read_genes.copy_(self.module.read_genes)
        module.drug_is_known[np.unique(drugs_nd)] = True
        module.line_is_known[np.unique(lines_n)] = True
        features_df = np.stack([molecule.features_f for molecule in self.molecules])
        module.start_from_data(features_df)
        if isinstance(module.base, ResponseBase):
            of_items = features_df[:, :FINGERPRINT_BITS], module.line_values.numpy()
            module.base.fit(*of_items, drugs_nd[:, 0], lines_n, target_n, self.seed_)
        elif self.task == "regression":
            module.base.fit(target_n)
        rows = self._training_rows(module)
        return module, fit_rows(module, rows.at(is_trained_n), rows.at(is_held_out_n))

    def _own_weights(
        self, fit_rows: partial[History], is_trained_n: np.ndarray, parents_d: np.ndarray
    ) -> torch.Tensor:
        """Return ``own_weight``, chosen with a training without a quarter of drugs and lines."""
        drugs_nd, lines_n, target_n = self._screen
        default = torch.full((2,), 0.5)
        newcomers = fitting.draw_newcomers(parents_d[drugs_nd], lines_n, is_trained_n, self.seed_)
        # Models of responses have a base that predicts what is new.
        if newcomers is None or isinstance(self.module.base, ResponseBase):
            return default
        is_known_n, has_new_drug_n, has_new_line_n = newcomers
        known = np.random.default_rng(self.seed_).permutation(np.flatnonzero(is_known_n))
        is_held_out_n = np.isin(np.arange(len(lines_n)), known[: max(len(known) // 10, 1)])
        is_fitted_n = is_known_n & ~is_held_out_n
        if len(np.unique(target_n[is_fitted_n])) < 2:
            return default
        fit_rows = partial(fit_rows, description="Training without some drugs and lines")
        module, _ = self._fit(fit_rows, is_fitted_n, is_held_out_n)
        rows = self._training_rows(module)
        return fitting.own_weights(module, rows.at(has_new_drug_n), rows.at(has_new_line_n))

    def _training_rows(self, module: DrugModule) -> DrugRows:
        *places, target_n = self._screen
        rows = self._rows(module, *places)
        if self.task == "regression":
            offset_n, scale_n = fitting.offset_and_scale(module, rows)
            target_n = (target_n - offset_n) / scale_n
        rows.target_n = torch.from_numpy(target_n).float()
        rows.has_classes = self.task == "classification"
        return rows

    def _rows(self, module: DrugModule, drugs_nd: np.ndarray, lines_n: np.ndarray) -> DrugRows:
        """Return rows of the drugs and lines of the model, by place."""
        places = torch.from_numpy(drugs_nd), torch.from_numpy(lines_n)
        are_known = module.drug_is_known.cpu(), module.line_is_known.cpu()
        known_d, known_l = (torch.where(x, torch.arange(len(x)), -1) for x in are_known)
        values_lg, read_genes = module.line_values.cpu(), module.read_genes.cpu()
        return DrugRows(self.molecules, known_d, values_lg, known_l, read_genes, *places)

    def predict(
        self,
        pairs: pd.DataFrame,
        lines: AnnData | None = None,
        drugs: Mapping[str, str] | pd.Series | None = None,
        min_gene_overlap: float = DEFAULT_MIN_GENE_OVERLAP,
    ) -> pd.DataFrame:
        """Predict what known or new drugs do to known or new cell lines.

        Parameters
        ----------
        pairs
            Table with the same drug and line columns as the screen. Drugs may be new.
        lines
            Expression of cell lines of the same kind (TPM, ...) as in training, with any genes; by
            default those of the training. A name that was trained on stands for that line.
        drugs
            SMILES of more drugs by name, if the columns hold names.
        min_gene_overlap
            Smallest acceptable fraction of the genes that the model reads.

        Returns
        -------
        A copy of the table with the calibrated ``"probability"`` of class 1, or with
        ``"predicted_score"`` or ``"predicted_response"`` in the unit of the screen, and with
        ``"predicted_std"``, the uncertainty of the model (not the noise of the measurement).

        Examples
        --------
        >>> table = synergy.predict(screen.head(3))
        >>> [column for column in table if column not in screen]
        ['probability', 'predicted_std']
        """
        if not self.is_trained_:
            raise ValueError("The model is not trained. Call `model.train()` first.")
        tables.check_table(pairs, [*self.drug_keys, self.line_key], "pairs")
        names = tables.smiles_by_name(drugs, self.drugs_by_name)
        smiles, drugs_nd = tables.drugs_of(pairs, self.drug_keys, names)
        if lines is None and self._screen is None:
            lines = self.adata
        line_names, values_lg = self.line_names, self.module.line_values.cpu()
        if lines is not None:
            values_lg = torch.from_numpy(self._read_lines(lines, min_gene_overlap))
            line_names = [str(name) for name in lines.obs_names]
        lines_n = tables.places_of(line_names, pairs[self.line_key])
        known = self._rows(self.module, drugs_nd, lines_n)
        molecules = dict(zip(self.smiles, self.molecules, strict=True))
        new = [text for text in smiles if text not in molecules]
        molecules |= zip(new, read_molecules(new), strict=True)
        rows = replace(
            known,
            molecules=[molecules[text] for text in smiles],
            known_d=_look_up(smiles, self.smiles, known.known_d),
            values_lg=values_lg,
            known_l=_look_up(line_names, self.line_names, known.known_l),
        )
        return self._add_predictions(pairs, rows, known)

    def _read_lines(self, lines: AnnData, min_overlap: float) -> np.ndarray:
        """Return the expression of lines as the model reads it."""
        setup = tables.setup_of(lines) or LineSetup(self.setup.layer, self.setup.expression, None)
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
                f"in `lines` (min_gene_overlap={min_overlap:g}). Lower it, or use a panel with "
                "more genes that vary between lines."
            )
        return values_lg

    def _add_predictions(
        self, pairs: pd.DataFrame, rows: DrugRows, known: DrugRows | None = None
    ) -> pd.DataFrame:
        result = pairs.copy()
        z_kn, spread_n = fitting.predict_members(self.module, rows, known)
        z_n = z_kn.double().mean(0).numpy()
        std_n = np.sqrt(z_kn.double().var(0, correction=0).numpy() + spread_n.double().numpy())
        if self.task == "classification":
            temperature = float(self.module.temperature)
            logit_n = z_n / temperature + float(self.module.log_odds)
            p_n = 0.5 * (1 + np.tanh(0.5 * logit_n))
            result["probability"] = p_n
            first_order_n = p_n * (1 - p_n) * std_n / temperature
            # No probability with this mean has a larger standard deviation.
            result["predicted_std"] = np.minimum(first_order_n, np.sqrt(p_n * (1 - p_n)))
            return result
        offset_n, scale_n = fitting.offset_and_scale(self.module, rows)
        result[self.result_name] = z_n * scale_n + offset_n
        result["predicted_std"] = std_n * scale_n
        return result

    @property
    def is_trained(self) -> bool:
        """Whether the model was trained.

        Examples
        --------
        >>> synergy.is_trained
        True
        """
        return self.is_trained_

    @property
    def seed(self) -> int:
        """Former name of ``seed_``.

        Examples
        --------
        >>> synergy.seed_
        0
        """
        warnings.warn("`seed` is now `seed_`.", FutureWarning, stacklevel=2)
        return self.seed_

    @property
    def validation(self) -> pd.DataFrame:
        """Truth and predictions of the validation rows, which a loaded model lacks.

        Examples
        --------
        >>> synergy.validation.columns.tolist()
        ['truth', 'probability', 'predicted_std']
        """
        if not self.is_trained_ or self._screen is None:
            raise ValueError(
                "The model has no validation rows: it was loaded, or not trained. Train it first."
            )
        held_out = self.validation_rows
        truth = pd.DataFrame({"truth": self._screen[2][held_out]}, held_out)
        return self._add_predictions(truth, self._training_rows(self.module).at(held_out))

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

    def save(
        self, dir_path: str | os.PathLike, prefix: str | None = None, overwrite: bool = False
    ) -> None:
        """Save the model, with the expression of its cell lines but without its screen.

        Parameters
        ----------
        dir_path, prefix, overwrite
            See :meth:`scxtrimo.model.XTrimoGene.save`.

        Examples
        --------
        >>> synergy.save("my_synergy")
        """
        metadata = {name: getattr(self, name) for name in SAVED} | {
            "model_class": type(self).__name__,
            "scxtrimo_version": __version__,
            "seed": self.seed_,
            "is_trained": self.is_trained_,
            "config": asdict(self.config),
            "setup": self.setup._asdict(),
            "genes": list(self.panel.gene_ids),
            "smiles": self.smiles.tolist(),
            "history": {k: losses[k].tolist() for k, losses in (self.history or {}).items()},
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
        dir_path, accelerator, device, prefix
            See :meth:`scxtrimo.model.XTrimoGene.load`.
        adata
            Cell lines to predict for by default, if not those that the model was made with.

        Returns
        -------
        The model, ready to predict.

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
        model = cls.__new__(cls)
        vars(model).update({name: metadata[name] for name in SAVED})
        model.seed_, model.is_trained_ = metadata["seed"], metadata["is_trained"]
        try:
            model.config = DrugConfig(**metadata["config"])
            model.setup = LineSetup(**metadata["setup"])
            mean_g, scale_g = (tensors.pop(f"panel.{name}").numpy() for name in ("mean", "scale"))
        except (TypeError, KeyError) as error:
            raise ValueError(
                f"The model in {dir_path} has settings this scxtrimo does not know ({error}). "
                "Update it: `pip install --upgrade scxtrimo`."
            ) from error
        model.panel = LinePanel(tuple(metadata["genes"]), mean_g, scale_g)
        # Another version of RDKit may write the same structure differently.
        smiles = canonical_smiles(metadata["smiles"], f"SMILES of the model in {dir_path}")
        model.smiles = np.array([smiles[text] for text in metadata["smiles"]], dtype=str)
        model.molecules = read_molecules(metadata["smiles"])
        model.history = fitting.by_epoch(metadata["history"]) or None
        model.module = model._make_module()
        _load_tensors(model, tensors, dir_path)
        model.module.to(parse_device(accelerator, device)[2]).eval()
        model._screen, model.adata = None, adata
        if adata is not None:
            model._read_lines(adata, DEFAULT_MIN_GENE_OVERLAP)  # raises if they do not fit
        return model

    def __repr__(self) -> str:
        n_parameters = sum(p.numel() for p in self.module.parameters())
        return (
            f"{type(self).__name__} for {self.task} with {n_parameters:,} parameters, "
            f"{'' if self.is_trained_ else 'not '}trained\n"
            f"  drugs: {len(self.smiles):,} ({self.config.drug_input}); cell lines: "
            f"{len(self.line_names):,} ({self.setup.expression}); genes: "
            f"{len(self.panel.gene_ids):,}\n  members: {self.config.n_members}; seed: {self.seed_}"
        )


def _look_up(wanted: Iterable[str], names: Iterable[str], known: torch.Tensor) -> torch.Tensor:
    """Return the entries of ``known`` under the wanted names, -1 for others."""
    found = dict(zip(names, known.tolist(), strict=True))
    return torch.tensor([found.get(name, -1) for name in wanted])


class XTrimoGeneSynergy(DrugModelBase):
    """Synergy of two drugs in a cell line.

    Drugs are read as graphs of atoms, as in DeepDDS :cite:p:`Wang2021`, and by their fingerprints;
    the bulk expression of the cell line by xTrimoGene's encoder :cite:p:`Gong2023`. Predictions
    are exactly symmetric in the drugs. Those for new drugs or lines are shrunk to the mean over
    known ones in their place. Needs ``pip install "scxtrimo[drug]"``.

    Parameters
    ----------
    lines
        Cell lines x genes, registered with :meth:`setup_anndata`.
    screen
        Measurements: two drugs, a cell line and a label or score per row. Repeats are allowed.
    drug1_key, drug2_key
        Columns of ``screen`` with the drugs, as SMILES or, with ``drugs``, as names.
    line_key
        Column with the cell line, by its name in ``lines.obs_names``.
    label_key
        Column with the label (0 and 1, or booleans) or with a continuous score.
    drugs
        SMILES by name (a mapping or Series), if the columns hold names.
    task
        ``"classification"``, ``"regression"``, or ``"auto"``: classification if all are 0 or 1.
    seed
        Random seed, by default ``scvi.settings.seed``; the same seed gives the same model.
    **hyperparameters
        Fields of :class:`~scxtrimo.drugs.DrugConfig`.

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
        seed: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        if drug1_key == drug2_key:
            raise ValueError(f"drug1_key and drug2_key are both {drug1_key!r}: name two columns.")
        keys = [drug1_key, drug2_key], line_key, label_key
        super().__init__(lines, screen, keys, drugs, task, seed, hyperparameters)


class XTrimoGeneDrugResponse(DrugModelBase):
    """Response of a cell line to a drug, such as ln IC50 :cite:p:`Liu2020`.

    The network predicts what closed-form models miss: mean and spread of every drug, and a
    completed table of lines and drugs. If it does not improve on them in the validation rows,
    only these are used.

    Parameters
    ----------
    lines, line_key, drugs, seed
        See :class:`~scxtrimo.model.XTrimoGeneSynergy`.
    screen
        Measurements: a drug, a cell line and a response per row. Repeats are allowed.
    drug_key
        Column of ``screen`` with the drug, as SMILES or, with ``drugs``, as name.
    response_key
        Column with the response, in any unit; predictions are in the same unit.
    **hyperparameters
        Fields of :class:`~scxtrimo.drugs.DrugConfig`, but by default ``drug_input`` is
        ``"fingerprint"``, as graphs of hundreds of drugs are slow, and ``n_members`` is 2.

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

    result_name = "predicted_response"
    # The network starts from the closed-form models and has little to add.
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
        seed: int | None = None,
        **hyperparameters: Any,
    ) -> None:
        keys = [drug_key], line_key, response_key
        settings = {"drug_input": "fingerprint", "n_members": 2} | hyperparameters
        super().__init__(lines, screen, keys, drugs, "regression", seed, settings)
