"""Ultralytics' own records of a run, results.csv and TensorBoard, of a run that is cut off and goes on."""

from __future__ import annotations

import csv
import importlib
import importlib.util
import sys
from collections import defaultdict
from dataclasses import dataclass, field, replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import Trace, plan, train
from ultralytics import utils
from ultralytics.utils.callbacks import tensorboard

from toolkit.errors import ToolkitError
from toolkit.runs.plan import TRACKERS, TrainingPlan
from toolkit.settings import Saving
from toolkit.training import deciding
from toolkit.training.options import Options
from toolkit.workspace import Workspace

# Ultralytics traces the model for the graph, and its warnings say nothing about this project.
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")]


@dataclass
class Writer:
    """Stands in for tensorboard's, which is not installed with the toolkit."""

    log_dir: str
    scalars: dict[str, list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars[name].append((step, float(value)))

    def add_graph(self, *_: Any) -> None:
        """The model's graph is drawn, and not looked at here."""

    def close(self) -> None:
        """Nothing is kept open."""


@dataclass
class Logged:
    """A run that was killed twice in mid-epoch, and the same run undisturbed."""

    run: Path
    whole: Trace
    last: Trace
    writers: list[Writer]


@pytest.fixture(scope="module")
def logged(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Logged:
    planned = plan(data, tmp_path_factory.mktemp("runs") / "logged", saving=Saving(batches=4))
    whole = train(replace(planned, run=planned.run.with_name("whole")))
    planned = replace(planned, trackers=("tensorboard",))
    writers: list[Writer] = []

    def make(log_dir: str) -> Writer:
        writers.append(Writer(log_dir))
        return writers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ultralytics.utils.TESTS_RUNNING", False)
        patch.setitem(sys.modules, "torch.utils.tensorboard", SimpleNamespace(SummaryWriter=make))
        importlib.reload(tensorboard)
        train_and_fall(planned, 7)
        train_and_fall(planned, 7)
        last = train(planned)
    importlib.reload(tensorboard)
    return Logged(planned.run, whole, last, writers)


def train_and_fall(planned: TrainingPlan, batches: int) -> None:
    """Train and fall over without a word after so many batches, up to four behind the last checkpoint."""
    done = []

    def fall(_: Any) -> None:
        done.append(1)
        if len(done) > batches:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(planned, prepare=lambda trainer: trainer.add_callback("on_train_batch_end", fall))


def test_results_csv_has_each_epoch_once_with_the_numbers_of_the_undisturbed_run(logged: Logged) -> None:
    rows, expected = (
        list(csv.DictReader((run / "results.csv").open()))
        for run in (logged.run, logged.run.with_name("whole"))
    )
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    for row, other in zip(rows, expected, strict=True):
        assert {**row, "time": ""} == {**other, "time": ""}


def test_tensorboard_gets_losses_and_scores_of_every_epoch(logged: Logged) -> None:
    assert [writer.log_dir for writer in logged.writers] == [str(logged.run)] * 3
    for name in ("train/box_loss", "lr/pg0", "metrics/mAP50(B)"):
        steps = {step for writer in logged.writers for step, _ in writer.scalars[name]}
        assert steps == {1, 2, 3}, name


def test_logging_to_tensorboard_changes_nothing_of_the_training(logged: Logged) -> None:
    steps = logged.last.steps
    assert steps
    assert steps == logged.whole.steps[-len(steps) :]


def test_nobody_is_told_about_a_run_unless_toolkit_toml_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed: dict[str, Any] = {**utils.SETTINGS, **dict.fromkeys(TRACKERS, True)}
    monkeypatch.setattr(utils, "SETTINGS", installed)
    train(plan(data, tmp_path / "runs" / "quiet", epochs=1))
    assert not any(installed[name] for name in TRACKERS)


@pytest.mark.parametrize(
    ("table", "outcome"),
    [
        ("tensorboard = true", "wants .logging. to tensorboard; found no module tensorboard; pip install"),
        ("tensorboards = true", "no .logging. to tensorboards; expected clearml, comet"),
    ],
)
def test_a_tracker_that_cannot_be_told_is_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str, outcome: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    (tmp_path / "toolkit.toml").write_text(f"[logging]\n{table}\n")
    with pytest.raises(ToolkitError, match=outcome):
        deciding.plan(Workspace(tmp_path), Options(data=data, preset="smoke", device="cpu"))


def test_a_tracker_is_told_when_toolkit_toml_says_so(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: ModuleSpec("tensorboard", None))
    (tmp_path / "toolkit.toml").write_text("[logging]\ntensorboard = true\nmlflow = false\n")
    options = Options(data=data, preset="smoke", device="cpu")
    assert deciding.plan(Workspace(tmp_path), options).trackers == ("tensorboard",)
