"""A model, or what a program printed, with a route and without it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import convroutes
import torch
from torch import Tensor, nn

MOST = 1e-10
"""Largest difference that passes, relative to the largest value of a tensor."""

FLOOR = 1e-4
"""Part of the model's largest value below which a tensor is not compared with itself.

A gradient that is zero but for rounding, as of a bias that a later batch norm takes away, has no digits to
agree in: without the routes too, the batch in another order changes it by more than its size. What passes
is 1e-14 of the model's largest value: 45 roundings."""

Maker = Callable[[], nn.Module]
Caller = Callable[[nn.Module], Any]


@dataclass(frozen=True)
class Row:
    """One model or program: what came out, and how many convolutions a route served."""

    name: str
    passed: bool
    found: str
    served: int
    seconds: float


def compared(name: str, make: Maker, call: Caller) -> Row:
    """A model's output and gradients by the route, against the same without it."""
    begun = time.perf_counter()
    try:
        torch.manual_seed(0)
        model = make().double().train()
        plain = _outcome(model, call)
        with convroutes.enabled("cpu", route="gemm"):
            served = _outcome(model, call)
            done = convroutes.report()
    except Exception as error:
        return Row(name, False, f"{type(error).__name__}: {error}"[:200], 0, time.perf_counter() - begun)
    floor = FLOOR * max(float(each.abs().max()) for each in plain if each.numel())
    worst = max(_difference(ours, theirs, floor) for ours, theirs in zip(served, plain, strict=True))
    calls = done.by_route().get("gemm", 0)
    others = sum(each.calls for each in done.fall_throughs)
    words = f"{worst:.1e}" + (f", {others} calls passed on" if others else "")
    return Row(name, worst <= MOST and calls > 0, words, calls, time.perf_counter() - begun)


def _outcome(model: nn.Module, call: Caller) -> list[Tensor]:
    buffers = {name: each.clone() for name, each in model.named_buffers()}
    torch.manual_seed(1)  # dropout
    outputs = list(_tensors(call(model)))
    model.zero_grad()
    total = torch.stack([out.square().mean() for out in outputs]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    gradients = [each.grad.clone() for each in model.parameters() if each.grad is not None]
    with torch.no_grad():
        for name, each in model.named_buffers():
            each.copy_(buffers[name])
    return [*(out.detach() for out in outputs), *gradients]


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        if value.requires_grad:
            yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)
    elif hasattr(value, "sample"):
        yield value.sample


def _difference(ours: Tensor, theirs: Tensor, floor: float) -> float:
    largest = max(floor, float(theirs.abs().max()) if theirs.numel() else 0.0)
    return float((ours - theirs).abs().max()) / largest if theirs.numel() and largest else 0.0


REPORTED = re.compile(r"route gemm, ([\d,]+) calls")

PROGRAMS = Path(__file__).parent / "programs"
"""Where the programs are that run as they are."""


def run(
    folder: str, script: Path, *words: str, served: bool, torchrun: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a .py file in a folder by this Python: as it is, or through the route gemm.

    Args:
        served: whether a route serves it, with a report at its end.
        torchrun: processes that torchrun starts it in; 0 for none.
    """
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={torchrun}"] if torchrun else []
    )
    program = [*launcher, str(script), *words]
    options = ["-m", "convroutes", "run", "--route=gemm", "--device=cpu", "--report", "--"] if served else []
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": folder}
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **quiet}
    command = [sys.executable, *options, *program]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def complaint(done: Sequence[subprocess.CompletedProcess[str]]) -> str:
    """The statuses and the last words of programs of which one failed; "" where none did."""
    failed = [each for each in done if each.returncode]
    if not failed:
        return ""
    last = failed[0].stderr.strip().splitlines()[-1:]
    return f"status {', '.join(str(each.returncode) for each in done)}: {' '.join(last)}"


def calls(done: subprocess.CompletedProcess[str]) -> int:
    """Convolutions that the route served, by the reports of a program's processes."""
    return sum(int(each.replace(",", "")) for each in REPORTED.findall(done.stderr))


def said(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The line of JSON that a program printed last; empty where it printed none."""
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    found: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return found


def worst(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference, relative to each number or a thousandth; infinite where the counts differ."""
    if not ours or len(ours) != len(theirs):
        return float("inf")
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in zip(ours, theirs, strict=True))
