"""Memory that runs out beside a CUDA graph costs the graph, and nothing of the training."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from called_again import CalledAgain
from test_training_loop import rows
from tiny_run import Trace, plan, train
from torch import Tensor, nn

from toolkit.runs import events
from toolkit.runs.folder import RunFiles
from toolkit.training import graphed, replay
from toolkit.training.settling import Settled
from toolkit.training.trainer import LTDv2Trainer

BATCHES = 5
"""An epoch: the last is smaller, and no graph takes it."""


READS_MORE = "reads more"
"""From a batch on, the loss reads an output that it had not read."""


def exhausted(*_: object) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB\nand more")


class Failing:
    """A training that may fail once: at a batch of the run, somewhere in it, when there is a graph."""

    def __init__(self, at: int = -1, where: str = "", graphs: Sequence[weakref.ref[Any]] = ()) -> None:
        self.at, self.where, self.graphs, self.failed = at, where, graphs, False
        self.alive: set[bool] = set()

    def due(self, trainer: LTDv2Trainer, where: str) -> bool:
        """Whether to fail now: once."""
        found = bool(self.graphs) and not self.failed
        found = found and where == self.where and trainer.batches_done >= self.at
        self.failed |= found
        return found

    def look(self) -> None:
        """After the failure: is a graph still there?"""
        if self.failed:
            self.alive.add(any(each() is not None for each in self.graphs))

    def prepare(self, trainer: LTDv2Trainer) -> None:
        """Have the parts of a step fail where they are due."""
        preprocess = trainer.preprocess_batch

        def preprocessed(batch: dict[str, Any]) -> dict[str, Any]:
            self.look()
            if self.due(trainer, "images"):
                exhausted()
            return preprocess(batch)

        trainer.preprocess_batch = preprocessed
        trainer.add_callback("on_train_start", self.begin)

    def begin(self, trainer: LTDv2Trainer) -> None:
        """Have the loss and the validation fail where they are due."""
        loss_of, validate = trainer.model.loss, trainer.validate

        def loss(batch: dict[str, Any], outputs: Any = None) -> tuple[Tensor, Any]:
            if self.due(trainer, "loss"):
                exhausted()
            outputs = trainer.model(batch["img"]) if outputs is None else outputs
            found, items = loss_of(batch, outputs)
            if self.due(trainer, "backward pass of the loss"):
                found.register_hook(exhausted)
            if self.where == READS_MORE and trainer.batches_done >= self.at:
                found = found + outputs["feats"][0].mean()
            if self.due(trainer, "middle of the backward pass"):
                first = next(trainer.model.parameters())
                handle = first.register_hook(lambda _: (handle.remove(), exhausted()))
            return found, items

        def validated() -> Any:
            self.look()
            found = validate()
            if self.due(trainer, "validation"):
                exhausted()
            return found

        trainer.model.loss, trainer.validate = loss, validated


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref[Any]]:
    """Every training is replayed from the graphs that are listed here."""
    made: list[weakref.ref[Any]] = []

    class Listed(CalledAgain):
        def __init__(self, module: nn.Module, example: Tensor, loss: Callable[[Any], Tensor]) -> None:
            super().__init__(module, example, loss)
            made.append(weakref.ref(self))

    monkeypatch.setattr(replay, "settle_convolutions", lambda *_, graphs: Settled(graphs, ""))
    monkeypatch.setattr(graphed, "GraphedModule", Listed)
    return made


def trained(data: Path, run: Path, failing: Failing, **arguments: Any) -> Trace:
    return train(
        plan(data, run, **{"batch": 10, "nbs": 20, "epochs": 2, "warmup_epochs": 0.0, **arguments}),
        prepare=failing.prepare,
    )


@pytest.fixture(scope="module")
def plain(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Trace, list[list[str]]]:
    """A training without graphs, and its rows."""
    run = tmp_path_factory.mktemp("plain") / "run"
    return trained(data, run, Failing()), rows(run)


@pytest.mark.parametrize(
    ("where", "at"),
    [
        ("", 0),
        ("images", 3),
        ("loss", 0),
        ("loss", 3),
        ("backward pass of the loss", 2),
        ("backward pass of the loss", BATCHES + 1),
        ("middle of the backward pass", BATCHES - 1),
        ("validation", 0),
    ],
)
def test_what_a_graph_leaves_too_little_memory_for_is_done_again_without_it(
    data: Path,
    tmp_path: Path,
    plain: tuple[Trace, list[list[str]]],
    graphs: list[weakref.ref[Any]],
    where: str,
    at: int,
) -> None:
    failing = Failing(at, where, graphs)
    found = trained(data, tmp_path / "run", failing)
    wanted, wanted_rows = plain
    assert failing.failed == bool(where)
    assert found.steps == wanted.steps and len(found.steps) == 2 * BATCHES
    assert rows(tmp_path / "run") == wanted_rows
    assert found.trainer is not None and wanted.trainer is not None
    for name, value in found.trainer.model.state_dict().items():
        assert torch.equal(value, wanted.trainer.model.state_dict()[name]), name
    told = [(each.kind, each.action, each.detail) for each in events.read(RunFiles(tmp_path / "run").events)]
    detail = "CUDA out of memory. Tried to allocate 20.00 MiB"
    assert told == [("CUDA graph dropped", "the same again without", detail)] * bool(where)
    assert len(graphs) == 1
    assert failing.alive == ({False} if where else set()), "its memory is there for what is made again"


def test_batches_get_smaller_where_memory_runs_out_without_the_graph_too(
    data: Path, tmp_path: Path, graphs: list[weakref.ref[Any]]
) -> None:
    class Twice(Failing):
        def due(self, trainer: LTDv2Trainer, where: str) -> bool:
            """Twice in one batch: beside the graph, and without."""
            self.failed = len(tried) == 2
            found = super().due(trainer, where)
            if found:
                tried.append(trainer.batch_size)
            return found

    tried: list[int] = []
    found = trained(data, tmp_path / "run", Twice(2, "loss", graphs), epochs=1)
    told = [(each.kind, each.action) for each in events.read(RunFiles(tmp_path / "run").events)]
    assert tried == [10, 10]
    assert told == [("CUDA graph dropped", "the same again without"), ("out of memory", "batch reduced to 5")]
    assert found.trainer is not None and found.trainer.batch_size == 5
    assert len(graphs) == 1, "none is recorded for the smaller batches"


def test_a_loss_that_reads_another_output_later_costs_the_graph(
    data: Path, tmp_path: Path, graphs: list[weakref.ref[Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = trained(data, tmp_path / "run", Failing(3, READS_MORE), epochs=1)
    monkeypatch.setattr(replay, "settle_convolutions", lambda *_, graphs: Settled(False, ""))
    wanted = trained(data, tmp_path / "plain", Failing(3, READS_MORE), epochs=1)
    assert len(graphs) == 1
    assert found.steps == wanted.steps
    assert rows(tmp_path / "run") == rows(tmp_path / "plain")
    told = events.read(RunFiles(tmp_path / "run").events)
    assert [(each.kind, each.action) for each in told] == [("CUDA graph dropped", "the same again without")]
    assert "had none when the graph was recorded" in told[0].detail
