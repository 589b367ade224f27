"""ARCHITECTURE.md says what is there: every module, the rooms in the order of their layers, real files."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
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


def documented(text: str, title: str) -> set[str]:
    """Names that a section of a docstring explains."""
    found = re.search(rf"^{title}:\n((?: {{4}}.*\n|\n)*)", text + "\n", flags=re.M)
    lines = re.findall(r"^ {4}(\w+(?:, \w+)*):\s", found[1], flags=re.M) if found else []
    return {name for line in lines for name in line.split(", ")}


def has(kind: ast.ClassDef) -> Iterator[str]:
    """Names of what a class declares, defines, or sets on itself."""
    for node in ast.walk(kind):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self":
            yield node.attr


@pytest.mark.parametrize("package", modules.PACKAGES)
def test_a_class_has_the_attributes_that_its_docstring_explains(package: str) -> None:
    explained = 0
    for path in (modules.ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                names = documented(ast.get_docstring(node) or "", "Attributes")
                explained += len(names)
                assert names <= {*has(node)}, f"{path}: {node.name} has no {names - {*has(node)}}"
    assert explained > 20


MOST = {"file": 500, "class": 250, "function": 60}
"""Lines. A longer function says why in a comment above it, ``# Long: ...``."""


def lengths(path: Path) -> Iterator[tuple[str, str, int, bool]]:
    """Kind, name and lines of a file and of what it defines, and whether it says why it is long."""
    text = path.read_text()
    name, lines = str(path.relative_to(modules.ROOT)), text.splitlines()
    yield "file", name, len(lines), False
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            kind = "class" if isinstance(node, ast.ClassDef) else "function"
            first = min(each.lineno for each in (node, *node.decorator_list))
            said = first > 1 and re.match(r" *# Long: .{10,}\.$", lines[first - 2]) is not None
            yield kind, f"{name}: {node.name}", (node.end_lineno or node.lineno) - node.lineno + 1, said


def test_what_is_long_says_why_and_nothing_else_does() -> None:
    found = [
        each
        for folder in ("toolkit", "patches", "submission", "scripts")
        for path in sorted((modules.ROOT / folder).rglob("*.py"))
        for each in lengths(path)
    ]
    assert len(found) > 1000
    long = {name: (kind, said) for kind, name, lines, said in found if lines > MOST[kind]}
    assert not [name for name, (kind, said) in long.items() if not said]
    assert not [name for _, name, _, said in found if said and long.get(name, ("",))[0] != "function"]


def test_a_long_function_without_a_reason_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "ROOT", tmp_path)
    body = "    x = 1\n" * 60
    file = tmp_path / "a.py"
    file.write_text(f"def one():\n{body}\n\n# Long: a table of figures.\n@cache\ndef two():\n{body}")
    assert [*lengths(file)] == [
        ("file", "a.py", 126, False),
        ("function", "a.py: one", 61, False),
        ("function", "a.py: two", 61, True),
    ]
