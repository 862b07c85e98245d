"""Execute the notebooks, each in an empty folder.

    python tutorials/run.py                  # all; fails if one does
    python tutorials/run.py quickstart genes
    python tutorials/run.py --write          # and keep the outputs

Two notebooks run at a time if there are two cores, each with one thread. A notebook is left
out, with the reason, if a package it needs is missing or its data are neither here nor to be had.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

FOLDER = Path(__file__).parent
NEEDS = {
    "annotation": ["captum"],
    "drugs": ["rdkit", "torch_geometric"],
    "pretraining": ["annbatch"],
}
CELL_SECONDS = 900
# Bars would be kept line by line, and ask for widgets.
QUIET = {"TQDM_DISABLE": "1", "PYTHONWARNINGS": "ignore:IProgress not found"}
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


def is_bar(output: nbformat.NotebookNode) -> bool:
    """Whether an output is a progress bar, of which every state would be a line."""
    text = output.get("text", "") if output.get("name") == "stderr" else "text"
    return "%|" in text or not text.strip()


def execute(path: Path, write: bool) -> tuple[str, str]:
    """Execute one notebook and return what became of it, and more about that."""
    missing = [name for name in NEEDS.get(path.stem, []) if find_spec(name) is None]
    if missing:
        return "left out", f"{', '.join(missing)} not installed"
    notebook = nbformat.read(path, as_version=4)
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook, timeout=CELL_SECONDS, resources={"metadata": {"path": folder}}
        )
        try:
            client.execute()
        except CellExecutionError as error:
            if "could not be downloaded" in error.evalue:
                return "left out", error.evalue
            return "failed", str(error)
        except (CellTimeoutError, DeadKernelError) as error:
            return "failed", str(error)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # times of the day
        if "outputs" in cell:
            cell.outputs = [output for output in cell.outputs if not is_bar(output)]
    if write:
        nbformat.write(notebook, path)
    return "passed", f"{time.perf_counter() - start:.0f} s"


def main() -> None:
    """Execute the notebooks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help="notebooks without .ipynb; by default all")
    parser.add_argument("--write", action="store_true", help="keep the outputs")
    parser.add_argument("--all", action="store_true", help="fail if one is left out")
    args = parser.parse_args()
    paths = sorted(FOLDER.glob("*.ipynb"))
    if unknown := set(args.names) - {path.stem for path in paths}:
        parser.error(f"no such notebook: {', '.join(sorted(unknown))}")
    paths = [path for path in paths if not args.names or path.stem in args.names]
    n_workers = max(1, min(2, os.cpu_count() or 1, len(paths)))
    os.environ |= QUIET
    if n_workers > 1:  # two processes with two threads each would wait for one another
        os.environ |= dict.fromkeys(THREADS, "1")
    counted = {"passed": 0, "failed": 0, "left out": 0}
    with ThreadPoolExecutor(n_workers) as pool:
        results = pool.map(lambda path: execute(path, args.write), paths)
        for path, (kind, details) in zip(paths, results, strict=True):
            print(f"{path.stem} {kind}: {details}", flush=True)
            counted[kind] += 1
    print(", ".join(f"{n} {kind}" for kind, n in counted.items()))
    sys.exit(counted["failed"] > 0 or (args.all and counted["left out"] > 0))


if __name__ == "__main__":
    main()
