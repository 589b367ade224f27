"""What a container advises is what its caller can type."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
import typer.main

from toolkit import console
from toolkit.cli import app
from toolkit.container.words import Caller, takes_value
from toolkit.errors import ToolkitError

LOOK_UP = takes_value(app)
MAKE = Caller("make", {"profile": "cpu"}, LOOK_UP)


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("next: `toolkit dataset prepare data/x`", "next: `make docker-prepare PROFILE=cpu DATA=data/x`"),
        (
            "next: `toolkit train --data 'my data' --preset smoke`",
            "next: `make docker-train PROFILE=cpu DATA='my data' ARGS='--preset smoke'`",
        ),
        (
            "make some: toolkit predict best.pt --split test",
            "make some: make docker-predict PROFILE=cpu",
        ),
        (
            "or continue it: toolkit train --resume --name first",
            "or continue it: make docker-train PROFILE=cpu ARGS='--resume --name first'",
        ),
        ("toolkit train --resume goes on", "make docker-train PROFILE=cpu ARGS=--resume goes on"),
        ("`toolkit runs` lists them", "`make docker-runs PROFILE=cpu` lists them"),
        ("see toolkit doctor; then go on", "see make docker-doctor PROFILE=cpu; then go on"),
        (
            "toolkit dataset cache data/x writes these again",
            "make docker-run PROFILE=cpu ARGS='toolkit dataset cache data/x' writes these again",
        ),
        (
            "toolkit compare a/x.json b/y.json",
            "make docker-run PROFILE=cpu ARGS='toolkit compare a/x.json b/y.json'",
        ),
        (
            "`toolkit submit runs/x/p.json --zip`",
            "`make docker-submit PROFILE=cpu ARGS=runs/x/p.json`",
        ),
        ("name it with --data, or go", "name it with DATA=, or go"),
        ("say --profile=rdna1", "say PROFILE=rdna1"),
        ("name another with --base", "name another with BASE="),
        ("`toolkit container stop ltdv2-train`", "`make docker-stop NAME=ltdv2-train`"),
        ("toolkit.toml wants it; the toolkit is fine", "toolkit.toml wants it; the toolkit is fine"),
        ("a path runs/toolkit train", "a path runs/toolkit train"),
        ("", ""),
    ],
)
def test_make_has_its_own_words(said: str, typed: str) -> None:
    assert MAKE.reword(said) == typed


@pytest.mark.parametrize("mark", [one for one in string.punctuation if one not in "-_="] + ["", " then"])
def test_a_flag_is_the_variable_of_make_before_whatever_mark_a_sentence_has(mark: str) -> None:
    assert MAKE.reword(f"name another with --base{mark}") == f"name another with BASE={mark}"


@pytest.mark.parametrize("said", ["leave --database out", "leave --data-workers out", "leave --base_lr out"])
def test_a_flag_that_begins_as_a_variable_of_make_is_left_as_it_is(said: str) -> None:
    assert MAKE.reword(said) == said


def test_every_command_of_the_toolkit_has_one_of_make() -> None:
    commands = typer.main.get_command(app).commands.keys() - {"container", "dataset", "bench"}  # type: ignore[attr-defined]
    for name in commands:
        assert MAKE.reword(f"see `toolkit {name}`").startswith("see `make docker-")


def test_the_command_line_has_its_own_words() -> None:
    caller = Caller("container", {"profile": "cpu", "base": "mine:1"}, LOOK_UP)
    assert (
        caller.reword("next: `toolkit dataset prepare data/x`")
        == "next: `toolkit container prepare --profile cpu --base mine:1 --data data/x`"
    )
    assert caller.reword("name it with --data") == "name it with --data"


def test_a_path_below_the_workplace_is_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    said = MAKE.reword(f"next: `toolkit dataset prepare {tmp_path}/data/x`")
    assert said == "next: `make docker-prepare PROFILE=cpu DATA=data/x`"


def test_a_package_that_is_missing_inside_is_wished_for_outside() -> None:
    inside = Caller("make", {}, LOOK_UP, inside=True)
    assert "docker/extra.txt" in inside.reword("found no module tensorboard; pip install tensorboard")
    assert MAKE.reword("pip install tensorboard") == "pip install tensorboard"


def test_what_is_handed_into_the_container_comes_back() -> None:
    caller = Caller("make", {"profile": "cpu", "base": "my base:1"})
    found = Caller.decode(caller.encode(), LOOK_UP, inside=True)
    assert found is not None
    assert (found.style, found.options) == (caller.style, caller.options)
    assert Caller.decode("", LOOK_UP, inside=True) is None
    assert Caller.decode("somebody else", LOOK_UP, inside=True) is None


def test_notes_and_errors_are_reworded(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_reword", MAKE.reword)
    console.note("next: `toolkit runs`")
    console.warn("see toolkit doctor")
    console.fail(ToolkitError("no run", fix="start one: toolkit train"))
    assert capsys.readouterr().err.splitlines() == [
        "next: `make docker-runs PROFILE=cpu`",
        "warning: see make docker-doctor PROFILE=cpu",
        "error: no run; start one: make docker-train PROFILE=cpu",
    ]
