"""The folder of a run: docs/runs.md has a row for every file of it."""

from __future__ import annotations

import re
from pathlib import Path

from toolkit.runs.folder import RunFiles

PAGE = Path(__file__).parents[2] / "docs" / "runs.md"


def rows() -> dict[str, list[str]]:
    """Of each file what it is, who writes, who reads and who removes it."""
    table = PAGE.read_text().split("## Files\n")[1]
    found = {}
    for line in table.splitlines():
        if line.startswith("| `"):
            names, *cells = (cell.strip() for cell in line.strip("|").split("|"))
            found |= dict.fromkeys(re.findall(r"`(.+?)`", names), cells)
    return found


def test_every_file_of_a_run_is_on_the_page() -> None:
    files = RunFiles(Path("run"))
    kinds = (name for name, value in vars(RunFiles).items() if isinstance(value, property))
    named = {str(getattr(files, name).relative_to(files.run)) for name in kinds}
    assert "plan.json" in named
    assert not named - {name.rstrip("/") for name in rows()}


def test_a_property_is_called_as_its_file_or_says_which_that_is() -> None:
    files = RunFiles(Path("run"))
    for name, value in vars(RunFiles).items():
        if isinstance(value, property):
            path = getattr(files, name).relative_to(files.run)
            assert path.name.partition(".")[0] == name or f"``{path}``" in str(value.__doc__), name


def test_every_row_says_who_writes_and_reads_a_file() -> None:
    assert all(len(cells) == 4 and all(cells) for cells in rows().values())
