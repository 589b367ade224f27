"""The hook that waits for a module to be imported, and what the environment may ask for."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from patches import startup


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a package that can be imported and has not been; it notes when its code runs."""
    (tmp_path / "awaited_package").mkdir()
    (tmp_path / "awaited_package" / "__init__.py").write_text("ran = True\n")
    (tmp_path / "awaited_package" / "inner.py").write_text("value = 3\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    for name in ("awaited_package", "awaited_package.inner"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "awaited_package"


def test_the_call_comes_once_when_the_module_has_run(module: str) -> None:
    calls: list[bool] = []
    startup._after_import(module, lambda: calls.append(sys.modules[module].ran))
    importlib.import_module("colorsys")
    assert calls == []
    imported = importlib.import_module(module)
    assert calls == [True]
    importlib.reload(imported)
    assert calls == [True]


def test_the_module_keeps_its_own_loader(module: str) -> None:
    startup._after_import(module, lambda: None)
    imported = importlib.import_module(module)
    assert type(imported.__spec__.loader).__module__ == "_frozen_importlib_external"
    assert imported.__loader__ is imported.__spec__.loader
    assert importlib.import_module(f"{module}.inner").value == 3


def test_a_module_that_is_there_already_is_not_waited_for(module: str) -> None:
    importlib.import_module(module)
    calls: list[int] = []
    before = list(sys.meta_path)
    startup._after_import(module, lambda: calls.append(1))
    assert (calls, sys.meta_path) == ([1], before)


def test_a_missing_module_is_still_missing() -> None:
    before = list(sys.meta_path)
    startup._after_import("no_such_module_anywhere", lambda: None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_module_anywhere")
    assert sys.meta_path == before


@pytest.mark.parametrize(
    ("value", "route"),
    [
        ("", None),
        ("0", None),
        ("OFF", None),
        ("1", "auto"),
        ("on", "auto"),
        ("gemm", "gemm"),
        (" auto ", "auto"),
    ],
)
def test_what_the_variable_means(monkeypatch: pytest.MonkeyPatch, value: str, route: str | None) -> None:
    monkeypatch.setenv(startup.VARIABLE, value)
    assert startup.wanted() == route


@pytest.mark.parametrize(
    ("hip", "cuda", "driver", "cards", "device"),
    [
        ("5.2", None, True, 0, "cuda"),
        ("5.2", None, False, 1, "cpu"),
        (None, "13.0", False, 2, "cuda"),
        (None, "13.0", False, 0, "cpu"),
        (None, None, True, 1, "cpu"),
    ],
)
def test_the_device_is_the_gpu_that_this_torch_can_use(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    hip: str | None,
    cuda: str | None,
    driver: bool,
    cards: int,
    device: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(startup, "_KFD", tmp_path if driver else tmp_path / "missing")
    assert startup.default_device() == device
