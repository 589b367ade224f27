"""Fixtures of the toolkit's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from codabench_server import TOKEN, Server, codabench
from command import Command


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that commands take for the workspace."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TOOLKIT_WORKSPACE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path.with_name(f"{tmp_path.name}-config")))
    return tmp_path


@pytest.fixture
def toolkit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """The command."""
    monkeypatch.setenv("COLUMNS", "250")
    return Command(monkeypatch, capsys)


@pytest.fixture
def codabench_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A model of Codabench, and the environment that sends a command there."""
    with codabench() as running:
        monkeypatch.setenv("CODABENCH_URL", running.url)
        monkeypatch.setenv("CODABENCH_TOKEN", TOKEN)
        yield running
