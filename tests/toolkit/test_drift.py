"""The matrix of training and test months: what is planned, what is kept, and that a cut changes no number."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
from command import Command
from rich.console import Console
from tiny_run import plan as training_plan

from submission import Detections
from toolkit import console, drift, provenance
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.dataset.subset import Subset
from toolkit.errors import ToolkitError
from toolkit.evaluation.scoring import score
from toolkit.evaluation.truth import GroundTruth
from toolkit.runs.folder import RunFiles, write_json
from toolkit.workspace import Workspace, own_evaluation


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drift") / "data"
    write_sample(folder, train=16, val=48, test=4, seed=0, scene="street")
    prepare(folder)
    return folder


class Trainer:
    """Stands for ``toolkit train``: writes what a finished run leaves; may be stopped before a run."""

    def __init__(self, place: Workspace, data: Path, stop_at: str = "") -> None:
        self.place, self.data, self.stop_at = place, data, stop_at
        self.calls: list[list[str]] = []

    def __call__(self, words: Sequence[str]) -> None:
        self.calls.append(list(words))
        name = words[words.index("--name") + 1]
        if name == self.stop_at:
            raise ToolkitError("stopped", exit_code=75)
        months = words[words.index("--months") + 1] if "--months" in words else None
        files = RunFiles(self.place.runs / name)
        files.best.parent.mkdir(parents=True, exist_ok=True)
        planned = replace(training_plan(self.data, files.run), subsets={"train": Subset.parse(months)})
        write_json(files.plan, planned)
        files.best.write_bytes(name.encode())
        write_json(files.summary, {"state": "finished", "reason": "", "best": {}, "events": {}})


class Predictor:
    """Finds most true boxes, other ones for other weights, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, weights: Path, data: Path) -> Detections:
        self.asked.append(weights.parents[1].name)
        truth = GroundTruth.read(data / "Valid.json")
        rng = np.random.default_rng(len(weights.read_bytes()))
        moved = truth.boxes + np.where(rng.random(len(truth.boxes)) < 0.4, 60.0, 0.0)[:, None]
        return Detections(
            truth.image_ids, truth.offsets, moved, rng.uniform(0.3, 1, len(moved)).round(5), truth.labels
        )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setattr(drift, "state_of", lambda files: "finished" if files.best.is_file() else "absent")
    return Workspace(tmp_path)


def test_a_run_is_planned_for_each_month_or_group(place: Workspace, data: Path) -> None:
    rows = drift.plan(place, data, "feb,jun+jul")
    assert [(row.files.run.name, row.months, row.state) for row in rows] == [
        ("drift-feb", "feb", "absent"),
        ("drift-jun+jul", "jun,jul", "absent"),
    ]
    assert rows[1].words(data, ["--epochs", "1"]) == [
        "--name",
        "drift-jun+jul",
        "--months",
        "jun,jul",
        "--data",
        str(data),
        "--epochs",
        "1",
    ]
    assert len(drift.plan(place, data, "all")) == 8
    with pytest.raises(ToolkitError, match="no month named 'foo'"):
        drift.plan(place, data, "foo")


