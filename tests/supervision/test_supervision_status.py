"""``toolkit monitor`` and ``toolkit runs`` say what the files of a run say."""

from __future__ import annotations

import io
import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from toolkit import provenance
from toolkit.cli import main
from toolkit.console import duration
from toolkit.runs import events, heartbeat, reproduction
from toolkit.runs.folder import Batch, RunFiles, Summary, write_json
from toolkit.runs.heartbeat import Beat
from toolkit.supervision import status
from toolkit.training import deciding
from toolkit.training.options import Options
from toolkit.workspace import Workspace

CSV = """epoch,time,metrics/mAP50(B),metrics/mAP50-95(B)
1,10,0.30,0.10
2,20,0.50,0.25
3,30,0.45,0.24
"""

SCORED = """epoch,metrics/mAP50(B),metrics/mAP50-95(B),global_map_bal
1,0.3,0.1,NaN
2,0.5,0.25,0.2
"""


@pytest.fixture
def files(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFiles:
    """A run in its fourth epoch."""
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    options = Options(data=data, name="first", device="cpu", preset="smoke", epochs=10)
    plan = deciding.plan(Workspace(tmp_path), options)
    plan.run.mkdir(parents=True)
    reproduction.record(plan)
    made = RunFiles(plan.run)
    beat = Beat(
        pid=1,
        count=99,
        phase="training",
        epoch=3,
        epochs=10,
        batch=120,
        batches=200,
        loss={"box_loss": 1.25, "cls_loss": None},
        images_per_second=41.5,
        loader_wait=0.07,
        step_seconds=(0.1, 0.2, 0.4),
        best=0.25,
    )
    heartbeat.write(made, beat)
    (made.run / "results.csv").write_text(CSV)
    events.record(made.events, "hang", "restarted", "no sign of life for 121 s", Batch(2, 136, 8))
    write_json(made.summary, Summary(state="running", images_per_second=41.5))
    return made


def evaluated(files: RunFiles, split: str, score: float | None) -> None:
    path = files.run / "evaluation" / "scores.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"global_map_bal": score}))
    provenance.record(path, split, "best.pt", "0" * 64)


def toolkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["toolkit", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    captured = capsys.readouterr()
    assert not ended.value.code, captured.err
    return captured.out


def test_the_state_of_a_run_follows_its_lock_and_its_summary(files: RunFiles) -> None:
    watch = status.Watch(files)
    assert watch.look().state == "interrupted"
    with files.locked():
        assert watch.look().state == "running"
    write_json(files.summary, Summary(state="failed", reason="too_hot: GPU at 97 C"))
    failed = watch.look()
    assert (failed.state, failed.reason) == ("failed", "too_hot: GPU at 97 C")
    assert failed.line().startswith("first: failed (too_hot: GPU at 97 C), epoch 4/10")
    assert failed.seconds_left is None


def test_looking_at_a_run_keeps_nobody_from_training_it(files: RunFiles) -> None:
    (files.run / ".lock").touch()
    watched, trained = threading.Event(), threading.Event()

    def look() -> None:
        while not trained.is_set():
            files.is_locked()
            watched.set()

    watchers = [threading.Thread(target=look) for _ in range(2)]
    for watcher in watchers:
        watcher.start()
    try:
        watched.wait()
        for _ in range(300):
            with files.locked():
                pass
    finally:
        trained.set()
        for watcher in watchers:
            watcher.join()


@pytest.mark.parametrize("words", [("monitor", "first"), ("monitor",)])
def test_piped_it_prints_a_line_and_ends_with_the_run(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: tuple[str]
) -> None:
    (line,) = toolkit(monkeypatch, capsys, *words).splitlines()
    assert line == (
        "first: interrupted, epoch 4/10, batch 120/200, 41.5 images/s, box 1.250, cls -, mAP@0.5 0.5000, "
        "loader wait 7%, 1 events"
    )


def test_json_has_time_left_with_its_spread(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with files.locked():
        shown = json.loads(toolkit(monkeypatch, capsys, "monitor", "--json"))
    left = 10 * 200 - 3 * 200 - 120
    assert shown["seconds_left"] == pytest.approx([left * 0.1, left * 0.2, left * 0.4])
    assert (shown["map50"], shown["map50_95"]) == (0.5, 0.25)
    assert shown["counts"] == {"hang": 1}
    assert shown["recent"][0]["epoch"] == 2


def test_a_terminal_sees_everything_at_a_glance(files: RunFiles) -> None:
    from toolkit.cli.monitor import _view

    console = Console(width=100, force_terminal=True, record=True, file=io.StringIO())
    watch = status.Watch(files)
    files.checkpoints.mkdir()
    (files.checkpoints / f"image-000000005200-{0:016x}.pt").touch()
    with files.locked():
        console.print(_view(watch.look(), watch.title))
    text = console.export_text()
    for word in ("running, training", "4 of 10", "120 of 200", "41.5 images/s", "after image 5,200"):
        assert word in text
    assert "hang at epoch 3, batch 17: no sign of life for 121 s; restarted" in text


def test_runs_are_listed_with_state_score_and_size(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated(files, "val", 0.448)
    table = toolkit(monkeypatch, capsys, "runs")
    for word in ("first", "interrupted", "smoke", "3/10", "0.5000", "0.4480"):
        assert word in table
    (shown,) = json.loads(toolkit(monkeypatch, capsys, "runs", "--json"))
    assert shown["bytes"] == sum(p.stat().st_size for p in files.run.rglob("*"))


def test_red_flags_of_a_run_are_counted_beside_it_and_other_events_are_not(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    files.events.unlink()
    assert "flags" in toolkit(monkeypatch, capsys, "runs")
    for kind in ("hot", "slow", "hot", "checkpoint damaged"):
        events.record(files.events, kind, "noted")
    assert status.describe(files).flags == {"hot": 2, "slow": 1}
    heads, row = toolkit(monkeypatch, capsys, "runs").splitlines()[::2][:2]
    assert row[: heads.index("flags") + len("flags")].endswith(" 3")


def test_the_score_of_a_run_is_that_of_the_validation_split(files: RunFiles) -> None:
    evaluated(files, "val", 0.448)
    assert status.describe(files).global_map_bal == 0.448
    evaluated(files, "val", math.nan)
    assert status.describe(files).global_map_bal is None
    evaluated(files, "val", None)
    assert status.describe(files).global_map_bal is None
    evaluated(files, "train", 0.9)
    assert status.describe(files).global_map_bal is None
    (files.run / "results.csv").write_text(SCORED)
    assert status.describe(files).global_map_bal == 0.2


def break_plan(run: Path) -> None:
    (run / "plan.json").write_text("{")


def forget_epochs(run: Path) -> None:
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps({**plan, "arguments": {}}))


def lose_record(run: Path) -> None:
    (run / "weights" / "environment.json").unlink()


def garble_results(run: Path) -> None:
    (run / "results.csv").write_bytes(b"epoch\n\xff\n")


def void_score(run: Path) -> None:
    (run / "evaluation").mkdir()
    (run / "evaluation" / "scores.json").write_text('{"global_map_bal": []}')


@pytest.mark.parametrize(
    ("damage", "file"),
    [
        (break_plan, "plan.json"),
        (lose_record, "environment.json"),
        (garble_results, "results.csv"),
        (void_score, "scores.json"),
    ],
)
def test_a_damaged_run_is_listed_as_such_and_hides_no_other(
    files: RunFiles,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    file: str,
) -> None:
    broken = RunFiles(files.run.with_name("broken"))
    shutil.copytree(files.run, broken.run)
    damage(broken.run)
    os.utime(broken.plan, ns=(2**62, 2**62))
    listed = {run["name"]: run for run in json.loads(toolkit(monkeypatch, capsys, "runs", "--json"))}
    assert {name: run["state"] for name, run in listed.items()} == {
        "broken": "damaged",
        "first": "interrupted",
    }
    assert file in listed["broken"]["reason"]
    assert "damaged" in toolkit(monkeypatch, capsys, "runs")
    assert toolkit(monkeypatch, capsys, "monitor").startswith("first: ")


def test_a_run_that_left_the_number_of_epochs_to_ultralytics_is_not_damaged(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    forget_epochs(files.run)
    (listed,) = json.loads(toolkit(monkeypatch, capsys, "runs", "--json"))
    assert (listed["state"], listed["epochs_planned"]) == ("interrupted", 100)


def test_results_that_cannot_be_read_keep_nobody_from_watching(files: RunFiles) -> None:
    garble_results(files.run)
    seen = status.Watch(files).look()
    assert (seen.map50, seen.beat and seen.beat.batch) == (None, 120)


@pytest.mark.parametrize("terminal", [True, False])
def test_runs_are_readable_at_eighty_columns_and_whole_in_a_pipe(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], terminal: bool
) -> None:
    name = "a-run-of-a-whole-night-with-a-name-that-says-what-it-is-for"
    files.run.rename(files.run.parent / name)
    screen = Console(width=80, force_terminal=terminal, record=True, file=io.StringIO())
    monkeypatch.setattr("toolkit.console.out", screen)
    toolkit(monkeypatch, capsys, "runs")
    text = screen.export_text()
    words = ("interrupted", "3/10", "0.5000") if terminal else (name, "interrupted", "smoke", "begun")
    assert all(word in text for word in words)
    assert name in "".join(line.split(" ")[0] for line in text.splitlines())
    assert "\u2026" not in text
    assert not terminal or max(map(len, text.splitlines())) <= 80


def test_a_run_that_is_not_there_is_named_with_those_that_are(
    files: RunFiles, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["toolkit", "monitor", "second"])
    with pytest.raises(SystemExit):
        main()
    assert "no run second; found first" in capsys.readouterr().err


def test_durations_are_said_as_people_say_them() -> None:
    said = [duration(seconds) for seconds in (0.4, 89, 600, 12_000, 200_000)]
    assert said == ["0 s", "89 s", "10 min", "3 h 20 min", "2 d 8 h"]


def test_an_event_cut_short_by_a_crash_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    events.record(path, "hang", "restarted")
    with path.open("a") as file:
        file.write('{"time": "2026-11-2')
    assert [event.kind for event in events.read(path)] == ["hang"]
    events.record(path, "slow", "noted")
    assert [event.kind for event in events.read(path)] == ["hang", "slow"], "it takes no other with it"
