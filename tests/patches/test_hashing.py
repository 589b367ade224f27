"""Triton hashes its own files once a process, beside whatever else is to be done."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from patches import compiling, hashing
from patches.convolution import selftest

ROOT = Path(__file__).parents[2]


class Hash:
    """Stands in for it: lasts until it is let go, and counts."""

    def __init__(self) -> None:
        self.go, self.begun, self.done = threading.Event(), 0, 0

    def __call__(self) -> None:
        self.begun += 1
        assert self.go.wait(60)
        self.done += 1


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hash]:
    stand_in = Hash()
    monkeypatch.setattr(hashing, "_hash", stand_in)
    monkeypatch.setattr(hashing, "_thread", None)
    switches = (torch.backends.cudnn, torch.backends.cuda.matmul)  # which a self-test sets
    before = [each.allow_tf32 for each in switches]
    yield stand_in
    for each, allowed in zip(switches, before, strict=True):
        each.allow_tf32 = allowed
    stand_in.go.set()
    hashing.wait()


def test_it_runs_beside_what_is_inside_and_is_over_behind_it(hashed: Hash) -> None:
    with hashing.beside():
        assert (hashed.begun, hashed.done) == (1, 0)
        hashed.go.set()
    assert hashed.done == 1


def test_it_runs_once_however_often_it_is_wanted(hashed: Hash) -> None:
    hashing.begin()
    hashing.begin()
    hashed.go.set()
    for _ in range(2):
        with hashing.beside():
            pass
    assert (hashed.begun, hashed.done) == (1, 1)


def test_it_is_waited_for_when_what_is_inside_fails(hashed: Hash) -> None:
    with pytest.raises(KeyError), hashing.beside():
        hashed.go.set()
        raise KeyError
    assert hashed.done == 1


def test_nothing_is_waited_for_where_nothing_was_begun(hashed: Hash) -> None:
    hashing.wait()
    assert hashed.begun == 0


@pytest.mark.parametrize("name", ["triton", "fused batch norm"])
def test_a_self_test_on_a_card_begins_to_hash_first_and_forks_when_it_is_done(
    hashed: Hash, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if name not in selftest.EXAMINERS:
        pytest.importorskip("triton", reason="the route needs it")

    def prepare() -> list[str]:
        assert not hashed.begun, "Triton is imported before it is safe"
        hashed.go.set()
        return []

    def ask(device: str) -> compiling.Target:
        assert (hashed.begun, hashed.done) == (1, 1)
        raise RuntimeError(f"{device} does not answer")

    monkeypatch.setattr(selftest, "prepare", prepare)
    monkeypatch.setattr(compiling, "target_of", ask)
    with pytest.raises(RuntimeError, match="cuda:0 does not answer"):
        selftest._examine(name, "cuda:0", "float32")


def test_no_other_self_test_hashes(hashed: Hash) -> None:
    assert not selftest._examine("native", "cpu", "float32")
    assert hashed.begun == 0


def test_the_hash_of_the_installed_triton_is_known_afterwards() -> None:
    pytest.importorskip("triton", reason="its own hash")
    program = """
import sys
from patches import hashing
hashing.begin()
hashing.wait()
assert "torch" not in sys.modules
from triton.runtime import cache
known = getattr(cache, "triton_key", None)  # in older ones it is elsewhere
assert known is None or known.cache_info().currsize == 1
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=ROOT)
