"""What a docstring describes under Args and Attributes is there."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECTION = re.compile(r"^(?:Args|Attributes):\n((?:    .*\n?|\n)+)", re.MULTILINE)
ENTRY = re.compile(r"^    ([A-Za-z_*][\w*]*(?:, [\w*]+)*):(?: |$)", re.MULTILINE)


def described(node: ast.ClassDef | ast.FunctionDef) -> Iterator[str]:
    """Names at the beginnings of entries; ``src_*`` and ``_c`` stand for those that begin or end so."""
    for section in SECTION.findall(ast.get_docstring(node) or ""):
        for names in ENTRY.findall(section):
            yield from (f"*{name}" if name.startswith("_") else name for name in names.split(", "))


def arguments(node: ast.FunctionDef) -> set[str]:
    """Names of a function's parameters."""
    a = node.args
    starred = [each for each in (a.vararg, a.kwarg) if each is not None]
    return {each.arg for each in (*a.posonlyargs, *a.args, *a.kwonlyargs, *starred)}


def present(node: ast.ClassDef | ast.FunctionDef) -> set[str]:
    """What a function takes; what a class has: fields, methods, what it is made with, what it keeps."""
    if isinstance(node, ast.FunctionDef):
        return arguments(node)
    found: set[str] = set()
    for part in node.body:
        match part:
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Assign(targets=targets):
                found |= {target.id for target in targets if isinstance(target, ast.Name)}
            case ast.FunctionDef(name="__init__" | "__new__"):
                found |= arguments(part)
            case ast.FunctionDef(name=name):
                found.add(name)
    kept = (each for each in ast.walk(node) if isinstance(each, ast.Attribute))
    return found | {each.attr for each in kept if isinstance(each.ctx, ast.Store)}


@pytest.mark.parametrize("package", ["toolkit", "patches", "submission"])
def test_what_is_described_exists(package: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {node.name} has no {name}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.ClassDef, ast.FunctionDef))
        for name in described(node)
        if not any(fnmatch(there, name) for there in present(node))
    ]
    assert not wrong, "\n".join(wrong)


def test_a_field_that_does_not_exist_is_noticed() -> None:
    words = '"""One.\n\n    Attributes:\n        name: of it.\n        gone: no more.\n    """'
    code = f"class Snapshot:\n    {words}\n    name: str\n"
    (node,) = ast.parse(code).body
    assert isinstance(node, ast.ClassDef)
    assert [name for name in described(node) if name not in present(node)] == ["gone"]
