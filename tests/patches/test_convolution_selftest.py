"""The self-test: good routes pass, and whatever a bad one does costs a message and no more."""

from __future__ import annotations

import time

import pytest

from patches.convolution import selftest

BAD = {
    "Dying": "killed by SIGSEGV at backward of",
    "Leaving": "ended with status 3 at forward of",
    "Silent": "relative error nan",
    "Wrong": "weight gradient of",
    "Raising": "no kernel image for this card",
    "Misshapen": "has the wrong form",
}


@pytest.mark.parametrize("route", ["gemm", "native"])
def test_a_good_route_passes(route: str) -> None:
    result = selftest.run(route, "cpu")
    assert (result.route, result.passed, result.reason) == (route, True, "")
    assert result.seconds > 0


@pytest.mark.parametrize(("route", "reason"), BAD.items(), ids=BAD.keys())
def test_a_bad_route_fails_with_a_reason(route: str, reason: str) -> None:
    result = selftest.run(f"fake_routes:{route}", "cpu")
    assert not result.passed
    assert reason in result.reason


@pytest.mark.slow
def test_a_route_that_hangs_is_killed_at_the_time_limit() -> None:
    start = time.monotonic()
    result = selftest.run("fake_routes:Hanging", "cpu", timeout=15)
    assert not result.passed
    assert result.reason.startswith("no answer within 15 s")
    assert 15 <= time.monotonic() - start < 300


def test_a_child_that_never_starts_is_killed_as_well() -> None:
    result = selftest.run("gemm", "cpu", timeout=0.01)
    assert result.reason == "no answer within 0 s before the first problem"


def test_a_route_that_is_not_there_fails_with_a_reason() -> None:
    assert "serves none of the problems" in selftest.run("library", "cpu").reason
    assert "expected one of native" in selftest.run("nonsense", "cpu").reason
