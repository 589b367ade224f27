"""What a step costs that concatenates in place or by copies, and keeps outputs or computes them again."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

import patches
from patches import dispatch
from toolkit.benchmark.steps import DETECTORS, in_turn, recorded
from toolkit.training.steps import TrainingStep

WAYS = {
    "copied, kept": (False, False),
    "in place, kept": (True, False),
    "copied, computed again": (False, True),
    "in place, computed again": (True, True),
}
"""Whether concatenations are made in place, and whether outputs are computed again."""


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
        sessions[way], (calls[way], peaks[way]) = session, _recorded(step, session)
    seconds = in_turn(calls, sessions, more=0)
    patches.disable()
    for way in WAYS:
        yield Kept(way, statistics.median(seconds[way]), peaks[way])


def _recorded(step: TrainingStep, session: dispatch.Session) -> tuple[Callable[[], object], int]:
    """The step as CUDA graphs, and the most bytes that it holds beside what is there."""
    gc.collect()
    torch.cuda.empty_cache()
    held = torch.cuda.memory_allocated()
    call, peak = recorded(step, session)
    return call, peak - held
