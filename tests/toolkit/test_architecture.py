"""ARCHITECTURE.md says what is there: every module, the rooms in the order of their layers, real files."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import modules
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TEXT = modules.PAGE.read_text()


def section(title: str) -> str:
    return TEXT.split(f"## {title}\n")[1].partition("\n## ")[0]


def test_the_table_of_modules_is_theirs() -> None:
    assert modules.parts()[1] == modules.table(), "renew it: scripts/modules.py --write"


@pytest.mark.parametrize("path", modules.modules(), ids=lambda path: str(path.relative_to(modules.ROOT)))
def test_the_first_line_of_a_module_is_a_whole_sentence(path: Path) -> None:
    assert re.fullmatch(r".{10,}\.", modules.first_line(path))


def test_the_rooms_are_those_of_the_layers_in_their_order() -> None:
    project = tomllib.loads((modules.ROOT / "pyproject.toml").read_text())
    (layers,) = (
        each["layers"]
        for each in project["tool"]["importlinter"]["contracts"]
        if each.get("containers") == ["toolkit"]
    )
    level = {name: i for i, layer in enumerate(layers) for name in re.findall(r"\w+", layer)}
    rows = re.findall(r"^\| (`.+?`) \|", section("The rooms of `toolkit/`"), flags=re.M)
    rooms = [name for row in rows for name in re.findall(r"`(\w+)(?:/|\.py)`", row)]
    assert sorted(rooms) == sorted(level.keys() - {"__main__"})
    assert [level[name] for name in rooms] == sorted(level[name] for name in rooms)


@pytest.mark.parametrize(
    "title", ["A walk of `toolkit train`", "A walk of `toolkit evaluate`", "To change something"]
)
def test_files_that_are_named_exist(title: str) -> None:
    named = re.findall(r"`([\w/]+(?:/|\.py|\.md))`", section(title))
    known = [
        path for folder in ("toolkit", "patches", "tests") for path in (modules.ROOT / folder).rglob("*.py")
    ]
    assert len(named) > 5
    for name in named:
        there = (modules.ROOT / name).exists() or (modules.ROOT / "toolkit" / name).exists()
        assert there or any(path.name == name for path in known), f"{title}: no {name}"
