"""The variables that overrule a program, by their names and by their older ones."""

from __future__ import annotations

from pathlib import Path

import pytest

import patches
from patches import variables
from patches.convolution.planfile import Card
from patches.normalization import routes

EVERY = (variables.ROUTE, variables.NORMALIZATION, variables.PLAN)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (name for variable in EVERY for name in variable):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", EVERY, ids=lambda variable: variable.name)
def test_an_older_name_works_and_is_named(
    variable: variables.Variable, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert variable.read() is None
    monkeypatch.setenv(variable.older, "one")
    old = variable.read()
    assert old is not None
    assert (old.name, old.value) == (variable.older, "one")
    assert variable.name in old.advice
    monkeypatch.setenv(variable.name, "two")
    assert variable.read() == (variable.name, "two", "")
    monkeypatch.setenv(variable.name, "")
    assert variable.read() == old


@pytest.mark.parametrize("name", variables.ROUTE)
def test_a_route_is_overruled_by_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "gemm")
    with patches.enabled("cpu", route="native"):
        done = patches.report()
    assert done.route == "gemm"
    assert done.notes[0].startswith(f"{name}=gemm overrules route 'native'")


@pytest.mark.parametrize("name", variables.NORMALIZATION)
def test_so_is_a_normalization(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "off")
    assert routes.setting("torch") == "off"


@pytest.mark.parametrize("name", variables.PLAN)
def test_so_is_the_file_of_the_plan(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(name, str(tmp_path / "plan.json"))
    assert Card("gfx1010", "amdgpu 6.2", "2.11", {"triton": "3.6"}).path() == tmp_path / "plan.json"


def test_nothing_that_this_package_writes_speaks_of_another_project() -> None:
    folder = Path(patches.__file__).parent
    said = {
        path.name: path.read_text().lower() for path in folder.rglob("*.*") if path.suffix in (".py", ".md")
    }
    del said["variables.py"]  # the older names
    assert [name for name, text in said.items() if "ltdv2" in text or "toolkit_" in text] == []
