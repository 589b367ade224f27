"""Training on some months, or on a part of the clips, and validating on others."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tiny_run import MODEL, NEVER, plan, train

from toolkit.cli import main
from toolkit.dataset import index
from toolkit.dataset.subset import Subset
from toolkit.errors import ToolkitError
from toolkit.runs import heartbeat, reproduction
from toolkit.runs.folder import RunFiles, Summary, write_json
from toolkit.runs.plan import TrainingPlan, count_images, read_plan
from toolkit.training import deciding, estimate
from toolkit.training.choices import subsets
from toolkit.training.options import Options
from toolkit.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "250")
    return Workspace(tmp_path)


def tiny(data: Path, place: Workspace, name: str, options: Options) -> TrainingPlan:
    """Two epochs in batches of two."""
    return replace(plan(data, place.runs / name, batch=2, epochs=2), subsets=subsets(options))


def test_a_run_keeps_to_its_months_before_and_after_a_stop(data: Path, place: Workspace) -> None:
    options = Options(months="feb", val_months="jan,mar")
    whole = train(tiny(data, place, "whole", options))
    stopped = train(tiny(data, place, "cut", options), stop_after=2)
    resumed = replace(deciding.plan_resume(place, Options(name="cut")), saving=NEVER)
    rest = train(resumed)
    assert stopped.stopped
    assert stopped.images + rest.images == whole.images
    frames = index.load(data).split("train").file_names.astype(str)
    assert set(whole.images) == {name for name in frames if name.startswith("frames/202102")}
    assert rest.trainer is not None
    validated = {name[:13] for name in rest.trainer.test_loader.dataset.im_files}
    assert validated == {"frames/202101", "frames/202103"}


def test_a_part_is_whole_clips_of_every_month(data: Path, place: Workspace) -> None:
    split = index.load(data).split("train")
    planned = tiny(data, place, "part", Options(subset="50%"))
    trained = train(planned, stop_after=100)
    rows = planned.subset("train").rows(split)
    assert len(rows) == count_images(planned, index.load(data))["train"]
    assert set(trained.images) == set(split.file_names[rows].astype(str))
    assert not set(split.clips[rows]) & {c for i, c in enumerate(split.clips) if i not in set(rows)}
    assert set(split.months[rows]) == set(split.months)


def test_what_was_used_is_written_beside_the_weights(data: Path, place: Workspace) -> None:
    planned = tiny(data, place, "run", Options(subset="25%", months="feb,jan", val_months="aug"))
    reproduction.record(planned)
    written = reproduction.read(planned.run / "weights")
    assert written.images == "train: jan, feb, 25 % in whole clips; val: aug"
    assert read_plan(RunFiles(planned.run)).subset("train") == Subset((202101, 202102), 0.25)
    whole = reproduction.here(replace(planned, subsets={}))
    assert [line for line in reproduction.differences(written, whole) if line.startswith("images")]


def test_a_run_is_resumed_with_its_own_images_or_not_at_all(data: Path, place: Workspace) -> None:
    planned = tiny(data, place, "run", Options(months="feb"))
    reproduction.record(planned)
    assert deciding.plan_resume(place, Options()).subsets == planned.subsets
    assert deciding.plan_resume(place, Options(months="feb")).subsets == planned.subsets
    with pytest.raises(ToolkitError, match=r"keeps the images.*found train: mar.*expected train: feb"):
        deciding.plan_resume(place, Options(months="mar"))


def test_a_dry_run_counts_the_images_that_would_be_used(
    data: Path, place: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier = deciding.plan(place, Options(data=data, name="first", device="cpu", preset="smoke", epochs=10))
    reproduction.record(earlier)
    write_json(RunFiles(earlier.run).summary, Summary(state="finished", images_per_second=10.0))
    heartbeat.write(RunFiles(earlier.run), heartbeat.Beat(pid=1, count=1, phase="finished"))
    words = "train --dry-run --device cpu --preset smoke --epochs 10 --months feb --val-months jan,mar"
    monkeypatch.setattr(sys, "argv", ["toolkit", *words.split(), "--data", str(data)])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert not ended.value.code
    images = int((index.load(data).split("train").months == 202102).sum())
    assert f"{images} train, 2 val" in shown
    assert "subset       train: feb; val: jan, mar" in shown
    options = Options(data=data, device="cpu", preset="smoke", epochs=10)
    assert estimate.dry_run(place, options).time.value == 44 * 10 / 10
    assert f"time         {images} s" in shown


@pytest.mark.parametrize(
    ("words", "message", "status"),
    [
        (("--subset", "0"), "'0' is no part of a dataset", 2),
        (("--subset", "0%"), "'0%' is no part of a dataset", 2),
        (("--months", "nov"), "no month named 'nov'", 1),
        (("--months", "junk"), "no month named 'junk'", 1),
        (("--val-months", ""), "no month named ''", 1),
        (("--months", "sep"), "the train split has no image of 202009", 1),
        (("--val-months", "sep"), "the val split has no image of 202009", 1),
    ],
)
@pytest.mark.parametrize("dry", [(), ("--dry-run",)], ids=["", "dry"])
def test_a_choice_of_nothing_costs_one_line_and_makes_no_run(
    words: tuple[str, str],
    message: str,
    status: int,
    dry: tuple[str, ...],
    data: Path,
    place: Workspace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    command = ["toolkit", "train", "--data", str(data), "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [*command, *words, *dry])
    with pytest.raises(SystemExit) as ended:
        main()
    errors = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("run ")]
    assert ended.value.code == status
    assert len(errors) == 1
    assert message in errors[0]
    assert not place.runs.exists()


@pytest.mark.slow
def test_the_command_trains_on_a_part_and_says_so(data: Path, place: Workspace) -> None:
    words = "--device cpu --preset smoke --epochs 1 --imgsz 64 --workers 2 --subset 50% --months feb,mar"
    command = [sys.executable, "-m", "toolkit", "train", "--data", str(data), "--model", str(MODEL)]
    done = subprocess.run([*command, *words.split(), "--val-months", "jan"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "train: feb, mar, 50 % in whole clips; val: jan" in done.stderr
    assert "train frames: decoded from frames.zip: there is no cache" in done.stderr
    environment = json.loads((place.runs / "train-1" / "weights" / "environment.json").read_text())
    assert environment["images"] == "train: feb, mar, 50 % in whole clips; val: jan"
