"""What two drugs do together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from anndata import AnnData

from .base import DrugModelBase


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
