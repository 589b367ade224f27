"""An update with a gradient that is not finite is left out, one by one, and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toolkit.training.loop import LoopTrainer
from toolkit.training.losses import LossReader
from toolkit.training.sampling import batch_seed, seed_everything
from toolkit.training.state import Progress
from toolkit.training.telemetry import Telemetry
from toolkit.training.updates import heal_buffers, update


class GuardedTrainer(LoopTrainer):
    """Leaves out an update with a gradient that is not finite; every batch has seeds of its own.

    Attributes:
        progress: how far the epoch has come; its losses are those that have arrived.
        updates: in this process, those left out included.
        skipped_updates: left out, in the whole run; skipped_in_a_row: since the last good one.

    Args:
        overrides: Ultralytics' training arguments.
        telemetry: what is told about the run.
        rate_scale: part of the planned learning rate to use.
    """

    def __init__(self, overrides: dict[str, Any], telemetry: Telemetry, rate_scale: float = 1.0) -> None:
        self.rate_scale = rate_scale
        self.progress, self._losses = Progress(epoch=-1), LossReader()
        self.updates = self.skipped_updates = self.skipped_in_a_row = 0
        super().__init__(overrides, telemetry)

    def _read_losses(self, wait: bool = True) -> None:
        for values, images in self._losses.read(wait):
            if self.telemetry.loss_arrives(values):
                self.progress.add(values)
            else:
                heal_buffers(self.model, self.ema.ema)
                self.telemetry.record("loss not finite", "noted", _words(images))

    def _add_to_mean(self, count: int) -> None:
        """Nothing: a mean made here would wait for the card."""

    def _describe(self, batch: dict[str, Any]) -> str:
        """The line of the bar, with the means of what was read so far."""
        self.tloss = self.progress.means(self.loss_names)
        return super()._describe(batch)

    def _build_train_pipeline(self) -> None:
        previous = getattr(self, "train_loader", None)
        super()._build_train_pipeline()
        self._weights = list(self.model.parameters())
        if previous is None:
            self._planned_rates = list(self.scheduler.base_lrs)
        else:
            self.telemetry.record("out of memory", f"batch reduced to {self.batch_size}")

    def _scale_learning_rate(self) -> None:
        rates = [rate * self.rate_scale for rate in self._planned_rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
        self.scheduler.base_lrs = rates

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move the batch to the device; what is random in its step depends on seed, epoch and batch alone."""
        seed_everything(batch_seed(self.args.seed, self.epoch, self.train_loader.batch_number))
        self._images = batch["im_file"]
        processed: dict[str, Any] = super().preprocess_batch(batch)
        return processed

    def optimizer_step(self) -> None:
        """Update the weights, unless a gradient is not finite: then leave the update out and count it."""
        self.updates += 1
        finite, norm = update(self._weights, self.optimizer, self.scaler)
        if finite:
            self.skipped_in_a_row = 0
            self.ema.update(self.model)
            return
        self.skipped_updates += 1
        self.skipped_in_a_row += 1
        heal_buffers(self.model, self.ema.ema)
        # Looking for its scale, a gradient scaler overflows now and then with a loss that is fine.
        if not (self.scaler.is_enabled() and bool(torch.isfinite(self.loss))):
            detail = f"gradient norm {float(norm)}, {_words(self._images)}"
            self.telemetry.record("not finite", "update skipped", detail)


def _words(images: Sequence[str]) -> str:
    return f"{len(images)} images from {images[0]} on"
