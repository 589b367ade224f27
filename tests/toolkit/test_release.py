"""A release: what states a version agrees, and the changelog has its notes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

import patches
import toolkit

SCRIPT = Path(__file__).parents[2] / "scripts" / "release_notes.py"
DATED = "# Changelog\n\n## 9.9.9 (2030-01-01)\n\n- later\n\n## {} (2029-12-31)\n\n- one\n- two\n"


@pytest.fixture
def script() -> ModuleType:
    specification = importlib.util.spec_from_file_location("release_notes", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_everything_states_the_version_that_the_package_has(script: ModuleType) -> None:
    assert patches.__version__ == toolkit.__version__
    said = script.wrong(toolkit.__version__)
    assert not [sentence for sentence in said if "states" in sentence]
    assert len(script.wrong("1.2.3")) == len(script.STATED) + 1


def test_a_version_without_a_dated_section_is_no_release(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = toolkit.__version__
    monkeypatch.setattr(script, "changelog", lambda: DATED.format(version))
    assert script.wrong(version) == []
    assert script.notes(version) == "- one\n- two"
    assert script.notes("9.9.9") == "- later"
    monkeypatch.setattr(script, "changelog", lambda: f"## {version} (not released yet)\n")
    assert script.wrong(version) == [f"CHANGELOG.md has no section `## {version} (YYYY-MM-DD)`"]