def test_a_run_on_other_months_names_them(
    place: Workspace, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (row,) = drift.plan(place, data, "feb")
    row.files.plan.parent.mkdir(parents=True)
    row.files.plan.write_text("{}")
    other = Subset.parse("mar,jun")
    monkeypatch.setattr(drift, "read_plan", lambda files: SimpleNamespace(subset=lambda split: other))
    with pytest.raises(
        ToolkitError, match=r"trains on other months; found (mar, jun|jun, mar); expected feb"
    ):
        drift.plan(place, data, "feb")


def test_a_matrix_that_was_cut_has_the_same_numbers(place: Workspace, data: Path, tmp_path: Path) -> None:
    whole = Workspace(tmp_path / "whole")
    trainer, predict = Trainer(whole, data), Predictor()
    drift.train_all(drift.plan(whole, data, "feb,jun,aug"), data, [], trainer)
    expected = drift.matrix(drift.plan(whole, data, "feb,jun,aug"), data, "all", predict, resamples=50)

    cut = Trainer(place, data, stop_at="drift-jun")
    with pytest.raises(ToolkitError, match="stopped"):
        drift.train_all(drift.plan(place, data, "feb,jun,aug"), data, [], cut)
    early = Predictor()
    drift.matrix(drift.plan(place, data, "feb,jun,aug"), data, "all", early, resamples=50)
    assert early.asked == ["drift-feb"]
    again, later = Trainer(place, data), Predictor()
    drift.train_all(drift.plan(place, data, "feb,jun,aug"), data, [], again)
    assert [words[1] for words in again.calls] == ["drift-jun", "drift-aug"]
    table = drift.matrix(drift.plan(place, data, "feb,jun,aug"), data, "all", later, resamples=50)
    assert later.asked == ["drift-jun", "drift-aug"]  # what feb's weights found is kept
    assert table.equals(expected)


def test_other_weights_are_predicted_again(place: Workspace, data: Path) -> None:
    predict = Predictor()
    drift.train_all(drift.plan(place, data, "feb"), data, [], Trainer(place, data))
    rows = drift.plan(place, data, "feb")
    drift.matrix(rows, data, "jan", predict, resamples=10)
    rows[0].files.best.write_bytes(b"other weights")
    drift.matrix(rows, data, "jan", predict, resamples=10)
    assert predict.asked == ["drift-feb"] * 2


def test_what_flags_found_is_predicted_again(place: Workspace, data: Path) -> None:
    predict = Predictor()
    drift.train_all(drift.plan(place, data, "feb"), data, [], Trainer(place, data))
    rows = drift.plan(place, data, "feb")
    drift.matrix(rows, data, "jan", predict, resamples=10)
    found = own_evaluation(rows[0].files.run) / "predictions.json"
    provenance.record(found, "val", "best.pt", provenance.sha256(rows[0].files.best), flags="--tta")
    drift.matrix(rows, data, "jan", predict, resamples=10)
    assert predict.asked == ["drift-feb"] * 2


def test_cells_are_the_scores_within_their_intervals(place: Workspace, data: Path, tmp_path: Path) -> None:
    drift.train_all(drift.plan(place, data, "feb,jun"), data, [], Trainer(place, data))
    predict = Predictor()
    table = drift.matrix(drift.plan(place, data, "feb,jun"), data, "all", predict, resamples=50)
    truth = GroundTruth.read(data / "Valid.json")
    for name in ("feb", "jun"):
        scores = score(truth, predict(place.runs / f"drift-{name}" / "weights" / "best.pt", data))
        for month, summary in scores.months.items():
            (row,) = table.filter(train=name, test=month).iter_rows(named=True)
            assert row["images"] == summary.images
            assert row["map_50"] == (summary.map_50 if summary.map_50 >= 0 else None)
    known = table.drop_nulls()
    assert len(known)
    assert (known["low"] <= known["high"]).all()
    parquet, picture = drift.write(table, tmp_path / "out")
    assert pl.read_parquet(parquet).equals(table)
    assert picture.read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ToolkitError, match="no month named 'foo'"):
        drift.matrix(drift.plan(place, data, "feb"), data, "foo", predict)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_goes_to_the_training_once_and_its_status_is_the_commands(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    ready, told = tmp_path / "ready", tmp_path / "told"
    program = (
        "import pathlib, signal, sys, time\n"
        f"told = pathlib.Path({str(told)!r}).open('a', buffering=1)\n"
        "def end(n, _):\n"
        f"    told.write(f'{{n}} '); time.sleep(0.3); sys.exit({status})\n"
        "for n in (2, 15): signal.signal(n, end)\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(drift.children, "command", lambda *_: [sys.executable, "-c", program])

    def send() -> None:
        while not ready.exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(ToolkitError, match=f"status {status}") as stopped:
        drift.train_in_child(["--name", "x"])
    sender.join()
    assert stopped.value.exit_code == status
    assert told.read_text() == f"{int(number)} "


def test_the_command_plans_collects_and_prints(
    workspace: Path, toolkit: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drift, "state_of", lambda files: "finished" if files.best.is_file() else "absent")
    planned = toolkit("drift", "--train-months", "feb,jun", "--data", data, "--dry-run")
    assert planned.out.splitlines() == ["drift-feb\tfeb\tabsent", "drift-jun\tjun\tabsent"]
    nothing = toolkit("drift", "--train-months", "feb", "--data", data, "--collect")
    assert (nothing.status, "no run of the matrix has finished" in nothing.err) == (1, True)
    trainer = Trainer(Workspace(workspace), data)
    monkeypatch.setattr(drift, "train_in_child", trainer)
    from toolkit import prediction

    monkeypatch.setattr(prediction, "predict", lambda w, d, split, options, **_: Predictor()(w, d))
    result = toolkit("drift", "--train-months", "feb,jun", "--data", data, "--json", "--", "--epochs", 1)
    assert result.status == 0, result.err
    assert trainer.calls[0][-2:] == ["--epochs", "1"]
    cells = json.loads(result.out)
    assert {cell["train"] for cell in cells} == {"feb", "jun"}
    assert (workspace / "runs" / "drift-matrix" / "drift.parquet").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--test-months", "foo"), "no month named 'foo'"),
        (("feb",), "feb is no flag of toolkit train.* --train-months feb"),
        (("--out", "taken"), "taken"),
        (("--prefix", "a/b"), "a/b-.* is no name for a run"),
        (("--", "--name", "foo"), "--name cannot be said for every training.*--prefix names the runs"),
        (("--", "--epochs", "1", "--months=jun"), "--months cannot be said .*--train-months"),
    ],
)
def test_what_a_matrix_would_fail_at_later_is_refused_before_a_run_is_trained(
    workspace: Path,
    toolkit: Command,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
    said: str,
) -> None:
    trainer = Trainer(Workspace(workspace), data)
    monkeypatch.setattr(drift, "train_in_child", trainer)
    (workspace / "taken").touch()
    result = toolkit("drift", "--data", data, *words)
    assert result.status in (1, 2)
    assert re.search(said, result.err, re.DOTALL), result.err
    assert not trainer.calls


