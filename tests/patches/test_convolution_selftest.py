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
    assert not result.transient
    assert reason in result.reason


@pytest.mark.parametrize(
    ("route", "reason"),
    [("Exhausted", "not enough memory at forward of"), ("Killed", "killed by SIGKILL at forward of")],
)
def test_a_want_of_memory_is_told_from_a_fault(route: str, reason: str) -> None:
    result = selftest.run(f"fake_routes:{route}", "cpu")
    assert not result.passed
    assert result.transient
    assert result.reason.startswith(reason)


@pytest.mark.parametrize(
    "message",
    [
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
        "RuntimeError: HIP error: out of memory",
        "RuntimeError: CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "RuntimeError: miopenStatusAllocFailed",
        "RuntimeError: DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes",
        "MemoryError",
    ],
)
def test_every_library_has_its_own_words_for_a_want_of_memory(message: str) -> None:
    assert selftest.lacks_memory(message)
    assert not selftest.lacks_memory("out of resource: shared memory, Required: 131072")


def test_a_route_is_tested_in_the_dtype_asked_for() -> None:
    assert selftest.run("fake_routes:WrongInHalf", "cpu").passed
    assert "relative error 1.0e-01" in selftest.run("fake_routes:WrongInHalf", "cpu", "float16").reason


@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
def test_a_good_route_passes_in_every_dtype(dtype: str) -> None:
    assert selftest.run("gemm", "cpu", dtype).passed


@pytest.mark.slow
def test_a_route_that_hangs_is_killed_at_the_time_limit() -> None:
    start = time.monotonic()
    result = selftest.run("fake_routes:Hanging", "cpu", timeout=15)
    assert not result.passed
    assert not result.transient
    assert result.reason.startswith("no answer within 15 s")
    assert 15 <= time.monotonic() - start < 300


def test_a_child_that_never_starts_is_killed_as_well() -> None:
    result = selftest.run("gemm", "cpu", timeout=0.01)
    assert result.reason == "no answer within 0 s before the first problem"


def test_a_route_that_is_not_there_fails_with_a_reason() -> None:
    assert "serves none of the problems" in selftest.run("library", "cpu").reason
    assert "expected one of native" in selftest.run("nonsense", "cpu").reason
