"""The two overrides in PyTorch's dispatcher, and the state behind them.

``aten::convolution`` and ``aten::convolution_backward`` are where every convolution of PyTorch ends: modules,
functional calls, autocast, checkpoints loaded later. Autograd sits above and stays PyTorch's own, double
backward included. Each call is reduced to a key that is cheap to build; the first call of a key decides who
serves it.
"""

from __future__ import annotations

import logging
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import miopen, variables
from .convolution.calls import Call, answers_channels_last, problem_of
from .convolution.native import call_backward, call_forward, is_overridden, switch
from .convolution.problem import ConvProblem, Gradients, Route
from .convolution.registry import NAMES
from .convolution.routes import make
from .convolution.settling import ASIDE, PLAN, SURVEY, quickest, winner
from .convolution.tuning import Planner
from .normalization import routes as normalizations
from .normalization.modules import Attachment, Server
from .report import FallThrough, ProblemUse, Report

MOST_KEYS = 8192
"""Distinct calls remembered; a run with random image sizes must not grow without bound."""

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_log = logging.getLogger(str(__package__))
_open_library: Callable[..., Any] = torch.library.Library
_cpu_autocast: Callable[[], bool] = (
    torch.is_autocast_cpu_enabled
    if torch.__version__.startswith("1.")
    else partial(torch.is_autocast_enabled, "cpu")
)

_records: Callable[[], bool] = torch._C._is_tracing
"""Whether ``torch.jit.trace``, or an ONNX export through it, writes down what this thread calls.

It sees through the overrides, and of a route it would keep the steps for this one size. Every other recorder
(FakeTensor, ``make_fx``, ``torch.export``, ``torch.compile``) stands above them and keeps the convolution."""

RECORDED = "recorded by torch.jit.trace"
"""Why a call that a tracer writes down is no call for a route."""

_WAYS = {PLAN: "the plan's choices stay", ASIDE: "PyTorch's own convolutions serve, the overrides are out"}

T = TypeVar("T")


class _Entry:
    """Who serves a key, and how often; the counts are exact while one thread runs each direction.

    Attributes:
        problem, route: None for a call that goes to PyTorch's own kernels untouched.
        reason: why it does; empty otherwise.
        is_row: whether it is 1-d, and the problem that of images with a single row.
    """

    __slots__ = ("backward", "forward", "is_row", "problem", "reason", "route")

    def __init__(
        self, problem: ConvProblem | None, route: Route | None, reason: str, is_row: bool = False
    ) -> None:
        self.problem, self.route, self.reason, self.is_row = problem, route, reason, is_row
        self.forward = self.backward = 0


