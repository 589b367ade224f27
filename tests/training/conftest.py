"""The data and the threads of every test of training, and a workspace to plan one in."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_data import data, one_thread  # noqa: F401

from toolkit.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace that a command in it would find too."""
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    return Workspace(tmp_path)
