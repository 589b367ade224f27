"""Blocks of Ultralytics' models that concatenate, with the parts written in place.

``C2f``, ``RepNCSPELAN4`` and ``C3``, and what inherits their ``forward``, as ``C3k2`` does, concatenate what
their own convolutions wrote, for a last one to read. Here each of these is told where its output belongs.
Calls, their order and their numbers are those of the original; a block with something that is not plain, or
whose ``forward`` reads otherwise than it did when this was written, goes the original's way.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from .concatenation import Part, Whole, add, join
from .modules import (
    Server,
    conv_forward,
    convolved,
    disturbed,
    is_plain,
    is_watched,
    sequential_forward,
)

Forward = Callable[..., Any]
Way = Callable[[Any, Tensor, "Part | None"], Any]
"""A module's ``forward``, told where its output belongs; None: nowhere."""

KNOWN = {
    "Sequential": (
        "torch.nn.modules.container",
        """
        def forward(self, input):
            for module in self:
                input = module(input)
            return input
        """,
    ),
    "Conv": (
        "ultralytics.nn.modules.conv",
        """
        def forward(self, x):
            return self.act(self.bn(self.conv(x)))
        """,
    ),
    "Bottleneck": (
        "ultralytics.nn.modules.block",
        """
        def forward(self, x):
            return x + self.cv2(self.cv1(x)) if self.add else self.cv2(self.cv1(x))
        """,
    ),
    "C3": (
        "ultralytics.nn.modules.block",
        """
        def forward(self, x):
            return self.cv3(torch.cat((self.m(self.cv1(x)), self.cv2(x)), 1))
        """,
    ),
    "C2f": (
        "ultralytics.nn.modules.block",
        """
        def forward(self, x):
            y = list(self.cv1(x).chunk(2, 1))
            y.extend(m(y[-1]) for m in self.m)
            return self.cv2(torch.cat(y, 1))
        """,
    ),
    "RepNCSPELAN4": (
        "ultralytics.nn.modules.block",
        """
        def forward(self, x):
            y = list(self.cv1(x).chunk(2, 1))
            y.extend((m(y[-1])) for m in [self.cv2, self.cv3])
            return self.cv4(torch.cat(y, 1))
        """,
    ),
}
"""The module of each class that is served, and what its ``forward`` does (Ultralytics 8.4.190, torch 2)."""

_CALL = nn.Module.__call__


@functools.cache
def is_known(name: str, forward: Forward) -> bool:
    """Whether a ``forward`` is its class's own and does what :data:`KNOWN` says, annotations apart."""
    home, expected = KNOWN[name]
    if getattr(forward, "__module__", "") != home or hasattr(forward, "__wrapped__"):
        return False  # somebody replaced it
    try:
        return _read(inspect.getsource(forward)) == _read(expected)
    except (OSError, TypeError, SyntaxError):
        return False


def _read(source: str) -> list[str]:
    """The names of a function's arguments, and what it does."""
    (function,) = ast.parse(textwrap.dedent(source)).body
    assert isinstance(function, ast.FunctionDef)
    body = function.body[ast.get_docstring(function) is not None :]
    return [*(each.arg for each in function.args.args), *map(ast.dump, body)]


class Blocks:
    """Who knows where a module's output may be written.

    Args:
        serve: computes the batch norms.
    """

    def __init__(self, serve: Server) -> None:
        self._serve = serve
        self._ways: dict[Forward, Way] = {}
        self._learnable: dict[str, Way] = {
            "Conv": self._conv,
            "Sequential": self._sequential,
            "Bottleneck": self._bottleneck,
            "C3": self.c3,
            "C2f": functools.partial(self.split, inner=lambda module: module.m, last="cv2"),
            "RepNCSPELAN4": functools.partial(
                self.split, inner=lambda module: (module.cv2, module.cv3), last="cv4"
            ),
        }

    def learn(self, name: str, forward: Forward) -> None:
        """Tell modules with this ``forward``, that of the class of this name, where their output belongs."""
        self._ways[forward] = self._learnable[name]

    def forget(self) -> None:
        """Tell nobody any more."""
        self._ways.clear()

    def knows(self, forward: Forward) -> bool:
        """Whether modules with this ``forward`` are told."""
        return forward in self._ways

    def replaced(self, name: str, original: Forward) -> Forward:
        """``forward`` of a class in place of the original; of "Bottleneck", who needs none, that one."""
        serve, way = self._serve, self._learnable[name]
        if name in ("Sequential", "Conv"):
            return (sequential_forward if name == "Sequential" else conv_forward)(serve, original)
        if name == "Bottleneck":
            return original

        @functools.wraps(original)
        def forward(module: Any, x: Tensor) -> Any:
            if disturbed() or not serve.attached or not serve.joins:
                return original(module, x)
            out = way(module, x, None)
            return original(module, x) if out is None else out

        return forward

    def _into(self, module: nn.Module, x: Tensor, part: Part | None) -> Any:
        """``module(x)``, in the place of a part where it can be written there."""
        way = self._ways.get(type(module).forward)
        if (
            part is None
            or way is None
            or is_watched(module.__dict__)
            or nn.Module.__call__ is not _CALL
            or (out := way(module, x, part)) is None
        ):
            return module(x)
        return out

    def _conv(self, module: Any, x: Tensor, part: Part | None) -> Any:
        inside = module._modules
        conv, norm, activation = inside.get("conv"), inside.get("bn"), inside.get("act")
        if conv is None or norm is None or activation is None:
            return None
        return convolved(self._serve, conv, norm, activation, x, part)

    def _sequential(self, module: Any, x: Tensor, part: Part | None) -> Any:
        inside = list(module)
        if not inside or not self.knows(type(inside[-1]).forward):
            return None  # also: its batch norms are fused by its own forward
        for each in inside[:-1]:
            x = each(x)
        return self._into(inside[-1], x, part)

    def _bottleneck(self, module: Any, x: Tensor, part: Part | None) -> Any:
        if not module.add:
            return self._into(module.cv2, module.cv1(x), part)
        return add(x, module.cv2(module.cv1(x)), part)

    def c3(self, module: Any, x: Tensor, part: Part | None) -> Any:
        """``C3``: the outputs of two branches."""
        whole = self._whole(module.cv3)
        if whole is None:
            return None
        one = self._into(module.m, module.cv1(x), Part(whole, 0))
        other = self._into(module.cv2, x, Part(whole, one.shape[1]))
        return self._into(module.cv3, join(whole, (one, other)), part)

    def split(
        self,
        module: Any,
        x: Tensor,
        part: Part | None,
        *,
        inner: Callable[[Any], Sequence[nn.Module]],
        last: str,
    ) -> Any:
        """``C2f``: both halves of the first convolution's output, and what a chain makes of the second."""
        end = getattr(module, last)
        whole = self._whole(end)
        if whole is None:
            return None
        parts = list(self._into(module.cv1, x, Part(whole, 0)).chunk(2, 1))
        first = sum(each.shape[1] for each in parts)
        for each in inner(module):
            parts.append(self._into(each, parts[-1], Part(whole, first)))
            first += parts[-1].shape[1]
        return self._into(end, join(whole, parts), part)

    def _whole(self, last: Any) -> Whole | None:
        """What a last convolution reads; None where somebody else may see or change that."""
        if (
            not self.knows(type(last).forward)
            or is_watched(last.__dict__)
            or not is_plain(last._modules.get("conv"))
        ):
            return None
        return Whole(last.conv.in_channels)
