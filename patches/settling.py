"""Judging a plan by what a training step costs: the routes that win layer by layer may lose together.

A layer in a loop says little about the host: handing a call to PyTorch's own kernels costs more than calling
them, and on a quick card a step waits for the host. So the step by the plan's choices is timed against the
step by each single route, and against PyTorch without the overrides.
"""

from __future__ import annotations

import operator
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch

from . import graphs
from .convolution.problem import ConvProblem
from .convolution.registry import ROUTES

if TYPE_CHECKING:
    from .dispatch import Session

PLAN = "plan"
"""The plan's choice for each problem."""

ASIDE = "aside"
"""PyTorch's own convolutions: the overrides take themselves out."""

OUT = "out"
"""PyTorch's own convolutions and batch norms: all that was replaced takes itself out."""

SURVEY = "survey"
"""No way of its own: nobody computes anything while the problems of a step are found out (``blank``)."""

WAYS = {
    PLAN: "the plan's choices stay",
    ASIDE: "PyTorch's own convolutions serve, the overrides are out",
    OUT: "PyTorch's own convolutions and batch norms serve",
}
"""What is said of a way that won."""

ROUNDS, MOST, SECONDS = 9, 30, 10.0
"""Every way is timed once a round, so that a processor shared with others slows all of them alike: those that
are close after the first number of rounds up to the second one. No round begins after so many seconds, but
three are taken."""

CLOSE = 1.06
"""Two ways whose times have at most this ratio are not told apart by the first rounds: on a host shared with
others, two measurements of one way by as many differed by 5 %."""

GAIN = 0.98
"""A way replaces the plan's choices when it takes at most this part of their time: smaller differences are
within what two measurements of the same step differ by."""


def settle(session: Session, step: Callable[[], object]) -> str:
    """See :func:`patches.settle`."""
    if session.route != "auto" or session.device == "cpu" or not session.installed:
        return session.route
    way = PLAN
    try:
        find_out(session, step)
        problems = session.ledger.problems()
        if problems:
            file, choices = session.planner.file, (PLAN, *ways(session, problems))
            with file.testing():
                name = session.planner.step_name(problems)
                way = file.steps.get(name) or judge(session, name, choices, step)
    finally:
        session.use(way)
    return way


EAGER = "eager"
"""What is remembered of a step whose graph is not quicker."""

GRAPH_GAIN = 0.9
"""A graph keeps its memory to itself, so it has to bring more than a way."""


def settle_graph(
    session: Session, step: Callable[[], object], record: Callable[[], Callable[[], object]]
) -> bool:
    """See :func:`patches.settle_graph`."""
    settled = way = session.way
    try:
        session.use(PLAN)  # aside, the overrides would not see the problems
        step()
        problems = session.ledger.problems()
        session.use(settled)
        name = f"{session.planner.step_name(problems)} {settled} graph"
        choices = (PLAN, *ways(session, problems)) if session.route == "auto" else (settled,)
        file = session.planner.file
        with file.testing():
            found = file.steps.get(name) or _judge_graph(session, name, choices, step, record)
        way = settled if found == EAGER else found
    finally:
        session.use(way)
    return found != EAGER


def _judge_graph(
    session: Session,
    name: str,
    choices: Iterable[str],
    step: Callable[[], object],
    record: Callable[[], Callable[[], object]],
) -> str:
    """Time the step, and by each way a graph of it: the way of the quickest graph, or :data:`EAGER`."""
    seconds = {EAGER: timed(step)}
    for way in choices:
        session.use(way)
        try:
            replay = record()
            seconds[way] = timed(replay)
        except graphs.failures() as error:  # memory that does not suffice is one: it may another time
            found = str(error).partition("\n")[0]
            session.note(f"no CUDA graph of a training step: {type(error).__name__}: {found}")
            return EAGER
        del replay
    best = min(set(seconds) - {EAGER}, key=seconds.__getitem__)
    way = best if seconds[best] <= GRAPH_GAIN * seconds[EAGER] else EAGER
    session.planner.file.remember({}, {}, {name: way})
    costs = ", ".join(f"{each} {taken * 1e3:.1f} ms" for each, taken in seconds.items())
    session.note(
        f"a training step {costs}, all but the first as a CUDA graph: "
        + ("no graph serves" if way == EAGER else f"the graph by {way} serves")
    )
    return way


