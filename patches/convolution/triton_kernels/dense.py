"""Launches for convolutions as a product of matrices (see ``gather``)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..problem import ConvProblem
from .layout import Numbers, alignment, is_pointwise, named, vector, weight_layout

if TYPE_CHECKING:
    from .launch import Launch
    from .route import Builder


# Long: one launch, and what each of its kernel's integers is.
def gather(
    builder: Builder,
    p: ConvProblem,
    numbers: Numbers,
    src: Tensor,
    out: Tensor,
    weight: Tensor,
    pixels: int,
    *,
    wide: bool,
    item: int,
    has_bias: bool,
    transposed: bool,
    sums: bool,
) -> tuple[Callable[[Tensor], Tensor] | None, Launch, int]:
    """The copy of the weight to make first (None: none), the launch, and the pixels of its tiles.

    Args:
        pixels: of one image, and where ``transposed`` of one phase of it, that are written.
        wide, item: what ``Builder._offsets`` says.
        sums: whether the launch leaves the output's statistics.
    """
    from .gather import gather_gemm

    (kh, kw), (sh, sw), (dh, dw) = p.kernel, p.stride, p.dilation
    channels, filters = numbers.sizes["channels"], numbers.sizes["filters"]
    phases = sh * sw if transposed else 1
    flat = channels < 16 and kh * kw > 1 and phases == 1
    channels_last = p.channels_last and src.stride(1) == 1
    pointwise = is_pointwise(p, src, out)
    align = alignment(channels_last, pointwise, p.groups, src, out)
    exact = p.dtype == torch.float32 and builder.precision == "ieee"
    tile = builder.tiles.gather(
        filters,
        p.batch * pixels,
        channels,
        p.groups * phases,
        flat=flat,
        wide=wide,
        channels_last=channels_last,
        aligned=align > 1,
    )
    pack, w_strides, unit, weight_align = weight_layout(weight, p.groups, flat, transposed, channels_last)
    launch = builder.launch(
        gather_gemm,
        (-(-filters // tile.m) * -(-p.batch * pixels // tile.n), p.groups, phases),
        {
            **numbers.sizes, **numbers.planes, **numbers.strides, **named("weight", "gtkm", w_strides),
            **numbers.shifts, "sums": int(sums),
        },
        {
            "KH": kh, "KW": kw, "SH": sh, "SW": sw,
            "STEP_H": sh // math.gcd(sh, dh) if transposed else 1,
            "STEP_W": sw // math.gcd(sw, dw) if transposed else 1,
            "TRANSPOSED": transposed, "HAS_BIAS": has_bias, "FLAT": flat, "POINTWISE": pointwise,
            "EVEN_K": not flat and channels % tile.k == 0, "CHANNELS_LAST": channels_last,
            "ALIGN": builder.narrow(p, align),
            "WEIGHT_ALIGN": builder.narrow(p, weight_align),
            "FILTERS_ALIGN": vector(weight) if filters % vector(weight) == 0 else 1,
            "UNIT": unit, "WIDE": wide, "UPCAST": builder.upcasts(p),
            "PRECISION": builder.precision if p.dtype == torch.float32 else "ieee",
            "BLOCKED": builder.tiles.table.blocked and exact,
            "ITEM": item, "FULL": item > 0 and filters % tile.m == 0,
            "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k,
        },
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip
    return pack, launch, tile.n
