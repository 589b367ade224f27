"""The state of a training in a checkpoint: tensors, numbers, text, lists and dictionaries of them."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from toolkit.errors import ToolkitError
from toolkit.runs import checkpoints
from toolkit.runs.checkpoints import Checkpoint
from toolkit.runs.folder import RunFiles

FORMAT = 1
"""Version of the checkpoints."""


@dataclass
class Progress:
    """How far the current epoch has come.

    Attributes:
        epoch: counted from 0; -1 before the first.
        samples: that have been trained, over all ranks.
        sums, count: of the components of the loss, over the batches where all were finite; their number.
    """

    epoch: int
    samples: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    count: int = 0

    def add(self, losses: Mapping[str, float]) -> None:
        """A batch's components, which are finite."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
        self.count += 1

    def means(self, names: Iterable[str]) -> dict[str, float]:
        """Of the components so far; NaN before the first."""
        return {name: self.sums.get(name, math.nan) / max(self.count, 1) for name in names}


def save_state(folder: Path, images: int, state: Mapping[str, Any]) -> Checkpoint:
    """Write ``state`` as :func:`toolkit.runs.checkpoints.write` does.

    Raises:
        ToolkitError: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return checkpoints.write(folder, images, buffer.getbuffer())


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state that :func:`save_state` was given, tensors on the CPU; nothing in the file is executed."""
    state: dict[str, Any] = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    return state


def find_state(
    files: RunFiles, before: int | None, first: bool, record: Callable[[str, str, str], None]
) -> dict[str, Any] | None:
    """What the newest intact checkpoint holds; None: the run begins.

    Args:
        files: of the run.
        before: only checkpoints with fewer images than this count.
        first: whether this process may clear away what is left over, damaged, or to be trained again.
        record: told of each that is damaged.

    Raises:
        ToolkitError: all of them are damaged, or of another version.
    """
    checkpoint, damaged = checkpoints.newest(files.checkpoints, before)
    if checkpoint is None and damaged and files.last.exists():
        raise ToolkitError(
            f"run {files.run.name} cannot go on",
            found=f"none of its {len(damaged)} checkpoints can be read, or is what was written",
            expected=f"a checkpoint in {files.checkpoints}",
            fix=f"begin a new run with --model {files.last}, or remove that folder to begin this one anew",
        )
    if first:
        checkpoints.remove_leftovers(files.checkpoints)
        for one in damaged:
            what = "the one before it is used" if checkpoint else "begun anew"
            record("checkpoint damaged", what, one.path.name)
            one.put_aside()
        if checkpoint is not None:
            checkpoints.discard_after(files.checkpoints, checkpoint.images)
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


def state_of(trainer: Any, model: Any) -> dict[str, Any]:
    """Everything of Ultralytics' trainer that the next batch depends on, and that an epoch's end reports.

    Args:
        trainer: with all that its ``_setup_train`` makes.
        model: its detector, without DDP around it.
    """
    stopper = trainer.stopper
    return {
        "architecture": model.yaml,
        "model": model.state_dict(),
        "ema": trainer.ema.ema.state_dict(),
        "ema_updates": trainer.ema.updates,
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": trainer.scaler.state_dict(),
        "gradients": {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        "loss_names": list(trainer.loss_names),
        "loss_items": {name: float(value) for name, value in trainer.loss_items.items()},
        "metrics": {name: float(value) for name, value in trainer.metrics.items()},
        "fitness": float_or_none(trainer.fitness),
        "best_fitness": float_or_none(trainer.best_fitness),
        "stopper": {
            "best_fitness": float(stopper.best_fitness),
            "best_epoch": int(stopper.best_epoch),
            "possible_stop": bool(stopper.possible_stop),
        },
        "elapsed": time.time() - trainer.train_time_start,
    }


def put_back(trainer: Any, model: Any, state: dict[str, Any]) -> None:
    """Give Ultralytics' trainer what :func:`state_of` took from it.

    Left to its caller are the gradients, which the loop drops before its first epoch; the clock, which the
    loop starts; and the best fitness, which best.pt may know better.
    """
    model.load_state_dict(state["model"])
    trainer.ema.ema.load_state_dict(state["ema"])
    trainer.ema.updates = state["ema_updates"]
    for saved, group in zip(state["optimizer"]["param_groups"], trainer.optimizer.param_groups, strict=True):
        saved["fused"] = group.get("fused")  # of this device, not of the one before
    trainer.optimizer.load_state_dict(state["optimizer"])
    if state["scaler"]:
        trainer.scaler.load_state_dict(state["scaler"])
    trainer.start_epoch = state["epoch"]
    model.criterion = model.init_criterion()
    if trainer.start_epoch and hasattr(model.criterion, "updates"):  # a loss that changes over the epochs
        model.criterion.updates = trainer.start_epoch - 1
        model.criterion.update()
    trainer.loss_names = tuple(state["loss_names"])
    losses = state["loss_items"]
    trainer.loss_items = {name: torch.tensor(v, device=trainer.device) for name, v in losses.items()}
    trainer.loss = torch.tensor(sum(losses.values()), device=trainer.device)
    trainer.fitness = state["fitness"]
    trainer.stopper.__dict__.update(state["stopper"])


def float_or_none(value: Any) -> float | None:
    """A tensor's or a number's value."""
    return None if value is None else float(value)
