"""The progress of a training: cells per second and the time left, from step to step."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import ProgressBar
from tqdm.auto import tqdm

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} "
TIMES = "[{elapsed}<{remaining}, {rate_fmt}{postfix}]"
TIMES_AT_MOST = "[{elapsed}, at most {remaining} left, {rate_fmt}{postfix}]"


class CellProgress(ProgressBar):
    """One bar for a training, which counts cells; ``may_stop`` if it can end before its time."""

    def __init__(self, cells_per_step: float, may_stop: bool) -> None:
        super().__init__()
        self.cells_per_step, self.may_stop = cells_per_step, may_stop
        self.bar: tqdm | None = None
        self._is_enabled = True

    def disable(self) -> None:
        """Show nothing, on other processes than the first."""
        self._is_enabled = False

    def enable(self) -> None:
        """Show the bar again."""
        self._is_enabled = True

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar; a training that is resumed starts where it was."""
        n_steps = trainer.num_training_batches * (trainer.max_epochs or 1)
        done = trainer.fit_loop.total_batch_idx + 1
        self.bar = tqdm(
            desc="Training",
            total=round(self.cells_per_step * n_steps),
            initial=round(self.cells_per_step * done),
            unit=" cells",
            unit_scale=True,
            smoothing=0.1,
            bar_format=FORMAT + (TIMES_AT_MOST if self.may_stop else TIMES),
            disable=not self._is_enabled,
        )

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Name the epoch."""
        if self.bar is not None:
            self.bar.set_description_str(
                f"Epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", refresh=False
            )

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any
    ) -> None:
        """Move on by a step."""
        if self.bar is not None:
            self.bar.update(self.cells_per_step)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Show the losses."""
        if self.bar is not None:
            self.bar.set_postfix(self.get_metrics(trainer, pl_module), refresh=False)

    def get_metrics(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Return the losses, without the number of the logger."""
        shown = super().get_metrics(trainer, pl_module)
        shown.pop("v_num", None)
        for name in ("train_loss", "validation_loss"):
            if (loss := trainer.callback_metrics.get(name)) is not None:
                shown[name] = float(f"{float(loss):.4g}")
        return shown

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar, which is full even if the training stopped early."""
        if self.bar is not None:
            self.bar.total = self.bar.n
            self.bar.refresh()
        self._close()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Close the bar of a training that does not come to its end."""
        self._close()

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
