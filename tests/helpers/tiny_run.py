"""Training the tiny model in this process, with a record of every batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from run_page import unnamed

from toolkit.dataset import index
from toolkit.machine.device import running
from toolkit.runs import reproduction
from toolkit.runs.folder import Instructions
from toolkit.runs.plan import TrainingPlan
from toolkit.settings import Saving
from toolkit.training.resumable import Stopped
from toolkit.training.trainer import LTDv2Trainer

HELPERS = Path(__file__).parent
MODEL = HELPERS / "tiny.yaml"
NEVER = Saving(seconds=1e9)


def plan(data: Path, run: Path, *, saving: Saving = NEVER, **arguments: Any) -> TrainingPlan:
    """Three epochs of six batches, an update every second batch after a warm-up of one epoch, mosaic closed
    for the last epoch."""
    return TrainingPlan(
        data=data,
        run=run,
        preset="smoke",
        model=str(MODEL),
        channels=1,
        device="cpu",
        patches=False,
        arguments={
            "imgsz": 64,
            "epochs": 3,
            "batch": 8,
            "nbs": 16,
            "amp": False,
            "optimizer": "SGD",
            "lr0": 0.01,
            "warmup_epochs": 1.0,
            "close_mosaic": 1,
            "workers": 0,
            "plots": False,
            "seed": 3,
            **arguments,
        },
        saving=saving,
    )


@dataclass(frozen=True)
class Step:
    """One batch: where it was, what was in it and what came out."""

    epoch: int
    batch: int
    images: tuple[str, ...]
    losses: tuple[float, ...]
    rate: float


OURS = ("trace.jsonl", ".done")
"""What faulty_worker.py writes into a run."""


@dataclass
class Trace:
    """What a trainer did, and the trainer."""

    steps: list[Step] = field(default_factory=list)
    trainer: LTDv2Trainer | None = None
    stopped: bool = False

    @property
    def images(self) -> list[str]:
        """Images in the order in which they were seen."""
        return [name for step in self.steps for name in step.images]


def train(
    planned: TrainingPlan,
    *,
    stop_after: int | None = None,
    instructions: Instructions | None = None,
    prepare: Callable[[LTDv2Trainer], None] | None = None,
) -> Trace:
    """Train in this process, from the newest checkpoint if there is one.

    Args:
        planned: what the run uses.
        stop_after: ask for a stop after that many batches.
        instructions: of a supervisor.
        prepare: called with the trainer before it starts.
    """
    trace = Trace()
    planned.run.mkdir(parents=True, exist_ok=True)
    reproduction.record(planned)

    def stop_wanted() -> bool:
        return stop_after is not None and len(trace.steps) >= stop_after

    def write_down(trainer: Any) -> None:
        trace.steps.append(
            Step(
                trainer.epoch,
                trainer.train_loader.batch_number,
                tuple(trainer._images),
                tuple(float(v) for v in trainer.loss_items.values()),
                trainer.optimizer.param_groups[0]["lr"],
            )
        )

    with running("cpu", patched=False):
        trainer = trace.trainer = LTDv2Trainer(planned, index.load(planned.data), instructions, stop_wanted)
        trainer.callbacks["on_train_batch_end"].insert(0, write_down)
        if prepare is not None:
            prepare(trainer)
        try:
            trainer.train()
        except Stopped:
            trace.stopped = True
        finally:
            trainer.close()
    left = [name for name in unnamed(planned.run) if not name.endswith(OURS)]
    assert not left, f"docs/runs.md names every file of a run, but not {left}"
    return trace
