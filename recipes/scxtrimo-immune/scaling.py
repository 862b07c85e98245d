"""Train the recipe with networks of four widths, on four parts of the cells, for other lengths.

python scaling.py cells.zarr out                # all runs; complete ones are not repeated
python scaling.py cells.zarr out --widths 128   # some of them, for several machines
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import torch

import scxtrimo
from scxtrimo.pretraining import CellStore

HERE = Path(__file__).parent
WIDTHS, PARTS, STEPS = (16, 32, 64, 128), (27, 9, 3, 1), 3000
LENGTHS = {64: (1000, 9000)}  # of a width, on all cells


def configuration(
    store: str, out: Path, width: int, part: int, steps: int, lr: float | None
) -> Any:
    """Return the recipe with another width, a part of the cells and another length."""
    recipe = scxtrimo.PretrainConfig.from_yaml(HERE / "run.yaml")
    n_cells = CellStore(store).n_cells // part
    heads = width // 16
    model = {
        "n_hidden": width,
        "n_heads": heads,
        "n_pool": 2 * width,
        "n_decoder_hidden": width,
        "n_decoder_heads": heads,
    }
    return replace(
        recipe,
        data=replace(recipe.data, store=store, max_cells=n_cells),
        out=str(out / f"width{width}-cells{n_cells}-steps{steps}"),
        model=recipe.model | model,
        optimizer=recipe.optimizer | ({} if lr is None else {"lr": lr}),
        steps=steps,
        record=replace(
            recipe.record,
            validate_every_n_steps=min(500, steps),
            checkpoint_every_n_steps=1000,
            keep=1,
        ),
    )


def main() -> None:
    """Train what is not trained yet, and note the arithmetic of each run."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("store")
    arguments.add_argument("out", type=Path)
    arguments.add_argument("--widths", type=int, nargs="+", default=WIDTHS, choices=WIDTHS)
    arguments.add_argument("--parts", type=int, nargs="+", default=PARTS, choices=PARTS)
    arguments.add_argument("--steps", type=int, default=STEPS)
    arguments.add_argument("--lr", type=float, help="learning rate, by default that of the recipe")
    args = arguments.parse_args()
    torch.set_num_threads(1)
    runs = [(width, part, args.steps) for part, width in product(args.parts, args.widths)]
    if 1 in args.parts:
        runs += [(width, 1, steps) for width in args.widths for steps in LENGTHS.get(width, ())]
    for width, part, steps in runs:
        config = configuration(args.store, args.out, width, part, steps, args.lr)
        noted = Path(config.out) / "scaling.json"
        if noted.is_file():
            continue
        estimate = scxtrimo.pretrain(config, dry_run=True)
        model = scxtrimo.pretrain(config)
        history = model.history["reconstruction_loss_validation"].iloc[:, 0]
        figures = {
            "width": width,
            "parameters": sum(p.numel() for p in model.module.parameters()),
            "cells": estimate.n_cells,
            "steps": steps,
            "flops": estimate.flops_per_cell * estimate.cells_per_step * steps,
            "loss": float(history.iloc[-1]),
            "losses": {int(step): float(loss) for step, loss in history.items()},
        }
        noted.write_text(json.dumps(figures, indent=1))
        print({name: value for name, value in figures.items() if name != "losses"}, flush=True)


if __name__ == "__main__":
    main()
