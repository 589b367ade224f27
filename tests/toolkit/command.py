"""Running the command ``toolkit`` inside a test, as a user would from a shell."""

from __future__ import annotations

import sys
from dataclasses import dataclass

import pytest

from toolkit.cli import main


@dataclass(frozen=True)
class Result:
    """What a command left: exit status, standard output, standard error."""

    status: int
    out: str
    err: str


class Command:
    """``command("submit", "--zip")`` runs ``toolkit submit --zip``."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch, self._capsys = monkeypatch, capsys

    def __call__(self, *arguments: object) -> Result:
        self._monkeypatch.setattr(sys, "argv", ["toolkit", *map(str, arguments)])
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
            sys.exit(0)
        captured = self._capsys.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)
