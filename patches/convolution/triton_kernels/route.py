"""The route: turns a ``ConvProblem`` and strided tensors into kernel launches, remembered per problem."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...environment import amd_architectures
from ..problem import ConvProblem
from ..statistics import TileStatistics
from . import dense, depthwise, transformed
from .layout import Numbers, alignment, is_pointwise, linear, named, reach
from .tiles import split_evenly

if TYPE_CHECKING:
    from .launch import Launch
    from .tiles import Tiles

Forward = Callable[[Tensor, Tensor, "Tensor | None"], Tensor]
Summed = Callable[[Tensor, Tensor], "tuple[Tensor, TileStatistics]"]
Backward = Callable[[Tensor, Tensor, Tensor], "tuple[Tensor | None, Tensor | None, Tensor | None]"]

# Groups of at most this many channels read go to the kernels without a matrix product: a tile is at least 16
# deep.
GROUPED_CHANNELS = 8
# Taps are unrolled by the compiler.
MOST_TAPS = 121
# Distinct (problem, strides) pairs remembered; a run with random image sizes must not grow without bound.
MOST_CALLS = 4096


class TritonRoute:
    """Convolution by fused Triton kernels (see ``gather``, ``weight``, ``grouped``); implements ``Route``.

    Args:
        precision: products of fp32: "ieee" (the default, and the promise), or "tf32x3" on NVIDIA, three
            tensor-core products of 10-bit mantissas that together come close to fp32.
        tiles: the choice of tiles; the measured one for the device when None.
    """

    name = "triton"
    _winograd = False

    def __init__(self, precision: str = "ieee", tiles: Tiles | None = None) -> None:
        self.precision = precision
        self._tiles = tiles
        self._builders: dict[tuple[int, torch.dtype], Builder] = {}
        self._forward: dict[Any, Forward] = {}
        self._summing: dict[Any, Summed] = {}
        self._backward: dict[Any, Backward] = {}

    def supports(self, problem: ConvProblem) -> bool:
        """Whether the kernels can serve the problem on this machine; False where Triton is missing."""
        if not _available(problem.device):
            return False
        if min(problem.batch, problem.channels_in, problem.channels_out, *problem.output_size) < 1:
            return False
        (kh, kw), (sh, sw) = problem.kernel, problem.stride
        if kh * kw > MOST_TAPS or sh * sw > 64:
            return False
        if torch.version.hip is not None and spills_on_amd(problem):
            return False
        if problem.dtype == torch.bfloat16:
            return _has_bfloat16(problem.device)
        return problem.dtype in (torch.float32, torch.float16)

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """See ``Route.forward``."""
        if bias is not None:
            # The kernels step through it by one, whatever its stride.
            bias = bias.contiguous()
        key = (
            problem,
            x.stride(),
            weight.stride(),
            x.data_ptr() & 15,
            weight.data_ptr() & 15,
            0 if bias is None else bias.data_ptr() & 15,
            x.device.index,
        )
        call = self._forward.get(key)
        if call is None:
            call = self._builder(x).forward(problem, x, weight, bias)
            _remember(self._forward, key, call)
        return call(x, weight, bias)

    def sums(self, problem: ConvProblem) -> bool:
        """See ``statistics.Summing.sums``: of these kernels, ``gather_gemm`` does."""
        few = problem.groups > 1 and problem.channels_in // problem.groups <= GROUPED_CHANNELS
        return not (few or problem.bias or problem.transposed)

    def forward_with_statistics(
        self, problem: ConvProblem, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, TileStatistics]:
        """See ``statistics.Summing.forward_with_statistics``."""
        key = (
            problem,
            x.stride(),
            weight.stride(),
            x.data_ptr() & 15,
            weight.data_ptr() & 15,
            x.device.index,
        )
        call = self._summing.get(key)
        if call is None:
            call = self._builder(x).forward_with_statistics(problem, x, weight)
            _remember(self._summing, key, call)
        return call(x, weight)

    def backward(
        self, problem: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """See ``Route.backward``."""
        key = (
            problem,
            grad.stride(),
            x.stride(),
            weight.stride(),
            grad.data_ptr() & 15,
            x.data_ptr() & 15,
            weight.data_ptr() & 15,
            x.device.index,
            needs,
        )
        call = self._backward.get(key)
        if call is None:
            call = self._builder(x).backward(problem, grad, x, weight, needs)
            _remember(self._backward, key, call)
        return call(grad, x, weight)

    def _builder(self, x: Tensor) -> Builder:
        index = x.device.index or 0
        if (index, x.dtype) not in self._builders:
            tiles = self._tiles or tiles_of(x.device, x.dtype)
            self._builders[index, x.dtype] = Builder(
                index, tiles, self.precision, lacks_packed_dot(), self._winograd
            )
        return self._builders[index, x.dtype]


class WinogradRoute(TritonRoute):
    """3 x 3 of stride 1 in fp32 with fewer products, forward and input gradient (see ``winograd``).

    The weight gradient is the Triton route's. Serves where the table of tiles has some for it.
    """

    name = "winograd"
    _winograd = True

    def supports(self, problem: ConvProblem) -> bool:
        """See ``Route.supports``."""
        return transformed.suits(problem) and super().supports(problem) and self._has_tiles(problem.dtype)

    def sums(self, problem: ConvProblem) -> bool:
        """See ``statistics.Summing.sums``: ``winograd_gather`` does not."""
        return False

    def _has_tiles(self, dtype: torch.dtype) -> bool:
        return (self._tiles or tiles_for(1, dtype)).table.winograd is not None


def spills_on_amd(problem: ConvProblem) -> bool:
    """Whether the unrolled taps of the kernels without a matrix product need more registers than there are.

    As ``scripts/check_amd_isa.py`` finds: with 7 x 7 the masks alone spill, with a stride those of 5 x 5.
    """
    channels = min(problem.channels_in, problem.channels_out) // problem.groups
    if problem.groups == 1 or channels > GROUPED_CHANNELS:
        return False
    return math.prod(problem.kernel) > (25 if problem.stride == (1, 1) else 9)


def _remember(calls: dict[Any, Any], key: Any, call: Any) -> None:
    if len(calls) >= MOST_CALLS:
        calls.clear()
    calls[key] = call


def _available(device: str) -> bool:
    if importlib.util.find_spec("triton") is None:
        return False
    if device == "cpu":
        return os.environ.get("TRITON_INTERPRET") == "1"
    if device != "cuda" or not torch.cuda.is_available():
        return False
    # Triton's own floor; below it the compiler refuses.
    return torch.version.hip is not None or torch.cuda.get_device_capability()[0] >= 7


def tiles_of(device: torch.device, dtype: torch.dtype) -> Tiles:
    """The choice of tiles that was made for a device and a dtype."""
    if device.type == "cpu":
        return tiles_for(4, dtype)
    return tiles_for(torch.cuda.get_device_properties(device).multi_processor_count, dtype)


def tiles_for(units: int, dtype: torch.dtype) -> Tiles:
    """The choice of tiles for a card of so many compute units, of the vendor that PyTorch was built for."""
    from .tiles import NVIDIA, NVIDIA_HALF, RDNA, Tiles

    nvidia = NVIDIA if dtype == torch.float32 else NVIDIA_HALF
    return Tiles(units, nvidia if torch.version.hip is None else RDNA)


def lacks_packed_dot() -> bool:
    """Whether the card has no packed dot product of fp16 (gfx1010, gfx1013): the compiler dies on a dot of
    fp16.
    """
    return any(name in ("gfx1010", "gfx1013") for name in amd_architectures())


def _has_bfloat16(device: str) -> bool:
    if device == "cpu":
        return True
    if torch.version.hip is None:
        return torch.cuda.get_device_capability()[0] >= 8
    return not any(name.startswith("gfx10") for name in amd_architectures())


class Builder:
    """Builds the calls for one device and dtype; every decision about a problem is taken here, once.

    Args:
        index: of the device, for launches.
        tiles: the choice of tiles.
        precision: see ``TritonRoute``.
        upcast: multiply in fp32 what is stored in fp16.
        winograd: take ``winograd_gather`` where it can serve.
    """

    def __init__(
        self,
        index: int,
        tiles: Tiles,
        precision: str = "ieee",
        upcast: bool = False,
        winograd: bool = False,
    ) -> None:
        self.index = index
        self.tiles = tiles
        self.precision = precision
        self.upcast = upcast
        self.winograd = winograd

    def forward(self, p: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Forward:
        shape = (p.batch, p.channels_out, *p.output_size)
        out = torch.empty(shape, dtype=p.dtype, device="meta", memory_format=p.memory_format)
        plain = p.adjoint if p.transposed else p
        pack, launch, pixels = self._gather(plain, x, out, weight, bias is not None, transposed=p.transposed)
        table = _unused(x, pixels)
        strides = out.stride()

        def call(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            out = x.new_empty_strided(shape, strides)
            launch(x, weight if pack is None else pack(weight), bias, out, *table)
            return out

        return call

    def forward_with_statistics(self, p: ConvProblem, x: Tensor, weight: Tensor) -> Summed:
        shape = (p.batch, p.channels_out, *p.output_size)
        out = torch.empty(shape, dtype=p.dtype, device="meta", memory_format=p.memory_format)
        pack, launch, pixels = self._gather(p, x, out, weight, False, transposed=False, sums=True)
        strides = out.stride()
        sizes = (2, -(-p.batch * shape[2] * shape[3] // pixels), p.channels_out)

        def call(x: Tensor, weight: Tensor) -> tuple[Tensor, TileStatistics]:
            out = x.new_empty_strided(shape, strides)
            table = x.new_empty(sizes, dtype=torch.float32)
            launch(x, weight if pack is None else pack(weight), None, out, table)
            return out, TileStatistics(table, pixels)

        return call

    def backward(
        self, p: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> Backward:
        shape = tuple(x.shape)
        out = torch.empty(shape, dtype=p.dtype, device="meta", memory_format=p.memory_format)
        strides = out.stride()
        pack, gather = None, None
        if needs[0]:
            plain = p.adjoint if p.transposed else p
            pack, gather, pixels = self._gather(plain, grad, out, weight, False, transposed=not p.transposed)
            table = _unused(x, pixels)
        weigh = self._weights(p, grad, x, weight, needs)

        def call(
            grad: Tensor, x: Tensor, weight: Tensor
        ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
            grad_x = grad_weight = grad_bias = None
            if gather is not None:
                grad_x = x.new_empty_strided(shape, strides)
                gather(grad, weight if pack is None else pack(weight), None, grad_x, *table)
            if weigh is not None:
                grad_weight, grad_bias = weigh(grad, x, weight)
            return grad_x, grad_weight if needs[1] else None, grad_bias

        return call

    def _weights(
        self, p: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> Any:
        """The call that gives the gradients of weight and bias; None where neither is wanted."""
        if not p.transposed:
            return self._weight(p, grad, x, weight, needs[2]) if needs[1] or needs[2] else None
        if not needs[1]:
            return _bias_alone if needs[2] else None
        weigh = self._weight(p.adjoint, x, grad, weight, False)

        def call(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
            return weigh(x, grad, weight)[0], grad.sum((0, 2, 3)) if needs[2] else None

        return call

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        scalars: Mapping[str, int],
        constants: dict[str, Any],
        warps: int = 4,
        stages: int = 1,
    ) -> Launch:
        """Every launch is made here."""
        from .launch import Launch

        return Launch(kernel, grid, scalars, constants, warps=warps, stages=stages, device=self.index)

    def upcasts(self, p: ConvProblem) -> bool:
        # On a CPU, where Triton's interpreter multiplies the bits of bf16 as integers.
        interpreted = p.device == "cpu" and p.dtype == torch.bfloat16
        return interpreted or (self.upcast and p.dtype == torch.float16)

    def narrow(self, p: ConvProblem, alignment: int) -> int:
        """Where fp16 becomes fp32 on the way, 16 bytes at once would need too many registers."""
        return min(alignment, 4) if self.upcasts(p) else alignment

    def _offsets(self, *tensors: Tensor) -> tuple[bool, int]:
        """Whether offsets need 64 bits; and where they do not, ITEM of the kernels."""
        if not self.tiles.table.in_bytes:
            return _wide(*tensors), 0
        item = tensors[0].element_size()
        wide = _wide(*tensors) or any(reach(t) >= (2**32 - 2**24) // item for t in tensors)
        return wide, 0 if wide else item

    def _gather(
        self,
        p: ConvProblem,
        src: Tensor,
        out: Tensor,
        weight: Tensor,
        has_bias: bool,
        *,
        transposed: bool,
        sums: bool = False,
    ) -> tuple[Callable[[Tensor], Tensor] | None, Any, int]:
        """The copy of the weight to make first (None: none), and the launch from ``src`` to ``out``.

        The last value is the pixels of a row of the table of statistics that the launch takes as well, and
        fills with ``sums`` (see ``TritonRoute.sums``); 0: it takes none.
        """
        sh, sw = p.stride
        channels, filters = p.channels_in // p.groups, p.channels_out // p.groups
        if transposed:
            channels, filters = filters, channels
        wide, item = self._offsets(src, out)
        if self.winograd and transformed.suits(p) and not wide:
            return *transformed.gather(self, p, src, out, weight, has_bias, transposed), 0
        activations = {"src": src, "out": out}
        numbers = Numbers.of(p, channels, filters, activations, activations)
        pixels = (
            -(-out.shape[2] // sh) * -(-out.shape[3] // sw) if transposed else out.shape[2] * out.shape[3]
        )

        if channels <= GROUPED_CHANNELS and p.groups > 1:
            launch = depthwise.gather(
                self, p, numbers, weight, pixels, wide=wide, has_bias=has_bias, transposed=transposed
            )
            return None, launch, 0
        return dense.gather(
            self, p, numbers, src, out, weight, pixels,
            wide=wide, item=item, has_bias=has_bias, transposed=transposed, sums=sums,
        )  # fmt: skip

    def _weight(self, p: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, has_bias: bool) -> Any:
        """The call that gives the gradients of weight and (or None) bias."""
        from .weight import weight_gradient

        (kh, kw), (sh, sw) = p.kernel, p.stride
        channels, filters = p.channels_in // p.groups, p.channels_out // p.groups
        pairs = channels * kh * kw
        pixels = p.batch * grad.shape[2] * grad.shape[3]
        size = p.channels_out * pairs + (p.channels_out if has_bias else 0)
        numbers = Numbers.of(p, channels, filters, {"src": x, "grad": grad}, {"grad": grad, "src": x})
        wide, item = self._offsets(x, grad)
        if channels <= GROUPED_CHANNELS and p.groups > 1:
            launch, splits = depthwise.weigh(self, p, numbers, pixels, size, wide=wide, has_bias=has_bias)
        else:
            channels_last = p.channels_last and x.stride(1) == grad.stride(1) == 1
            tile, splits = self.tiles.weight(
                filters, pairs, pixels, p.groups, wide=wide, channels_last=channels_last
            )
            share, splits = split_evenly(pixels, splits, tile.k)
            pointwise = is_pointwise(p, x, grad)
            launch = self.launch(
                weight_gradient,
                (-(-filters // tile.m) * -(-pairs // tile.n), p.groups, splits),
                {
                    **numbers.sizes, **numbers.planes, **numbers.strides, **numbers.shifts,
                    "pixels_per_split": share, "split_size": size,
                },
                {
                    "KH": kh, "KW": kw, "SH": sh, "SW": sw, "HAS_BIAS": has_bias,
                    "POINTWISE": pointwise, "ONE_TAP": channels % tile.n == 0,
                    "CHANNELS_LAST": channels_last,
                    "GRAD_ALIGN": self.narrow(p, alignment(channels_last, linear(grad), p.groups, grad)),
                    "ALIGN": self.narrow(p, alignment(True, True, p.groups, x)) if channels_last else 1,
                    "WIDE": wide, "UPCAST": self.upcasts(p),
                    "PRECISION": self.precision if p.dtype == torch.float32 else "ieee",
                    "ITEM": item, "FULL": item > 0 and filters % tile.m == 0,
                    "WARPS": min(tile.warps, tile.k // 4) if item else 0,
                    "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
                },
                warps=tile.warps, stages=tile.stages,
            )  # fmt: skip

        reduce = _reduction(self, p, weight, splits, size, has_bias)

        def call(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
            partial = x.new_empty((splits, size), dtype=torch.float32)
            launch(grad, x, partial)
            grad_weight = torch.empty_like(weight)
            grad_bias = weight.new_empty(p.channels_out) if has_bias else None
            reduce(partial, grad_weight, grad_bias)
            return grad_weight, grad_bias

        return call


def _reduction(
    builder: Builder, p: ConvProblem, weight: Tensor, splits: int, size: int, has_bias: bool
) -> Launch:
    """The launch that sums what the splits of a weight gradient have left."""
    from .weight import reduce_partials

    pairs = math.prod(weight.shape[1:])
    # Compiled ahead it is dense, and asked for another like it PyTorch imports SymPy: a second or more.
    like = weight if weight.is_meta else torch.empty_like(weight, device="meta")
    block = 32
    return builder.launch(
        reduce_partials,
        (-(-size // block), 1, 1),
        {
            "splits": splits, "split_size": size, "weight_size": p.channels_out * pairs, "pairs": pairs,
            "channels": weight.shape[1], "kernel_w": p.kernel[1],
            **named("weight", "mcyx", like.stride()),
        },
        {"HAS_BIAS": has_bias, "BLOCK_S": 64 if splits > 32 else 8, "BLOCK": block},
    )  # fmt: skip


def _wide(*tensors: Tensor) -> bool:
    """Whether an offset into one of the tensors can pass 2^31, with room for a tile beyond the end."""
    return any(reach(t) >= 2**31 - 2**22 for t in tensors)


def _unused(like: Tensor, pixels: int) -> tuple[Tensor, ...]:
    """The table of statistics for a launch that takes one and fills none: its kernel expects an address."""
    return (like.new_empty(0, dtype=torch.float32),) if pixels else ()


def _bias_alone(grad: Tensor, x: Tensor, weight: Tensor) -> tuple[None, Tensor]:
    return None, grad.sum((0, 2, 3))
