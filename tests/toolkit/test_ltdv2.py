"""What the facts say of themselves, and that they stand in one place."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from submission.competitions import PHASES
from submission.templates import template
from toolkit import ltdv2

PACKAGES = [Path(__file__).parents[2] / name for name in ("toolkit", "submission")]


@pytest.mark.parametrize("phase", PHASES)
def test_the_months_of_the_templates_are_those_that_are_stated(phase: str) -> None:
    months = {str(month) for month in np.unique(template(phase) // ltdv2.MONTH_DIGITS)}
    assert months == set(ltdv2.TEST_MONTHS if ltdv2.SPLITS[phase] == "test" else ltdv2.EIGHT_MONTHS)


def test_classes_and_files_stand_in_one_table_each() -> None:
    table = re.compile(r"1: \"person\"|\"person\", \"bicycle\"")
    homes = [p for folder in PACKAGES for p in folder.rglob("*.py") if table.search(p.read_text())]
    assert [path.name for path in homes] == ["validate.py"]
    tables = re.compile(r"\"Train\.json\"")
    homes = [p for folder in PACKAGES for p in folder.rglob("*.py") if tables.search(p.read_text())]
    assert [path.name for path in homes] == ["ltdv2.py"]
