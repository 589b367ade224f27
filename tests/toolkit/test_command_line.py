"""The command line explains itself, and a wrong call costs one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer
from command import Command

from toolkit import __version__, console
from toolkit.cli import app


def verbs(
    group: click.Command, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if hasattr(group, "commands"):
        for name, command in group.commands.items():
            yield from verbs(command, (*path, name))
    else:
        yield path, group


VERBS = dict(verbs(typer.main.get_command(app)))


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_the_help_of_every_verb_has_an_example_that_names_it(toolkit: Command, verb: tuple[str, ...]) -> None:
    shown = toolkit(*verb, "--help")
    assert shown.status == 0
    assert f"toolkit {' '.join(verb)}" in shown.out.split("Example:")[1]


def test_help_comes_without_loading_the_heavy_libraries() -> None:
    check = """
import sys, toolkit.cli
heavy = {"torch", "ultralytics", "polars", "cv2", "matplotlib", "numpy"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", check], check=True)


def test_a_run_is_listed_without_what_draws_or_trains() -> None:
    check = """
import sys, toolkit.runs.plan
heavy = {"torch", "ultralytics", "cv2", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else 0)
"""
    subprocess.run([sys.executable, "-c", check], check=True)


def test_the_version(toolkit: Command) -> None:
    assert toolkit("--version").out.strip() == f"ltdv2-toolkit {__version__}"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("evaluate", "best.pt"), "no best.pt; found no run with weights"),
        (("evaluate", "missing.json"), "no file or run missing.json"),
        (("predict", "best.pt", "--split", "test"), "toolkit train"),
        (("submit", "--zip"), "no predictions to submit"),
        (("train",), "cannot tell where the data is"),
        (("train", "--data", "nowhere"), "no folder nowhere"),
        (("train", "--resume"), "no run to continue"),
        (("dataset", "prepare", "nowhere"), "nowhere"),
        (("bench", "data", "nowhere", "--device=banana"), "no device banana"),
        (
            ("container", "run", "--profile=cpu", "--runs=/proc/runs", "true"),
            "cannot make the folder /proc/runs",
        ),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_a_wrong_call_is_one_line_and_a_status(
    toolkit: Command, arguments: tuple[str, ...], message: str
) -> None:
    result = toolkit(*arguments)
    assert result.status == 1
    assert result.err.startswith("error: ")
    assert len(result.err.strip().splitlines()) == 1
    assert message in result.err
    assert result.out == ""


