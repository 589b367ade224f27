"""The training loop: epochs of batches, each pass over the frames validated and saved.

It does what ``BaseTrainer._do_train`` of Ultralytics does (read in 8.4.190), in the same order, with the same
training arguments and events, over Ultralytics' model, loss, optimizer, validator and checkpoints: a test
holds the losses of both together. It differs where a run has to go on in the middle of an epoch: the batch's
number and the batches since the last update are fields, which a checkpoint keeps, instead of local variables
that begin at 0. toolkit/training/ultralytics.md has both, line by line.
"""

from __future__ import annotations

import math
import time
import warnings
from functools import partial
from typing import Any

import torch
from ultralytics.utils import LOGGER, RANK, TQDM, colorstr
from ultralytics.utils.torch_utils import autocast, unwrap_model

from toolkit.training import cautions
from toolkit.training.group import GroupTrainer, of_the_first
from toolkit.training.memory import no_memory
from toolkit.training.passes import Passes
from toolkit.training.replay import NetworkGraph
from toolkit.training.telemetry import MAIN, Telemetry
from toolkit.training.updates import WarmUp

REDRAWN = 0.1
"""Seconds after which the bar gets another line: one for each batch would cost more than its drawing."""

SMALLER_BATCHES = 3
"""Times that the batch is halved in the first epoch of a process."""


