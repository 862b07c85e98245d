"""Checkpoints every so many steps, of which the last few are kept whole."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from .._logging import logger

PARTIAL = ".partial"
NAME = "step-{step:09d}"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write a checkpoint beside its place and move it there when it is complete.

    Lightning writes to the temporary directory first, which may be another file system: the move
    is a copy then, and can be cut short.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None
    ) -> None:
        """Write a checkpoint.

        Raises
        ------
        OSError
            If it cannot be written, for instance as the disk is full. Earlier ones stay.
        """
        path = Path(path)
        partial = path.with_name(path.name + PARTIAL)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(partial, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:  # torch wraps what the disk says
            partial.unlink(missing_ok=True)
            earlier = ", ".join(found.name for found in checkpoints_in(path.parent)) or "none"
            raise OSError(
                getattr(error, "errno", None) or 0,
                f"The checkpoint {path} could not be written: {error}. Earlier ones are whole "
                f"({earlier}). Free some space and start the same command again, to go on from "
                "the last of them",
            ) from error


def step_checkpoints(directory: str | os.PathLike, every_n_steps: int, keep: int) -> Any:
    """Return Lightning's callback that keeps the last few checkpoints.

    Parameters
    ----------
    directory
        Where to write.
    every_n_steps
        Steps of the optimiser from one to the next.
    keep
        How many are kept; -1 for all.
    """
    return ModelCheckpoint(
        dirpath=Path(directory),
        filename=NAME,
        auto_insert_metric_name=False,
        every_n_train_steps=every_n_steps,
        save_on_train_epoch_end=False,
        monitor="step",
        mode="max",
        save_top_k=keep,
        enable_version_counter=False,
    )


def checkpoint_path(directory: str | os.PathLike, step: int) -> Path:
    """Return the path of the checkpoint of a step."""
    return Path(directory) / f"{NAME.format(step=step)}.ckpt"


def checkpoints_in(directory: str | os.PathLike) -> list[Path]:
    """Return the checkpoints of a directory, the last one first."""
    return sorted(Path(directory).glob("step-*.ckpt"), reverse=True)


def last_checkpoint(directory: str | os.PathLike) -> Path | None:
    """Return the last checkpoint that is whole, if there is one; nothing in it is executed.

    Parameters
    ----------
    directory
        Where the checkpoints are.
    """
    for path in checkpoints_in(directory):
        try:
            torch.load(path, map_location="meta", mmap=True, weights_only=True)
        except Exception as error:  # noqa: BLE001 - truncated files fail in many ways
            logger.warning(f"{path} is damaged ({error}); going on from the one before.")
        else:
            return path
    return None
