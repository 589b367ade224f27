"""Convolution as columns and one matrix product, in plain PyTorch: runs wherever a matrix product runs.

The columns of an image hold, for every output pixel, the input values under the kernel (im2col; Chellapilla,
Puri and Simard 2006), so that a convolution is ``weight @ columns``. Columns are kernel height x width times
larger than the input: they are made in chunks under a budget, and made again in the backward pass instead of
being kept. A 1x1 convolution of stride 1 needs none, because its columns are the input.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import COLUMN_BUDGET
from .problem import ConvProblem, Gradients

CPU_CHUNK = 4 * 2**20
"""Columns made at a time on the CPU, bytes: few enough to stay in the cache until the product reads them."""

SUM_PARTS, SUM_LENGTH = 8, 64
"""A sum over pixels on the CPU is cut into at most this many parts, none shorter than this or than the number
of output channels: MKL adds some 400 products one after the other, and rounding grows with such a chain."""

_REDUCED = (torch.float16, torch.bfloat16)
_DTYPES = (torch.float32, torch.float64, *_REDUCED)


class Gemm:
    """The route ``gemm``: columns under a budget, one batched product a chunk.

    Args:
        column_budget: limit of the column buffer, bytes.
    """

    name = "gemm"

    def __init__(self, column_budget: int = COLUMN_BUDGET) -> None:
        self.column_budget = column_budget

    def supports(self, problem: ConvProblem) -> bool:
        """Any problem in a floating dtype whose columns of one output pixel fit into the budget."""
        return problem.dtype in _DTYPES and _lowering(problem).pixel_bytes <= self.column_budget

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The output, in the problem's memory format."""
        if problem.transposed:
            out = self._input_gradient(_lowering(problem), x, weight)
        else:
            out = self._output(_lowering(problem), x, weight)
        return out if bias is None else out.add_(bias.view(-1, 1, 1))

    def backward(
        self,
        problem: ConvProblem,
        grad: Tensor,
        x: Tensor,
        weight: Tensor,
        needs: tuple[bool, bool, bool],
    ) -> Gradients:
        """Gradients of input (in the problem's memory format), weight and bias."""
        lowering = _lowering(problem)
        grad = lowering.dense(grad)
        grad_x = grad_weight = None
        if problem.transposed:
            if needs[0]:
                grad_x = self._output(lowering, grad, weight)
            if needs[1]:
                grad_weight = self._weight_gradient(lowering, lowering.dense(x), grad)
        else:
            if needs[0]:
                grad_x = self._input_gradient(lowering, grad, weight)
            if needs[1]:
                grad_weight = self._weight_gradient(lowering, grad, x)
        return grad_x, grad_weight, grad.sum((0, 2, 3)) if needs[2] else None

    def _output(self, lowering: _Lowering, x: Tensor, weight: Tensor) -> Tensor:
        """What the lowered convolution makes of ``x``, without a bias."""
        matrix = lowering.pack(weight)
        out = lowering.empty(x, lowering.problem.channels_out, lowering.size, lowering.problem.dtype)
        for chunk in lowering.chunks(x, self.column_budget):
            chunk.gather()
            _product(chunk.repeat(matrix), chunk.columns, chunk.pixels(out))
        return out

    def _input_gradient(self, lowering: _Lowering, grad: Tensor, weight: Tensor) -> Tensor:
        """The gradient of the lowered convolution's input."""
        problem, grad = lowering.problem, lowering.dense(grad)
        matrix = lowering.pack(weight).transpose(1, 2)
        dtype = lowering.dtype if lowering.pointwise else lowering.sum_dtype
        grad_x = lowering.empty(grad, problem.channels_in, (problem.height, problem.width), dtype)
        if not lowering.pointwise:
            grad_x.zero_()
        for chunk in lowering.chunks(grad_x, self.column_budget, reads=False):
            target = chunk.pixels(grad_x) if lowering.pointwise else chunk.columns
            _product(chunk.repeat(matrix), chunk.pixels(grad).to(lowering.dtype), target)
            chunk.scatter(grad_x)
        return grad_x.to(problem.dtype)

    def _weight_gradient(self, lowering: _Lowering, grad: Tensor, x: Tensor) -> Tensor:
        """The gradient of the lowered convolution's weight."""
        p = lowering.problem
        shape = (p.groups, lowering.group_out, lowering.column_height)
        total = x.new_zeros(shape, dtype=lowering.sum_dtype)
        for chunk in lowering.chunks(x, self.column_budget):
            chunk.gather()
            chunk.add_weight_gradient(total, chunk.pixels(grad).to(lowering.dtype))
        return lowering.unpack(total).to(p.dtype)


def _product(left: Tensor, right: Tensor, out: Tensor) -> None:
    if out.dtype == left.dtype:
        torch.bmm(left, right, out=out)
    else:
        out.copy_(torch.bmm(left, right))


