"""Which modules of a model the operation serves, and how it gets between them.

``Conv`` of Ultralytics (and what inherits its ``forward``) and ``torch.nn.Sequential`` call an activation on
what a batch norm returns. Their ``forward`` is replaced in the class while the patches are on; no module is,
so that state_dicts and checkpoints are what they were. Whatever is not plain (hooks, subclasses,
SyncBatchNorm, a graph being traced or compiled) goes the way that PyTorch goes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.modules import module as modules

from ..convolution.statistics import TileStatistics, with_statistics
from ..graphs import recording
from .concatenation import Part
from .operation import ComputationError, Implementation, apply
from .problem import NormProblem, Parameters
from .recomputing import let_go

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.SiLU: "silu",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.Hardswish: "hardswish",
}
"""Alone, a batch norm keeps no more than PyTorch's does: ``Identity`` is not served."""

Choose = Callable[[NormProblem, Tensor], "Implementation | None"]

MOST_KEYS = 8192
"""Distinct calls remembered; a run with random image sizes must not grow without bound."""


def _never() -> bool:
    """Stands in for a question that an older PyTorch cannot be asked."""
    return False


def _is_followed() -> bool:
    """Whether a hook is on all modules of the process, or forward-mode derivatives are being computed."""
    return bool(
        modules._global_forward_hooks
        or modules._global_forward_pre_hooks
        or modules._global_backward_hooks
        or modules._global_backward_pre_hooks
        or forward_ad._current_level >= 0
    )


_compiling: Callable[[], bool] = getattr(getattr(torch, "compiler", None), "is_compiling", _never)
_unusual: tuple[Callable[[], Any], ...] = (
    _is_followed,
    torch._C._get_tracing_state,
    *(
        getattr(torch._C, name)
        for name in (
            "_are_functorch_transforms_active",
            "_len_torch_dispatch_stack",
            "_len_torch_function_stack",
        )
        if hasattr(torch._C, name)
    ),
)
"""Hooks on all modules, forward-mode derivatives, a trace being recorded, transforms (vmap), modes (fake
tensors, counting flops)."""

_CONVOLVES = (nn.Module.__call__, nn.Conv2d.forward, nn.Conv2d._conv_forward)
"""What a convolution that nobody has changed goes through before it is one call of an operator."""


