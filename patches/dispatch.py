"""The overrides in PyTorch's dispatcher, and the state behind them.

``aten::convolution`` and ``aten::convolution_backward`` are where every convolution of PyTorch ends: modules,
functional calls, autocast, checkpoints loaded later. A graph of TorchScript calls ``aten::_convolution``, a
step below. Autograd sits above and stays PyTorch's own, double backward included. Each call is reduced to a
key that is cheap to build; the first call of a key decides who serves it.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import graphs, miopen, settling, startup, variables
from .convolution.blank import Blank
from .convolution.calls import Call, answers_channels_last, problem_of
from .convolution.native import call_backward, call_forward, record_forward, switch
from .convolution.problem import ConvProblem, Gradients, Route
from .convolution.registry import NAMES
from .convolution.routes import available
from .convolution.statistics import QUESTION, Summing, answering
from .convolution.tuning import Planner
from .ledger import Entry, Ledger
from .normalization import routes as normalizations
from .normalization.attachment import Attachment
from .normalization.modules import Server
from .overrides import Overrides
from .report import Report
from .settling import ASIDE, PLAN, SURVEY, described, parted

_DISPATCH_KEYS = {"cpu": "CPU", "cuda": "CUDA"}
_log = logging.getLogger(str(__package__))
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

T = TypeVar("T")


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
        if column_budget <= 0:
            raise ValueError(f"column budget {column_budget}: expected a positive number of bytes")
        self.device = device
        self.notes: list[str] = []
        self.route = variables.ROUTE.choose("route", route, ("auto", *NAMES))
        if self.route != route and (forced := variables.ROUTE.read()):
            self.note(f"{forced.name}={self.route} overrules route {route!r}{forced.advice}")
        self.normalization, vendor = normalizations.setting(normalization), miopen.setting(vendor)
        if (self.route, vendor) == ("library", "off"):
            raise ValueError("route 'library' is the vendor's, and vendor is 'off': leave one of them out")
        self._is_fused = normalizations.fused_dtypes(self.normalization, device, self._trusts)
        choose = normalizations.chooser(self.normalization, self._is_fused)
        self.norms = Server(device, choose, self.note, normalizations.recomputing(device))
        self._attachment = Attachment(self.norms, normalizations.may_attach(self.normalization, device))
        self._switch = miopen.Switch(vendor, device)
        names = [each for each in NAMES if each != "library" or self._switch.may_serve or self.route == each]
        self.routes = available(names, column_budget, self.route, self.note)
        self.native, self._blank = self.routes["native"], Blank()
        self._planners: dict[int, Planner] = {}
        self.ledger, self._told_unsupported = Ledger(), False
        # Held by who decides about a key: one thread measures, and none chooses a route being struck off.
        self._deciding = threading.RLock()
        self._as_set: Any = nullcontext() if device == "cpu" else switch
        self._overrides = Overrides(_DISPATCH_KEYS[device], self._convolution, self._convolution_backward)
        self.installed, self.way = False, PLAN

    def install(self) -> None:
        """Put the overrides into the dispatcher."""
        self.installed = True
        shared = self._overrides.shared()
        self._let_serve()
        if shared:
            self.note(shared)
        self._switch.turn_off()

    def uninstall(self) -> None:
        """Take the overrides out of the dispatcher."""
        self.installed = False
        self._overrides.take_out()
        self._attachment.detach()
        self._switch.turn_back()

    def _trusts(self, test: str, dtype: torch.dtype) -> bool:
        with self._deciding:  # while problems are found out, nobody is: they are tested together after that
            return self.way != SURVEY and self.planner.trusted(test, dtype)

    def note(self, message: str) -> None:
        """Tell the person at the keyboard, and remember it for the report."""
        self.notes.append(message)
        _log.warning(message)

    def report(self) -> Report:
        """The counters as a value."""
        return self.ledger.report(
            enabled=self.installed,
            device=self.device,
            route=self.route,
            notes=tuple(self.notes),
            normalizations=self.norms.served,
            way="" if self.way == PLAN else described(self.way),
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
            self.ledger.count(RECORDED)
            return self._pass_on(record_forward, x, weight, *settings)
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
        entry = self.ledger.entries.get(key) or self._enter(key, x, weight)
        entry.forward += 1
        problem, route = entry.problem, entry.route
        if problem is None or route is None:
            return self._pass_on(call_forward, x, weight, *settings)
        if entry.is_row:
            x, weight = x.unsqueeze(2), weight.unsqueeze(2)
        forward = _answering(entry, problem, route, self._is_fused) if QUESTION.open else route.forward
        try:
            if _is_guarded(self.device, x):
                with _guard(self.device, x):
                    out = forward(problem, x, weight, bias)
            else:
                out = forward(problem, x, weight, bias)
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
            self.ledger.count(RECORDED)
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
        entry = self.ledger.entries.get(key) or self._enter(key, x, weight)
        entry.backward += 1
        problem, route = entry.problem, entry.route
        if problem is None or route is None:
            return self._pass_on(call_backward, grad, x, weight, *settings)
        if entry.is_row:
            grad, x, weight = grad.unsqueeze(2), x.unsqueeze(2), weight.unsqueeze(2)
        try:
            if _is_guarded(self.device, x):
                with _guard(self.device, x):
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

    def _enter(self, key: tuple[Any, ...], x: Tensor, weight: Tensor) -> Entry:
        with self._deciding:
            return self.ledger.entries.get(key) or self.ledger.add(key, self._decide(key, x, weight))

    def _decide(self, key: tuple[Any, ...], x: Tensor, weight: Tensor) -> Entry:
        self._attachment.follow()  # Ultralytics may have been imported since
        problem = problem_of(Call(*key), (x.layout, weight.layout), self.device)
        if isinstance(problem, str):
            return Entry(None, None, problem)
        with _guard(self.device, x):
            return Entry(problem, self._choose(problem), "", is_row=x.dim() == 3)

    @property
    def planner(self) -> Planner:
        """The plan of the current device; made on first use, because that initialises the device."""
        index = 0 if self.device == "cpu" else torch.cuda.current_device()
        if index not in self._planners:
            made = self._planners[index] = Planner(self.device, self.routes, self.note)
            made.beside = normalizations.self_tests(self.normalization, made.device)
            self._switch.judge(self._trusts)
        return self._planners[index]

    def _choose(self, problem: ConvProblem) -> Route:
        if self.route == "auto":
            if self.device == "cpu":
                return self.native
            if self.way == SURVEY:
                return self._blank
            single = self.routes.get(parted(self.way)[0])
            if single and single.supports(problem) and self.planner.trusted(single.name, problem.dtype):
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

    def use(self, way: str) -> None:
        """Let the plan, a single route or PyTorch itself serve from now on, with fused norms or PyTorch's."""
        if way == self.way or not self.installed:
            return
        with self._deciding:
            if self.way == SURVEY:
                self.norms.forget()
            self.way = way
            self.ledger.forget()
            self._let_serve()

    def _let_serve(self) -> None:
        convolutions, fused = parted(self.way)
        (self._overrides.take_out if convolutions == ASIDE else self._overrides.put)()
        (self._attachment.attach if fused else self._attachment.detach)()

    def _recover(self, route: Route, error: Exception, again: Callable[[], T]) -> T:
        """Serve a call that ``route`` failed; if PyTorch's own kernels can, never use ``route`` again."""
        if route is self.native or isinstance(error, torch.cuda.OutOfMemoryError) or graphs.recording():
            raise error
        result = again()
        with self._deciding:
            if self.routes.pop(route.name, None) is not None:
                self.note(f"route {route.name} raised {type(error).__name__} ({error}) and is struck off")
                self.ledger.strike(route)
        return result


