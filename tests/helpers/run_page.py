"""docs/runs.md, the page of the files of a run, held against what lies in one."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from pathlib import Path

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


def unnamed(run: Path) -> list[str]:
    """Files of a run that no row names: N, SPLIT and MARK stand for anything, a folder for all in it."""
    patterns = [re.sub(r"\bN\b|(?<=epoch)N|SPLIT|MARK", "*", name) for name in rows()]
    patterns = [f"{name}*" if name.endswith("/") else name for name in patterns]
    files = [path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()]
    return sorted(file for file in files if not any(fnmatchcase(file, pattern) for pattern in patterns))
