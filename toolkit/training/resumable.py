"""A detection trainer that can be cut off at any batch and go on as if it had not been.

Which step of the loop (:mod:`toolkit.training.loop`, and of Ultralytics' own, ``BaseTrainer._do_train``)
calls what here, in its order::

    _setup_ddp, _setup_train          gloo on CPUs; setup_model: the network of the checkpoint
      _build_train_pipeline           get_dataloader: a loader that can enter an epoch anywhere
      resume_training                 everything back to where the checkpoint was written
    on_train_start                    convolutions are settled before the clocks run
    an epoch
      on_train_epoch_start            the loader enters the epoch; gradients that waited come back
      a batch
        on_train_batch_start          the cursor
        (warm-up)
        preprocess_batch              seeds
        (forward, backward)
        optimizer_step                the update, unless a gradient is not finite
        on_train_batch_end            losses (on a card the last batch's), heartbeat, a checkpoint, the stop
      on_train_epoch_end              as the last batch would have left it
      validate                        on_val_start, on_val_batch_start, on_val_end: heartbeat, the stop
      save_metrics, save_model        a row and the weights, whole or not at all
      on_fit_epoch_end                the next epoch begins
    final_eval                        the optimiser is dropped (in toolkit.training.trainer)

ultralytics.md beside this has both loops line by line and every name that this relies on; a test holds them
against the installed version.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ultralytics.utils import RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import unwrap_model

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.runs import checkpoints, heartbeat, results
from toolkit.runs.folder import Instructions, RunFiles
from toolkit.settings import Saving
from toolkit.training.group import agree_on
from toolkit.training.guard import GuardedTrainer
from toolkit.training.replay import alike
from toolkit.training.state import (
    FORMAT,
    Progress,
    find_state,
    put_back,
    save_state,
    state_of,
)
from toolkit.training.steps import half_precision
from toolkit.training.telemetry import MAIN, Telemetry, frames_a_sample
from toolkit.training.updates import all_finite
from toolkit.training.weights import fitness_of, without_optimizer, written_whole


class Stopped(Exception):
    """The run was saved and stopped because it was asked to."""


class RollBackNeeded(Exception):
    """The weights are no longer finite: only an older checkpoint helps."""


HANDLERS = {
    "on_train_start": "_on_train_start",
    "on_train_epoch_start": "_on_epoch_start",
    "on_train_batch_start": "_on_batch_start",
    "on_train_batch_end": "_on_batch_end",
    "on_train_epoch_end": "_on_epoch_end",
    "on_val_start": "_on_validation_start",
    "on_val_batch_start": "_on_validation_batch",
    "on_val_end": "_on_validation_end",
    "on_fit_epoch_end": "_on_fit_epoch_end",
}
"""What :class:`ResumableTrainer` does at Ultralytics' events."""


