"""What holds in every test: hypothesis asserts nothing about wall time, and Ultralytics keeps to itself."""

from __future__ import annotations

from collections.abc import Iterator

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
