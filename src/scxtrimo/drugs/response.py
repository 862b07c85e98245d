"""What one drug does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import pandas as pd
from anndata import AnnData

from .base import DrugModelBase


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