class Server:
    """Serves batch norm + activation on one kind of device.

    Args:
        device: "cuda" or "cpu".
        choose: who computes a problem on the device of a tensor; None: PyTorch.
        note: told what a person should know.
        recompute: whether the next convolution computes outputs on the device of a tensor again; asked once.

    Attributes:
        asks: whether convolutions are asked for the statistics of their output.
        joins: whether concatenations are made in place.
        attached: whether the replaced methods ask; somebody may hold one that is no longer in its place.
        recomputes: what ``recompute`` said; None before the first norm.
        served: calls that the operation served.
    """

    def __init__(
        self,
        device: str,
        choose: Choose,
        note: Callable[[str], None],
        recompute: Callable[[Tensor], bool] = lambda _: False,
    ) -> None:
        self.asks, self.joins, self.attached = True, True, False
        self.recomputes: bool | None = None
        self._recompute = recompute
        self.device, self._choose, self._note = device, choose, note
        self._known: dict[Any, Implementation | None] = {}
        self.served = 0

    def wants_statistics(self, norm: nn.Module, activation: nn.Module) -> bool:
        """Whether a batch norm would take the statistics of its input from who computes that."""
        return (
            self.asks and norm.training and type(norm) is nn.BatchNorm2d and type(activation) in ACTIVATIONS
        )

    def __call__(
        self,
        norm: nn.Module,
        activation: nn.Module,
        x: Tensor,
        tiles: TileStatistics | None = None,
        part: Part | None = None,
    ) -> Tensor | None:
        """act(norm(x)), or None when PyTorch is to do it. Not to be asked where :func:`disturbed` says so.

        ``tiles`` has the statistics of ``x``, where somebody left them; ``part`` says where that belongs.
        """
        kind = ACTIVATIONS.get(type(activation))
        if (
            kind is None
            or type(norm) is not nn.BatchNorm2d
            or type(x) is not Tensor
            or is_watched(norm.__dict__)
            or is_watched(activation.__dict__)
            or "weight" not in norm._parameters  # a replica of nn.DataParallel
        ):
            return None
        parameters, buffers = norm._parameters, norm._buffers
        weight, running = parameters["weight"], buffers["running_mean"]
        training = norm.training or running is None
        key = (
            x.shape,
            x.stride(),
            x.dtype,
            x.device,
            kind,
            activation.__dict__.get("negative_slope", 0.0),
            training,
            None if weight is None else (weight.dtype, weight.device),
            None if running is None else (running.dtype, running.device),
            norm.momentum is None,
            torch.is_grad_enabled(),
        )
        try:
            by = self._known[key]
        except KeyError:
            by = self._enter(key, kind, norm, x)
        if by is None:
            return None
        self.served += 1
        held = Parameters(
            weight, parameters["bias"], running, buffers["running_var"], buffers["num_batches_tracked"],
            norm.momentum or 0.0, norm.eps,
        )  # fmt: skip
        try:
            if self.device == "cuda" and x.get_device() != torch._C._cuda_getDevice():
                with torch.cuda.device(x.device):
                    return apply(x, held, by, tiles, part, bool(self.recomputes))
            return apply(x, held, by, tiles, part, bool(self.recomputes))
        except ComputationError as error:
            self._recover(key, by, error.__cause__)
            return None

    def kinds(self) -> set[str]:
        """The activations that any norm that came is computed together with."""
        return {kind for (_, _, _, _, kind, *_), by in self._known.items() if by is not None}

    def forget(self) -> None:
        """Let who computes each problem be decided anew."""
        self._known.clear()

    def _recover(self, key: tuple[Any, ...], by: Implementation, error: BaseException | None) -> None:
        """Leave a problem that could not be computed to PyTorch, from now on."""
        if error is not None and (isinstance(error, torch.cuda.OutOfMemoryError) or recording()):
            raise error
        self._known[key] = None
        self._note(f"{by.problem} goes to PyTorch's own kernels: {type(error).__name__}: {error}")

    def _enter(
        self, key: tuple[Any, ...], kind: str, norm: nn.BatchNorm2d, x: Tensor
    ) -> Implementation | None:
        if len(self._known) >= MOST_KEYS:
            self._known.clear()
        problem = self._problem(kind, key[5], norm, x)
        by = None if problem is None else self._choose(problem, x)
        if by is not None and self.recomputes is None:
            self.recomputes = self._recompute(x)
        self._known[key] = by
        return by

    def _problem(self, kind: str, slope: float, norm: nn.BatchNorm2d, x: Tensor) -> NormProblem | None:
        """The call as a problem; None where PyTorch has a say: odd arguments, and errors that it raises."""
        held = [norm.weight, norm.bias, norm.running_mean, norm.running_var]
        there = [each for each in held if each is not None]
        if x.device.type != self.device or x.dim() != 4 or x.numel() == 0 or x.shape[1] != norm.num_features:
            return None
        training = norm.training or norm.running_mean is None
        if (
            (held[0] is None) != (held[1] is None)
            or (held[2] is None) != (held[3] is None)
            or (norm.running_mean is not None and norm.num_batches_tracked is None)
            or any(each.device != x.device or each.shape != x.shape[1:2] for each in there)
            or any(not each.is_contiguous() for each in there)
            or not all(each.dtype in (torch.float32, x.dtype) for each in there)
            or norm.momentum is None
            or (training and x.numel() == x.shape[1])
        ):
            return None
        channels_last = not x.is_contiguous()
        if channels_last and not x.is_contiguous(memory_format=torch.channels_last):
            return None
        batch, channels, height, width = x.shape
        return NormProblem(
            batch,
            channels,
            height,
            width,
            x.dtype,
            channels_last,
            kind,
            slope,
            training,
            norm.weight is not None,
            norm.running_mean is not None,
        )


