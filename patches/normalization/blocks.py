"""Blocks of Ultralytics' models that concatenate, with the parts written in place.

``C2f``, ``RepNCSPELAN4`` and ``C3``, and what inherits their ``forward``, as ``C3k2`` does, concatenate what
their own convolutions wrote, for a last one to read. Here each of these is told where its output belongs.
Calls, their order and their numbers are those of the original.

Parts share memory with the whole, are strided, and must not change. So a block goes the original's way
unless all that reads a part is known, plain, and watched by nobody: convolutions, and sums with what they
make of it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

import torch  # torch.jit.script looks up what an original calls here
from torch import Tensor, nn

from .concatenation import Part, Whole, add, join
from .modules import (
    Server,
    conv_forward,
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

READERS = {"Bottleneck": ("cv1",), "C3": ("cv1", "cv2"), "C2f": ("cv1",), "RepNCSPELAN4": ("cv1",)}
"""Which modules of a block read what it is handed. A ``Bottleneck`` also adds it."""

LEAST = 16 * 2**20
"""Bytes of the smallest whole that is written in place: the host needs longer for that than for a copy, about
0.1 ms a block, which a smaller one is not worth."""

_CALLS = (nn.Module.__call__, nn.Module._call_impl)


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
        self._names: dict[Forward, str] = {}
        self._ways: dict[str, Way] = {
            "Conv": lambda module, x, part: type(module).forward(module, x, part),
            "Sequential": self._sequential,
            "Bottleneck": self._bottleneck,
            "C3": self._c3,
            "C2f": functools.partial(self._split, inner=lambda module: module.m, last="cv2"),
            "RepNCSPELAN4": functools.partial(
                self._split, inner=lambda module: (module.cv2, module.cv3), last="cv4"
            ),
        }

    def learn(self, name: str, forward: Forward) -> None:
        """Tell modules with this ``forward``, that of the class of this name, where their output belongs."""
        self._names[forward] = name

    def forget(self) -> None:
        """Tell nobody any more."""
        self._names.clear()

    def replaced(self, name: str, original: Forward) -> Forward:
        """``forward`` of a class in place of the original; of "Bottleneck", who needs none, that one."""
        serve, way = self._serve, self._ways[name]
        if name in ("Sequential", "Conv"):
            return (sequential_forward if name == "Sequential" else conv_forward)(serve, original)
        if name == "Bottleneck":
            return original

        @functools.wraps(original)
        def forward(module: Any, x: torch.Tensor) -> Any:
            if disturbed() or not serve.attached or not serve.joins:
                return original(module, x)
            out = way(module, x, None)
            return original(module, x) if out is NotImplemented else out

        return forward

    def _name(self, module: Any) -> str:
        """The class of :data:`KNOWN` that a module computes as, if nobody changes or watches its calls."""
        kind = type(module)
        name = self._names.get(getattr(kind, "forward", None), "")  # type: ignore[arg-type]
        plain = name and (kind.__call__, kind._call_impl) == _CALLS and not is_watched(module.__dict__)
        return name if plain else ""

    def _reads_plainly(self, module: Any) -> bool:
        """Whether plain convolutions and sums are all that reads what a module is handed."""
        name = self._name(module)
        if name == "Conv":
            return is_plain(module._modules.get("conv"))
        if name == "Sequential":
            return len(module) > 0 and self._reads_plainly(module[0])
        return bool(name) and all(self._reads_plainly(getattr(module, each)) for each in READERS[name])

    def _into(self, module: Any, x: Tensor, part: Part | None) -> Any:
        """``module(x)``, in the place of a part where it can be written there."""
        name = "" if part is None else self._name(module)
        out = self._ways[name](module, x, part) if name else NotImplemented
        return module(x) if out is NotImplemented else out

    def _sequential(self, module: Any, x: Tensor, part: Part | None) -> Any:
        inside = list(module)
        if any(self._name(each) == "" for each in inside):
            return NotImplemented  # of convolution, batch norm and activation, its own forward makes one
        for each in inside[:-1]:
            x = each(x)
        return self._into(inside[-1], x, part) if inside else NotImplemented

    def _bottleneck(self, module: Any, x: Tensor, part: Part | None) -> Any:
        if not module.add:
            return self._into(module.cv2, module.cv1(x), part)
        return add(x, module.cv2(module.cv1(x)), part)

    def _c3(self, module: Any, x: Tensor, part: Part | None) -> Any:
        """The outputs of two branches."""
        whole = self._whole(module.cv3, x)
        if whole is None:
            return NotImplemented
        one = self._into(module.m, module.cv1(x), Part(whole, 0))
        other = self._into(module.cv2, x, whole.after(one))
        return self._into(module.cv3, join(whole, (one, other)), part)

    def _split(
        self,
        module: Any,
        x: Tensor,
        part: Part | None,
        *,
        inner: Callable[[Any], Sequence[nn.Module]],
        last: str,
    ) -> Any:
        """Both halves of the first convolution's output, and what a chain makes of the second."""
        chain, end = inner(module), getattr(module, last)
        whole = self._whole(end, x)
        if whole is None or not all(map(self._reads_plainly, chain)):
            return NotImplemented
        y = self._into(module.cv1, x, Part(whole, 0))
        after, parts = whole.after(y), list(y.chunk(2, 1))
        for each in chain:
            parts.append(self._into(each, parts[-1], after))
            after = after and after.behind(parts[-1])
        return self._into(end, join(whole, parts), part)

    def _whole(self, last: Any, x: Tensor) -> Whole | None:
        """What a last convolution is to read, of as many pixels as ``x``; None where that is too small, or
        somebody else may see or change it."""
        if self._name(last) != "Conv" or not is_plain(last._modules.get("conv")) or x.dim() != 4:
            return None
        channels = last.conv.weight.shape[1] * last.conv.groups
        pixels = x.shape[0] * x.shape[2] * x.shape[3]
        return Whole(channels) if channels * pixels * x.element_size() >= LEAST else None
