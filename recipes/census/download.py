"""Download cells of the CZ CELLxGENE Census, a file or more for every data set.

    pip install cellxgene-census
    python download.py census --where "tissue_general in ['blood', 'bone marrow']"

Writes raw counts of primary cells as ``census/<data set>-<part>.h5ad``, and the data sets that are
held out for validation, drawn at random, into ``census/held_out``. Files that are there are not
downloaded again, so that an interrupted download is started again with the same command.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import anndata
import cellxgene_census
import numpy as np
import pandas as pd
from tqdm import tqdm

VERSION = "2025-01-30"  # a release with long-term support
COLUMNS = ["dataset_id", "donor_id", "assay", "tissue_general", "cell_type"]
CELLS_PER_FILE = 200_000  # about 3 GB in memory


def chosen_cells(
    census: Any, organism: str, where: str | None, exclude: list[str]
) -> dict[str, np.ndarray]:
    """Return the identifiers of the cells to download, by data set."""
    condition = "is_primary_data == True" + (f" and ({where})" if where else "")
    obs: pd.DataFrame = cellxgene_census.get_obs(
        census,
        organism,
        value_filter=condition,
        column_names=["soma_joinid", "dataset_id"],
    )
    if unknown := sorted(set(exclude) - set(obs["dataset_id"])):
        raise SystemExit(f"--exclude: no cells of {unknown} are chosen by {condition!r}.")
    obs = obs[~obs["dataset_id"].isin(exclude)]
    by_dataset = obs.groupby(obs["dataset_id"].astype(str))["soma_joinid"]
    return {str(dataset): np.sort(cells.to_numpy()) for dataset, cells in by_dataset}


def download(census: Any, organism: str, cells: np.ndarray, path: Path) -> None:
    """Write the raw counts of some cells."""
    adata: anndata.AnnData = cellxgene_census.get_anndata(
        census,
        organism,
        X_name="raw",
        obs_coords=cells,
        obs_column_names=["soma_joinid", *COLUMNS],
        var_column_names=["feature_id", "feature_name"],
    )
    adata.obs_names = adata.obs.pop("soma_joinid").astype(str)
    adata.var_names = adata.var.pop("feature_id").astype(str)
    partial = path.with_suffix(".partial")
    adata.write_h5ad(partial, compression="gzip")
    partial.rename(path)  # a file by its name is a whole one


def main() -> None:
    """Download what is not there yet."""
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("out", type=Path, help="folder to write files to")
    arguments.add_argument("--where", help="condition on obs of the Census")
    arguments.add_argument("--organism", default="Homo sapiens")
    arguments.add_argument("--exclude", nargs="+", default=[], help="data sets to leave out")
    arguments.add_argument("--held-out", type=int, default=10, help="data sets to hold out")
    arguments.add_argument("--version", default=VERSION, help="release of the Census")
    arguments.add_argument("--uri", help="a copy of the Census elsewhere")
    arguments.add_argument("--seed", type=int, default=0)
    args = arguments.parse_args()
    with cellxgene_census.open_soma(census_version=args.version, uri=args.uri) as census:
        by_dataset = chosen_cells(census, args.organism, args.where, args.exclude)
        if len(by_dataset) <= args.held_out:
            raise SystemExit(
                f"--held-out {args.held_out}: {len(by_dataset)} data sets are chosen; hold out "
                "fewer than all."
            )
        rng = np.random.default_rng(args.seed)
        held_out = rng.choice(sorted(by_dataset), args.held_out, replace=False)
        files = {}
        for dataset, cells in by_dataset.items():
            folder = args.out / "held_out" if dataset in held_out else args.out
            folder.mkdir(parents=True, exist_ok=True)
            for part, first in enumerate(range(0, len(cells), CELLS_PER_FILE)):
                some = cells[first : first + CELLS_PER_FILE]
                files[folder / f"{dataset}-{part}.h5ad"] = some
        n_cells = sum(map(len, files.values()))
        with tqdm(total=n_cells, unit="cell", unit_scale=True, desc="Downloading") as bar:
            for path, cells in files.items():
                if not path.is_file():
                    download(census, args.organism, cells, path)
                bar.update(len(cells))


if __name__ == "__main__":
    main()
