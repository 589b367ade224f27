"""Launches for depthwise convolutions and groups of few channels (see ``grouped``)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from ..problem import ConvProblem
from .layout import Numbers, named
from .tiles import split_evenly

if TYPE_CHECKING:
    from .launch import Launch
    from .route import Builder


def gather(
    builder: Builder,
    p: ConvProblem,
    numbers: Numbers,
    weight: Tensor,
    pixels: int,
    *,
    wide: bool,
    has_bias: bool,
    transposed: bool,
) -> Launch:
    """The launch from one activation to the other, which reads the weight as it lies.

    Args:
        pixels: of one image, and where ``transposed`` of one phase of it, that are written.
        wide: offsets need 64 bits.
    """
    from .grouped import grouped_gather

    (kh, kw), (sh, sw) = p.kernel, p.stride
    written = p.channels_in if transposed else p.channels_out
    block_p, block_c = builder.tiles.grouped(kh * kw, pixels, p.channels_last)
    tiles = -(-pixels // block_p) * -(-written // block_c) * p.batch
    m, k, y, x = weight.stride()
    if transposed:
        strides = named("weight", "gkmyx", (m * numbers.sizes["channels"], m, k, y, x))
    else:
        strides = named("weight", "gkmyx", (m * numbers.sizes["filters"], k, m, y, x))
    return builder.launch(
        grouped_gather,
        (tiles, sh * sw if transposed else 1, 1),
        {
            **numbers.sizes, "out_channels": written, **numbers.planes, **numbers.strides, **strides,
            **numbers.shifts,
        },
        {
            "KH": kh, "KW": kw, "SH": sh, "SW": sw, "TRANSPOSED": transposed, "HAS_BIAS": has_bias,
            "WIDE": wide, "BLOCK_P": block_p, "BLOCK_C": block_c,
        },
    )  # fmt: skip


def weigh(
    builder: Builder,
    p: ConvProblem,
    numbers: Numbers,
    pixels: int,
    size: int,
    *,
    wide: bool,
    has_bias: bool,
) -> tuple[Launch, int]:
    """The launch that leaves sums for weight and bias from each split of the pixels; how many there are.

    Args:
        pixels: of all images, of the gradient.
        size: elements of the weight and, if it has one, the bias.
        wide: offsets need 64 bits.
    """
    from .grouped import grouped_weight_gradient

    (kh, kw), (sh, sw) = p.kernel, p.stride
    channels = numbers.sizes["channels"]
    block_t, block_p, block_c = builder.tiles.grouped_weight(kh * kw, p.channels_last, wide)
    tiles = -(-p.channels_out // block_c) * -(-kh * kw // block_t)
    splits = builder.tiles.splits(tiles * channels, pixels, 8 * block_p)
    share, splits = split_evenly(pixels, splits, block_p)
    launch = builder.launch(
        grouped_weight_gradient,
        (tiles, channels, splits),
        {
            **numbers.sizes, "out_channels": p.channels_out, **numbers.planes, **numbers.strides,
            **numbers.shifts, "pixels_per_split": share, "split_size": size,
        },
        {
            "KH": kh, "KW": kw, "SH": sh, "SW": sw, "HAS_BIAS": has_bias, "WIDE": wide,
            "BLOCK_T": block_t, "BLOCK_P": block_p, "BLOCK_C": block_c,
        },
        warps=8,
    )  # fmt: skip
    return launch, splits
