"""A detection trainer that can be cut off at any batch and go on as if it had not been.

Ultralytics' own loop runs unchanged. What it keeps in local variables (the number of the batch, the last
update) is kept here as well, because a run that enters an epoch in the middle has to continue both: the
warm-up and the moment of each update are set in :meth:`ResumableTrainer.preprocess_batch`, which the loop
calls after its own warm-up and before it decides about an update.

Which step of ``BaseTrainer._do_train`` (read in 8.4.190) calls what here, in its order::

    _setup_ddp, _setup_train          gloo on CPUs; setup_model: the network of the checkpoint
      _build_train_pipeline           get_dataloader: a loader that can enter an epoch anywhere
      resume_training                 everything back to where the checkpoint was written
    on_train_start                    convolutions are settled before the clocks run
    an epoch
      on_train_epoch_start            the loader enters the epoch; gradients that waited come back
      a batch
        on_train_batch_start          the cursor
        (its warm-up, which the next line replaces)
        preprocess_batch              seeds; learning rate and momentum; whether an update follows
        (forward, backward)
        optimizer_step                the update, unless a gradient is not finite
        on_train_batch_end            losses, heartbeat, a checkpoint if one is due, the stop
      on_train_epoch_end              as the last batch would have left it
      validate                        on_val_start, on_val_batch_start, on_val_end: heartbeat, the stop
      _handle_nan_recovery            never: updates are guarded one by one
      save_metrics, save_model        a row and the weights, whole or not at all
      on_fit_epoch_end                the next epoch begins
    final_eval                        the optimiser is dropped (in toolkit.training.trainer)

docs/ultralytics.md has the loop line by line and every name that this relies on; a test holds both against
the installed version.
"""

from __future__ import annotations

import csv
import math
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils import RANK, WORLD_SIZE
from ultralytics.utils.torch_utils import strip_optimizer, unwrap_model

from toolkit import console
from toolkit.dataset.loader import PREFETCH, use_server
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.runs import checkpoints, events, heartbeat
from toolkit.runs.folder import Instructions, RunFiles
from toolkit.settings import Saving
from toolkit.training.sampling import EpochSampler, ResumableLoader, derived_seed, seed_everything
from toolkit.training.settling import settle_convolutions
from toolkit.training.state import load_state, save_state

FORMAT = 1
"""Version of the checkpoints."""

WINDOW = 200
"""Batches that rates, waits and the running median of the loss look back on."""


MAIN = RANK in {-1, 0}
"""Whether this process writes files and decides: the only one, or the first of several ranks."""


class Stopped(Exception):
    """The run was saved and stopped because it was asked to."""


class RollBackNeeded(Exception):
    """The weights are no longer finite: only an older checkpoint helps."""


@dataclass
class _Progress:
    """How far the current epoch has come."""

    epoch: int
    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0


