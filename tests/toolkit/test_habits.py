"""What every verb shares: statuses, how much is said, settings with their sources, completion."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from command import Command

from toolkit import console
from toolkit.cli import app, completion
from toolkit.configuration import VARIABLES
from toolkit.dataset.sample import write_sample
from toolkit.errors import STATUSES
from toolkit.supervision.supervisor import trainer_command
from toolkit.training import preset
from toolkit.workspace import Workspace

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _as_loud_as_before() -> object:
    yield
    console.speak(console.Level.NORMAL)


def test_the_statuses_of_the_documentation_are_those_of_the_code(toolkit: Command) -> None:
    text = (ROOT / "docs" / "command-line.md").read_text()
    shown = toolkit("--help").out
    for status, meaning in STATUSES.items():
        assert f"| {status} | {meaning} |\n" in text
        assert f"{status}  {meaning}"[:60] in " ".join(shown.split()) or str(status) in shown
    assert text.count("\n| ") == len(STATUSES) + 1


def test_quiet_says_errors_and_verbose_says_what_was_chosen(workspace: Path, toolkit: Command) -> None:
    assert (
        "wrote 1 + 1 + 1 images"
        in toolkit("dataset", "sample", "data", "--train", 1, "--val", 1, "--test", 1).err
    )
    assert toolkit("-q", "dataset", "prepare", "data").err == ""
    assert "up to date" in toolkit("dataset", "prepare", "data").err
    assert toolkit("-q", "evaluate").err.startswith("error: no best.pt")
    said = toolkit("-v", "train", "--dry-run", "--preset", "smoke", "--device", "cpu").err
    assert said.count("settings: no toolkit.toml") == 1
    assert f"the data is {workspace / 'data'}" in said
    assert toolkit("-q", "-v", "runs").status == 2


def test_val_is_evaluate(workspace: Path, toolkit: Command) -> None:
    assert toolkit("val", "nowhere.pt").err == toolkit("evaluate", "nowhere.pt").err != ""


def test_every_setting_has_its_value_and_its_source(
    workspace: Path, toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, data = Workspace(workspace), workspace / "data"
    write_sample(data, train=1, val=1, test=1, seed=0, scene="street")
    user = own.settings_places()[0][0]
    user.parent.mkdir(parents=True)
    user.write_text('batch = 2\nseed = 5\npreset = "smoke"\n')
    (workspace / "toolkit.toml").write_text("batch = 4\nepochs = 9\n[health.hang]\nlimit = 70\n")
    (data / "toolkit.toml").write_text("batch = 8\n")
    monkeypatch.setenv("CODABENCH_TOKEN", "secret")
    shown = toolkit("config", "--data", data, "--json").out
    assert "secret" not in shown
    values = json.loads(shown)
    expected = {
        "batch": (8, str(data / "toolkit.toml")),
        "epochs": (9, str(workspace / "toolkit.toml")),
        "seed": (5, str(user)),
        "health.hang.limit": (70.0, str(workspace / "toolkit.toml")),
        "health.hang.action": ("restart", "default"),
        "saving.seconds": (300.0, "default"),
        "imgsz": (None, "default"),
        "CODABENCH_TOKEN": ("(set)", "environment"),
    }
    for key, (value, source) in expected.items():
        assert values[key] == {"value": value, "source": source}, key
    assert set(VARIABLES) <= set(values)
    table = toolkit("config", "--data", data)
    assert f"yours everywhere: {user}" in table.err
    merged = own.defaults(data)
    assert (merged.batch, merged.epochs, merged.seed, merged.preset) == (8, 9, 5, "smoke")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[arguments]\nlr = 0.1\n", "no training argument lr"),
        ("[arguments]\nlr0 = 'high'\n", "lr0 cannot be 'high'"),
        ("[arguments]\nmosaic = -1.0\n", "mosaic"),
        ("[arguments]\nresume = true\n", "resume in"),
        ("[arguments]\nepochs = 0\n", "epochs"),
        ("epochs = 3\n[arguments]\nepochs = 4\n", "epochs is given twice"),
        ("[logging]\nwandbb = true\n", r"no \[logging\] to wandbb"),
    ],
)
def test_config_refuses_what_a_training_would_in_its_words(
    workspace: Path, toolkit: Command, text: str, said: str
) -> None:
    write_sample(workspace / "data", train=1, val=1, test=1, seed=0)
    (workspace / "toolkit.toml").write_text(text)
    shown = toolkit("config")
    trained = toolkit("train", "--dry-run")
    assert (shown.status, trained.status) == (1, 1)
    assert re.search(said, shown.err), shown.err
    without = f"; found {workspace / 'toolkit.toml'}"  # config knows the file of [logging] as well
    assert shown.err.replace(without, "") == trained.err.replace(without, "")


def test_config_refuses_a_folder_that_is_not_there(workspace: Path, toolkit: Command) -> None:
    result = toolkit("config", "--data", "nowhere")
    assert (result.status, "no folder nowhere" in result.err) == (1, True)


@pytest.mark.parametrize("home", ["", "relative"])
def test_a_config_home_that_is_no_place_counts_for_nothing(
    monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", home)
    monkeypatch.setenv("HOME", "/somebody")
    place = Workspace(Path("/w")).settings_places()[0][0]
    assert place == Path("/somebody/.config/ltdv2-toolkit/toolkit.toml")


def test_runs_weights_and_presets_are_completed(workspace: Path) -> None:
    for name in ("first", "fast"):
        (workspace / "runs" / name / "weights").mkdir(parents=True)
        began = "run.json" if name == "first" else "weights/environment.json"  # of older versions, and now
        (workspace / "runs" / name / began).write_text("{}")
    (workspace / "runs" / "first" / "weights" / "best.pt").touch()
    (workspace / "mine.pt").touch()
    (workspace / "found.json").touch()
    assert sorted(completion.runs("f")) == ["fast", "first"]
    assert completion.runs("x") == []
    assert completion.weights("fi") == ["first"]
    assert {"best.pt", "last.pt", "first", "mine.pt", "runs/"} == set(completion.weights(""))
    assert "found.json" in completion.predictions("")
    assert completion.weights("runs/first/weights/b") == ["runs/first/weights/best.pt"]
    assert completion.presets("rx") == ["rx5600xt"]
    assert completion.weights("nowhere/x") == []


@pytest.mark.parametrize(
    "words",
    [
        ("link", "found.json", "--out", "linked.zip"),
        ("ensemble", "a.json", "b.json", "--out", "both.csv"),
        ("soup", "a.pt", "b.pt", "--out", "soup.json"),
        ("predict", "a.pt", "--split", "val", "--out", "found.zip"),
    ],
)
def test_a_name_that_says_another_kind_of_file_is_refused(
    workspace: Path, toolkit: Command, words: tuple[str, ...]
) -> None:
    (workspace / "a.pt").touch()
    result = toolkit(*words)
    assert result.status == 2
    assert f"cannot write {words[-1]}" in result.err
    assert not (workspace / words[-1]).exists()


def test_the_shell_completes_presets_where_they_are_given(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_TOOLKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "toolkit train --preset thermal-")
    monkeypatch.setenv("COMP_CWORD", "3")
    with pytest.raises(SystemExit):
        typer.main.get_command(app)(prog_name="toolkit")
    found = capsys.readouterr().out.split()
    assert found == [name for name in preset.presets() if name.startswith("thermal-")]
    assert len(found) > 1


@pytest.mark.parametrize(
    "settings", ["", '{"settings_version": "0.0.1"}'], ids=["none", "of an older version"]
)
def test_nothing_of_ultralytics_settings_stands_before_the_output(tmp_path: Path, settings: str) -> None:
    if settings:
        (tmp_path / "Ultralytics").mkdir()
        (tmp_path / "Ultralytics" / "settings.json").write_text(settings)
    code = "from toolkit.quiet import keep_libraries_quiet as q; q(); import ultralytics.utils; print(1)"
    environment = {**os.environ, "YOLO_CONFIG_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "1\n"
    assert (tmp_path / "Ultralytics" / "settings.json").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("evaluate", "-q"), r"No such option: -q; -q stands before the verb: .*toolkit -q evaluate$"),
        (
            ("dataset", "stats", "x", "--debug"),
            r"--debug stands before the verb: .*toolkit --debug dataset stats$",
        ),
        (("evaluate", "-x"), r"No such option: -x; .*toolkit evaluate --help$"),
        (("predict", "a.pt", "1.jpg", "2.jpg"), r"quote a pattern such as '\*\.jpg', so that it arrives"),
        (("predict", "a.pt", "b", "nowhere"), r"\(nowhere\); .*toolkit predict --help$"),
        (
            ("evaluate", "--split", "tset"),
            r"Invalid value for '--split': 'tset' is not one of 'train', 'val'",
        ),
    ],
)
def test_a_call_that_does_not_parse_says_what_to_type_instead(
    workspace: Path, toolkit: Command, words: tuple[str, ...], said: str
) -> None:
    (workspace / "2.jpg").touch()
    result = toolkit(*words)
    assert result.status == 2
    assert re.search(said, result.err)


@pytest.mark.parametrize(
    ("verb", "start", "expected"),
    [
        ("compare", "f", ["first", "found.json"]),
        ("soup", "fi", ["first"]),
        (
            "ensemble",
            "runs/f",
            ["runs/first/evaluation/predictions.json", "runs/first/predictions-test.json"],
        ),
        ("link", "found", ["found.json"]),
        ("submit", "runs/first/s", ["runs/first/submission.zip"]),
    ],
)
def test_the_shell_completes_what_a_verb_takes(
    workspace: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    start: str,
    expected: list[str],
) -> None:
    run = workspace / "runs" / "first"
    for name in ("weights/best.pt", "evaluation/predictions.json", "predictions-test.json", "submission.zip"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).touch()
    (run / "run.json").write_text("{}")
    (workspace / "found.json").touch()
    monkeypatch.setenv("_TOOLKIT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"toolkit {verb} {start}")
    monkeypatch.setenv("COMP_CWORD", "2")
    with pytest.raises(SystemExit):
        typer.main.get_command(app)(prog_name="toolkit")
    assert [name for name in capsys.readouterr().out.split() if not name.endswith("/")] == expected


def test_quiet_holds_for_ultralytics_and_for_the_process_that_trains() -> None:
    from toolkit.machine.device import LOGGER, running

    before = LOGGER.level
    plan = SimpleNamespace(run=Path("runs/x"), ranks=1)
    for level, least, words in (
        (console.Level.NORMAL, before, []),
        (console.Level.QUIET, logging.WARNING, ["QUIET"]),
        (console.Level.VERBOSE, before, ["VERBOSE"]),
    ):
        console.speak(level)
        with running("cpu", patched=False):
            assert LOGGER.level == least
        assert LOGGER.level == before
        command = trainer_command(plan)  # type: ignore[arg-type]
        assert command[command.index("runs/x") + 1 :] == words


def test_a_log_whose_stream_was_closed_goes_to_standard_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a notebook, or a test, which had replaced standard output when Ultralytics was imported."""
    from toolkit.machine.device import LOGGER, running

    with (tmp_path / "output").open("w") as output:
        handler = logging.StreamHandler(output)
    monkeypatch.setattr(LOGGER, "handlers", [handler])
    with running("cpu", patched=False):
        assert handler.stream is sys.stderr
