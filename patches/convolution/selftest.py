"""Trust no kernel before it has shown on this device that it computes what it should.

A kernel can hang, kill its process, or write nothing and report success. Therefore a route is tried in a
child process under a time limit, on a handful of problems in one dtype; every buffer that its Python code
allocates is filled with NaN first, and output and gradients are compared with float64 on the CPU. Importing
this module imports no torch.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .. import hashing
from ..environment import prepare
from ..stopwatch import Stopwatch
from . import processes
from .registry import ROUTES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from .problem import ConvProblem, Route

TIMEOUT = 300.0
"""Default time limit, seconds: importing torch, compiling up to 140 kernels on a slow processor, and room."""

TOLERANCE = {"float32": 1e-5, "float16": 1e-2, "bfloat16": 2e-2, "float64": 1e-12}
"""Largest relative error (Frobenius norm) by dtype: far above rounding, far below any mistake.

Rounding a result to bf16 costs 1.7e-3 (it keeps 8 bits), a sum rounded once an image 2e-3 with the two images
here; leaving out one product of 1152, the most that an output here sums, costs 3e-2.
"""

DTYPES = tuple(TOLERANCE)

WATCH = Stopwatch()
"""In the child: what its seconds are spent on."""

NOT_MEANT = "serves none of the problems of the self-test"
"""The reason of a route that is not meant for a dtype or a device: no fault of the card."""

TRITON = tuple(kind.name for kind in ROUTES if kind.package == "triton")
"""The routes whose kernels are compiled before the device is opened."""

COMPILED = (*TRITON, "fused batch norm")
"""What has kernels that are."""

EXAMINERS = {"fused batch norm": "..normalization.selftest", "vendor's batch norm": "..miopen"}
"""What is tested beside routes, and the module, seen from here, whose ``examine(device, dtype)`` does it."""

_FROM_OUTSIDE = [
    signal.Signals[name] for name in ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP") if hasattr(signal, name)
]
"""What a system short of memory or shutting down sends; no kernel ends its process so."""


@dataclass(frozen=True)
class SelfTestResult:
    """What became of one self-test.

    Attributes:
        route: its name.
        passed: whether the route may be used.
        reason: why not; empty when it passed.
        seconds: how long the test took.
        transient: whether it could not start, lacked memory or was ended from outside: the next may pass.
        phases: seconds of the child, by what it spent them on.
    """

    route: str
    passed: bool
    reason: str
    seconds: float
    transient: bool = False
    phases: dict[str, float] = field(default_factory=dict, compare=False)


def lacks_memory(message: str) -> bool:
    """Whether an error says that memory ran out, in PyTorch's words or in those of a vendor's library."""
    words = message.lower().replace("_", "")
    return any(each in words for each in ("out of memory", "allocfailed", "allocate memory", "memoryerror"))


def run(route: str, device: str, dtype: str = "float32", timeout: float = TIMEOUT) -> SelfTestResult:
    """Try a route on a device in a child process; never raises for what the route does.

    Args:
        route: a name that :func:`patches.convolution.routes.make` knows, or "module:attribute", or one of
            :data:`EXAMINERS`.
        device: "cpu", "cuda" or "cuda:1".
        dtype: one of :data:`TOLERANCE`.
        timeout: seconds after which the child is killed.
    """
    start = time.monotonic()
    try:
        child = processes.taken(route, device, dtype) or processes.Process(route, device, dtype)
    except OSError as error:  # no memory or no number left for a process
        return SelfTestResult(route, False, f"could not start: {error}", time.monotonic() - start, True)
    code, lines = child.finish(timeout)
    passed, reason, transient = _verdict(code, lines, timeout)
    return SelfTestResult(
        route, passed, reason, time.monotonic() - child.begun, transient, _phases(lines) if code == 0 else {}
    )


def _verdict(code: int | None, lines: list[str], timeout: float) -> tuple[bool, str, bool]:
    """What became of a child with this status and output: passed, reason, transient.

    Whatever ends a child before its first problem says nothing of the route. From there on, running into the
    time limit is not transient: a route that hangs would cost it at every start.
    """
    answers = [line for line in lines if line.startswith("{")]
    steps = [line.removeprefix("try: ") for line in lines if line.startswith("try: ")]
    where = f" at {steps[-1]}" if steps else " before the first problem"
    if code is None:
        return False, f"no answer within {timeout:.0f} s{where}", not steps
    if code < 0:
        outside = not steps or -code in _FROM_OUTSIDE
        return False, f"killed by {signal.Signals(-code).name}{where}", outside
    if code == 0 and answers:
        answer = json.loads(answers[-1])
        return bool(answer["passed"]), str(answer["reason"]), bool(answer["transient"])
    if any(map(lacks_memory, lines)):
        return False, f"not enough memory{where}", True
    return False, f"ended with status {code}{where}: {lines[-1] if lines else 'no output'}", not steps


def _phases(lines: list[str]) -> dict[str, float]:
    """What the child says its seconds were spent on."""
    answers = [line for line in lines if line.startswith("{")]
    return dict(json.loads(answers[-1])["phases"]) if answers else {}


def main() -> None:
    """The child: print what is being tried, then the answer as one line of JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("route")
    parser.add_argument("device")
    parser.add_argument("dtype", choices=sorted(TOLERANCE))
    parser.add_argument(processes.EARLY, action="store_true", help="wait for a line before the test")
    options = parser.parse_args()
    if options.early:
        global _early
        _early = True
    WATCH.add("start", time.monotonic() - float(os.environ.get(processes.BEGUN) or time.monotonic()))
    try:
        reason, transient = _examine(options.route, options.device, options.dtype), False
    except _CannotStart as error:
        reason, transient = str(error), True
    answer = {"passed": not reason, "reason": reason, "transient": transient, "phases": WATCH.seconds}
    sys.stdout.write(json.dumps(answer) + "\n")


