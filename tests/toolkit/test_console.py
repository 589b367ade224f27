"""How an error looks: its parts below each other on a terminal, one line for everybody else."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from toolkit import console
from toolkit.errors import ToolkitError

ERROR = ToolkitError(
    "run first was begun with another --model",
    "--model yolo11n.yaml",
    "--model yolov8n.yaml",
    "leave `--model` out, or start a new run",
)


class Terminal(io.StringIO):
    """Standard error that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def shown(error: ToolkitError, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines that a person at a terminal sees."""
    screen = Terminal()
    monkeypatch.setattr(console, "err", Console(file=screen, color_system=None))
    console.fail(error)
    return screen.getvalue().splitlines()


def test_a_terminal_shows_each_part_in_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(ERROR, monkeypatch) == [
        "error: run first was begun with another --model",
        "  found     --model yolo11n.yaml",
        "  expected  --model yolov8n.yaml",
        "hint: leave `--model` out, or start a new run",
    ]


def test_parts_that_an_error_lacks_take_no_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(ToolkitError("no run", fix="toolkit train"), monkeypatch) == [
        "error: no run",
        "hint: toolkit train",
    ]
    assert shown(ToolkitError("no run"), monkeypatch) == ["error: no run"]


def test_names_break_no_line_and_speak_to_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    odd = ToolkitError("a\nb is no name", "\x1b[2Ja\r\nb", "[bold]a name[/bold]")
    assert shown(odd, monkeypatch) == [
        "error: a b is no name",
        "  found      [2Ja b",
        "  expected  [bold]a name[/bold]",
    ]


def test_parts_are_put_into_the_words_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "_reword", lambda text: text.replace("toolkit train", "make docker-train"))
    assert shown(ToolkitError("no run", "toolkit train", fix="toolkit train"), monkeypatch) == [
        "error: no run",
        "  found     make docker-train",
        "hint: make docker-train",
    ]


def test_elsewhere_it_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a CI sets it: colour is asked for, a terminal is none
    console.fail(ERROR)
    assert capsys.readouterr().err == f"error: {ERROR.line()}\n"


def test_a_command_finds_out_by_itself_where_it_speaks(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toolkit", "runs", "--nosuch"]
    environment = {**os.environ, "NO_COLOR": "1", "TERM": "dumb"}
    ours, its = pty.openpty()
    try:
        with os.fdopen(its, "wb") as terminal:
            done = subprocess.run(command, cwd=tmp_path, env=environment, stderr=terminal, timeout=60)
        at_terminal = os.read(ours, 10_000).decode().splitlines()
    finally:
        os.close(ours)
    piped = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, timeout=60)
    assert (done.returncode, piped.returncode) == (2, 2)
    assert len(piped.stderr.decode().splitlines()) == 1
    assert at_terminal[0].startswith("error: ")
    assert at_terminal[1:] == ["hint: python -m toolkit runs --help"]


def test_a_rate_over_a_moment_is_not_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for least, said in ((60.0, "reading: 6/6 frames\n"), (0.0, "/s\n")):
        monkeypatch.setattr(console, "LEAST_SECONDS", least)
        with console.progress("reading", 6, "frames") as advance:
            advance(6)
        assert capsys.readouterr().err.endswith(said)
