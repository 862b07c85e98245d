"""What models of drugs and cell lines share: set-up, training and prediction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scvi.model._utils import parse_device_args

from .._logging import logger
from ..data.columns import canonical
from ..model.registration import own_view
from .cell_lines import Expression, LinePanel, places_of, setup_lines, setup_of
from .graphs import MoleculeWidths
from .module import DrugConfig, DrugModule
from .molecules import FINGERPRINT_BITS, WIDTHS, parent_smiles, read_molecules
from .newcomers import choose_own_weight, draw_newcomers
from .prediction import DrugPredictionMixin, by_name
from .response_base import ResponseBase
from .screen import check_table, drugs_of, split_rows, target_of, task_of, warn_of_conflicts
from .training import DrugTraining, calibrate, fit, predict_members


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