def disturbed() -> bool:
    """Whether somebody watches or changes what is called in this thread: a compiler, which must find this out
    first, hooks, a trace, transforms, modes.
    """
    if _compiling():
        return True
    for asked in _unusual:  # noqa: SIM110 - a generator would cost a microsecond
        if asked():
            return True
    return False


def is_watched(inside: dict[str, Any]) -> bool:
    """Whether a module has a ``forward`` of its own, compiled or not, or hooks, by its ``__dict__``."""
    return bool(
        "forward" in inside
        or inside.get("_compiled_call_impl")
        or inside["_forward_hooks"]
        or inside["_forward_pre_hooks"]
        or inside["_backward_hooks"]
        or inside["_backward_pre_hooks"]
    )


def is_plain(conv: nn.Module | None) -> bool:
    """Whether a convolution is one call of an operator, which nobody watches or changes."""
    if type(conv) is not nn.Conv2d:
        return False
    inside, held = conv.__dict__, conv._parameters
    return (
        held.get("weight") is not None
        and "bias" in held
        and not is_watched(inside)
        and inside["padding_mode"] == "zeros"
        and (nn.Module.__call__, nn.Conv2d.forward, nn.Conv2d._conv_forward) == _CONVOLVES
    )


def _convolve(conv: nn.Module, x: Tensor, summed: bool) -> tuple[Any, TileStatistics | None]:
    """``conv(x)``, without the ways through Python that change nothing for a plain convolution.

    With ``summed``, the output's statistics too where such a one left them.
    """
    if not is_plain(conv):
        return conv(x), None
    inside, held = conv.__dict__, conv._parameters
    given: tuple[Any, ...] = (
        x,
        held["weight"],
        held["bias"],
        inside["stride"],
        inside["padding"],
        inside["dilation"],
        inside["groups"],
    )
    out, tiles = with_statistics(F.conv2d, *given) if summed else (F.conv2d(*given), None)
    if getattr(x.grad_fn, "recipe", None) is not None:
        let_go(x, out)
    return out, tiles


def conv_forward(serve: Server, original: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of Ultralytics' Conv; a block that concatenates says in which part its output belongs."""

    @functools.wraps(original)
    def forward(self: Any, x: Tensor, part: Part | None = None) -> Any:
        if disturbed() or not serve.attached:
            return original(self, x)
        inside = self._modules
        conv, norm, activation = inside.get("conv"), inside.get("bn"), inside.get("act")
        if conv is None or norm is None or activation is None:
            return original(self, x)
        x, tiles = _convolve(conv, x, serve.wants_statistics(norm, activation))
        served = serve(norm, activation, x, tiles, part)
        return activation(norm(x)) if served is None else served

    return forward


def sequential_forward(serve: Server, original: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` of ``torch.nn.Sequential``."""

    @functools.wraps(original)
    def forward(self: Any, input: Any) -> Any:
        if disturbed() or not serve.attached:
            return original(self, input)
        tiles = None
        inside = list(self)
        modules = zip(inside, [*inside[1:], None], [*inside[2:], None, None])  # noqa: B905 - or it is empty
        for module, after, behind in modules:
            if type(module) is nn.BatchNorm2d and after is not None:
                served, tiles = serve(module, after, input, tiles), None
                if served is None:
                    input = module(input)
                else:
                    input = served
                    next(modules)
            elif type(module) is nn.Conv2d:
                summed = behind is not None and serve.wants_statistics(after, behind)
                input, tiles = _convolve(module, input, summed)
            else:
                input = module(input)
        return input

    return forward
