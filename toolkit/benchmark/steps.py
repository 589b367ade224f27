"""Training steps of eight models by every way, taken in turn, so that a shared processor slows all alike."""

from __future__ import annotations

import gc
import operator
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

import patches
from patches import dispatch, graphs
from toolkit.training.steps import DetectorStep, TrainingStep

WAYS = ("no patches", "triton", "auto, batch norm off", "auto")
GRAPH = "auto, CUDA graph"
"""How `toolkit train` trains a detector where :func:`patches.settle_graph` finds it quicker."""

CLASSIFIERS = {"resnet50": 32, "mobilenet_v3_large": 32, "convnext_tiny": 16, "regnet_y_800mf": 32}
"""Of torchvision, at 224 px, by images a step."""

DETECTORS = {
    "yolov8n": (16, 3, 640),
    "yolov8m": (8, 3, 640),
    "yolo11s": (16, 3, 640),
    "yolo26n": (16, 1, 480),
}
"""Of Ultralytics, by images a step, channels and side of the images."""

MODELS = (*CLASSIFIERS, *DETECTORS)

Steps = tuple[Callable[[], object], Callable[[], object]]
"""A training step, and one that leaves no gradient, by which the patches settle."""


@dataclass(frozen=True)
class Way:
    """What a step costs by one way.

    Attributes:
        seconds: median; ratio: median, over rounds, of its time to that without patches.
        peak: most bytes held.
        settled: who serves, for "auto" (:func:`patches.settle`).
    """

    name: str
    seconds: float
    ratio: float
    peak: int
    settled: str


def steps(model: str, mixed: bool) -> Steps:
    """The steps of one of :data:`MODELS`, in fp32 and NCHW or in mixed precision and channels_last."""
    if model in DETECTORS:
        batch, channels, size = DETECTORS[model]
        whole = TrainingStep(f"{model}.yaml", batch, size, "cuda", channels, mixed, channels_last=mixed)
        return whole, DetectorStep(whole.model, whole.batch, whole.autocast)
    return _classifier(model, mixed)


def _classifier(name: str, mixed: bool) -> Steps:
    import torchvision

    torch.manual_seed(0)
    layout = torch.channels_last if mixed else torch.contiguous_format
    model = getattr(torchvision.models, name)().cuda().train().to(memory_format=layout)
    images = torch.rand(CLASSIFIERS[name], 3, 224, 224, device="cuda").contiguous(memory_format=layout)
    classes = torch.zeros(len(images), dtype=torch.int64, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(update: bool) -> None:
        with torch.autocast("cuda", enabled=mixed):
            loss = torch.nn.functional.cross_entropy(model(images), classes)
        torch.autograd.backward(loss)
        if update:
            optimizer.step()
        model.zero_grad()

    return partial(step, True), partial(step, False)


LEAST, SECONDS = 15, 10.0
"""Rounds that are taken, and how long more are begun: the median of few would choose by chance which of two
equal ways was best."""


def compare(model: str, mixed: bool) -> Iterator[Way]:
    """Time a model's step by each of :data:`WAYS`, and by :data:`GRAPH` where that serves; one step of each
    a round, behind one that is not timed."""
    gc.collect()
    torch.cuda.empty_cache()
    step, gradients = steps(model, mixed)
    sessions: dict[str, dispatch.Session | None] = dict.fromkeys(WAYS)
    settled, calls = dict.fromkeys(WAYS, ""), dict.fromkeys(WAYS, step)
    for name, route, normalization in (
        ("auto", "auto", "auto"),
        ("auto, batch norm off", "auto", "off"),
        ("triton", "triton", "auto"),
    ):
        patches.enable("cuda", route, normalization=normalization)
        settled[name] = patches.settle(gradients)
        sessions[name] = dispatch.current()
    peaks = {name: _peak(step, session) for name, session in sessions.items()}
    if isinstance(step, TrainingStep) and isinstance(gradients, DetectorStep):
        patches.enable("cuda")
        patches.settle(gradients)
        session = sessions[GRAPH] = dispatch.current()
        if session is not None and patches.settle_graph(gradients, gradients.recorded):
            calls[GRAPH], peaks[GRAPH] = recorded(step, session)
            settled[GRAPH] = session.way
    seconds, names = in_turn(calls, sessions), tuple(calls)
    patches.disable()
    plain = seconds[WAYS[0]]
    for name in names:
        ratio = statistics.median(map(operator.truediv, seconds[name], plain))
        yield Way(name, statistics.median(seconds[name]), ratio, peaks[name], settled[name])


def recorded(step: TrainingStep, session: dispatch.Session) -> tuple[Callable[[], object], int]:
    """A step as CUDA graphs, and most bytes held then: their memory is their own, whether a step uses it or
    not."""
    before = _unused()
    call = step.recorded()
    return call, _unused() - before + _peak(call, session)


def in_turn(
    calls: Mapping[str, Callable[[], object]],
    sessions: Mapping[str, dispatch.Session | None],
    more: float = SECONDS,
) -> dict[str, list[float]]:
    """Seconds of each call by its session, one a round: :data:`LEAST` rounds, then on for ``more`` seconds in
    all.

    An untimed call goes before each: what another way left of memory and caches costs the first one after it.
    """
    names = tuple(calls)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    begun, turn = time.perf_counter(), 0
    while turn < LEAST or time.perf_counter() - begun <= more:
        for name in names if turn % 2 else reversed(names):
            dispatch.resume(sessions[name])
            calls[name]()
            torch.cuda.synchronize()
            start = time.perf_counter()
            calls[name]()
            torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - start)
        turn += 1
    return seconds


def _unused() -> int:
    """Bytes that PyTorch has taken of the card and cannot give back, although nothing is in them."""
    return graphs.reserved() - torch.cuda.memory_allocated()


def _peak(step: Callable[[], object], session: dispatch.Session | None) -> int:
    """Most bytes that a step holds at once; of the step before it there were kernels to compile."""
    dispatch.resume(session)
    step()
    torch.cuda.reset_peak_memory_stats()
    step()
    return torch.cuda.max_memory_allocated()
