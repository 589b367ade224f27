"""Our loop beside Ultralytics' own: the same events, losses, rows and files, whatever the arguments say."""

from __future__ import annotations

import ast
import csv
import inspect
import textwrap
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from tiny_run import Trace, plan, train
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer

from toolkit.training import loop
from toolkit.training.loop import LoopTrainer
from toolkit.training.trainer import LTDv2Trainer

ARGUMENTS = {
    "amp": "which numbers the forward pass is computed in",
    "batch": "halved where the memory does not suffice",
    "close_mosaic": "epochs at the end without mosaic",
    "compile": "the loss apart from the model",
    "fraction": "said at the start",
    "imgsz": "said at the start",
    "momentum": "that the warm-up leads to",
    "plots": "pictures of the first batches, and of the end",
    "save": "whether an epoch leaves weights",
    "time": "hours, which decide how many epochs there are",
    "val": "whether an epoch is validated",
    "warmup_bias_lr": "of biases, at the first batch",
    "warmup_momentum": "at the first batch",
}
"""What Ultralytics' loop honours by itself; all else is read by what both loops call."""


RUNS = ("ours", "theirs")


def read_by(*functions: Any) -> set[str]:
    """Names of ``self.args`` in the source of functions."""
    trees = [ast.parse(textwrap.dedent(inspect.getsource(each))) for each in functions]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Attribute)
        and node.value.attr == "args"
    }


def test_our_loop_honours_every_argument_that_ultralytics_loop_honours() -> None:
    own = {value for value in vars(LoopTrainer).values() if inspect.isfunction(value)}
    epochs = {"epochs"}  # set, never read, in both
    assert read_by(BaseTrainer._do_train) - epochs == set(ARGUMENTS)
    assert read_by(*own) - epochs == set(ARGUMENTS)


class Watched:
    """A training with one of the loops, and the events that it had.

    Both have our guard, loader and checkpoints; Ultralytics' loop warms up and decides about updates itself.
    """

    def __init__(self, loop: Any, *, fails: tuple[int, ...] = ()) -> None:
        self.loop, self.fails = loop, fails
        self.events: list[str] = []
        self.tried = 0

    def prepare(self, trainer: LTDv2Trainer) -> None:
        run_callbacks, preprocess = trainer.run_callbacks, trainer.preprocess_batch

        def noted(event: str) -> None:
            self.events.append(event)
            run_callbacks(event)

        def preprocess_or_fail(batch: dict[str, Any]) -> dict[str, Any]:
            self.tried += 1
            if self.tried in self.fails:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
            return preprocess(batch)

        trainer.run_callbacks = noted
        trainer.preprocess_batch = preprocess_or_fail
        trainer._do_train = MethodType(self.loop, trainer)
        trainer._handle_nan_recovery = lambda epoch: False

    def train(self, data: Path, run: Path, **arguments: Any) -> Trace:
        return train(plan(data, run, **arguments), prepare=self.prepare)


def rows(run: Path) -> list[list[str]]:
    """results.csv without the column of times."""
    with (run / "results.csv").open() as file:
        return [[row[0], *row[2:]] for row in csv.reader(file)]


@pytest.mark.parametrize(
    ("arguments", "fails"),
    [
        ({"epochs": 3}, ()),
        ({"epochs": 3, "val": False, "save": False, "nbs": 64, "warmup_epochs": 0.0}, ()),
        ({"epochs": 2, "plots": True, "close_mosaic": 1, "optimizer": "AdamW", "cos_lr": True}, ()),
        ({"epochs": 1, "close_mosaic": 0}, (3,)),
        ({"epochs": 3, "time": 1e-9}, ()),
    ],
    ids=["as planned", "unvalidated", "with plots", "out of memory", "by time"],
)
def test_both_loops_train_alike(
    data: Path, tmp_path: Path, arguments: dict[str, Any], fails: tuple[int, ...]
) -> None:
    ours = Watched(LTDv2Trainer._do_train, fails=fails)
    theirs = Watched(DetectionTrainer._do_train, fails=fails)
    one = ours.train(data, tmp_path / "ours", **arguments)
    other = theirs.train(data, tmp_path / "theirs", **arguments)
    assert ours.events == theirs.events
    assert [step.images for step in one.steps] == [step.images for step in other.steps]
    for a, b in zip(one.steps, other.steps, strict=True):
        assert a.losses == pytest.approx(b.losses, abs=1e-6), (a.epoch, a.batch)
        assert a.rate == pytest.approx(b.rate, rel=1e-9)
    assert rows(tmp_path / "ours") == rows(tmp_path / "theirs")
    made = ({path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*")} for name in RUNS)
    assert next(made) == next(made)


def test_memory_that_never_suffices_ends_the_training_after_three_smaller_batches(
    data: Path, tmp_path: Path
) -> None:
    loop = Watched(LTDv2Trainer._do_train, fails=(1, 2, 3, 4))
    with pytest.raises(RuntimeError, match="out of memory"):
        loop.train(data, tmp_path / "run", batch=16, epochs=1)
    assert loop.tried == 4
    assert torch.is_grad_enabled()


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the bar is given to show."""
    found: list[str] = []
    monkeypatch.setattr(loop.TQDM, "set_description", lambda _, line: found.append(line))
    return found


def test_the_last_line_of_the_bar_has_the_means_of_all_batches_before_the_last(
    data: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However rarely it is drawn in between."""
    monkeypatch.setattr(loop, "REDRAWN", 1e9)
    trace = train(plan(data, tmp_path / "run", epochs=2))
    drawn = [line.split()[2:5] for line in lines if line.strip().startswith("2/2")]
    losses = [step.losses for step in trace.steps if step.epoch == 1][:-1]
    means = [sum(each) / len(losses) for each in zip(*losses, strict=True)]
    assert [float(number) for number in drawn[-1]] == pytest.approx(means, rel=1e-3)
    assert len(drawn) == 1


def test_the_bar_shows_each_batch_of_a_slow_card(
    data: Path, tmp_path: Path, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "REDRAWN", 0.0)
    trace = train(plan(data, tmp_path / "run", epochs=1, val=False))
    assert len([line for line in lines if line.strip().startswith("1/1")]) == len(trace.steps)
