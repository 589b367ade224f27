"""Judging a plan by what a training step costs: the routes that win layer by layer may lose together.

A layer in a loop says little about the host: handing a call to PyTorch's own kernels costs more than calling
them, and on a quick card a step waits for the host. So the step by the plan's choices is timed against the
step by each single route, and against PyTorch without the overrides. The quickest is then timed against
itself with PyTorch's own batch norms, because a fused one costs the host more than PyTorch's on some cards.
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

OWN_NORMS = " with PyTorch's norms"
"""Behind the name of a way: its batch norms are PyTorch's own, and none is fused with what stands behind it.

Behind :data:`ASIDE` that is PyTorch itself: all that was replaced takes itself out."""

SURVEY = "survey"
"""No way of its own: nobody computes anything while the problems of a step are found out (``blank``)."""

WAYS = {
    PLAN: "the plan's choices stay",
    ASIDE: "PyTorch's own convolutions serve, the overrides are out",
    ASIDE + OWN_NORMS: "PyTorch's own convolutions and batch norms serve, all that was replaced is out",
}
"""What is said of a way that won, where :func:`described` has no rule."""

ROUNDS, MOST = 9, 30
"""Every way is timed once a round, so that a processor shared with others slows all of them alike: those that
are close after the first number of rounds up to the second one."""

SECONDS, NORM_SECONDS = 10.0, 5.0
"""No round of ways, and none with PyTorch's own batch norms, begins after so many seconds, but three of each
are taken."""

CLOSE = 1.06
"""Two ways whose times have at most this ratio are not told apart by the first rounds: on a host shared with
others, two measurements of one way by as many differed by 5 %."""

GAIN = 0.98
"""A way replaces the plan's choices, and PyTorch's batch norms fused ones, when it takes at most this part of
their time: smaller differences are within what two measurements of the same step differ by."""


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
                name = step_name(session, problems)
                known = file.steps.get(name, "")
                # Nothing is known, or a way that another version had, or that is trusted no more.
                way = known if parted(known)[0] in choices else judge(session, name, choices, step)
    finally:
        session.use(way)
    return way


def parted(way: str) -> tuple[str, bool]:
    """Who computes the convolutions by a way, and whether its batch norms are fused."""
    convolutions = way.removesuffix(OWN_NORMS)
    return convolutions, convolutions == way


def described(way: str) -> str:
    """A way that serves, in words."""
    convolutions, fused = parted(way)
    said = WAYS.get(way) or WAYS.get(convolutions, f"route {convolutions} serves alone")
    return said if fused or way in WAYS else f"{said}, batch norms are PyTorch's own"


def step_name(session: Session, problems: Iterable[ConvProblem]) -> str:
    """The name in the file of a training step: another where the batch norms are asked for otherwise, or are
    fused with other activations, or their outputs computed again, which keeps more or less memory."""
    fused = "+".join(sorted(session.norms.kinds())) or "none"
    if session.norms.recomputes:
        fused += " recomputed"
    return f"{session.planner.step_name(problems)} batch norm {session.normalization} fused {fused}"


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
        name = f"{step_name(session, problems)} {settled} graph"
        offered = (PLAN, *ways(session, problems)) if session.route == "auto" else ()
        # In a graph norms cost the host nothing: only a way that serves without fused ones is tried so.
        choices = tuple(dict.fromkeys((*offered, settled)))
        file = session.planner.file
        with file.testing():
            found = file.steps.get(name, "")
            if found not in (EAGER, *choices):
                found = _judge_graph(session, name, choices, step, record)
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
    seconds, complete = {EAGER: timed(step)}, True
    for way in choices:
        session.use(way)
        try:
            replay = record()
            seconds[way] = timed(replay)
        except graphs.failures() as error:  # memory that does not suffice is one: it may another time
            found, fused = str(error).partition("\n")[0], parted(way)[1]
            what = "" if fused else " with PyTorch's own batch norms"
            session.note(f"no CUDA graph of a training step{what}: {type(error).__name__}: {found}")
            if fused:
                return EAGER
            complete = False  # PyTorch's keep more: a graph with fused ones may have its place
            continue
        del replay
    by_graph = {each: taken for each, taken in seconds.items() if each != EAGER}
    first = min((each for each in by_graph if parted(each)[1]), key=by_graph.__getitem__)
    best = winner(by_graph, first)
    way = best if seconds[best] <= GRAPH_GAIN * seconds[EAGER] else EAGER
    if complete:
        _remember(session, name, way)
    costs = ", ".join(f"{each} {taken * 1e3:.1f} ms" for each, taken in seconds.items())
    session.note(
        f"a training step {costs}, all but the first as a CUDA graph: "
        + ("no graph serves" if way == EAGER else f"the graph by {way} serves")
    )
    return way


def _remember(session: Session, name: str, way: str) -> None:
    """Remember who serves a step, unless a self-test is repeated at the next start: what it keeps out now may
    serve better then."""
    file = session.planner.file
    if not any(each.transient for each in file.verdicts.values()):
        file.remember({}, {}, {name: way})


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
    """Time a step by each way, the best ones without fused batch norms too, and remember the best.

    Where outputs are computed again, memory is short, and fused ones stay.
    """
    seconds = quickest(choices, session.use, step)
    way, complete = winner(seconds), True
    if session.normalization == "auto" and session.norms.kinds() and not session.norms.recomputes:
        try:
            seconds = {**seconds, **_without_norms(session, seconds, way, step)}
        except RuntimeError as error:  # PyTorch's keep more: the memory may suffice another time
            found, complete = str(error).partition("\n")[0], False
            session.note(f"no training step with PyTorch's own batch norms: {type(error).__name__}: {found}")
        way = winner(seconds, way)
    if complete:
        _remember(session, name, way)
    costs = ", ".join(f"{each} {taken * 1e3:.1f} ms" for each, taken in seconds.items())
    session.note(f"a training step by {costs}: {described(way)}")
    return way


def _without_norms(
    session: Session, seconds: Mapping[str, float], way: str, step: Callable[[], object]
) -> dict[str, float]:
    """Seconds of a step with PyTorch's own batch norms by ``way``, by those close to the best, and by
    :data:`ASIDE`: fused norms serve some better than others, so that another one may be the best without.
    """
    limit = CLOSE * min(seconds.values())
    tried = [each for each, taken in seconds.items() if taken <= limit or each in (way, ASIDE)]
    found = quickest([way, *(each + OWN_NORMS for each in tried)], session.use, step, NORM_SECONDS)
    scale = seconds[way] / found.pop(way)
    return {each: taken * scale for each, taken in found.items()}


def ways(session: Session, problems: Iterable[ConvProblem]) -> Iterator[str]:
    """What could serve every problem alone: trusted routes with kernels of their own, and PyTorch aside.

    A route that needs no package is made of PyTorch's operations, and each of those costs the host a call.
    """
    served = {
        name
        for name, route in session.routes.items()
        if all(route.supports(each) and session.planner.trusted(name, each.dtype) for each in problems)
    }
    yield from (kind.name for kind in ROUTES if kind.package and kind.name in served)
    if ("library" if torch.backends.cudnn.enabled else "native") in served:
        yield ASIDE


def quickest(
    ways: Iterable[str], use: Callable[[str], None], step: Callable[[], object], limit: float = SECONDS
) -> dict[str, float]:
    """Seconds of a step by each way: the first's median, the others by their median ratio to it in a round.

    Args:
        ways: names; first the one that the others are to replace.
        use: makes a way the one that serves.
        step: forward and backward.
        limit: seconds after which no round begins.
    """
    ways = list(ways)
    first = ways[0]
    found: dict[str, list[float]] = {way: [] for way in ways}
    begun = time.perf_counter()
    for turn in range(MOST):
        if turn > 2 and time.perf_counter() - begun > limit:
            break
        if turn == ROUNDS:
            ratios = _to_first(found)
            close = [way for way in ways if ratios[way] <= CLOSE * min(ratios.values())]
            if len(close) == 1:
                break
            ways = [first, *(way for way in close if way != first)]
        for way in ways if turn % 2 else reversed(ways):
            use(way)
            step()
            found[way].append(_once(step))
    median = statistics.median(found[first])
    return {way: ratio * median for way, ratio in _to_first(found).items()}


def _to_first(found: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Medians, over the rounds of a way, of its time to that of the first."""
    first = next(iter(found.values()))
    return {way: statistics.median(map(operator.truediv, each, first)) for way, each in found.items()}


def winner(seconds: Mapping[str, float], way: str = PLAN) -> str:
    """The quickest way; ``way`` unless that takes at most the part :data:`GAIN` of its time."""
    best = min(seconds, key=seconds.__getitem__)
    return best if seconds[best] <= GAIN * seconds[way] else way


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
