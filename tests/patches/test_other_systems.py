"""What a system without POSIX lacks is missed neither at import nor by locks. Nothing ran on Windows."""

from __future__ import annotations

import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from patches import environment, locks

IMPORT_EVERYTHING = """
import importlib, os, pkgutil, signal, sys
import torch, triton
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for place, names in ((os, ("getuid", "killpg", "fork", "geteuid")), (signal, ("SIGKILL", "SIGHUP"))):
    for name in names:
        delattr(place, name)
import patches
for module in pkgutil.walk_packages(patches.__path__, "patches."):
    importlib.import_module(module.name)
patches.enable("cpu", "gemm")
torch.nn.Conv2d(1, 1, 3)(torch.ones(1, 1, 4, 4))
print(patches.report().calls)
"""


def test_every_module_is_imported_without_what_posix_has() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.returncode) == ("1\n", 0), done.stderr[-2000:]


def test_a_lock_of_windows_is_waited_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answers: list[Exception | None] = [PermissionError(), PermissionError(), None]
    asked: list[tuple[int, int]] = []

    def locking(handle: int, mode: int, count: int) -> None:
        asked.append((mode, count))
        answer = answers.pop(0)
        if answer is not None:
            raise answer

    monkeypatch.setitem(sys.modules, "msvcrt", types.SimpleNamespace(locking=locking, LK_NBLCK=3))
    monkeypatch.setattr(sys, "platform", "win32")
    with (tmp_path / "lock").open("a") as file:
        locks.hold(file)
    assert asked == [(3, 1)] * 3


def test_on_windows_the_runtime_names_the_card(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    assert environment.amd_architectures() == []
    monkeypatch.setattr(torch.version, "hip", "7.14")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    card = types.SimpleNamespace(gcnArchName="gfx1010:xnack-")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    assert environment.amd_architectures() == ["gfx1010"]