def timed(step: Callable[[], object]) -> float:
    """Median seconds of a step, after one that is not counted."""
    return statistics.median([_once(step) for _ in range(ROUNDS)][1:])


def _once(step: Callable[[], object]) -> float:
    """Seconds of a step alone: what came before it is waited for."""
    _wait()
    start = time.perf_counter()
    step()
    _wait()
    return time.perf_counter() - start


def find_out(session: Session, step: Callable[[], object]) -> None:
    """Test and measure every problem of a step, after one pass that only tells which they are."""
    planner = session.planner
    with planner.watch.during("survey"):
        session.use(SURVEY)
        step()
    planner.get_ready(session.ledger.problems())
    with planner.watch.during("a step that measures"):
        session.use(PLAN)
        step()


def judge(session: Session, name: str, choices: tuple[str, ...], step: Callable[[], object]) -> str:
    """Time a step by each way, and remember the best."""
    seconds = quickest(choices, session.use, step)
    way = winner(seconds)
    session.planner.file.remember({}, {}, {name: way})
    costs = ", ".join(f"{each} {taken * 1e3:.1f} ms" for each, taken in seconds.items())
    session.note(f"a training step by {costs}: {WAYS.get(way, f'route {way} serves alone')}")
    return way


def ways(session: Session, problems: Iterable[ConvProblem]) -> Iterator[str]:
    """What could serve every problem alone: trusted routes with kernels of their own, and PyTorch aside.

    A route that needs no package is made of PyTorch's operations, and each of those costs the host a call.
    Batch norms are fused for the memory too: PyTorch's own are tried where that saves none.
    """
    served = {
        name
        for name, route in session.routes.items()
        if all(route.supports(each) and session.planner.trusted(name, each.dtype) for each in problems)
    }
    yield from (kind.name for kind in ROUTES if kind.package and kind.name in served)
    if ("library" if torch.backends.cudnn.enabled else "native") in served:
        yield ASIDE
        if session.norms.only_takes_time():
            yield OUT


def quickest(ways: Iterable[str], use: Callable[[str], None], step: Callable[[], object]) -> dict[str, float]:
    """Seconds of a step by each way: the plan's median, the others by their median ratio to it in a round.

    Args:
        ways: names; :data:`PLAN` first.
        use: makes a way the one that serves.
        step: forward and backward.
    """
    ways = list(ways)
    found: dict[str, list[float]] = {way: [] for way in ways}
    begun = time.perf_counter()
    for turn in range(MOST):
        if turn > 2 and time.perf_counter() - begun > SECONDS:
            break
        if turn == ROUNDS:
            ratios = _to_plan(found)
            close = [way for way in ways if ratios[way] <= CLOSE * min(ratios.values())]
            if len(close) == 1:
                break
            ways = [PLAN, *(way for way in close if way != PLAN)]
        for way in ways if turn % 2 else reversed(ways):
            use(way)
            step()
            found[way].append(_once(step))
    plan = statistics.median(found[PLAN])
    return {way: ratio * plan for way, ratio in _to_plan(found).items()}


def _to_plan(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians, over the rounds of a way, of its time to that by the plan."""
    return {way: statistics.median(map(operator.truediv, each, found[PLAN])) for way, each in found.items()}


def winner(seconds: Mapping[str, float]) -> str:
    """The quickest way; the plan's choices unless another is quicker by more than chance."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] <= GAIN * seconds[PLAN] else PLAN


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
