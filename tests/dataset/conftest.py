"""A small dataset in LTDv2's layout, drawn once, copied for tests that damage it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 + 24 + 18 images, prepared. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("sample")
    write_sample(folder, train=48, val=24, test=18, seed=7, scene="street")
    prepare(folder)
    return folder


@pytest.fixture(scope="session")
def index(sample: Path) -> DatasetIndex:
    return load(sample)


@pytest.fixture
def copy(sample: Path, tmp_path: Path) -> Path:
    """A copy of the sample, not prepared, to damage."""
    folder = tmp_path / "data"
    shutil.copytree(sample, folder, ignore=shutil.ignore_patterns("prepared"))
    return folder


@pytest.fixture
def edit(copy: Path) -> Callable[[str, Callable[[dict[str, Any]], None]], None]:
    """Change one of the copy's JSON files in place."""

    def change(name: str, how: Callable[[dict[str, Any]], None]) -> None:
        content = json.loads((copy / name).read_text())
        how(content)
        (copy / name).write_text(json.dumps(content))

    return change