def _answering(
    entry: Entry, problem: ConvProblem, route: Route, is_fused: Callable[[torch.dtype], bool]
) -> Callable[..., Tensor]:
    """The route's forward pass for who asks for statistics: where a batch norm reads them, it leaves some."""
    if entry.answering is None:
        entry.answering = route.forward
        asked = not entry.is_row and is_fused(problem.dtype)
        if asked and isinstance(route, Summing) and route.sums(problem):
            entry.answering = partial(answering, route)
    return entry.answering


def _is_guarded(device: str, x: Tensor) -> bool:
    """Whether the surroundings of a call would change what a route computes, or where."""
    if device == "cpu":
        return _cpu_autocast()
    return torch.is_autocast_enabled() or x.get_device() != torch._C._cuda_getDevice()


def _guard(device: str, x: Tensor) -> ExitStack:
    stack = ExitStack()
    stack.enter_context(torch.autocast(device, enabled=False))
    if device == "cuda":
        stack.enter_context(torch.cuda.device(x.device))
    return stack


def _without_rows(gradients: Gradients) -> Gradients:
    """The gradients of a 1-d convolution, from those of one with a single row."""
    x, weight, bias = gradients
    return None if x is None else x.squeeze(2), None if weight is None else weight.squeeze(2), bias


_session: Session | None = None
"""The newest session, kept after ``stop`` for its report."""


def start(
    device: str | torch.device | None,
    route: str,
    column_budget: int,
    normalization: str = "auto",
    vendor: str = "auto",
) -> None:
    """See :func:`patches.enable`."""
    graphs.allowed()  # what nobody understands is refused now
    resume(Session(kind_of(device), route, column_budget, normalization, vendor))


def kind_of(device: str | torch.device | None) -> str:
    """ "cuda" or "cpu".

    Raises:
        ValueError: the device is of another kind, or none at all.
    """
    kind, colon, index = str(startup.default_device() if device is None else device).partition(":")
    if kind not in _DISPATCH_KEYS or (colon and not index.isdecimal()):
        raise ValueError(f"device {str(device)!r}: expected one of {', '.join(_DISPATCH_KEYS)}")
    return kind


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
    return "" if session is None else settling.settle(session, step)


def settle_graph(step: Callable[[], object], record: Callable[[], Callable[[], object]]) -> bool:
    """See :func:`patches.settle_graph`."""
    session = current()
    if session is None or not (graphs.allowed() and graphs.available()):
        return False
    return settling.settle_graph(session, step, record)


def current() -> Session | None:
    """The session whose overrides are in the dispatcher, if any."""
    return _session if _session is not None and _session.installed else None


def report() -> Report:
    """See :func:`patches.report`."""
    return Report(enabled=False, device="", route="") if _session is None else _session.report()
