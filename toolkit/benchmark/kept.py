"""What a step costs that concatenates in place or by copies, and keeps outputs or computes them again."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import patches
from patches import dispatch, graphs
from toolkit.benchmark.steps import DETECTORS
from toolkit.training.steps import TrainingStep

WAYS = {
    "copied, kept": (False, False),
    "in place, kept": (True, False),
    "copied, computed again": (False, True),
    "in place, computed again": (True, True),
}
"""Whether concatenations are made in place, and whether outputs are computed again."""

ROUNDS = 15
"""Steps of each way, taken in turn, each behind one that is not timed."""


@dataclass(frozen=True)
class Kept:
    """A step by one of :data:`WAYS`.

    Attributes:
        seconds: median; peak: most bytes held beside model, images and optimizer.
    """

    way: str
    seconds: float
    peak: int


def compare(model: str, mixed: bool) -> Iterator[Kept]:
    """Steps of one of :data:`~toolkit.benchmark.steps.DETECTORS` by every way, by the Triton route as CUDA
    graphs."""
    batch, channels, size = DETECTORS[model]
    step = TrainingStep(f"{model}.yaml", batch, size, "cuda", channels, mixed, channels_last=mixed)
    sessions: dict[str, dispatch.Session] = {}
    calls: dict[str, Callable[[], object]] = {}
    peaks: dict[str, int] = {}
    for way, (joins, recomputes) in WAYS.items():
        patches.enable("cuda", "triton")
        session = dispatch.current()
        assert session is not None
        session.norms.joins, session.norms.recomputes = joins, recomputes
        step()
        sessions[way], (calls[way], peaks[way]) = session, _recorded(step)
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(ROUNDS):
        for way in WAYS if turn % 2 else reversed(WAYS):
            dispatch.resume(sessions[way])
            for _ in range(2):
                start = time.perf_counter()
                calls[way]()
                torch.cuda.synchronize()
            seconds[way].append(time.perf_counter() - start)
    patches.disable()
    for way in WAYS:
        yield Kept(way, statistics.median(seconds[way]), peaks[way])


def _recorded(step: TrainingStep) -> tuple[Callable[[], object], int]:
    """The step as CUDA graphs, and the most bytes that it holds: a graph's memory is its own."""
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    before = graphs.reserved() - held
    call = step.recorded()
    own = graphs.reserved() - torch.cuda.memory_allocated() - before
    call()
    torch.cuda.reset_peak_memory_stats()
    call()
    return call, own + torch.cuda.max_memory_allocated() - held
