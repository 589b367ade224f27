"""What the patches did: the value that ``patches.report()`` returns. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .convolution.problem import ConvProblem


@dataclass(frozen=True)
class ProblemUse:
    """How often one problem came by, and who served it."""

    problem: ConvProblem
    route: str
    forward: int
    backward: int


@dataclass(frozen=True)
class FallThrough:
    """Calls that no route is meant for and that went to PyTorch's own kernels."""

    reason: str
    calls: int


@dataclass(frozen=True)
class Report:
    """What happened to the convolutions of this process since ``patches.enable``.

    Attributes:
        enabled: whether the patches are on now.
        device: "cuda" or "cpu"; empty before the first ``enable``.
        route: the route asked for ("auto", "gemm", ...).
        problems: one entry for each problem and route, in the order in which they first came.
        fall_throughs: calls served by PyTorch's own kernels: 3-d, empty, of integers, recorded.
        notes: what a person should know, oldest first: a forced route, a route struck off and why.
        further: calls, forward and backward, by route, of problems that became too many to list.
        normalizations: batch norms that were computed together with the activation behind them.
        way: who serves since ``patches.settle``, in words; empty where the plan's choices do.
    """

    enabled: bool
    device: str
    route: str
    problems: tuple[ProblemUse, ...] = ()
    fall_throughs: tuple[FallThrough, ...] = ()
    notes: tuple[str, ...] = ()
    further: tuple[tuple[str, int], ...] = ()
    normalizations: int = 0
    way: str = ""

    @property
    def calls(self) -> int:
        """All calls of ``aten::convolution`` and ``aten::convolution_backward`` on the device."""
        return sum(self.by_route().values()) + sum(each.calls for each in self.fall_throughs)

    def by_route(self) -> dict[str, int]:
        """Calls, forward and backward, of each route."""
        totals = dict(self.further)
        for use in self.problems:
            totals[use.route] = totals.get(use.route, 0) + use.forward + use.backward
        return totals

    def __str__(self) -> str:
        if not self.device:
            return "convolution patches: never enabled"
        state = "on" if self.enabled else "off"
        lines = [f"convolution patches: {state}, {self.device}, route {self.route}, {self.calls:,} calls"]
        if self.way:
            lines.append(f"  by what a training step takes: {self.way}")
        lines += [f"  {route}: {calls:,} calls" for route, calls in self.by_route().items()]
        if self.problems:
            lines.append(f"  {'forward':>9} {'backward':>9}  {'route':<8} problem")
            lines += [
                f"  {use.forward:>9,} {use.backward:>9,}  {use.route:<8} {use.problem}"
                for use in self.problems
            ]
        lines += [
            f"  {calls:,} earlier calls of {route} not listed by problem" for route, calls in self.further
        ]
        if self.normalizations:
            lines.append(f"  batch norm and activation in one: {self.normalizations:,} calls")
        lines += [f"  not ours: {each.reason}: {each.calls:,} calls" for each in self.fall_throughs]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
