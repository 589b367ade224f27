"""From a ``NormProblem`` and strided tensors to the launches of its kernels, built once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..convolution.statistics import TileStatistics
from .problem import NormProblem, Parameters


class Shape(NamedTuple):
    """How the work is cut.

    Attributes:
        elements: of a tile; warps: of a program.
        programs: that a compute unit should be given.
    """

    elements: int
    warps: int
    programs: int


class Shapes(NamedTuple):
    """One for the two kernels that sum, of which a program keeps as many sums as a tile has elements, and one
    for the two that write."""

    reducing: Shape
    writing: Shape


# All batch norms of YOLOv8n, batch 16, 640 pixels, forward and backward, captured in a graph on one H100, of
# the 36 combinations tried: NCHW fp32 2.9 ms (PyTorch with cuDNN 12.5, without 17.3), channels_last fp32 3.9
# (4.8, 5.4), fp16 2.9 (3.3, 4.5); eight passes over the tensors at 3 TB/s take 2.4 and 1.2. Many small
# programs cost most in channels_last, where each of them adds up what all summing programs found.
PLANES = Shapes(Shape(2048, 8, 4), Shape(4096, 8, 4))
CHANNELS_LAST = Shapes(Shape(4096, 8, 1), Shape(4096, 8, 4))

JOINING = Shape(1024, 4, 1)
"""Of the kernel that joins the statistics of a convolution's tiles, which are a few thousand numbers."""

MOST_SPLITS = 256
"""Programs that share a channel: every writing program adds up what they found."""

JOINED = (64, 16)
"""Tiles and channels of a convolution's statistics that are joined at once."""


@dataclass(frozen=True)
class Cut:
    """One kernel's tiles.

    Attributes:
        a, b: rows and columns of a tile; tiles: of a channel (channels_last: of a block of channels).
        groups: channels, or blocks of them; share: tiles of one program; splits: programs of a group.
    """

    a: int
    b: int
    tiles: int
    groups: int
    share: int
    splits: int


def _forward_key(
    x: Tensor, held: Parameters, pixels: int | None, place: tuple[Any, ...] | None = None
) -> tuple[Any, ...]:
    """What decides, for one problem, how a forward pass is launched."""
    weight, running = held.weight, held.running_mean
    return (
        x.data_ptr() & 15,
        held.momentum,
        held.eps,
        None if weight is None else weight.dtype,
        None if running is None else running.dtype,
        pixels,
        place,
    )


