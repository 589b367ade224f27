"""What holds in every test: hypothesis asserts nothing about wall time, and Ultralytics keeps to itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from toolkit import console
from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

settings.register_profile(
    "project",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("project")


@pytest.fixture(autouse=True)
def _own_words() -> Iterator[None]:
    """A command for containers puts messages into its caller's words for the rest of its process."""
    yield
    console.reword_with(str)


@pytest.fixture(scope="module", autouse=True)
def _no_thread_of_ours_stays() -> Iterator[None]:
    """Test files share a process: a thread that goes on after its file takes time from all that follow."""
    yield
    deadline = time.monotonic() + 30
    while staying := _threads_of_ours():
        assert time.monotonic() < deadline, f"threads that do not end: {staying}"
        time.sleep(0.05)


def _threads_of_ours() -> list[str]:
    """The functions of this project's that threads are running, each with its place."""
    root = Path(__file__).parents[1]
    ours = tuple(str(root / room) for room in ("patches", "scripts", "submission", "tests", "toolkit"))
    codes = [getattr(getattr(each, "_target", None), "__code__", None) for each in threading.enumerate()]
    return [
        f"{code.co_name} ({code.co_filename}:{code.co_firstlineno})"
        for code in codes
        if code is not None and code.co_filename.startswith(ours)
    ]
