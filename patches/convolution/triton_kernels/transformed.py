"""The route by Winograd's transform: the Triton route for 3 x 3 of stride 1, with fewer products."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..problem import ConvProblem
from .layout import alignment, named, vector

if TYPE_CHECKING:
    from .route import Builder

# With fewer channels on either side a tile is mostly empty, and what is transformed is used too seldom.
FEWEST_CHANNELS = 16
# Products that are summed one after the other; with 256 the error was 2.4 times PyTorch's on a processor.
CHAIN = 64
# Elements of a tensor that 32-bit offsets reach, with room for a tile beyond the end.
MOST_ELEMENTS = 2**31 - 2**22


def suits(p: ConvProblem) -> bool:
    """Whether ``winograd_gather`` can serve a problem: fp32, 3 x 3, stride 1, no dilation, one group."""
    height, width = p.output_size
    return (
        (p.dtype, p.kernel, p.stride, p.dilation) == (torch.float32, (3, 3), (1, 1), (1, 1))
        and (p.groups, p.output_padding) == (1, (0, 0))
        and min(p.channels_in, p.channels_out) >= FEWEST_CHANNELS
        and p.batch * max(p.channels_in * p.height * p.width, p.channels_out * height * width) < MOST_ELEMENTS
    )


def gather(
    builder: Builder,
    p: ConvProblem,
    src: Tensor,
    out: Tensor,
    weight: Tensor,
    has_bias: bool,
    transposed: bool,
) -> tuple[Callable[[Tensor], Tensor], Any]:
    """The transform of the weight, and the launch from ``src`` to ``out``; as ``Builder._gather``."""
    from .winograd import winograd_gather, winograd_weight

    channels, filters = src.shape[1], out.shape[1]
    m, k, y, x = weight.stride()
    if transposed:
        m, k = k, m
    transform = builder.launch(
        winograd_weight,
        (-(-channels * filters // 256), 1, 1),
        {"channels": channels, "filters": filters, **named("weight", "kmyx", (k, m, y, x))},
        {"TRANSPOSED": transposed, "BLOCK": 256},
    )
    channels_last = p.channels_last and src.stride(1) == 1
    squares = src.shape[0] * -(-out.shape[2] // 2) * -(-out.shape[3] // 2)
    align = alignment(channels_last, False, 1, src, out)
    tile = builder.tiles.winograd(filters, squares, roomy=align > 1 or not channels_last)
    padding = tuple(2 - each for each in p.padding) if transposed else p.padding
    launch = builder.launch(
        winograd_gather,
        (-(-filters // tile.m) * -(-squares // tile.n), 1, 1),
        {
            "batch": src.shape[0], "channels": channels, "filters": filters,
            **named("src", "hw", src.shape[2:]), **named("out", "hw", out.shape[2:]),
            **named("src", "ncyx", src.stride()), **named("out", "ncyx", out.stride()),
            **named("pad", "hw", padding),
        },
        {
            "HAS_BIAS": has_bias, "EVEN_K": channels % tile.k == 0, "CHANNELS_LAST": channels_last,
            "ALIGN": align,
            "FILTERS_ALIGN": vector(weight) if filters % vector(weight) == 0 else 1,
            "BLOCK_M": tile.m, "BLOCK_N": tile.n, "BLOCK_K": tile.k, "CHAIN": CHAIN,
        },
        warps=tile.warps, stages=tile.stages,
    )  # fmt: skip

    def transformed(weight: Tensor) -> Tensor:
        made = weight.new_empty(16, channels, filters)
        transform(weight, made)
        return made

    return transformed, launch