def cut(p: NormProblem, shape: Shape, units: int, most: int) -> Cut:
    """Tiles of about ``shape.elements``, and as many programs as fill ``units`` compute units."""
    if p.channels_last:
        rows, columns = p.count, p.channels
        # Channels that fill their blocks, where that does not make the blocks narrow.
        fitting = columns & -columns
        b = min(_power(columns) if fitting < 16 else fitting, 64)
        a = min(_power(rows), shape.elements // b)
        groups, tiles = -(-columns // b), -(-rows // a)
    else:
        rows, columns = p.batch, p.height * p.width
        b = min(_power(columns), shape.elements)
        a = min(_power(rows), shape.elements // b)
        groups, tiles = p.channels, -(-rows // a) * -(-columns // b)
    wanted = max(1, min(tiles, most, -(-units * shape.programs // groups)))
    share = -(-tiles // wanted)
    return Cut(a, b, tiles, groups, share, -(-tiles // share))


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << max(0, number - 1).bit_length()


def strides(t: Tensor, channels_last: bool) -> tuple[int, int] | None:
    """Strides of rows and channels as the kernels see a tensor (see ``kernels``); None where they cannot."""
    n, c, y, x = t.stride()
    height, width = t.shape[2:]
    if channels_last:
        step = x if width > 1 else y if height > 1 else n
        regular = (
            (t.shape[1] == 1 or c == 1)
            and (height == 1 or y == width * step)
            and (t.shape[0] == 1 or n == height * width * step)
        )
        return (step, 0) if regular else None
    regular = (width == 1 or x == 1) and (height == 1 or y == width * (x if width > 1 else 1))
    if width == 1 and height > 1:
        regular = y == 1
    return (n, c) if regular else None


def _alignment(channels_last: bool, inner: int, *tensors: tuple[Tensor, tuple[int, int]]) -> int:
    """Elements of the inner axis that one access may take at once in all tensors: 1, or 16 bytes' worth."""
    vector = 16 // tensors[0][0].element_size()
    for t, (row, channel) in tensors:
        if t.data_ptr() % 16 or row % vector or channel % vector:
            return 1
    return vector if inner % vector == 0 else 1


def _named(tensor: str, at: tuple[int, int]) -> dict[str, float]:
    """What :func:`strides` returned, by the names that the kernels give it."""
    return {f"{tensor}_row": at[0], f"{tensor}_channel": at[1]}


def joining(channels: int, tiles: int) -> Cut:
    """How the statistics of so many tiles become those of at most 64 programs, which are read at once."""
    share = -(-tiles // (64 * JOINED[0])) * JOINED[0]
    return Cut(*JOINED, tiles, -(-channels // JOINED[1]), share, -(-tiles // share))


class Kernels:
    """The four launches of a problem on one device; an ``Implementation``.

    Args:
        p: the problem.
        index: of the device.
        units: its compute units.

    Attributes:
        reducing, writing: how the kernels that sum and those that write are cut.
        chunk: programs whose sums are added at once.
    """

    def __init__(self, p: NormProblem, index: int, units: int) -> None:
        self.problem, self.index = p, index
        self.inner = p.channels if p.channels_last else p.height * p.width
        self.rows = p.count if p.channels_last else p.batch
        self._shapes = CHANNELS_LAST if p.channels_last else PLANES
        self.reducing = cut(p, self._shapes.reducing, units, MOST_SPLITS)
        self.writing = cut(p, self._shapes.writing, units, 2**15)
        self.chunk = 64
        self._moves = p.training and p.tracked
        self._forward: dict[Any, Any] = {}
        self._backward: dict[Any, Any] = {}
        # By their dtype, for outputs computed again: the kernel moves statistics, which have moved already.
        self._unread: dict[Any, tuple[Tensor | None, ...]] = {}

    def forward(
        self,
        x: Tensor,
        held: Parameters,
        tiles: TileStatistics | None = None,
        out: Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """See :class:`~patches.normalization.operation.Implementation`."""
        place = None if out is None else (out.stride(), out.data_ptr() & 15)
        if out is None:
            out = torch.empty_like(x)
        weight, running = held.weight, held.running_mean
        key = _forward_key(x, held, None if tiles is None else tiles.pixels, place)
        launches = self._forward.get(key)
        if launches is None:
            launches = self._forward[key] = self._build_forward(x, out, held, tiles)
        reduce, write, floats = launches
        saved = x.new_empty(floats, dtype=torch.float32)
        if reduce is not None:
            reduce(x if tiles is None else tiles.table, saved)
        write(x, weight, held.bias, running, held.running_var, held.batches, saved, out)
        if self._moves:
            # The kernel wrote where autograd does not see it.
            torch._C._increment_version((running, held.running_var, held.batches))  # type: ignore[arg-type]
        return out, (saved,)

    def backward(
        self, x: Tensor, grad: Tensor, held: Parameters, kept: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """See :class:`~patches.normalization.operation.Implementation`."""
        saved = kept[0]
        key = (grad.stride(), x.data_ptr() & 15, grad.data_ptr() & 15)
        launches = self._backward.get(key)
        if launches is None:
            launches = self._backward[key] = self._build_backward(x, grad)
        reduce, write, copied = launches
        if copied is not None:
            grad = grad.contiguous(memory_format=copied)
        weight, bias = held.weight, held.bias
        grad_x = torch.empty_like(x)
        grad_weight = None if weight is None else torch.empty_like(weight)
        grad_bias = None if bias is None else torch.empty_like(bias)
        reduce(x, grad, weight, bias, saved)
        write(x, grad, weight, bias, saved, grad_weight, grad_bias, grad_x)
        return grad_x, grad_weight, grad_bias

    def again(
        self, x: Tensor, held: Parameters, kept: Sequence[Tensor], pixels: int | None, summed: bool
    ) -> Tensor:
        """See :class:`~patches.normalization.operation.Implementation`."""
        saved, out = kept[0], torch.empty_like(x)
        key = _forward_key(x, held, pixels)
        launches = self._forward.get(key)
        if launches is None:  # the forward pass was told its statistics: what it left is not for this launch
            launches, summed = self._build_forward(x, out, held), False
            self._forward[key] = launches
        reduce, write, _ = launches
        if not summed:
            reduce(x, saved)
        dtype = None if held.running_mean is None else held.running_mean.dtype
        unread = self._unread.get(dtype)
        if unread is None:
            unread = tuple(None if each is None else torch.empty_like(each) for each in held[2:5])
            self._unread[dtype] = unread
        write(x, held.weight, held.bias, *unread, saved, out)
        return out

    def launches(self) -> list[tuple[Any, tuple[Tensor | None, ...]]]:
        """What both passes launch, and with what, on tensors without data; for compiling ahead."""
        p = self.problem
        x = torch.empty(p.batch, p.channels, p.height, p.width, dtype=p.dtype, device="meta")
        x = x.to(memory_format=p.memory_format)
        channel = torch.empty(p.channels, device="meta")
        weight = channel if p.affine else None
        running = channel if p.tracked else None
        batches = torch.empty((), dtype=torch.int64, device="meta") if p.tracked else None
        held = Parameters(weight, weight, running, running, batches, 0.1, 1e-5)
        reduce, write, floats = self._build_forward(x, x, held)
        saved = torch.empty(floats, device="meta")
        made: list[tuple[Any, tuple[Tensor | None, ...]]] = []
        if reduce is not None:
            made.append((reduce, (x, saved)))
        made.append((write, (x, weight, weight, running, running, batches, saved, x)))
        reduce, write, _ = self._build_backward(x, x)
        made.append((reduce, (x, x, weight, weight, saved)))
        made.append((write, (x, x, weight, weight, saved, weight, weight, x)))
        if p.training:
            table = torch.empty(2, 1, p.channels, device="meta")
            made.append((self._join(TileStatistics(table, p.count)), (table, saved)))
        return made

    def _launch(
        self, kernel: Any, c: Cut, shape: Shape, scalars: Mapping[str, float], constants: dict[str, Any]
    ) -> Any:
        from ..convolution.triton_kernels.launch import Launch

        constants = {**constants, "BLOCK_A": c.a, "BLOCK_B": c.b}
        grid = (c.groups, c.splits, 1)
        return Launch(kernel, grid, scalars, constants, warps=shape.warps, device=self.index)

    def _join(self, tiles: TileStatistics) -> Any:
        """The launch that joins what a convolution left of its output's statistics."""
        from . import kernels

        p, c = self.problem, joining(self.problem.channels, tiles.table.shape[1])
        scalars = {
            "channels": p.channels, "pixels": p.count, "each": tiles.pixels, "tiles": c.tiles,
            "share": c.share,
        }  # fmt: skip
        return self._launch(kernels.join_statistics, c, JOINING, scalars, {})

    def _build_forward(
        self, x: Tensor, out: Tensor, held: Parameters, tiles: TileStatistics | None = None
    ) -> tuple[Any, Any, int]:
        """The launches that sum and that write, and how many floats they and the backward pass share.

        Mean and inverse deviation, and behind them what programs pass on, forward and then backward.
        """
        from . import kernels

        p, common = self.problem, self._sizes()
        at, to = strides(x, p.channels_last), strides(out, p.channels_last)
        assert at is not None and to is not None, (
            "the input is dense, the output is channels of such a tensor"
        )
        align = _alignment(p.channels_last, self.inner, (x, at), (out, to))
        layout = {"CHANNELS_LAST": p.channels_last, "ALIGN": align}
        reduce, splits = None, self.reducing.splits
        if p.training and tiles is not None:
            reduce, splits = self._join(tiles), joining(p.channels, tiles.table.shape[1]).splits
        elif p.training:
            c = self.reducing
            scalars = {**common, **_named("x", at), "tiles": c.tiles, "share": c.share}
            reduce = self._launch(kernels.statistics, c, self._shapes.reducing, scalars, layout)
        c = self.writing
        scalars = {
            **common, **_named("x", at), **_named("out", to), "tiles": c.tiles, "share": c.share,
            "splits": splits, "count": float(p.count), "momentum": float(held.momentum),
            "eps": float(held.eps), "slope": float(p.slope),
        }  # fmt: skip
        constants = {
            "TRAINING": p.training, "AFFINE": p.affine, "TRACKED": p.tracked, "ACTIVATION": p.activation,
            **layout, "CHUNK": self.chunk,
        }  # fmt: skip
        write = self._launch(kernels.normalise, c, self._shapes.writing, scalars, constants)
        return reduce, write, (2 + 3 * max(splits, self.reducing.splits)) * p.channels

    def _build_backward(self, x: Tensor, grad: Tensor) -> tuple[Any, Any, torch.memory_format | None]:
        from . import kernels

        p, common = self.problem, self._sizes()
        at = strides(x, p.channels_last)
        assert at is not None, "the input is dense"
        from_grad, copied = strides(grad, p.channels_last), None
        if from_grad is None:
            copied = p.memory_format
            grad = torch.empty_like(x)
            from_grad = at
        align = _alignment(p.channels_last, self.inner, (x, at), (grad, from_grad))
        layout = {"CHANNELS_LAST": p.channels_last, "ALIGN": align}
        what = {"AFFINE": p.affine, "ACTIVATION": p.activation, **layout}
        c, splits = self.reducing, self.reducing.splits
        tensors = {**_named("x", at), **_named("grad", from_grad)}
        scalars = {**common, **tensors, "tiles": c.tiles, "share": c.share, "slope": float(p.slope)}
        reduce = self._launch(kernels.gradient_sums, c, self._shapes.reducing, scalars, what)
        c = self.writing
        sizes = {
            **common, **tensors, **_named("out", at), "tiles": c.tiles, "share": c.share, "splits": splits,
            "count": float(p.count), "slope": float(p.slope),
        }  # fmt: skip
        constants = {"TRAINING": p.training, **what, "CHUNK": self.chunk}
        return reduce, self._launch(kernels.input_gradient, c, self._shapes.writing, sizes, constants), copied

    def _sizes(self) -> dict[str, float]:
        return {"rows": self.rows, "columns": self.inner, "channels": self.problem.channels}