@pytest.mark.parametrize("level", list(console.Level))
def test_a_training_speaks_as_loudly_as_the_matrix(
    monkeypatch: pytest.MonkeyPatch, level: console.Level
) -> None:
    given: list[tuple[str, ...]] = []

    def command(*words: str) -> list[str]:
        given.append(words)
        return [sys.executable, "-c", ""]

    monkeypatch.setattr(drift.children, "command", command)
    monkeypatch.setattr(console, "_level", level)
    drift.train_in_child(["--name", "x"])
    flags = {console.Level.QUIET: ("-q",), console.Level.NORMAL: (), console.Level.VERBOSE: ("-v",)}
    assert given == [("toolkit", *flags[level], "train", "--name", "x")]


PARTS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep"]


def drawn_matrix(
    trains: Sequence[str], tests: Sequence[str], missing: Sequence[tuple[str, str]] = ()
) -> pl.DataFrame:
    """A matrix with other numbers in every cell; those of ``missing`` are undecided."""
    pairs = [(train, test) for train in trains for test in tests]
    cells = []
    for number, pair in enumerate(pairs):
        value = 0.0004 + number / (1.3 * len(pairs))
        known = (None, None, None) if pair in missing else (value, value - 0.0007, value + 0.1)
        cells.append((*pair, *known, 7))
    names = ("train", "test", "map_50", "low", "high", "images")
    return pl.DataFrame(cells, schema=list(names), orient="row")


GLOBAL = ["global_map_50", "global_map_con", "global_map_bal"]


@pytest.mark.parametrize("width", [30, 80, 200])
@pytest.mark.parametrize(
    ("trains", "tests", "missing"),
    [
        (PARTS, PARTS + GLOBAL, [("feb", "jul")]),
        (["feb"], ["jan"], []),
        (["feb"], ["jan"], [("feb", "jan")]),
        (["feb,jun,jul"], ["camera-left", *GLOBAL], []),
    ],
)
def test_every_number_of_a_matrix_stands_whole_in_its_table(
    trains: Sequence[str], tests: Sequence[str], missing: Sequence[tuple[str, str]], width: int
) -> None:
    table = drawn_matrix(trains, tests, missing)
    console = Console(width=width, file=io.StringIO())
    blocks = list(drift.shown(table, width))
    with console.capture() as captured:
        console.print(*blocks, sep="\n")
    lines = captured.get().splitlines()
    assert all(len(line) <= width for line in lines)
    assert "…" not in captured.get()
    words = captured.get().split()
    for _, test, value, low, high, _ in table.iter_rows():
        assert drift.HEADINGS.get(test, test) in words
        for number in (value, low, high):
            assert number is None or f"{number:.3f}".replace("-0.000", "0.000") in words
    assert "-0.000" not in words
    assert words.count("-") == len(missing)
    assert len(blocks) == 1 or width < 80  # nine months by nine fit a terminal


def test_the_picture_gives_no_colour_to_the_coefficient_of_variation() -> None:
    table = drawn_matrix(["feb", "jun"], ["jan", *GLOBAL], [("jun", "jan")])
    axes = drift.draw(table).axes[0]
    coloured = ~np.ma.getmaskarray(np.ma.asarray(axes.images[0].get_array()))
    assert coloured.tolist() == [[True, True, False, True], [False, True, False, True]]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["jan", "all", "CoV", "bal"]
    texts = [text.get_text() for text in axes.texts]
    assert texts.count("-") == 1
    assert not [text for text in texts if "--" in text or "-0.000" in text or "–" in text]
    assert "less is better" in axes.get_xlabel().replace("\n", " ")
