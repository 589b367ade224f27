"""Triton's hash of its own files, which every compiled kernel is named by: half a gigabyte to read.

Triton keeps it for the life of a process, and a fork has what its parent knew. Importing this imports no
torch.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_thread: threading.Thread | None = None


def begin() -> None:
    """Begin to hash beside what this process does next; imports Triton, which has to be safe for its cards.

    Nothing may be forked before :func:`wait` has returned: a fork would keep the locks that the thread holds.
    """
    global _thread
    if _thread is None:
        _thread = threading.Thread(target=_hash, name="hash of Triton", daemon=True)
        _thread.start()


def wait() -> None:
    """Wait for what was begun, if anything was."""
    if _thread is not None:
        _thread.join()


@contextmanager
def beside() -> Iterator[None]:
    """Hash, unless that was done, while what is inside runs: once, instead of in every fork."""
    begin()
    try:
        yield
    finally:
        wait()


def _hash() -> None:
    for module in ("triton.runtime.cache", "triton.compiler.compiler"):  # in newer ones, and in older
        with suppress(ImportError):
            known = getattr(importlib.import_module(module), "triton_key", None)
            if known is not None:
                known()
                break
    with suppress(ImportError):
        importlib.import_module("triton.compiler.code_generator")  # each fork would, for its first kernel