class LoopTrainer(GroupTrainer):
    """Trains epoch after epoch; what a run is kept by hangs on its events.

    Args:
        overrides: Ultralytics' training arguments.
        telemetry: what is told about the run.
    """

    # Ultralytics begins with None in most of them.
    _planned_accumulate: int
    batch_size: int
    ema: Any
    epoch_time: Any
    epochs: int
    fitness: Any
    lf: Any
    loss: Any
    loss_items: Any
    loss_names: Any
    metrics: Any
    optimizer: Any
    passes: Passes = Passes()
    scheduler: Any
    stop: Any
    tloss: Any
    validator: Any

    def __init__(self, overrides: dict[str, Any], telemetry: Telemetry) -> None:
        self._since_update, self._halved, self._mosaic_closed = 0, 0, False
        self._shown = -math.inf
        self.graph = NetworkGraph(telemetry.record)
        super().__init__(overrides, telemetry)

    def _do_train(self) -> None:
        if self.world_size > 1:
            self._setup_ddp()
        self._setup_train()
        self.stopper.patience *= self.passes.every
        self.epoch_time = None
        self.epoch_time_start = self.train_time_start = time.time()
        self.run_callbacks("on_train_start")
        self._announce()
        self._mosaic_closed = not self.args.close_mosaic
        self.optimizer.zero_grad()
        self.epoch = self.start_epoch
        while True:
            if not self._train_epoch():
                continue  # from its beginning, with smaller batches
            self._finish_epoch()
            if self._everybody_stops():
                break
            self.epoch += 1
        hours = (time.time() - self.train_time_start) / 3600
        LOGGER.info(f"\n{self.epoch - self.start_epoch + 1} epochs completed in {hours:.3f} hours.")
        self.final_eval()
        if MAIN:
            if self.args.plots:
                self.plot_metrics()
            self.run_callbacks("on_train_end")
        self._clear_memory()
        self.close()

    def _announce(self) -> None:
        LOGGER.info(_announcement(self, self.args.fraction, self.args.imgsz))
        if self.args.close_mosaic:
            first = (self.epochs - self.args.close_mosaic) * len(self.train_loader)
            self.plot_idx.extend([first, first + 1, first + 2])

    def _train_epoch(self) -> bool:
        """What is left of the epoch; False where the memory did not suffice, and smaller batches may."""
        self.run_callbacks("on_train_epoch_start")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the schedule moves before the optimizer has
            self.scheduler.step()
        self._model_train()
        self._close_mosaic_if_due()
        batches: Any = self.train_loader
        if MAIN:
            if self.loss_names:
                LOGGER.info(self.progress_string())
            batches = TQDM(self.train_loader, total=len(self.train_loader))
        # As the batch before left it; no other follows in an epoch that was cut off behind its last batch.
        done = -(-self.train_loader.order.start // self.batch_size)
        self._warm_up(self.epoch * len(self.train_loader) + done - 1)
        self.tloss = None
        for count, batch in enumerate(batches):
            self.run_callbacks("on_train_batch_start")
            try:
                batch = self.graph.beside(partial(self._forward_and_backward, batch))
            except RuntimeError as error:
                self._take_smaller_batches(error)
                return False
            self._add_to_mean(count)
            self._since_update += 1
            if self._since_update >= self.accumulate:
                self.optimizer_step()
                self._since_update = 0
                if self._time_is_over():
                    break
            if MAIN:
                self._show(batches, batch)
            self.run_callbacks("on_train_batch_end")
            if self.stop:
                break
        else:
            self._halved = 0
        return True

    def _close_mosaic_if_due(self) -> None:
        if not self._mosaic_closed and self.epoch >= self.epochs - self.args.close_mosaic:
            self._mosaic_closed = True
            self._close_dataloader_mosaic()
            self.train_loader.reset()

    def _batch_of_run(self) -> int:
        """Number of the batch, counted over the epochs."""
        return int(self.epoch * len(self.train_loader) + self.train_loader.batch_number)

    def _warm_up(self, step: int) -> None:
        """Set learning rates, momentum and batches to an update as they are at a batch of the whole run."""
        batches = self._get_warmup_iterations(len(self.train_loader))
        momentum = (self.args.warmup_momentum, self.args.momentum)
        warm_up = WarmUp(batches, self._planned_accumulate, self.args.warmup_bias_lr, momentum)
        self.accumulate = warm_up.set(self.optimizer.param_groups, step, self.lf(self.epoch))

    def _forward_and_backward(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Gradients of a batch, added to those that wait for an update. Returns the batch on the device."""
        self._warm_up(self._batch_of_run())
        with autocast(torch.bfloat16 if self.args.amp == "bf16" else self.amp, device=self.device.type):
            batch = self.graph.moved(batch, self.preprocess_batch)
            if self.args.compile:  # the loss apart compiles better
                loss, self.loss_items = unwrap_model(self.model).loss(batch, self.model(batch["img"]))
            else:
                loss, self.loss_items = self.graph.loss(self.model, batch)
            loss = loss.sum()
            if RANK != -1:
                loss = loss * self.world_size
            self.loss = loss.detach()  # a CUDA graph that it came by could not be dropped else
        if not self.loss_names:
            self.loss_names = tuple(self.loss_items)
            if MAIN:
                LOGGER.info(self.progress_string())
                self.metrics.update(dict.fromkeys(self.label_loss_items(prefix="val"), 0.0))
        self.scaler.scale(loss).backward()
        return batch

    def _add_to_mean(self, count: int) -> None:
        before = self.tloss or dict.fromkeys(self.loss_items, 0.0)
        self.tloss = {name: (before[name] * count + v) / (count + 1) for name, v in self.loss_items.items()}

    def _take_smaller_batches(self, error: RuntimeError) -> None:
        """Halve the batch, in the first epoch of a process that trains alone; else raise the error."""
        may = self.epoch <= self.start_epoch and self._halved < SMALLER_BATCHES and RANK == -1
        if not may or not no_memory(error):
            raise error
        self._halved += 1
        before = self.batch_size
        self.args.batch = self.batch_size = max(before // 2, 1)
        LOGGER.warning(
            f"{self.device.type.upper()} out of memory with batch={before}. Reducing to "
            f"batch={self.batch_size} and retrying ({self._halved}/{SMALLER_BATCHES})."
        )
        self.loss = self.loss_items = self.tloss = None
        self.graph.drop()
        self.train_loader.close()
        self._clear_memory()
        self._build_train_pipeline()
        self._mosaic_closed = not self.args.close_mosaic  # the loader is a new one
        self.validator.dataloader = self.test_loader
        self.scheduler.last_epoch = self.start_epoch - 1
        self._since_update = 0
        self.optimizer.zero_grad()

    def _build_train_pipeline(self) -> None:
        super()._build_train_pipeline()
        self._planned_accumulate = int(self.accumulate)

    def _time_is_over(self) -> bool:
        if self.args.time:
            self.stop = self._hours_are_over()
            self._everybody_stops()
        return bool(self.stop)

    def _hours_are_over(self) -> bool:
        return bool(self.args.time) and time.time() - self.train_time_start >= self.args.time * 3600

    def _everybody_stops(self) -> bool:
        """What the first rank knows of a stop, on all ranks."""
        self.stop = of_the_first(self.stop)
        return bool(self.stop)

    def _show(self, bar: Any, batch: dict[str, Any]) -> None:
        now = time.monotonic()
        if now - self._shown >= REDRAWN or self.train_loader.batch_number + 1 == len(self.train_loader):
            self._shown = now
            bar.set_description(self._describe(batch))
        if self.args.plots and self._batch_of_run() in self.plot_idx:
            # A thread draws them, and a graph's next batch lies where this one does.
            self.plot_training_samples({**batch, "img": batch["img"].clone()}, self._batch_of_run())

    def _describe(self, batch: dict[str, Any]) -> str:
        where = (f"{self.epoch + 1}/{self.epochs}", f"{self._get_memory():.3g}G")
        numbers = (*self.tloss.values(), batch["cls"].shape[0], batch["img"].shape[-1])
        return ("%11s" * len(where) + "%11.4g" * len(numbers)) % (*where, *numbers)

    def _finish_epoch(self) -> None:
        """Validate, write the row and the weights, and look whether this was the last epoch."""
        criterion = unwrap_model(self.model).criterion
        if hasattr(criterion, "update"):
            criterion.update()
        self.lr = {f"lr/pg{i}": group["lr"] for i, group in enumerate(self.optimizer.param_groups)}
        self.run_callbacks("on_train_epoch_end")
        if MAIN:
            kept = ["yaml", "nc", "args", "names", "stride", "class_weights"]
            self.ema.update_attr(self.model, include=kept)
        # With a time, the number of epochs is what the ones before it made likely: it ends nothing.
        last = self._time_is_over() if self.args.time else self.epoch + 1 >= self.epochs
        due = bool(last or self.stop or self.passes.ends_with(self.epoch))
        if due and (self.args.val or last or self.stop):
            self._clear_memory(None if self.device.type == "mps" else 0.5)
            self.metrics, self.fitness = self.graph.beside(self.validate)
        elif MAIN and not due:
            self.metrics, self.fitness = self.passes.without(self.metrics), None
        if MAIN:
            self.save_metrics(metrics={**self.label_loss_items(self.tloss), **self.metrics, **self.lr})
            self.stop |= self.stopper(self.epoch + 1, self.fitness) or last
            self.stop |= due and self._hours_are_over()
            if (self.args.save or last) and (due or self.passes.keeps(self.epoch)) and self.save_model():
                self.run_callbacks("on_model_save")
        self._plan_by_time(due)
        self.run_callbacks("on_fit_epoch_end")
        self._clear_memory(None if self.device.type == "mps" else 0.5)

    def _plan_by_time(self, due: bool) -> None:
        """With ``time``: as many epochs as fit into it, by the mean of those of the whole run.

        Ultralytics divides by the epochs of this process, which is wrong for a run that goes on: what went
        before is in the time.
        """
        now = time.time()
        self.epoch_time, self.epoch_time_start = now - self.epoch_time_start, now
        if self.args.time:
            mean = (now - self.train_time_start) / (self.epoch + 1)
            self.epochs = self.args.epochs = of_the_first(math.ceil(self.args.time * 3600 / mean))
            self._setup_scheduler()
            self.scheduler.last_epoch = self.epoch
            if MAIN and not self.epoch:  # only now it is known how long the run is
                cautions.warn_of_length(self.args, self.epochs, len(self.train_loader))
            self.stop |= due and self.epoch >= self.epochs


def _announcement(trainer: LoopTrainer, fraction: float, size: int) -> str:
    """What Ultralytics says before the first epoch."""
    length = f"{trainer.args.time} hours" if trainer.args.time else f"{trainer.epochs} epochs"
    return (
        f"Using {len(trainer.train_loader.dataset)} train, {len(trainer.test_loader.dataset)} val images for "
        f"fraction={fraction} at imgsz={size}\n"
        f"Using {trainer.train_loader.num_workers * (trainer.world_size or 1)} dataloader workers\n"
        f"Logging results to {colorstr('bold', trainer.save_dir)}\n"
        f"Starting training for {length}..."
    )
