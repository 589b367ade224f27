#!/usr/bin/env python3
"""Microseconds of the host for a small convolution and a block of Ultralytics', down to the launch.

    OMP_NUM_THREADS=1 python3 scripts/bench_host_path.py
    python3 scripts/bench_host_path.py --device cuda

The Triton route serves, 64 channels, on a card on a 20 x 20 image. On the CPU its launches end at a function
in C that does nothing, so that what remains is everything before them: keys, allocations, arguments.
"override" is from the entry of the override in ATen's dispatcher to its return, all launches included; the
other columns are the whole call of the operator from Python, by PyTorch as it comes (on a card: cuDNN) and
patched. A block is convolution, batch norm and SiLU, one of a chain of ten, through autograd. Medians of many
short samples, in turn; on the CPU of the thread's own time. There, the functions that one patched call enters
follow, in Python and in C: they do not depend on the load. Needs Triton.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
import torch.nn.functional as F
from torch import Tensor

import patches
from patches import compiling, dispatch
from toolkit.benchmark.measure import forced_route, missing_device

LAYERS = {"1x1": (1, 1), "3x3": (3, 1), "3x3 depthwise": (3, 64)}
"""Kernel and groups."""

Calls = dict[str, tuple[Callable[[], object], Callable[[], object]]]
"""By name: the operator, and the override itself."""


BLOCKS = 10
"""In a chain."""

SIZE = {"cpu": 4, "cuda": 20}
"""Side of the image: on the CPU, what PyTorch copies there should take no time."""


class Launcher:
    """Stands in for a kernel that is compiled and loaded, and for what Triton launches it with."""

    function, packed_metadata = 1, (4, 1, 0)
    launch = "".format
    """A function in C that takes everything."""

    @property
    def run(self) -> Launcher:
        return self

    def __call__(self, *given: object) -> None:
        self.launch(*given)


@contextmanager
def patched(device: str) -> Iterator[None]:
    """With the patches on; on the CPU with the Triton route, whose launches do nothing."""
    if device == "cuda":
        with patches.enabled(device, "triton"):
            yield
        return
    from triton.runtime import driver

    from patches.convolution.triton_kernels import route
    from patches.convolution.triton_kernels.launch import Launch
    from patches.normalization.launches import Kernels

    target = compiling.Target("cuda", 90, 32, 132)
    with (
        mock.patch.object(driver, "_active", compiling.Deviceless(target)),
        mock.patch.object(route, "_available", lambda device: True),
        mock.patch.object(Launch, "compiled", lambda *_: Launcher()),
        patches.enabled(device, "triton", normalization="triton"),
    ):
        session().norms._choose = lambda problem, x: Kernels(problem, 0, target.units)
        session()._is_fused = lambda dtype: True
        yield


def microseconds(call: Callable[[], object], device: str, loops: int, samples: int = 21) -> float:
    """Median time until a call returns; few enough at a time that the card's queue never fills."""
    found = []
    clock = time.perf_counter if device == "cuda" else time.thread_time
    for _ in range(samples):
        if device == "cuda":
            torch.cuda.synchronize()
        start = clock()
        for _ in range(loops):
            call()
        found.append((clock() - start) / loops * 1e6)
    return statistics.median(found)


def entered(call: Callable[[], object]) -> tuple[int, int]:
    """Functions that a call enters in this thread, in Python and in C."""
    counts = {"call": 0, "c_call": 0}

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event in counts:
            counts[event] += 1

    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return counts["call"], counts["c_call"] - 1  # but for the one that ends this


def calls(x: Tensor, weight: Tensor, groups: int) -> Calls:
    """Forward, the gradients one by one, and both together, as a training step asks for them."""
    pad = weight.shape[2] // 2
    settings: tuple[Any, ...] = ([1, 1], [pad, pad], [1, 1], False, [0, 0], groups)
    grad = torch.randn_like(x)
    operator = torch.ops.aten.convolution_backward.default

    def forward() -> object:
        return session()._convolution(x, weight, None, *settings)

    def backward(*needs: bool) -> tuple[Callable[[], object], Callable[[], object]]:
        return (
            lambda: operator(grad, x, weight, [0], *settings, list(needs)),
            lambda: session()._convolution_backward(grad, x, weight, [0], *settings, needs),  # type: ignore[arg-type]
        )

    return {
        "forward": (lambda: F.conv2d(x, weight, None, 1, pad, 1, groups), forward),
        "input gradient": backward(True, False, False),
        "weight gradient": backward(False, True, False),
        "both gradients": backward(True, True, False),
    }


def blocks(kernel: int, groups: int, device: str) -> dict[str, Callable[[], object]]:
    """A chain of blocks: forward, and forward and backward."""
    from ultralytics.nn.modules.conv import Conv

    torch.manual_seed(0)
    chain = [Conv(64, 64, kernel, g=groups).train().to(device) for _ in range(BLOCKS)]
    parameters = [each for block in chain for each in block.parameters()]
    x = torch.randn(1, 64, SIZE[device], SIZE[device], device=device)
    grad = torch.randn_like(x)

    def forward() -> Tensor:
        out = x
        for block in chain:
            out = block(out)
        return out

    def both() -> None:
        torch.autograd.backward(forward(), grad)
        for each in parameters:
            each.grad = None

    return {"forward": forward, "forward + backward": both}


def session() -> dispatch.Session:
    """The one whose overrides are in the dispatcher."""
    found = dispatch.current()
    assert found is not None
    return found


def row(
    name: str, device: str, call: Callable[[], object], share: int, own: Callable[[], object] | None
) -> str:
    """One line: times of one of ``share`` parts of a call, plain and patched in turn; what is entered."""
    loops = {"cpu": 200, "cuda": 50}[device] // share
    turns: list[tuple[float, float, float]] = []
    counts = ""
    for _ in range(3):
        plain = microseconds(call, device, loops)
        with patched(device):
            for _ in range(2):
                call()
            ours = microseconds(call, device, loops)
            alone = float("nan") if own is None else microseconds(own, device, loops)
            if device == "cpu":
                python, c = entered(call)
                counts = f" {python / share:>9.1f} {c / share:>9.1f}"
        turns.append((plain / share, ours / share, alone))
    plain, ours, alone = (statistics.median(each) for each in zip(*turns, strict=True))
    override = "" if own is None else f"{alone:.2f}"
    return f"{name:<36} {plain:>9.2f} {ours:>9.2f} {override:>9}{counts}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    device: str = parser.parse_args().device
    obstacle = forced_route() or missing_device(device)
    if obstacle:
        sys.exit(obstacle)
    columns = f"{'microseconds a call':<36} {'PyTorch':>9} {'patched':>9} {'override':>9}"
    print(columns + (f" {'Python':>9} {'C':>9}" if device == "cpu" else ""))
    for layer, (kernel, groups) in LAYERS.items():
        x = torch.randn(1, 64, SIZE[device], SIZE[device], device=device)
        weight = torch.randn(64, 64 // groups, kernel, kernel, device=device)
        with torch.no_grad():
            for name, (operator, override) in calls(x, weight, groups).items():
                print(row(f"{layer}, {name}", device, operator, 1, override), flush=True)
        for name, chain in blocks(kernel, groups, device).items():
            print(row(f"{layer} block, {name}", device, chain, BLOCKS, None), flush=True)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, Python {sys.version.split()[0]}")


if __name__ == "__main__":
    main()