class _CannotStart(Exception):
    """The route, which the parent has, cannot be made in the child."""


def _examine(name: str, device: str, dtype: str) -> str:
    """Why the route is not to be trusted; empty when it is."""
    if name in COMPILED and device != "cpu" and hasattr(os, "fork"):
        prepare()
        hashing.begin()  # while torch is imported
    with WATCH.during("imports"):
        import torch

        from .routes import make

    # TF32 is less exact by design and would look like a mistake.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    if name in EXAMINERS:
        module = importlib.import_module(EXAMINERS[name], __package__)
        found: str = module.examine(device, getattr(torch, dtype))
        return found
    try:
        route = make(name)
    except (ImportError, RuntimeError) as error:
        raise _CannotStart(f"not available: {error}") from error
    with _compiled_beside(name, device, getattr(torch, dtype)) as wait:
        wait_until_wanted()
        if device != "cpu":
            open_device(device)
        problems = [each for each in problems_of(device, getattr(torch, dtype)) if route.supports(each)]
        if not problems:
            return NOT_MEANT
        for problem in problems:
            with WATCH.during("references"):
                _reference(replace(problem, channels_last=False))  # while the kernels are compiled
            with WATCH.during("waiting for compilers"):
                wait(problem)
            with WATCH.during("tests"):
                reason = _compare(route, problem, device)
            if reason:
                return reason
    return ""


@contextmanager
def _compiled_beside(route: str, device: str, dtype: torch.dtype) -> Iterator[Callable[[ConvProblem], None]]:
    """Compile what the test will launch on all processors, forked before this process opens the device.

    Yields:
        What waits for the kernels of a problem.
    """
    from .. import compiling

    if route not in TRITON or device == "cpu" or not compiling.can_fork():
        yield lambda problem: None
        return
    with WATCH.during("imports"):
        from .triton_kernels.ahead import jobs_of_each

    say("compiling")
    with WATCH.during("hashing Triton"):
        hashing.wait()
    with WATCH.during("asking for the target"):
        target = compiling.target_of(device)
    with WATCH.during("starting compilers"), ExitStack() as stack:
        with hashing.beside():
            work, counts = jobs_of_each(problems_of(device, dtype), target.units, (route,))
        wait = stack.enter_context(compiling.beside(work, target))
        kept = stack.pop_all()
    with kept:
        yield lambda problem: wait(counts[problem])


_early = False
"""In the child: whether it was begun before anybody knew that its test is wanted."""


def wait_until_wanted() -> None:
    """In a child that was begun early, wait until the parent wants the test; end with one that never does."""
    if _early:
        with WATCH.during("waiting to be wanted"):
            if not sys.stdin.readline():
                sys.exit("not wanted")