class ResumableTrainer(GuardedTrainer):
    """Ultralytics' trainer with a heartbeat, checkpoints inside the epoch, exact resume and a NaN guard.

    Args:
        overrides: Ultralytics' training arguments.
        files: of the run.
        instructions: of the supervisor.
        saving: when to write checkpoints.
        stop_wanted: asked after every batch; True saves and raises :class:`Stopped`.
    """

    last: Path
    best: Path

    def __init__(
        self,
        overrides: dict[str, Any],
        files: RunFiles,
        instructions: Instructions,
        saving: Saving,
        stop_wanted: Callable[[], bool],
    ) -> None:
        self.files, self.instructions = files, instructions
        self.saving, self.stop_wanted = saving, stop_wanted
        self.batches_done, self.saved_at, self._last_save = 0, -1, time.monotonic()
        self._exact = 2 if instructions.exact else 0  # checkpoints: the first may come before the fault
        files.run.mkdir(parents=True, exist_ok=True)
        telemetry = Telemetry(files)
        self._state = find_state(files, instructions.before, MAIN, telemetry.record)
        super().__init__(overrides, telemetry, instructions.lr_scale)
        for event, handler in HANDLERS.items():
            self.add_callback(event, getattr(self, handler))
        self._beat("starting")

    # What Ultralytics' setting up calls

    def check_resume(self, overrides: dict[str, Any]) -> None:
        """Ultralytics would take the arguments of last.pt; this run brings its own."""
        self.resume = self._state is not None
        self.args.resume = self.resume or not MAIN  # keeps results.csv, which is the first rank's to remove

    def setup_model(self) -> Any:
        """The network of the checkpoint, which needs no other file; of a new run, what the plan names."""
        if self._state is not None and "architecture" in self._state:
            self.model = self.get_model(cfg=self._state["architecture"], weights=None, verbose=MAIN)
            return None
        if self.files.last.is_file() and not Path(self.args.model).is_file():
            self.model = str(self.files.last)  # of a checkpoint by an older version, whose weights follow
        return super().setup_model()

    def resume_training(self, ckpt: dict[str, Any] | None) -> None:
        """Put everything back to where the checkpoint was written."""
        state = self._state
        agree_on((state["epoch"], state["samples"]) if state else (0, 0))
        known = fitness_of(self.best) if MAIN else None
        if state is None:
            self._scale_learning_rate()
            self.best_fitness = known  # the run may have been cut off after an epoch, but before a checkpoint
            return
        put_back(self, unwrap_model(self.model), state)
        if self.args.time:
            self.epochs = self.args.epochs = state.get("epochs", self.epochs)
            self._setup_scheduler()
        self._scale_learning_rate()
        losses = dict(state["loss_sums"]), state["loss_count"]
        self.progress = Progress(state["epoch"], state["samples"], *losses)
        self._since_update, self.skipped_updates = state["since_update"], state["skipped_updates"]
        # Batches of the present size, which may not be the size of those that were trained.
        before = state["epoch"] * len(self.train_loader)
        self.batches_done = self.saved_at = before + -(-state["samples"] // self.batch_size)
        self.telemetry.losses.extend(state["recent_losses"])
        best = [value for value in (state["best_fitness"], known) if value is not None]
        self.best_fitness = max(best, default=None)
        if MAIN:
            self.metrics.update(state["metrics"])
            try:
                results.drop_after(self.csv, self.start_epoch)  # what will be trained again
            except ToolkitError as error:
                self.telemetry.record("results not written", "training goes on", error.line())
            console.note(f"continuing after batch {self.batches_done:,}, in epoch {self.start_epoch + 1}")

    # What Ultralytics' loop calls

    def _on_train_start(self, _: object) -> None:
        half = half_precision(self.args.amp) if self.amp else None
        count = self.batch_size // max(self.world_size, 1)
        images = (count, int(self.data["channels"]), int(self.args.imgsz))
        self.graph.settle(unwrap_model(self.model), images, half, RANK == -1 and alike(self.args))
        if self._state is not None:
            self.train_time_start -= self._state["elapsed"]  # results.csv counts on

    def _on_epoch_start(self, _: object) -> None:
        if self.progress.epoch != self.epoch:
            self.progress = Progress(self.epoch)
        skipped, is_last = frozenset(self.instructions.skip), self.epoch + 1 >= self.epochs
        self.train_loader.order.enter(self.epoch, self.progress.samples, skipped, is_last=is_last)
        if self._state is not None:
            parameters = dict(unwrap_model(self.model).named_parameters())
            for name, gradient in self._state["gradients"].items():
                parameters[name].grad = gradient.to(self.device)
            self._state = None
        self._frames_a_sample = frames_a_sample(self)
        self.telemetry.epoch_begins()

    def _on_batch_start(self, _: object) -> None:
        self.telemetry.batch_begins(self.train_loader.handed_out)

    def _on_batch_end(self, _: object) -> None:
        loader = self.train_loader
        self._losses.put(self.loss_items, self._images)
        self._read_losses(wait=self._exact > 0)
        self.progress.samples = loader.samples_done
        self.batches_done = self._batch_of_run() + 1
        frames = round(len(self._images) * WORLD_SIZE * self._frames_a_sample)  # of all ranks
        self.telemetry.batch_ends(loader.following, frames)
        self._beat("training")
        self._save_if_due()

    def _on_epoch_end(self, _: object) -> None:
        self._read_losses()
        self.tloss = self.progress.means(self.loss_names)  # of an epoch that was entered at its end as well
        self._beat("validating")  # a fault from here on is none of a batch
        self._save_if_due()

    def _on_validation_start(self, _: object) -> None:
        self.telemetry.validation_begins(len(self.test_loader.dataset))
        self._beat("validating")

    def _on_validation_batch(self, _: object = None) -> None:
        self._beat("validating")
        self._stop_if_wanted()

    def _on_validation_end(self, _: object) -> None:
        self.telemetry.validation_ends()

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Append the epoch to results.csv; a full disk costs the row."""
        row = {"epoch": self.epoch + 1, "time": time.time() - self.train_time_start, **metrics}
        try:
            results.append(self.csv, row)
        except OSError as error:
            self.telemetry.record("results not written", "training goes on", f"{self.csv}: {error.strerror}")

    def save_model(self) -> bool:
        """Write last.pt, and best.pt if this epoch is the best; a full disk is recorded.

        After the last epoch no other follows that could write them: the run waits for room.
        """
        best = self.best_fitness
        problem = self._try_save()
        if problem is None:
            return True
        action = "waiting for room" if self.stop else "training goes on"
        self.telemetry.record("weights not written", action, problem)
        while self.stop and problem is not None:
            self._beat("validating")
            self._stop_if_wanted()
            time.sleep(heartbeat.INTERVAL)
            self.best_fitness = best
            problem = self._try_save()
        return problem is None

    def _try_save(self) -> str | None:
        """Write the weights; on a full disk say so and leave them."""
        self.save_period = 0  # Ultralytics would write into the file that a soup may be reading
        fitness = self.fitness
        self.fitness = math.nan if self.args.val and fitness is None else fitness  # never best.pt unvalidated
        try:
            with written_whole(self):
                super().save_model()
            if self.passes.keeps(self.epoch):
                self._keep_epoch(f"epoch{self.epoch + 1}.pt")
        except OSError as error:
            self.best_fitness = fitness_of(self.best)  # what the next epoch must beat is what is there
            return f"{self.wdir}: {error.strerror}"
        finally:
            self.fitness = fitness
        return None

    def _keep_epoch(self, name: str) -> None:
        try:
            without_optimizer(self.last, self.wdir / name)
        except Exception as error:  # of a full disk PyTorch makes a RuntimeError
            self.telemetry.record("epoch not kept", "training goes on", f"{name}: {error}")

    def _on_fit_epoch_end(self, _: object) -> None:
        self.progress = Progress(self.epoch + 1)
        self._beat("finished" if self.stop else "training")
        if not self.stop:
            self._save_if_due()

    def _save_if_due(self) -> None:
        self._stop_if_wanted()
        if self.skipped_in_a_row:
            return  # nothing that is worth going back to
        due = time.monotonic() - self._last_save >= self.saving.seconds
        if self.saving.batches:
            due = due or self.batches_done - max(self.saved_at, 0) >= self.saving.batches
        if due:
            self.save_checkpoint()

    def _stop_if_wanted(self) -> None:
        # The first rank saves and goes; the others would wait for it for ever, and are ended with the group.
        if MAIN and self.stop_wanted():
            self.save_checkpoint()
            if self.saved_at != self.batches_done:
                kept = next((one.images for one in checkpoints.listed(self.files.checkpoints)), 0)
                lost = f"{self._images_done() - kept:,} images are to be trained again"
                self.telemetry.record("not saved", "stopped all the same", lost)
            raise Stopped

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this moment; a full disk is recorded, and training goes on.

        Raises:
            RollBackNeeded: a weight is not finite.
        """
        self._last_save = time.monotonic()
        if not MAIN:
            return
        self._read_losses()
        model = unwrap_model(self.model)
        if not all_finite(model.state_dict()):
            raise RollBackNeeded
        state = {
            "format": FORMAT,
            "epoch": self.progress.epoch,
            "epochs": self.epochs,
            "samples": self.progress.samples,
            "loss_sums": self.progress.sums,
            "loss_count": self.progress.count,
            "since_update": self._since_update,
            "skipped_updates": self.skipped_updates,
            "recent_losses": list(self.telemetry.losses),
            **state_of(self, model),
        }
        try:
            save_state(self.files.checkpoints, self._images_done(), state)
        except ToolkitError as error:
            self.telemetry.record("checkpoint not written", "older ones kept, training goes on", error.line())
        else:
            self.saved_at, self._exact = self.batches_done, max(self._exact - 1, 0)

    def _images_done(self) -> int:
        images: int = self.train_loader.order.images
        return self.progress.epoch * images + self.progress.samples

    def _beat(self, phase: heartbeat.Phase) -> None:
        self.telemetry.beat(phase, self)
