"""What all benchmark scripts share: arguments, machine, table and JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from scxtrimo.data.dataset import to_ragged


def parser(description: str) -> argparse.ArgumentParser:
    """Return the argument parser of a benchmark."""
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--quick", action="store_true", help="the same on less, in two minutes")
    result.add_argument("--data", type=Path, help=".h5ad file or directory of such files")
    result.add_argument("--seeds", type=int, default=3, metavar="N", help="training seeds")
    result.add_argument("--json", type=Path, metavar="FILE", help="where to write the results")
    return result


def data_files(data: Path) -> list[Path]:
    """Return the file, or the .h5ad files of a directory."""
    files = sorted(data.glob("*.h5ad")) if data.is_dir() else [data]
    if not files or not all(file.is_file() for file in files):
        raise SystemExit(f"No .h5ad file at {data}.")
    return files


def machine() -> dict[str, Any]:
    """Describe where the figures come from."""
    return {
        "processor": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def simulate(n_cells: int, n_genes: int, density: float, seed: int = 0) -> AnnData:
    """Cells with the given fraction of their genes expressed."""
    rng = np.random.default_rng(seed)
    counts = sparse.random_array(
        (n_cells, n_genes), density=density, format="csr", dtype=np.float32, rng=rng
    )
    counts.data = rng.geometric(0.5, len(counts.data)).astype(np.float32)
    adata = AnnData(sparse.csr_matrix(counts))
    adata.var_names = [f"GENE{i}" for i in range(n_genes)]
    return adata


def reset_peak_memory() -> int:
    """Forget the peak so far and return the resident memory, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return memory("VmRSS")


def peak_memory() -> int:
    """Return the peak of the resident memory in bytes."""
    return memory("VmHWM")


def memory(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(field)).split()[1]) * 1024


def ragged_batch(n_cells: int, n_genes: int, density: float) -> dict[str, torch.Tensor]:
    """Return simulated cells as a ragged batch without covariates."""
    ragged = to_ragged(simulate(n_cells, n_genes, density).X, np.arange(n_genes))
    batch = {key: torch.from_numpy(value) for key, value in ragged.items()}
    return batch | {
        "cell_ids": torch.arange(n_cells),
        "categories": torch.zeros(n_cells, 0, dtype=torch.int64),
    }


def row(
    task: str, data: str, method: str, metric: str, value: float, **more: float
) -> dict[str, Any]:
    """Return one figure of one run, which has no spread."""
    figure = {"task": task, "data": data, "method": method, "metric": metric, "value": value}
    return figure | {"spread": float("nan")} | more


def rows_of(
    task: str, data: str, method: str, values: dict[str, float], **more: float
) -> list[dict[str, Any]]:
    """Return the figures of one run, by metric."""
    return [row(task, data, method, metric, value, **more) for metric, value in values.items()]


def ratio_rows(
    task: str, size: str, values: dict[str, float], metric: str
) -> list[dict[str, Any]]:
    """One row per method, with the ratio to the first."""
    first = next(iter(values.values()))
    return [
        row(task, size, method, name, number)
        for method, value in values.items()
        for name, number in ((metric, value), ("ratio", value / first))
    ]


def summarize(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Turn one row per seed and metric into one row per metric with its spread over seeds."""
    frame = pd.DataFrame(rows)
    keys = ["task", "data", "method", "metric"]
    grouped = frame.groupby(keys, sort=False)
    summary = grouped.agg(
        value=("value", "mean"), spread=("value", "std"), seconds=("seconds", "mean")
    )
    return summary.reset_index().to_dict("records")  # one run has no spread: NaN


def report(rows: list[dict[str, Any]], path: Path | None) -> None:
    """Print a table, methods in rows and metrics in columns, and write JSON."""
    frame = pd.DataFrame(rows)
    for (task, data), part in frame.groupby(["task", "data"], sort=False):
        print(f"\n{task}: {data}")
        texts = [
            f"{v:.4g}" if np.isnan(s) else f"{v:.3f} ± {s:.3f}"
            for v, s in zip(part["value"], part["spread"], strict=True)
        ]
        part = part.assign(text=texts)
        table = part.pivot(index="method", columns="metric", values="text")
        table = table.loc[part["method"].unique(), part["metric"].unique()]
        if "seconds" in part:
            table["seconds"] = part.groupby("method", sort=False)["seconds"].first().round(1)
        print(table.to_string())
    if path is not None:
        rows = [{k: v for k, v in row.items() if v == v} for row in rows]  # JSON has no NaN
        path.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        print(f"\nWritten to {path}")
