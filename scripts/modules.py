#!/usr/bin/env python3
"""The table of modules in ARCHITECTURE.md, made from the first line of each.

scripts/modules.py            prints it
scripts/modules.py --write    renews it in ARCHITECTURE.md
"""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("toolkit", "patches", "submission")
PAGE = ROOT / "ARCHITECTURE.md"
BEGIN = "<!-- made by scripts/modules.py --write -->\n"
END = "<!-- end -->\n"


def first_line(path: Path) -> str:
    """What a module says of itself in its first line; empty where it says nothing."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]


def modules() -> list[Path]:
    """All modules, a package before what is in it."""
    found = (path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
    return sorted(
        found, key=lambda path: (PACKAGES.index(path.relative_to(ROOT).parts[0]), path.parent, path)
    )


def table() -> str:
    """A row a module; the folder of a package stands for its ``__init__.py``."""
    lines = ["| module | what it is for |", "|---|---|"]
    for path in modules():
        name = path.relative_to(ROOT).as_posix().removesuffix("__init__.py")
        words = first_line(path).replace("``", "`").replace("|", "\\|")
        lines.append(f"| `{name}` | {words} |")
    return "\n".join(lines) + "\n"


def parts() -> tuple[str, str, str]:
    """ARCHITECTURE.md: what is before its table, the table, what is behind it."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    now, _, after = rest.partition(END)
    return before, now, after


def main() -> None:
    """Print the table, or renew it."""
    parser = argparse.ArgumentParser(description="The table of modules in ARCHITECTURE.md.")
    parser.add_argument("--write", action="store_true", help="renew it in ARCHITECTURE.md")
    if not parser.parse_args().write:
        print(table(), end="")
        return
    before, _, after = parts()
    PAGE.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
