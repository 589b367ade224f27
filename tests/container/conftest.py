"""A workspace for containers that are never made."""

from __future__ import annotations

from pathlib import Path

import pytest
import recorded_engine

from toolkit.container import create


@pytest.fixture
def places(tmp_path: Path) -> create.Places:
    return recorded_engine.places(tmp_path)
