#!/usr/bin/env python3
"""Print what CHANGELOG.md says of a version, after a look at everything that states one.

    python scripts/release_notes.py 0.1.0

The status is 1 where a file states another version, or the version has no section or no date yet.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]

STATED = {
    "toolkit/__init__.py": r'^__version__ = "(.+)"$',
    "patches/__init__.py": r'^__version__ = "(.+)"$',
    "CITATION.cff": r"^version: (.+)$",
}
"""Where a version stands, and the line that states it."""


def wrong(version: str) -> list[str]:
    """What disagrees with ``version``, a sentence each."""
    said = []
    for name, pattern in STATED.items():
        found = re.findall(pattern, (ROOT / name).read_text(), re.MULTILINE)
        if found != [version]:
            said.append(f"{name} states {', '.join(found) or 'no version'}; expected {version}")
    if not re.search(rf"^## {re.escape(version)} \(\d{{4}}-\d\d-\d\d\)$", changelog(), re.MULTILINE):
        said.append(f"CHANGELOG.md has no section `## {version} (YYYY-MM-DD)`")
    return said


def changelog() -> str:
    """The changelog's text."""
    return (ROOT / "CHANGELOG.md").read_text()


def notes(version: str) -> str:
    """The section of a version, without its heading."""
    section = changelog().partition(f"## {version} ")[2].partition("\n")[2]
    return re.split(r"^## ", section, flags=re.MULTILINE)[0].strip()


def main() -> int:
    """Print, or say what is wrong."""
    if len(sys.argv) != 2:
        print(f"usage: {sys.argv[0]} VERSION", file=sys.stderr)
        return 2
    said = wrong(sys.argv[1])
    for sentence in said:
        print(f"release: {sentence}", file=sys.stderr)
    if not said:
        print(notes(sys.argv[1]))
    return bool(said)


if __name__ == "__main__":
    sys.exit(main())