def open_device(device: str) -> None:
    """Make the context of a device, which takes the driver a second or more, and select it."""
    import torch

    with WATCH.during("opening the device"):
        if ":" in device:
            torch.cuda.set_device(device)
        torch.zeros(1, device=device)
        torch.cuda.synchronize(device)


# Long: a list of problems, one a line.
def problems_of(device: str, dtype: torch.dtype) -> list[ConvProblem]:
    """One problem for each kind of kernel that a route may have.

    The first fill no tile evenly. The others allow 16 bytes to be read at once, and their channels and sizes
    choose every kernel of the Triton route that YOLOv8n needs at batch 16, with 80 classes or the
    challenge's four, in both layouts, on up to 162 compute units. Other kernels run for the first time where
    they are measured: those with 64-bit offsets (2^31 elements), those for dilation with a stride or for
    channels and taps that YOLOv8n lacks, and some of the small tiles of a small batch.
    """
    from .problem import ConvProblem

    def problem(
        channels: tuple[int, int], kernel: int, stride: int = 1, groups: int = 1, **other: Any
    ) -> ConvProblem:
        values: dict[str, Any] = {
            "batch": 2,
            "height": 21,
            "width": 19,
            "padding": (kernel // 2, kernel // 2),
            "dilation": (1, 1),
            "bias": False,
            "dtype": dtype,
            "channels_last": False,
        }
        return ConvProblem(
            channels_in=channels[0],
            channels_out=channels[1],
            kernel=(kernel, kernel),
            stride=(stride, stride),
            groups=groups,
            device=device.partition(":")[0],
            **{**values, **other},
        )

    row = [problem((32, 24), 3), problem((24, 40), 3, transposed=True, channels_last=True)]
    uneven = [
        problem((32, 24), 3),
        problem((3, 16), 3, stride=2),
        problem((40, 72), 1, bias=True),
        problem((24, 24), 3, groups=24),
        problem((24, 24), 3, groups=24, channels_last=True),
        problem((32, 48), 3, stride=2, groups=2, channels_last=True),
        problem((16, 16), 5, dilation=(2, 2), bias=True),
        problem((64, 64), 1, channels_last=True),
        *(replace(each, kernel=(1, 3), padding=(0, 1), height=1) for each in row),
        problem((24, 40), 3, transposed=True, bias=True),
        problem((24, 40), 2, stride=2, transposed=True, bias=True, padding=(0, 0), channels_last=True),
        problem((40, 24), 3, stride=2, groups=2, transposed=True, output_padding=(1, 1)),
        problem((24, 24), 3, groups=24, transposed=True, bias=True),
    ]
    small, medium, large = ({"height": size, "width": size} for size in (20, 52, 72))
    even = [
        problem((16, 16), 3, **small),
        problem((32, 32), 3, **small),
        problem((128, 128), 3, **small),
        problem((64, 64), 3, **large),
        problem((80, 80), 3, **medium),
        problem((128, 80), 3, **small),
        problem((3, 16), 3, stride=2, **large),
        problem((16, 32), 3, stride=2, **large),
        problem((32, 256), 3, stride=2, **large),
        problem((64, 64), 3, stride=2, **large),
        problem((64, 128), 3, stride=2, **large),
        problem((32, 32), 1, **large),
        problem((48, 32), 1, **large),
        problem((96, 64), 1, **large),
        problem((64, 64), 1, **large),
        problem((64, 64), 1, bias=True, **small),
        problem((64, 64), 1, bias=True, **large),
        problem((80, 80), 1, bias=True, **medium),
        problem((64, 4), 1, bias=True, **small),
        problem((64, 4), 1, bias=True, **large),
    ]
    return uneven + [replace(each, channels_last=layout) for each in even for layout in (False, True)]


def _compare(route: Route, problem: ConvProblem, device: str) -> str:
    """Run forward and backward of one problem against float64 on the CPU; what is wrong, or nothing."""
    import torch

    operands, truths = _reference(replace(problem, channels_last=False))
    x, weight, bias, grad = (each.to(device) for each in operands)
    for formats in problem.formats:
        how = f"{problem}{f', {formats}' * (formats != problem.formats[0])}"
        stored = zip((x, weight, grad), formats, strict=True)
        x, weight, grad = (each.contiguous(memory_format=format) for each, format in stored)
        with torch.inference_mode(), Poison():
            say(f"forward of {how}")
            out, wrong = _forward(route, problem, x, weight, bias if problem.bias else None)
            values: list[Tensor | None] = [out]
            _synchronise(device)
            say(f"backward of {how}")
            values.extend(route.backward(problem, grad, x, weight, (True, True, problem.bias)))
            _synchronise(device)
            if wrong():
                return f"statistics of {how} are wrong"
        names = ("output", "input gradient", "weight gradient", "bias gradient")
        for name, value, truth in zip(names, values, truths):  # noqa: B905 - no bias gradient without a bias
            if value is None or value.shape != truth.shape or value.dtype != problem.dtype:
                return f"{name} of {how} has the wrong form"
            error = float((value.cpu().double() - truth).norm() / truth.norm())
            if not error <= TOLERANCE[str(problem.dtype).removeprefix("torch.")]:
                return f"{name} of {how} is wrong: relative error {error:.1e}"
    return ""


def _forward(
    route: Route, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Callable[[], bool]]:
    """The output, and what says, once it is there, whether the statistics that a route left are wrong."""
    from .statistics import Summing, TileStatistics

    if not isinstance(route, Summing) or not route.sums(problem):
        return route.forward(problem, x, weight, bias), lambda: False
    out, left = route.forward_with_statistics(problem, x, weight)

    def wrong() -> bool:
        truth = TileStatistics.of(out.cpu(), left.pixels).table
        table = left.table.cpu().double()
        if table.shape != truth.shape:
            return True
        errors = (table - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1).clamp_min(1e-30)
        return not bool((errors <= TOLERANCE["float32"]).all())

    return out, wrong


@lru_cache(maxsize=1)
def _reference(problem: ConvProblem) -> tuple[list[Tensor], list[Tensor]]:
    """Input, weight, bias and output gradient; output and gradients in float64. Kept for the other layout."""
    import torch
    import torch.nn.functional as F

    generator = torch.Generator().manual_seed(0)
    shapes = [
        (problem.batch, problem.channels_in, problem.height, problem.width),
        problem.weight_shape,
        (problem.channels_out,),
        (problem.batch, problem.channels_out, *problem.output_size),
    ]
    operands = [torch.randn(shape, generator=generator).to(problem.dtype) for shape in shapes]
    leaves = [each.double().requires_grad_() for each in operands[:3]]
    settings: dict[str, Any] = {
        name: getattr(problem, name) for name in ("stride", "padding", "dilation", "groups")
    }
    convolve: Callable[..., Tensor] = F.conv2d
    if problem.transposed:
        convolve, settings["output_padding"] = F.conv_transpose2d, problem.output_padding
    out = convolve(leaves[0], leaves[1], leaves[2] if problem.bias else None, **settings)
    # Of a scalar: handed a gradient, autograd imports SymPy, which takes a quarter of the test's time.
    scalar = (out * operands[3].double()).sum()
    return operands, [out.detach(), *torch.autograd.grad(scalar, leaves[: 2 + problem.bias])]


def say(step: str) -> None:
    """Tell the parent what is tried next."""
    sys.stdout.write(f"try: {step}\n")
    sys.stdout.flush()


def _synchronise(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)


class Poison:
    """Inside, tensors that Python code allocates without a value hold NaN."""

    def __enter__(self) -> None:
        import torch

        self._places: list[tuple[Any, str, Callable[..., Tensor]]] = [
            (place, name, getattr(place, name))
            for place, name in [
                (torch, "empty"),
                (torch, "empty_like"),
                (torch, "empty_strided"),
                (torch.Tensor, "new_empty"),
                (torch.Tensor, "new_empty_strided"),
            ]
        ]
        for place, name, original in self._places:
            setattr(place, name, self._poisoned(original))

    def __exit__(self, *_: object) -> None:
        for place, name, original in self._places:
            setattr(place, name, original)

    @staticmethod
    def _poisoned(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def allocate(*args: Any, **kwargs: Any) -> Tensor:
            made = original(*args, **kwargs)
            return made.fill_(float("nan")) if made.is_floating_point() else made

        return allocate


if __name__ == "__main__":
    from . import selftest  # what other modules import, and not a second one beside it

    selftest.main()