class Session:
    """One ``enable``: the settings, the routes, and what happened.

    Args:
        device: "cuda" or "cpu".
        route: "auto" or the name of a route.
        column_budget: limit of the column buffer of the route "gemm", bytes.
        normalization: who computes a batch norm with the activation behind it.
        vendor: whether the vendor's library may serve.

    Raises:
        ValueError: as :func:`patches.enable` says.
    """

    def __init__(
        self, device: str, route: str, column_budget: int, normalization: str = "auto", vendor: str = "auto"
    ) -> None:
        if device not in _DISPATCH_KEYS:
            raise ValueError(f"device {device!r}: expected one of {', '.join(_DISPATCH_KEYS)}")
        if column_budget <= 0:
            raise ValueError(f"column budget {column_budget}: expected a positive number of bytes")
        self.device = device
        self.notes: list[str] = []
        self.route = variables.ROUTE.choose("route", route, ("auto", *NAMES))
        if self.route != route and (forced := variables.ROUTE.read()):
            self.note(f"{forced.name}={self.route} overrules route {route!r}{forced.advice}")
        self.normalization = normalizations.setting(normalization)
        self.vendor = miopen.setting(vendor)
        if (self.route, self.vendor) == ("library", "off"):
            raise ValueError("route 'library' is the vendor's, and vendor is 'off': leave one of them out")
        self._may_use_vendor = miopen.may_serve(self.vendor)
        self._norms = Server(
            device, normalizations.chooser(self.normalization, device, self._trusts), self.note
        )
        self._attachment = Attachment(self._norms)
        self.routes: dict[str, Route] = {}
        for name in NAMES:
            if name != "library" or self._may_use_vendor or self.route == name:
                self._add_route(name, column_budget)
        self.native = self.routes["native"]
        self._planners: dict[int, Planner] = {}
        self._entries: dict[tuple[Any, ...], _Entry] = {}
        self._retired: list[_Entry] = []
        self._further: dict[str, int] = {}
        self._passed: dict[str, int] = {}
        self._told_unsupported = False
        # Held by who decides about a key: one thread measures, and none chooses a route being struck off.
        self._deciding = threading.RLock()
        self._as_set: Any = nullcontext() if device == "cpu" else switch
        self._library: Any = None
        self.installed = False
        self._way = PLAN
        self._miopen_before: bool | None = None

    def install(self) -> None:
        """Put the overrides into the dispatcher."""
        self.installed = True
        self._tell_of_others()
        if self._way != ASIDE:
            self._override()
        if self.device == "cuda" and (self.vendor == "off" or (miopen.needed() and self.vendor == "auto")):
            self._miopen_before = miopen.switch_off()
        self._attach()

    def _tell_of_others(self) -> None:
        key = _DISPATCH_KEYS[self.device]
        if is_overridden(key):
            self.note(
                f"another library overrode aten::convolution for {key} before: the routes come first while "
                "they are enabled, and its kernel serves again afterwards"
            )

    def _override(self) -> None:
        key = _DISPATCH_KEYS[self.device]
        self._library = _open_library("aten", "IMPL")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "(?s).*Overriding a previously registered kernel")
            try:
                self._library.impl("convolution", self._convolution, key)
                self._library.impl("convolution_backward", self._convolution_backward, key)
            except RuntimeError as error:  # PyTorch 1 lets one library do so
                raise ValueError(f"another library overrode the convolutions before: {error}") from error

    def uninstall(self) -> None:
        """Take the overrides out of the dispatcher."""
        self.installed = False
        self._library = None
        self._attachment.detach()
        if self._miopen_before is not None:
            miopen.restore(self._miopen_before)
            self._miopen_before = None

    def _attach(self) -> None:
        """Serve batch norms too, of models whose classes exist by now; on a CPU only when asked to.

        PyTorch 1 keeps its own: hooks, transforms and half precision answer otherwise there.
        """
        if torch.__version__.startswith("1."):
            return
        if self.normalization != "off" and (self.device, self.normalization) != ("cpu", "auto"):
            self._attachment.attach()

    def _trusts(self, test: str, dtype: torch.dtype) -> bool:
        with self._deciding:
            return self.planner.trusted(test, dtype)

    def note(self, message: str) -> None:
        """Tell the person at the keyboard, and remember it for the report."""
        self.notes.append(message)
        _log.warning(message)

    def report(self) -> Report:
        """The counters as a value."""
        entries = [*self._retired, *self._entries.values()]
        uses: dict[tuple[ConvProblem, str], tuple[int, int]] = {}
        passed = dict(self._passed)
        for entry in entries:
            if entry.problem is None or entry.route is None:
                passed[entry.reason] = passed.get(entry.reason, 0) + entry.forward + entry.backward
            else:
                forward, backward = uses.get((entry.problem, entry.route.name), (0, 0))
                uses[entry.problem, entry.route.name] = (forward + entry.forward, backward + entry.backward)
        return Report(
            enabled=self.installed,
            device=self.device,
            route=self.route,
            problems=tuple(ProblemUse(problem, route, *counts) for (problem, route), counts in uses.items()),
            fall_throughs=tuple(FallThrough(reason, calls) for reason, calls in passed.items()),
            notes=tuple(self.notes),
            further=tuple(self._further.items()),
            normalizations=self._norms.served,
        )

    def _convolution(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
    ) -> Tensor:
        settings = (bias, stride, padding, dilation, transposed, output_padding, groups)
        if _records():
            self._count(RECORDED)
            return self._pass_on(call_forward, x, weight, *settings)
        key = (
            x.shape,
            weight.shape,
            None if bias is None else bias.shape,
            (*stride,),
            (*padding,),
            (*dilation,),
            groups,
            (*output_padding,) if transposed else None,
            answers_channels_last(x, weight),
            (x.device, weight.device, x.device if bias is None else bias.device),
            (x.dtype, weight.dtype, x.dtype if bias is None else bias.dtype),
        )
        entry = self._entries.get(key) or self._enter(key, x, weight)
        entry.forward += 1
        problem, route = entry.problem, entry.route
        if problem is None or route is None:
            return self._pass_on(call_forward, x, weight, *settings)
        if entry.is_row:
            x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        try:
            if self._guarded(x):
                with self._guard(x):
                    out = route.forward(problem, x, weight, bias)
            else:
                out = route.forward(problem, x, weight, bias)
        except Exception as error:
            out = self._recover(route, error, lambda: self.native.forward(problem, x, weight, bias))
        return out.squeeze(2) if entry.is_row else out

    def _convolution_backward(
        self,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        bias_sizes: list[int] | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
        output_mask: tuple[bool, bool, bool],
    ) -> Gradients:
        needs = (output_mask[0], output_mask[1], output_mask[2])
        settings = (bias_sizes, stride, padding, dilation, transposed, output_padding, groups, needs)
        if _records():
            self._count(RECORDED)
            return self._pass_on(call_backward, grad, x, weight, *settings)
        key = (
            x.shape,
            weight.shape,
            (*bias_sizes,) if bias_sizes and bias_sizes != [0] else None,
            (*stride,),
            (*padding,),
            (*dilation,),
            groups,
            (*output_padding,) if transposed else None,
            answers_channels_last(x, weight),
            (x.device, weight.device, grad.device),
            (x.dtype, weight.dtype, grad.dtype),
        )
        entry = self._entries.get(key) or self._enter(key, x, weight)
        entry.backward += 1
        problem, route = entry.problem, entry.route
        if problem is None or route is None:
            return self._pass_on(call_backward, grad, x, weight, *settings)
        if entry.is_row:
            grad, x, weight = grad.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2)
        try:
            if self._guarded(x):
                with self._guard(x):
                    found = route.backward(problem, grad, x, weight, needs)
            else:
                found = route.backward(problem, grad, x, weight, needs)
        except Exception as error:
            found = self._recover(route, error, lambda: self.native.backward(problem, grad, x, weight, needs))
        return _without_rows(found) if entry.is_row else found

    def _pass_on(self, call: Callable[..., T], *args: Any) -> T:
        """Serve a call with PyTorch's own kernels and its own switch of the vendor's library."""
        with self._as_set:
            return call(None, *args)

    def _count(self, reason: str) -> None:
        self._passed[reason] = self._passed.get(reason, 0) + 1

    def _enter(self, key: tuple[Any, ...], x: Tensor, weight: Tensor) -> _Entry:
        with self._deciding:
            entry = self._entries.get(key)
            if entry is None:
                if len(self._entries) >= MOST_KEYS:
                    self._forget()
                entry = self._decide(key, x, weight)
                self._entries[key] = entry
            return entry

    def _forget(self) -> None:
        """Drop every key, and keep of its counts what does not grow: the sums by route and by reason."""
        for entry in (*self._retired, *self._entries.values()):
            if entry.route is None:
                sums, name = self._passed, entry.reason
            else:
                sums, name = self._further, entry.route.name
            sums[name] = sums.get(name, 0) + entry.forward + entry.backward
        self._retired.clear()
        self._entries.clear()

    def _decide(self, key: tuple[Any, ...], x: Tensor, weight: Tensor) -> _Entry:
        self._attach()  # Ultralytics may have been imported since
        problem = problem_of(Call(*key), (x.layout, weight.layout), self.device)
        if isinstance(problem, str):
            return _Entry(None, None, problem)
        with self._guard(x):
            return _Entry(problem, self._choose(problem), "", is_row=x.dim() == 3)

    def _add_route(self, name: str, column_budget: int) -> None:
        try:
            self.routes[name] = make(name, column_budget)
        except ImportError as error:
            if self.route == name:
                raise ValueError(f"route {name!r} is not available: {error}") from error
        except RuntimeError as error:
            self.note(f"route {name} is not available: {error}")

    @property
    def planner(self) -> Planner:
        """The plan of the current device; made on first use, because that initialises the device."""
        index = 0 if self.device == "cpu" else torch.cuda.current_device()
        if index not in self._planners:
            made = self._planners[index] = Planner(self.device, self.routes, self.note)
            made.beside = normalizations.self_tests(self.normalization, made.device)
            self._judge_vendor()
        return self._planners[index]

    def _judge_vendor(self) -> None:
        """Give batch norm back to MIOpen where it is known to work and shows that it does."""
        wanted = self._miopen_before and self.vendor == "auto" and self._may_use_vendor
        if wanted and self._trusts(miopen.SELF_TEST, torch.float32):
            miopen.restore(True)
            self._miopen_before = None

    def _choose(self, problem: ConvProblem) -> Route:
        if self.route == "auto":
            if self.device == "cpu":
                return self.native
            if self._way == SURVEY:
                return self.planner.survey(problem)
            single = self.routes.get(self._way)
            if single and single.supports(problem) and self.planner.trusted(self._way, problem.dtype):
                return single
            return self.planner.choose(problem)
        wanted = self.routes.get(self.route, self.native)
        if not wanted.supports(problem):
            if not self._told_unsupported:
                self._told_unsupported = True
                self.note(
                    f"route {self.route} cannot serve {problem}; such problems go to PyTorch's own kernels "
                    "(this is said once, the report counts them)"
                )
            return self.native
        trusted = self.device == "cpu" or self.planner.trusted(self.route, problem.dtype)
        return wanted if trusted else self.native

    def settle(self, step: Callable[[], object]) -> str:
        """See :func:`patches.settle`."""
        if self.route != "auto" or self.device == "cpu" or not self.installed:
            return self.route
        way = PLAN
        try:
            self.find_out(step)
            problems = {entry.problem for entry in self._entries.values() if entry.problem is not None}
            if problems:
                file, ways = self.planner.file, (PLAN, *self._ways(problems))
                with file.testing():
                    name = self.planner.step_name(problems)
                    way = file.steps.get(name) or self._judge(name, ways, step)
        finally:
            self._use(way)
        return way

    def find_out(self, step: Callable[[], object]) -> None:
        """Measure every problem of a step, after one pass that only tells which they are."""
        self._use(SURVEY)
        step()
        self.planner.compile_ahead()
        self._use(PLAN)
        step()

    def _judge(self, name: str, ways: tuple[str, ...], step: Callable[[], object]) -> str:
        """Time a step by each way, and remember the best."""
        seconds = quickest(ways, self._use, step)
        way = winner(seconds)
        self.planner.file.remember({}, {}, {name: way})
        costs = ", ".join(f"{each} {taken * 1e3:.1f} ms" for each, taken in seconds.items())
        self.note(f"a training step by {costs}: {_WAYS.get(way, f'route {way} serves alone')}")
        return way

    def _ways(self, problems: Iterable[ConvProblem]) -> Iterator[str]:
        """What could serve every problem alone: trusted routes, and PyTorch without the overrides."""
        served = {
            name
            for name, route in self.routes.items()
            if all(route.supports(each) and self.planner.trusted(name, each.dtype) for each in problems)
        }
        yield from (name for name in served if name == "triton")
        if ("library" if torch.backends.cudnn.enabled else "native") in served:
            yield ASIDE

    def _use(self, way: str) -> None:
        """Let the plan, a single route or PyTorch itself serve from now on."""
        if way == self._way or not self.installed:
            return
        with self._deciding:
            self._way = way
            self._forget()
            if way == ASIDE:
                self._library = None
            elif self._library is None:
                self._override()

    def _recover(self, route: Route, error: Exception, again: Callable[[], T]) -> T:
        """Serve a call that ``route`` failed; if PyTorch's own kernels can, never use ``route`` again."""
        if route is self.native or isinstance(error, torch.cuda.OutOfMemoryError):
            raise error
        result = again()
        with self._deciding:
            if self.routes.pop(route.name, None) is not None:
                self.note(f"route {route.name} raised {type(error).__name__} ({error}) and is struck off")
                struck = [key for key, entry in self._entries.items() if entry.route is route]
                self._retired += [self._entries.pop(key) for key in struck]
        return result

    def _guarded(self, x: Tensor) -> bool:
        """Whether the surroundings of this call would change what a route computes, or where."""
        if self.device == "cpu":
            return _cpu_autocast()
        return torch.is_autocast_enabled() or x.get_device() != torch._C._cuda_getDevice()

    def _guard(self, x: Tensor) -> ExitStack:
        stack = ExitStack()
        stack.enter_context(torch.autocast(self.device, enabled=False))
        if self.device == "cuda":
            stack.enter_context(torch.cuda.device(x.device))
        return stack


def _without_rows(gradients: Gradients) -> Gradients:
    """The gradients of a 1-d convolution, from those of one with a single row."""
    x, weight, bias = gradients
    return None if x is None else x.squeeze(2), None if weight is None else weight.squeeze(2), bias


_session: Session | None = None
"""The newest session, kept after ``stop`` for its report."""


def start(
    device: str, route: str, column_budget: int, normalization: str = "auto", vendor: str = "auto"
) -> None:
    """See :func:`patches.enable`."""
    resume(Session(device, route, column_budget, normalization, vendor))


def resume(session: Session | None) -> None:
    """Make ``session`` the one whose overrides are in the dispatcher; None: take them out."""
    global _session
    stop()
    if session is not None:
        session.install()
        _session = session


def stop() -> None:
    """See :func:`patches.disable`."""
    if _session is not None:
        _session.uninstall()


def settle(step: Callable[[], object]) -> str:
    """See :func:`patches.settle`."""
    session = current()
    return "" if session is None else session.settle(step)


def current() -> Session | None:
    """The session whose overrides are in the dispatcher, if any."""
    return _session if _session is not None and _session.installed else None


def report() -> Report:
    """See :func:`patches.report`."""
    return Report(enabled=False, device="", route="") if _session is None else _session.report()
