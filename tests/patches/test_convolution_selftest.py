"""The self-test: good routes pass, and whatever a bad one does costs a message and no more."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from patches.convolution import selftest
from patches.convolution.problem import ConvProblem, Gradients
from toolkit.benchmark.measure import load_layers

if TYPE_CHECKING:
    from patches.convolution.triton_kernels.ahead import Recorder

YOLOV8N = Path(__file__).resolve().parents[2] / "scripts" / "layers" / "yolov8n.json"

BAD = {
    "Dying": "killed by SIGSEGV at backward of",
    "Leaving": "ended with status 3 at forward of",
    "Silent": "relative error nan",
    "Wrong": "weight gradient of",
    "Raising": "no kernel image for this card",
    "WrongStatistics": "statistics of 2x24x21x19 -> 24, 3x3 stride 1 pad 1 groups 24, float32 channels_last",
    "Misshapen": "has the wrong form",
    "WrongFromAHead": "weight gradient of 2x40x21x19 -> 72, 1x1 stride 1 bias",
    "WrongBehindAnAttention": "output of 2x64x21x19 -> 64, 1x1 stride 1, float32 channels_last, input NCHW",
}


@pytest.mark.parametrize("route", ["gemm", "native"])
def test_a_good_route_passes(route: str) -> None:
    result = selftest.run(route, "cpu")
    assert (result.route, result.passed, result.reason) == (route, True, "")
    assert result.seconds > 0
    assert {"start", "imports", "tests"} <= set(result.phases)
    assert 0 < sum(result.phases.values()) <= result.seconds


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


class Recording:
    """Computes nothing, and records what the Triton route would launch on several cards."""

    name = "recording"

    def __init__(self, recorders: list[Recorder]) -> None:
        self.recorders = recorders

    def supports(self, problem: ConvProblem) -> bool:
        return True

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        for recorder in self.recorders:
            recorder.forward(problem, x, weight, bias)
        return x

    def backward(
        self, problem: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        for recorder in self.recorders:
            recorder.backward(problem, grad, x, weight, needs)
        return None, None, None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_every_kernel_that_yolov8n_needs_at_batch_16_has_run_in_the_child(dtype: torch.dtype) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    from patches.convolution.triton_kernels.ahead import Recorder, variant
    from patches.convolution.triton_kernels.tiles import NVIDIA, NVIDIA_HALF, RDNA, Tiles

    nvidia = NVIDIA if dtype == torch.float32 else NVIDIA_HALF
    cards = [Tiles(132, nvidia), Tiles(30, nvidia), Tiles(18, RDNA), Tiles(36, RDNA)]
    tested, needed = ([Recorder(0, tiles) for tiles in cards] for _ in range(2))
    for problem in selftest.problems_of("cpu", dtype):
        selftest._compare(Recording(tested), problem, "cpu")
    layers = load_layers(YOLOV8N, 16, "cpu", dtype)
    layers += [
        replace(each, channels_in=64, channels_out=4)
        for each in layers
        if (each.channels_out, each.bias) == (80, True)
    ]
    for layer in layers:
        for layout in (torch.contiguous_format, torch.channels_last):

            def empty(*shape: int, layout: torch.memory_format = layout) -> Tensor:
                return torch.empty(shape, dtype=dtype, device="meta", memory_format=layout)

            problem = replace(layer, channels_last=layout is torch.channels_last)
            x = empty(layer.batch, layer.channels_in, layer.height, layer.width)
            weight = empty(layer.channels_out, layer.channels_in, *layer.kernel)
            bias = torch.empty(layer.channels_out) if layer.bias else None
            Recording(needed).forward(problem, x, weight, bias)
            grad = empty(layer.batch, layer.channels_out, *layer.output_size)
            Recording(needed).backward(problem, grad, x, weight, (True, True, layer.bias))
    for wanted, known in zip(needed, tested, strict=True):
        missing = {variant(launch) for launch in wanted.made} - {variant(launch) for launch in known.made}
        assert not missing