@pytest.mark.parametrize(
    "arguments",
    [("predict",), ("train", "--epochs", "0"), ("predict", "x"), ("predict", "x", "--split", "all")],
)
def test_a_call_that_does_not_parse_is_one_line_and_status_2(
    toolkit: Command, arguments: tuple[str, ...]
) -> None:
    result = toolkit(*arguments)
    assert result.status == 2
    assert result.err.startswith("error: ")
    assert len(result.err.strip().splitlines()) == 1
    assert f"toolkit {arguments[0]} --help" in result.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train runs/first", "runs/first is no option of toolkit train"),
        ("train lr0=high", "lr0 cannot be 'high'"),
        ("train --epochs 2 epochs=3", "epochs is given twice"),
        ("train --frames now,befor", "'befor' is no channel of a sample"),
        ("train --repeat motorcycle=0 --dry-run", "repeats no class"),
        ("train --repeat motorcycle", "expected such as motorcycle=8: motorcycle, each 1 to 1000"),
        (
            "train --repeat =8",
            "expected such as motorcycle=8,bicycle=2: person, bicycle, motorcycle, vehicle, each",
        ),
        ("train --paste anything=2", "'anything=2' pastes nothing"),
        ("train --paste bicycle=0.1,", "expected such as bicycle=0.3: bicycle, each once"),
        ("train --subset 0%", "'0%' is no part of a dataset"),
        ("train --train-on test", "no training on test"),
        ("train --name a/b", "a/b is no name for a run"),
        ("reproduce first --name ..", ".. is no name for a run"),
        ("evaluate --sweep conf,zoom", "'zoom' cannot be swept"),
        ("evaluate --sweep conf --json", "--json is for scores"),
        ("predict a.pt --split val --limit 3", "--limit is for a source"),
        ("ensemble a.json b.json --weights 2;1", "--weights 2;1 are no numbers"),
        ("ensemble a.json b.json --scores s.json", "--scores is read with"),
        ("ensemble a.json b.json --out e.pt", "cannot write e.pt"),
        ("link a.json --gap 11", "'--gap': Input should be less than or equal to 10"),
        ("submit --wait", "--wait follows an upload"),
        ("submit --competition cvpr", "no competition 'cvpr'"),
        ("submissions --competition 0", "no competition '0'"),
        ("dataset export data --channels 2", "no images with 2 channels"),
        ("dataset export data --format voc", "'voc' is not one of 'yolo', 'coco'"),
        ("dataset sample data --train -1", "cannot draw -1 train images"),
        ("bench card yolov8n --estimate gfx0", "no estimate for gfx0"),
        ("bench conv --tune yolov8n --csv x.csv", "--tune writes the plan alone"),
        ("bench data nowhere --workers=-1", "--workers -1 are no numbers of workers"),
        ("bench stress --route fastest", "'fastest' is not one of"),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_words_that_no_file_could_make_right_do_not_parse(toolkit: Command, words: str, message: str) -> None:
    result = toolkit(*words.split())
    assert (result.status, result.out) == (2, ""), result.err
    assert result.err.startswith("error: ")
    assert len(result.err.strip().splitlines()) == 1
    assert message in result.err


@pytest.mark.parametrize(
    "words",
    [
        "dataset prepare circle.json",
        "dataset prepare circle.zip",
        "dataset prepare source --out circle",
        "ensemble found.json circle.json",
        "link circle.json",
        "soup circle.pt",
        "submit found.json --data circle",
        "submit circle.zip",
        "train --data circle",
        "config --data circle",
    ],
)
def test_links_that_lead_in_a_circle_are_nothing_there(toolkit: Command, workspace: Path, words: str) -> None:
    for name in ("circle", "circle.json", "circle.zip", "circle.pt"):
        (workspace / name).symlink_to(name)
    (workspace / "found.json").write_text("{}")
    (workspace / "source").mkdir()
    (workspace / "source/data.yaml").write_text("names: [a]")
    result = toolkit(*words.split())
    assert (result.status, result.err.count("error: ")) == (1, 1), result.err
    assert "fault of the toolkit" not in result.err


def test_without_weights_the_newest_are_evaluated(
    toolkit: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    result = toolkit("evaluate", "--report")
    assert result.status == 1
    assert "no best.pt; found no run with weights" in result.err


def test_no_verb_at_all_shows_the_help(toolkit: Command) -> None:
    result = toolkit()
    assert "Usage:" in result.out
    assert all(verb in result.out for verb in ("train", "evaluate", "submit"))


def test_a_program_that_reads_json_never_meets_a_nan(capsys: pytest.CaptureFixture[str]) -> None:
    console.print_json({"score": float("nan"), "id": 20200504118182600})
    assert json.loads(capsys.readouterr().out) == {"score": None, "id": 20200504118182600}


def test_the_first_import_in_an_empty_home_leaves_standard_output_alone(tmp_path: Path) -> None:
    environment = {**os.environ, "HOME": str(tmp_path), "YOLO_CONFIG_DIR": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", "import toolkit.machine.device"],
        env=environment,
        capture_output=True,
        check=True,
    )
    assert result.stdout == b""
    assert list(tmp_path.rglob("settings.json"))


def test_a_wrong_call_leaves_nothing_behind(toolkit: Command, workspace: Path) -> None:
    toolkit("train", "--data", str(workspace))
    toolkit("evaluate", "best.pt")
    assert list(workspace.iterdir()) == []