def _lowering(problem: ConvProblem) -> _Lowering:
    """Of a transposed problem it is the adjoint that becomes matrices."""
    if problem.transposed:
        return _Lowering(problem.adjoint, (problem.height, problem.width))
    return _Lowering(problem, problem.output_size)


class _Lowering:
    """How one problem, which is not transposed, becomes matrices.

    Matrices are (groups, channels_out / groups, column height) for the weight, and for a chunk of M output
    pixels (B, column height, M) for columns and (B, channels_out / groups, M) for the output, views of
    buffers in the problem's memory format. NCHW: B is images x groups and the M pixels are neighbours in
    memory. NHWC: B is groups, M runs over all images of the chunk, and a column is contiguous.

    Attributes:
        size: height and width of the output, pixels.
        dtype: of the products. fp16 and bf16 are widened on the CPU, which has no fast product for them.
        sum_dtype: of sums over several products.
        pointwise: whether the input itself is the columns.
        pixel_bytes: bytes of the columns of one output pixel, all groups.
    """

    def __init__(self, problem: ConvProblem, size: tuple[int, int]) -> None:
        self.problem, self.size = problem, size
        reduced = problem.dtype in _REDUCED
        self.sum_dtype = torch.float32 if reduced else problem.dtype
        self.dtype = self.sum_dtype if problem.device == "cpu" else problem.dtype
        self.group_in = problem.channels_in // problem.groups
        self.group_out = problem.channels_out // problem.groups
        self.column_height = self.group_in * problem.kernel[0] * problem.kernel[1]
        self.pointwise = (
            problem.kernel == problem.stride == (1, 1)
            and problem.padding == (0, 0)
            and size == (problem.height, problem.width)
            and self.dtype == problem.dtype
        )
        self.pixel_bytes = problem.groups * self.column_height * (torch.finfo(self.dtype).bits // 8)

    def pack(self, weight: Tensor) -> Tensor:
        """The weight as (groups, channels_out / groups, column height)."""
        p = self.problem
        split = weight.reshape(p.groups, self.group_out, self.group_in, *p.kernel).to(self.dtype)
        if p.channels_last:
            split = split.permute(0, 1, 3, 4, 2)
        return split.reshape(p.groups, self.group_out, self.column_height)

    def unpack(self, matrix: Tensor) -> Tensor:
        """The inverse of :meth:`pack`, a contiguous weight."""
        p = self.problem
        if p.channels_last:
            split = matrix.view(p.groups, self.group_out, *p.kernel, self.group_in).permute(0, 1, 4, 2, 3)
        else:
            split = matrix.view(p.groups, self.group_out, self.group_in, *p.kernel)
        return split.reshape(p.channels_out, self.group_in, *p.kernel)

    def empty(self, like: Tensor, channels: int, size: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """An uninitialised (batch, channels, *size) in the problem's memory format."""
        if self.problem.channels_last:
            return like.new_empty((self.problem.batch, *size, channels), dtype=dtype).permute(0, 3, 1, 2)
        return like.new_empty((self.problem.batch, channels, *size), dtype=dtype)

    def dense(self, image: Tensor) -> Tensor:
        """``image`` in the problem's memory format, copied only if it is not."""
        if self.problem.channels_last:
            return image.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        return image.contiguous()

    def chunks(self, x: Tensor, budget: int, reads: bool = True) -> Iterator[_Chunk]:
        """Cover all output pixels: several whole images a chunk, else rows of one, else part of a row.

        The chunks share one buffer, so each must be finished with before the next is asked for.

        Args:
            x: the input; only its form where ``reads`` is False: columns are then written, not gathered.
            budget: limit of the buffer, bytes.
        """
        p = self.problem
        height, width = self.size
        if self.pointwise:
            yield _Chunk(self, self.dense(x), None, slice(0, p.batch), slice(0, height), slice(0, width))
            return
        limit = min(budget, CPU_CHUNK) if p.device == "cpu" else budget
        pixels = max(1, limit // self.pixel_bytes)
        (ph, pw) = p.padding
        padded = (p.height + 2 * ph) * (p.width + 2 * pw) * p.channels_in * x.element_size()
        # The padded copy of an image counts as well, though one image is always taken whole.
        whole = budget // (height * width * self.pixel_bytes + padded * bool(ph or pw))
        images = max(1, min(p.batch, pixels // (height * width), whole))
        rows = max(1, min(height, pixels // width))
        columns = min(width, pixels)
        buffer = x.new_empty(images * rows * columns * self.column_height * p.groups, dtype=self.dtype)
        for image in range(0, p.batch, images):
            part = x[image : image + images]
            if reads and (ph or pw):
                part = F.pad(part, (pw, pw, ph, ph))
            for row in range(0, height, rows):
                for column in range(0, width, columns):
                    yield _Chunk(
                        self,
                        part,
                        buffer,
                        slice(image, min(image + images, p.batch)),
                        slice(row, min(row + rows, height)),
                        slice(column, min(column + columns, width)),
                    )


class _Chunk:
    """Some output pixels of some images, with the columns that belong to them."""

    def __init__(
        self, lowering: _Lowering, x: Tensor, buffer: Tensor | None, images: slice, rows: slice, cols: slice
    ) -> None:
        self.lowering, self.x = lowering, x
        self.columns: Tensor
        self.scratch: Tensor | None = None
        self.images, self.rows, self.cols = images, rows, cols
        p = lowering.problem
        n, r, c = (s.stop - s.start for s in (images, rows, cols))
        self.count = n
        if buffer is None:
            self.columns = self.pixels(x)
            return
        used = buffer[: n * r * c * p.groups * lowering.column_height]
        kernel_group = (*p.kernel, lowering.group_in)
        if p.channels_last:
            self.windows = used.view(p.groups, n, r, c, *kernel_group).permute(1, 0, 6, 4, 5, 2, 3)
            self.columns = used.view(p.groups, n * r * c, lowering.column_height).transpose(1, 2)
        else:
            self.windows = used.view(n, p.groups, lowering.group_in, *p.kernel, r, c)
            self.columns = used.view(n * p.groups, lowering.column_height, r * c)
        self.scratch = self.columns

    def pixels(self, image: Tensor) -> Tensor:
        """The chunk's part of an output-sized image as a (B, channels / groups, M) view."""
        groups = self.lowering.problem.groups
        part = image[self.images, :, self.rows, self.cols]
        n, channels, r, c = part.shape
        if self.lowering.problem.channels_last:
            return part.permute(0, 2, 3, 1).view(n * r * c, groups, channels // groups).permute(1, 2, 0)
        return part.view(n * groups, channels // groups, r * c)

    def repeat(self, matrix: Tensor) -> Tensor:
        """A weight matrix for each of the B products."""
        if self.lowering.problem.channels_last or self.count == 1:
            return matrix
        return matrix.expand(self.count, *matrix.shape).reshape(-1, *matrix.shape[1:])

    def gather(self) -> None:
        """Fill the columns from the padded input."""
        if self.lowering.pointwise:
            return
        p = self.lowering.problem
        (sh, sw), (dh, dw) = p.stride, p.dilation
        x = self.x
        n, c, h, w = x.stride()
        self.windows.copy_(
            x.as_strided(
                self.windows.shape,
                (n, c * self.lowering.group_in, c, h * dh, w * dw, h * sh, w * sw),
                x.storage_offset() + self.rows.start * sh * h + self.cols.start * sw * w,
            )
        )

    def scatter(self, grad_x: Tensor) -> None:
        """Add the gradient of the columns to the input pixels that they came from."""
        if self.lowering.pointwise:
            return
        p = self.lowering.problem
        part = grad_x[self.images]
        if p.channels_last:
            part = part.permute(0, 2, 3, 1).view(self.count, p.height, p.width, p.groups, -1)
            part = part.permute(0, 3, 4, 1, 2)
        else:
            part = part.view(self.count, p.groups, -1, p.height, p.width)
        for i in range(p.kernel[0]):
            rows, into_rows = _reach(self.rows, p.height, p.stride[0], i * p.dilation[0] - p.padding[0])
            for j in range(p.kernel[1]):
                cols, into_cols = _reach(self.cols, p.width, p.stride[1], j * p.dilation[1] - p.padding[1])
                part[..., into_rows, into_cols] += self.windows[:, :, :, i, j, rows, cols]

    def add_weight_gradient(self, total: Tensor, grad_pixels: Tensor) -> None:
        """Add the products of output gradient and columns, summed over pixels and images, to ``total``."""
        if self.lowering.group_out == 1:
            # One output channel a group: no product to share, and a plain sum is both faster and more exact.
            sums = torch.mul(self.columns, grad_pixels, out=self.scratch).sum(2, dtype=total.dtype)
            total += sums.view(-1, *total.shape).sum(0)
            return
        height, pixels = grad_pixels.shape[1:]
        parts = 1
        if self.lowering.problem.device == "cpu":
            parts = max(1, min(SUM_PARTS, pixels // max(SUM_LENGTH, height)))
        length = -(-pixels // parts)
        for start in range(0, pixels, length):
            left = grad_pixels[:, :, start : start + length]
            right = self.columns[:, :, start : start + length]
            # Not baddbmm: it would make one long chain of the parts.
            product = torch.bmm(left, right.transpose(1, 2))
            if len(product) != len(total):
                product = product.view(-1, *total.shape).sum(0, dtype=total.dtype)
            total += product


def _reach(outputs: slice, size: int, stride: int, offset: int) -> tuple[slice, slice]:
    """Which of ``outputs`` one kernel tap takes from inside the image, and which pixels it takes.

    Output ``o`` takes pixel ``o * stride + offset``; pixels outside ``[0, size)`` are padding.
    """
    first = max(outputs.start, -(offset // stride))
    stop = max(first, min(outputs.stop, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    return (
        slice(first - outputs.start, stop - outputs.start),
        slice(start, start + (stop - first - 1) * stride + 1 if stop > first else start, stride),
    )