class ResumableTrainer(DetectionTrainer):
    """Ultralytics' trainer with a heartbeat, checkpoints inside the epoch, exact resume and a NaN guard.

    Args:
        overrides: Ultralytics' training arguments.
        files: of the run.
        instructions: of the supervisor.
        saving: when to write checkpoints.
        stop_wanted: asked after every batch; True saves and raises :class:`Stopped`.
    """

    model: Any
    last: Path
    best: Path
    epochs: int

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
        self.loader_workers = int(overrides.get("workers", 8))
        self._state = self._find_state()
        self.progress = _Progress(epoch=-1)
        self.batches_done = 0
        self.saved_at = -1
        self.updates = self.skipped_updates = self.skipped_in_a_row = 0
        self.frames = 0
        self._bad_before = files.bad_frames()
        self._since_update = 0
        self._beats = 0
        self._phase: heartbeat.Phase | None = None
        self._last_beat = self._last_save = self._last_batch_end = time.monotonic()
        self._warm, self._wait = False, 0.0
        self._seconds: deque[float] = deque(maxlen=WINDOW)
        self._waits: deque[float] = deque(maxlen=WINDOW)
        self._losses: deque[float] = deque(maxlen=WINDOW)
        self._validation_start = self._validation_seconds = 0.0
        self._memory = heartbeat.MemoryGauge()
        files.run.mkdir(parents=True, exist_ok=True)
        self._cursor = heartbeat.Cursor(files)
        super().__init__(overrides=overrides)
        if RANK != -1:
            self.world_size = WORLD_SIZE  # over all machines, and on a CPU too
        for event, handler in {
            "on_train_start": self._on_train_start,
            "on_train_epoch_start": self._on_epoch_start,
            "on_train_batch_start": self._on_batch_start,
            "on_train_batch_end": self._on_batch_end,
            "on_train_epoch_end": self._on_epoch_end,
            "on_val_start": self._on_validation_start,
            "on_val_batch_start": self._on_validation_batch,
            "on_val_end": self._on_validation_end,
            "on_fit_epoch_end": self._on_fit_epoch_end,
        }.items():
            self.add_callback(event, lambda _, handler=handler: handler())
        self._beat("starting")

    # Resuming

    def _find_state(self) -> dict[str, Any] | None:
        """The newest intact checkpoint that the instructions allow."""
        checkpoint, damaged = checkpoints.newest(self.files.checkpoints, self.instructions.before)
        last = self.files.last
        if checkpoint is None and damaged and last.exists():
            raise ToolkitError(
                f"run {self.files.run.name} cannot go on",
                found=f"none of its {len(damaged)} checkpoints can be read, or is what was written",
                expected=f"a checkpoint in {self.files.checkpoints}",
                fix=f"begin a new run with --model {last}, or remove that folder to begin this one anew",
            )
        if MAIN:
            checkpoints.remove_leftovers(self.files.checkpoints)
            for one in damaged:
                what = "the one before it is used" if checkpoint else "begun anew"
                self._record("checkpoint damaged", what, one.path.name)
                one.put_aside()
            if checkpoint is not None:
                checkpoints.discard_after(self.files.checkpoints, checkpoint.images)
        if checkpoint is None:
            return None
        state = load_state(checkpoint)
        if state["format"] != FORMAT:
            raise ToolkitError(
                f"cannot continue from {checkpoint.path}",
                found=f"format {state['format']}",
                expected=f"format {FORMAT}",
                fix="finish the run with the version of the toolkit that began it",
            )
        return state

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
        self._agree_on((state["epoch"], state["samples"]) if state else (0, 0))
        if state is None:
            self._scale_learning_rate()
            # The run may have been cut off before its first checkpoint, but after an epoch.
            self.best_fitness = self._fitness_of_best()
            return
        model = unwrap_model(self.model)
        model.load_state_dict(state["model"])
        self.ema.ema.load_state_dict(state["ema"])
        self.ema.updates = state["ema_updates"]
        for saved, group in zip(state["optimizer"]["param_groups"], self.optimizer.param_groups, strict=True):
            saved["fused"] = group.get("fused")  # of this device, not of the one before
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self.args.time:
            self.epochs = self.args.epochs = state.get("epochs", self.epochs)
            super()._setup_scheduler()
        self._scale_learning_rate()
        self.start_epoch = state["epoch"]
        model.criterion = model.init_criterion()
        if self.start_epoch and hasattr(model.criterion, "updates"):  # a loss that changes over the epochs
            model.criterion.updates = self.start_epoch - 1
            model.criterion.update()
        sums, count = dict(state["loss_sums"]), state["loss_count"]
        self.progress = _Progress(state["epoch"], state["samples"], sums, count)
        self._since_update = state["since_update"]
        self.batches_done = self.saved_at = self._batches_until(state["epoch"], state["samples"])
        self.skipped_updates = state["skipped_updates"]
        self._losses.extend(state["recent_losses"])
        self.loss_names = tuple(state["loss_names"])
        self.loss_items = {k: torch.tensor(v, device=self.device) for k, v in state["loss_items"].items()}
        self.loss = torch.tensor(sum(state["loss_items"].values()), device=self.device)
        if MAIN:
            self.metrics.update(state["metrics"])
        self.fitness = state["fitness"]
        self.stopper.__dict__.update(state["stopper"])
        known = [value for value in (state["best_fitness"], self._fitness_of_best()) if value is not None]
        self.best_fitness = max(known, default=None)
        self._drop_rows_after(self.start_epoch)
        if MAIN:
            console.note(f"continuing after batch {self.batches_done:,}, in epoch {self.start_epoch + 1}")

    def _batches_until(self, epoch: int, samples: int) -> int:
        """Batches of the present size, which may not be the size of those that were trained."""
        batches: int = epoch * len(self.train_loader) + -(-samples // self.batch_size)
        return batches

    def _agree_on(self, place: tuple[int, int]) -> None:
        """All ranks go on from the same place, or none: a shared folder may show one of them an older state.

        Raises:
            RuntimeError: they would not; the group is started again.
        """
        if RANK == -1:
            return
        first = [place]
        distributed.broadcast_object_list(first, src=0)
        if first[0] != place:
            raise RuntimeError(f"rank {RANK} would go on at {place} (epoch, image), the first at {first[0]}")

    def _setup_scheduler(self) -> None:
        """With a time instead of epochs, Ultralytics counts how many fit whenever one is over.

        It divides the time by the epochs of this process, which is wrong for a run that goes on: what went
        before is in the time. The epochs are those of the whole run here.
        """
        if self.args.time and hasattr(self, "train_time_start"):
            of_one = (time.time() - self.train_time_start) / (self.epoch + 1)
            self.epochs = self.args.epochs = math.ceil(self.args.time * 3600 / of_one)
        super()._setup_scheduler()

    def _scale_learning_rate(self) -> None:
        rates = [rate * self.instructions.lr_scale for rate in self._planned_rates]
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate
        self.scheduler.base_lrs = rates

    def _fitness_of_best(self) -> float | None:
        """best.pt may be newer than the checkpoint: an epoch that is trained again must beat it as well."""
        if not MAIN or not self.best.exists():
            return None
        with suppress(Exception):  # whatever a damaged file may raise; the next best epoch replaces it
            fitness = load_checkpoint(self.best)[1].get("best_fitness")
            return None if fitness is None else float(fitness)
        return None

    def _drop_rows_after(self, epoch: int) -> None:
        """Remove from results.csv what will be trained again."""
        if not MAIN or not self.csv.exists():
            return
        text = self.csv.read_text(errors="replace").replace("\0", "")  # a power cut leaves zeros
        header, *rows = [row for row in csv.reader(text.splitlines()) if row] or [[]]
        kept = [row for row in rows if len(row) == len(header) and _number(row[0]) <= epoch]
        try:
            with replacing(self.csv) as temporary, temporary.open("w", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *kept] if header else [])
        except ToolkitError as error:
            self._record("results not written", "training goes on", error.line())

    # The loop

    def get_dataloader(
        self, dataset_path: str, batch_size: int = 16, rank: int = 0, mode: str = "train"
    ) -> Any:
        """A loader that can enter an epoch anywhere for training, Ultralytics' own for validation."""
        if mode != "train":
            loader = super().get_dataloader(dataset_path, batch_size, rank, mode)
            use_server(loader)
            return loader
        if self.batch_size % WORLD_SIZE:
            raise ToolkitError(
                f"a batch of {self.batch_size} cannot be shared by {WORLD_SIZE} ranks",
                expected=f"a --batch that is a multiple of {WORLD_SIZE}",
            )
        dataset = self.build_dataset(dataset_path, mode, self.batch_size)
        order = EpochSampler(
            len(dataset), self.batch_size, self.args.seed, max(RANK, 0), WORLD_SIZE, dataset.order
        )
        return ResumableLoader(
            dataset,
            order,
            workers=min(self.loader_workers, os.cpu_count() or 1),
            pin_memory=self.device.type == "cuda",
            on_worker_death=lambda what: self._record("worker died", "loader workers restarted", what),
        )

    def _setup_ddp(self) -> None:
        if self.device.type == "cpu":
            # As long as Ultralytics gives NCCL: the first rank scores alone.
            distributed.init_process_group("gloo", timeout=timedelta(hours=3))
        else:
            super()._setup_ddp()

    def _setup_train(self) -> None:
        if self.device.type != "cpu" or RANK == -1:
            super()._setup_train()
            return
        # Ultralytics would give DDP the index of a GPU: it sets up as if alone, and the model is shared here.
        self.world_size = 1
        super()._setup_train()
        self.world_size = WORLD_SIZE
        self.model = DistributedDataParallel(self.model, broadcast_buffers=False)

    def validate(self) -> tuple[dict[str, float] | None, float | None]:
        """Validate on all ranks; on the CPU the loss is that of the first rank's part."""
        if self.device.type != "cpu" or RANK == -1:
            validated: tuple[dict[str, float] | None, float | None] = super().validate()
            return validated
        for buffer in self.ema.ema.buffers():
            distributed.broadcast(buffer, src=0)
        self.world_size = 1  # gloo has no mean, which Ultralytics takes of the losses
        try:
            validated = super().validate()
        finally:
            self.world_size = WORLD_SIZE
        return validated

    def _build_train_pipeline(self) -> None:
        previous = getattr(self, "train_loader", None)
        super()._build_train_pipeline()
        self._accumulate = self.accumulate
        if previous is None:
            self._planned_rates = list(self.scheduler.base_lrs)
        else:
            self._record("out of memory", f"batch reduced to {self.batch_size}")
            self._since_update = 0

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Move the batch to the device; set learning rate, momentum and whether an update follows."""
        loader = self.train_loader
        seed_everything(derived_seed(self.args.seed, self.epoch, loader.batch_number))
        step = self.epoch * len(loader) + loader.batch_number
        accumulate = self._warm_up(step)
        self._since_update += 1
        # The loop updates when its own count of batches since the last update reaches this number.
        self.accumulate = 1 if self._since_update >= accumulate else sys.maxsize
        self._images = batch["im_file"]
        processed: dict[str, Any] = super().preprocess_batch(batch)
        return processed

    def _warm_up(self, step: int) -> int:
        """Ultralytics' warm-up at a batch of the whole run; beyond its end its values stay where it ended.

        Returns:
            Batches to an update.
        """
        end = self._get_warmup_iterations(len(self.train_loader))
        if not end:
            return int(self._accumulate)
        span = [0, end]
        for group in self.optimizer.param_groups:
            target = group["initial_lr"] * self.lf(self.epoch)
            first = self.args.warmup_bias_lr if group.get("param_group") == "bias" else 0.0
            group["lr"] = float(np.interp(step, span, [first, target]))
            if "momentum" in group:
                momentum = [self.args.warmup_momentum, self.args.momentum]
                group["momentum"] = float(np.interp(step, span, momentum))
        return max(1, int(np.interp(step, span, [1, self._accumulate]).round()))

    def optimizer_step(self) -> None:
        """Update the weights, unless a gradient is not finite: then leave the update out and count it."""
        self._since_update = 0
        self.updates += 1
        self.scaler.unscale_(self.optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), max_norm=10.0)
        finite = bool(torch.isfinite(norm))
        if finite or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)  # an enabled scaler leaves out such an update on its own
            self.scaler.update()
        self.optimizer.zero_grad()
        if finite:
            self.skipped_in_a_row = 0
            self.ema.update(self.model)
            return
        self.skipped_updates += 1
        self.skipped_in_a_row += 1
        self._heal_buffers()
        # Looking for its scale, a gradient scaler overflows now and then with a loss that is fine.
        if not (self.scaler.is_enabled() and bool(torch.isfinite(self.loss))):
            detail = f"gradient norm {float(norm)}, {self._batch_images()}"
            self._record("not finite", "update skipped", detail)

    def _heal_buffers(self) -> None:
        """Running statistics that a NaN went through never recover on their own: take the average's."""
        averaged = dict(self.ema.ema.named_buffers())
        for name, buffer in unwrap_model(self.model).named_buffers():
            if buffer.is_floating_point() and not torch.isfinite(buffer).all():
                buffer.copy_(averaged[name])

    def _handle_nan_recovery(self, epoch: int) -> bool:
        return False  # updates are guarded one by one instead

    def save_model(self) -> bool:
        """Write last.pt, and best.pt if this epoch is the best; a full disk is recorded.

        After the last epoch no other follows that could write them: the run waits for room.
        """
        best = self.best_fitness
        problem = self._try_save()
        if problem is None:
            return True
        self._record("weights not written", "waiting for room" if self.stop else "training goes on", problem)
        while self.stop and problem is not None:
            self._beat("validating")
            self._stop_if_wanted()
            time.sleep(heartbeat.INTERVAL)
            self.best_fitness = best
            problem = self._try_save()
        return problem is None

    def _try_save(self) -> str | None:
        """Write the weights, each file to a temporary name first; on a full disk say so and leave them."""
        final = {"last": self.last, "best": self.best}
        partial = {name: path.with_name(f".{path.name}.tmp") for name, path in final.items()}
        self.last, self.best = partial["last"], partial["best"]
        self.save_period = 0  # Ultralytics would write into the file that a soup may be reading
        try:
            super().save_model()
            for name, path in partial.items():
                if path.exists():
                    with path.open("rb+") as file:
                        os.fsync(file.fileno())
                    path.replace(final[name])
            self._keep_epoch(final["last"])
        except OSError as error:
            self.best = final["best"]
            self.best_fitness = self._fitness_of_best()  # what the next epoch must beat is what is there
            return f"{self.wdir}: {error.strerror}"
        finally:
            self.last, self.best = final["last"], final["best"]
            for path in partial.values():
                with suppress(OSError):
                    path.unlink()
        return None

    def _keep_epoch(self, last: Path) -> None:
        """With ``save_period``, the weights of this epoch as epoch10.pt and so on, without the optimiser.

        The number is that of results.csv. A full disk costs the file.
        """
        number = self.epoch + 1
        if self.args.save_period < 1 or number % self.args.save_period:
            return
        try:
            with replacing(self.wdir / f"epoch{number}.pt") as temporary:
                if not strip_optimizer(last, str(temporary)):
                    raise ToolkitError(f"cannot read {last}")
        except Exception as error:  # of a full disk PyTorch makes a RuntimeError
            self._record("epoch not kept", "training goes on", f"epoch{number}.pt: {error}")

    def save_metrics(self, metrics: dict[str, float]) -> None:
        """Append the epoch to results.csv; a full disk costs the row.

        Ultralytics would write nan, which makes polars read the column as text, also into its checkpoints.
        """
        size = self.csv.stat().st_size if self.csv.exists() else 0
        row = {"epoch": self.epoch + 1, "time": time.time() - self.train_time_start, **metrics}
        lines = [] if size else [",".join(row)]
        lines.append(",".join(f"{value:.6g}".replace("nan", "NaN") for value in row.values()))
        try:
            with self.csv.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        except OSError as error:
            with suppress(OSError):
                os.truncate(self.csv, size)  # no part of a row, which the next one would continue
            self._record("results not written", "training goes on", f"{self.csv}: {error.strerror}")

    def close(self) -> None:
        """Stop the loaders' processes."""
        for loader in (getattr(self, "train_loader", None), getattr(self, "test_loader", None)):
            if loader is not None:
                loader.close()

    # Callbacks

    def _on_train_start(self) -> None:
        images = (
            self.batch_size // max(self.world_size, 1),
            int(self.data["channels"]),
            int(self.args.imgsz),
        )
        half = torch.bfloat16 if self.args.amp == "bf16" else torch.float16
        settle_convolutions(unwrap_model(self.model), images, half if self.amp else None)
        if self._state is not None:
            self.train_time_start -= self._state["elapsed"]  # results.csv counts on

    def _on_epoch_start(self) -> None:
        if self.progress.epoch != self.epoch:
            self.progress = _Progress(self.epoch)
        self.train_loader.order.enter(self.epoch, self.progress.samples, frozenset(self.instructions.skip))
        if self._state is not None:
            parameters = dict(unwrap_model(self.model).named_parameters())
            for name, gradient in self._state["gradients"].items():
                parameters[name].grad = gradient.to(self.device)
            self._state = None
        self._last_batch_end = time.monotonic()

    def _on_batch_start(self) -> None:
        if MAIN:
            self._cursor.set(self.train_loader.place)
        self._wait = time.monotonic() - self._last_batch_end

    def _on_batch_end(self) -> None:
        progress, loader = self.progress, self.train_loader
        values = torch.stack([v.detach().reshape(()) for v in self.loss_items.values()]).tolist()
        items = dict(zip(self.loss_items, values, strict=True))
        if all(map(math.isfinite, values)):
            for name, value in items.items():
                progress.sums[name] = progress.sums.get(name, 0.0) + value
            progress.count += 1
            self._losses.append(sum(values))
        else:
            self._heal_buffers()
            self._record("loss not finite", "noted", self._batch_images())
        self.tloss = self._mean_losses()
        progress.samples = loader.samples_done
        self.batches_done = self.epoch * len(loader) + loader.batch_number + 1
        self.frames += self._frames_for(len(self._images) * WORLD_SIZE)  # of all ranks
        if MAIN:
            self._cursor.set(loader.order.next())
        now = time.monotonic()
        if self._warm:  # the first batch of a process, which compiles and tunes, is no usual one
            self._seconds.append(now - self._last_batch_end)
            self._waits.append(self._wait)
        self._warm = True
        self._last_batch_end = now
        self._beat("training")
        self._save_if_due()

    def _on_epoch_end(self) -> None:
        self._beat("validating")  # a fault from here on is none of a batch
        # What the last batch would have set, if it was trained before the run was cut off.
        self.tloss = self._mean_losses()
        self._warm_up((self.epoch + 1) * len(self.train_loader) - 1)
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self._save_if_due()

    def _on_validation_start(self) -> None:
        self._validation_start = time.monotonic()
        self.frames += len(self.test_loader.dataset)
        self._beat("validating")

    def _on_validation_batch(self) -> None:
        self._beat("validating")
        self._stop_if_wanted()

    def _on_validation_end(self) -> None:
        self._validation_seconds = time.monotonic() - self._validation_start

    def _on_fit_epoch_end(self) -> None:
        self.progress = _Progress(self.epoch + 1)
        self._beat("finished" if self.stop else "training")
        if not self.stop:
            self._save_if_due()

    def _frames_for(self, samples: int) -> int:
        """Frames that training samples of this epoch are made of: a mosaic takes three more."""
        closed = self.args.close_mosaic and self.progress.epoch >= self.epochs - self.args.close_mosaic
        return round(samples * (1 if closed else 1 + 3 * self.args.mosaic))

    def _frames_ahead(self) -> int:
        """Frames that the workers may have met, and found bad, for batches that are not trained yet."""
        loader = getattr(self, "train_loader", None)
        return self._frames_for(loader.num_workers * PREFETCH * self.batch_size) if loader else 0

    def _mean_losses(self) -> dict[str, float]:
        progress = self.progress
        return {name: progress.sums.get(name, math.nan) / max(progress.count, 1) for name in self.loss_names}

    def _batch_images(self) -> str:
        return f"{len(self._images)} images from {self._images[0]} on"

    # Saving and reporting

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
                self._record("not saved", "stopped all the same", lost)
            raise Stopped

    def save_checkpoint(self) -> None:
        """Write a checkpoint of this moment; a full disk is recorded, and training goes on.

        Raises:
            RollBackNeeded: a weight is not finite.
        """
        self._last_save = time.monotonic()
        if not MAIN:
            return
        weights = unwrap_model(self.model).state_dict()
        if not all(bool(torch.isfinite(v).all()) for v in weights.values() if v.is_floating_point()):
            raise RollBackNeeded
        try:
            save_state(self.files.checkpoints, self._images_done(), self._make_state())
        except ToolkitError as error:
            self._record("checkpoint not written", "older ones kept, training goes on", error.line())
        else:
            self.saved_at = self.batches_done

    def _images_done(self) -> int:
        images: int = self.train_loader.order.images
        return self.progress.epoch * images + self.progress.samples

    def _make_state(self) -> dict[str, Any]:
        model, progress = unwrap_model(self.model), self.progress
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {
            "format": FORMAT,
            "epoch": progress.epoch,
            "samples": progress.samples,
            "epochs": self.epochs,
            "architecture": model.yaml,
            "model": model.state_dict(),
            "ema": self.ema.ema.state_dict(),
            "ema_updates": self.ema.updates,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "gradients": gradients,
            "since_update": self._since_update,
            "loss_sums": progress.sums,
            "loss_count": progress.count,
            "loss_names": list(self.loss_names),
            "loss_items": {k: float(v) for k, v in self.loss_items.items()},
            "recent_losses": list(self._losses),
            "metrics": {k: float(v) for k, v in self.metrics.items()},
            "fitness": _float_or_none(self.fitness),
            "best_fitness": _float_or_none(self.best_fitness),
            "stopper": {
                "best_fitness": float(self.stopper.best_fitness),
                "best_epoch": int(self.stopper.best_epoch),
                "possible_stop": bool(self.stopper.possible_stop),
            },
            "skipped_updates": self.skipped_updates,
            "elapsed": time.time() - self.train_time_start,
        }

    def _record(self, kind: str, action: str, detail: str = "") -> None:
        if MAIN:
            event = events.record(self.files.events, kind, action, detail, heartbeat.Cursor.read(self.files))
            console.warn(event.line())

    def _beat(self, phase: heartbeat.Phase) -> None:
        self._beats += 1
        clock = time.monotonic()
        if not MAIN or (phase == self._phase and clock - self._last_beat < heartbeat.INTERVAL):
            return
        self._last_beat, self._phase = clock, phase
        loader = getattr(self, "train_loader", None)
        optimizer = getattr(self, "optimizer", None)
        seconds = sum(self._seconds)
        batches = len(loader) if loader else 0
        beat = heartbeat.Beat(
            pid=os.getpid(),
            count=self._beats,
            phase=phase,
            epoch=max(self.progress.epoch, 0),
            epochs=self.epochs,
            batch=loader.batch_number + 1 if loader and self.progress.samples else 0,
            batches=batches,
            loss={k: _finite_or_none(v) for k, v in (getattr(self, "loss_items", None) or {}).items()},
            median_loss=statistics.median(self._losses) if self._losses else None,
            learning_rate=optimizer.param_groups[0]["lr"] if optimizer else 0.0,
            images_per_second=len(self._seconds) * self.batch_size / seconds if seconds else 0.0,
            loader_wait=min(sum(self._waits) / seconds, 1.0) if seconds else 0.0,
            step_seconds=_quartiles(self._seconds),
            validation_seconds=self._validation_seconds,
            gpu_memory=int(self._get_memory() * 2**30),
            memory=self._memory.read(),
            updates=self.updates,
            skipped_updates=self.skipped_updates,
            skipped_in_a_row=self.skipped_in_a_row,
            frames=self.frames + self._frames_ahead(),
            bad_frames=self.files.bad_frames() - self._bad_before,
            best=_float_or_none(self.best_fitness),
        )
        heartbeat.write(self.files, beat)


def _float_or_none(value: Any) -> float | None:
    return None if value is None else float(value)


def _finite_or_none(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _number(text: str) -> float:
    """NaN for what is no number."""
    with suppress(ValueError):
        return float(text)
    return math.nan


def _quartiles(values: deque[float]) -> tuple[float, float, float]:
    if not values:
        return 0.0, 0.0, 0.0
    low, middle, high = np.percentile(list(values), [25, 50, 75]).tolist()
    return low, middle, high
