"""Batch norm and activation in two passes forward and two backward, as Triton kernels.

A tensor is seen as rows and columns. NCHW: rows are images, columns the pixels of one channel, and a program
works on one channel (program id 0). channels_last: rows are the pixels of all images, columns the channels,
and a program works on BLOCK_B channels. A program takes ``share`` tiles of BLOCK_A x BLOCK_B one after the
other (program id 1); what it sums goes to ``partial``, and the next kernel adds the parts in a fixed order.
Nothing is summed with atomics: the same input gives the same bits.

All arithmetic is fp32, whatever the storage. A variance is summed around the mean of a program's first tile,
and the parts are joined by their means (Chan, Golub and LeVeque, "Algorithms for computing the sample
variance", 1983), so that a large mean costs no digits.

Integers are never specialized; what alignment gives is passed as a constant (``ALIGN``). The start of a tile
is a 64-bit number and what is added within it a 32-bit one.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def corner(tile, columns, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The first row and the first column of a tile."""
    if CHANNELS_LAST:
        row = tile * BLOCK_A
        column = tl.program_id(0) * BLOCK_B
    else:
        across = tl.cdiv(columns, BLOCK_B)
        row = tile // across * BLOCK_A
        column = tile % across * BLOCK_B
    return row, column


@triton.jit
def inside(row, column, rows, columns, ALIGN: tl.constexpr, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr):
    """Which elements of a tile there are."""
    a = row + tl.arange(0, BLOCK_A)
    b = column + tl.arange(0, BLOCK_B)
    return (a < rows)[:, None] & (b < columns // ALIGN * ALIGN)[None, :]


@triton.jit
def addresses(
    base,
    row,
    column,
    row_stride,
    channel_stride,
    ALIGN: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
):
    """Where the elements of a tile are."""
    stride = row_stride // ALIGN * ALIGN
    start = row.to(tl.int64) * stride + column
    if not CHANNELS_LAST:
        start += tl.program_id(0).to(tl.int64) * (channel_stride // ALIGN * ALIGN)
    return base + start + (tl.arange(0, BLOCK_A)[:, None] * stride + tl.arange(0, BLOCK_B)[None, :])


@triton.jit
def own_channels(channels, BLOCK_B: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The channel or channels of this program, and which of them there are."""
    if CHANNELS_LAST:
        channel = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    else:
        channel = tl.program_id(0)
    return channel, channel < channels


@triton.jit
def total(values, CHANNELS_LAST: tl.constexpr):
    """Sum of a tile: for each column in channels_last, else of everything."""
    if CHANNELS_LAST:
        result = tl.sum(values, axis=0)
    else:
        result = tl.sum(tl.sum(values, axis=1), axis=0)
    return result


@triton.jit
def across_rows(values, CHANNELS_LAST: tl.constexpr):
    """What belongs to a channel, shaped to meet a tile."""
    if CHANNELS_LAST:
        result = values[None, :]
    else:
        result = values
    return result


@triton.jit
def parts(
    partial, which, first, splits, channel, live, channels, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr
):
    """CHUNK rows of one of the tables of ``partial``, from row ``first``; zero where there are none."""
    split = first + tl.arange(0, CHUNK)
    start = which * splits * channels
    if CHANNELS_LAST:
        at = split[:, None] * channels + channel[None, :]
        values = tl.load(partial + start + at, mask=(split < splits)[:, None] & live[None, :], other=0.0)
    else:
        values = tl.load(partial + start + split * channels + channel, mask=split < splits, other=0.0)
    return values


@triton.jit
def summed(partial, which, splits, channel, live, channels, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """The sum over all programs of one of the tables of ``partial``."""
    result = tl.sum(parts(partial, which, 0, splits, channel, live, channels, CHUNK, CHANNELS_LAST), axis=0)
    for first in range(CHUNK, splits, CHUNK):
        more = parts(partial, which, first, splits, channel, live, channels, CHUNK, CHANNELS_LAST)
        result += tl.sum(more, axis=0)
    return result


@triton.jit
def activate(z, slope, ACTIVATION: tl.constexpr):
    """The activation; NaN stays NaN."""
    if ACTIVATION == "silu":
        z = z / (1.0 + tl.exp(-z))
    elif ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, z)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0.0, z, z * slope)
    elif ACTIVATION == "hardswish":
        z = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, z, z * (z + 3.0) / 6.0))
    return z


@triton.jit
def derivative(z, slope, ACTIVATION: tl.constexpr):
    """Of the activation, at what it was applied to."""
    if ACTIVATION == "silu":
        s = 1.0 / (1.0 + tl.exp(-z))
        z = s * (1.0 + z * (1.0 - s))
    elif ACTIVATION == "relu":
        z = tl.where(z <= 0.0, 0.0, 1.0)
    elif ACTIVATION == "leaky_relu":
        z = tl.where(z > 0.0, 1.0, slope)
    elif ACTIVATION == "hardswish":
        z = tl.where(z <= -3.0, 0.0, tl.where(z >= 3.0, 1.0, z / 3.0 + 0.5))
    else:
        z = tl.full(z.shape, 1.0, tl.float32)
    return z


@triton.jit(do_not_specialize=["rows", "columns", "channels", "x_row", "x_channel", "tiles", "share"])
def statistics(
    x,
    saved,
    rows,
    columns,
    channels,
    x_row,
    x_channel,
    tiles,
    share,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Mean, sum of squared distances from it, and number of elements, of each channel in a program's tiles.

    Args:
        saved: float32; behind the first 2 * channels, (3, programs, channels) are written.
        x_row, x_channel: strides of rows and (NCHW) channels, elements.
        tiles: of one channel or block of channels; share: how many of them a program takes.
    """
    channel, live = own_channels(channels, BLOCK_B, CHANNELS_LAST)
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tiles)
    row, column = corner(first, columns, BLOCK_A, BLOCK_B, CHANNELS_LAST)
    there = inside(row, column, rows, columns, ALIGN, BLOCK_A, BLOCK_B)
    at = addresses(x, row, column, x_row, x_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
    here = total(tl.load(at, mask=there, other=0.0).to(tl.float32), CHANNELS_LAST)
    centre = here / tl.maximum(total(there.to(tl.float32), CHANNELS_LAST), 1.0)
    once = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    squared = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    number = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for tile in range(first, last):
        row, column = corner(tile, columns, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        there = inside(row, column, rows, columns, ALIGN, BLOCK_A, BLOCK_B)
        at = addresses(x, row, column, x_row, x_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        value = tl.load(at, mask=there, other=0.0).to(tl.float32)
        distance = tl.where(there, value - across_rows(centre, CHANNELS_LAST), 0.0)
        once += distance
        squared += distance * distance
        number += there.to(tl.float32)
    count = tl.maximum(total(number, CHANNELS_LAST), 1.0)
    shift = total(once, CHANNELS_LAST) / count
    programs = tl.num_programs(1)
    to = saved + 2 * channels + tl.program_id(1) * channels + channel
    tl.store(to, centre + shift, mask=live)
    tl.store(to + programs * channels, total(squared, CHANNELS_LAST) - shift * shift * count, mask=live)
    tl.store(to + 2 * programs * channels, count, mask=live)


@triton.jit(do_not_specialize=["channels", "pixels", "each", "tiles", "share"])
def join_statistics(
    table, saved, channels, pixels, each, tiles, share, BLOCK_A: tl.constexpr, BLOCK_B: tl.constexpr
):
    """What ``statistics`` writes, from what a convolution left of its output's.

    Args:
        table: float32, (2, tiles, channels); see ``patches.convolution.statistics``.
        pixels: of all images; each: of them in a tile, in the last what is left.
        tiles: of a channel; share: how many of them a program takes.
    """
    channel = tl.program_id(0) * BLOCK_B + tl.arange(0, BLOCK_B)
    live = channel < channels
    first = tl.program_id(1) * share
    last = tl.minimum(first + share, tiles)
    centre = tl.load(table + first * channels + channel, mask=live, other=0.0)
    count = (tl.minimum(last * each, pixels) - first * each).to(tl.float32)
    once = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for tile in range(first, last, BLOCK_A):
        row = tile + tl.arange(0, BLOCK_A)
        there = (row < last)[:, None] & live[None, :]
        number = tl.minimum(pixels - row * each, each).to(tl.float32)
        mean = tl.load(table + row[:, None] * channels + channel[None, :], mask=there, other=0.0)
        once += tl.where(there, (mean - centre[None, :]) * number[:, None], 0.0)
    mean_of_all = centre + tl.sum(once, axis=0) / count
    squared = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    for tile in range(first, last, BLOCK_A):
        row = tile + tl.arange(0, BLOCK_A)
        there = (row < last)[:, None] & live[None, :]
        number = tl.minimum(pixels - row * each, each).to(tl.float32)
        at = table + row[:, None] * channels + channel[None, :]
        apart = tl.load(at, mask=there, other=0.0) - mean_of_all[None, :]
        own = tl.load(at + tiles * channels, mask=there, other=0.0)
        squared += tl.where(there, own + apart * apart * number[:, None], 0.0)
    programs = tl.num_programs(1)
    to = saved + 2 * channels + tl.program_id(1) * channels + channel
    tl.store(to, mean_of_all, mask=live)
    tl.store(to + programs * channels, tl.sum(squared, axis=0), mask=live)
    tl.store(to + 2 * programs * channels, count, mask=live)


@triton.jit
def joined(partial, splits, channel, live, channels, count, CHUNK: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """Mean and (biased) variance of all programs' parts."""
    weighted = parts(partial, 0, 0, splits, channel, live, channels, CHUNK, CHANNELS_LAST) * parts(
        partial, 2, 0, splits, channel, live, channels, CHUNK, CHANNELS_LAST
    )
    mean = tl.sum(weighted, axis=0)
    for first in range(CHUNK, splits, CHUNK):
        weighted = parts(partial, 0, first, splits, channel, live, channels, CHUNK, CHANNELS_LAST) * parts(
            partial, 2, first, splits, channel, live, channels, CHUNK, CHANNELS_LAST
        )
        mean += tl.sum(weighted, axis=0)
    mean = mean / count
    spread = mean * 0.0
    for first in range(0, splits, CHUNK):
        number = parts(partial, 2, first, splits, channel, live, channels, CHUNK, CHANNELS_LAST)
        apart = parts(partial, 0, first, splits, channel, live, channels, CHUNK, CHANNELS_LAST) - across_rows(
            mean, CHANNELS_LAST
        )
        squared = parts(partial, 1, first, splits, channel, live, channels, CHUNK, CHANNELS_LAST)
        spread += tl.sum(squared + number * apart * apart, axis=0)
    return mean, tl.where(spread < 0.0, 0.0, spread / count)


# Long: a kernel is one function.
@triton.jit(
    do_not_specialize=[
        "rows", "columns", "channels", "x_row", "x_channel", "out_row", "out_channel", "tiles", "share",
        "splits", "count", "momentum", "eps", "slope",
    ]
)  # fmt: skip
def normalise(
    x,
    weight,
    bias,
    running_mean,
    running_var,
    batches,
    saved,
    out,
    rows,
    columns,
    channels,
    x_row,
    x_channel,
    out_row,
    out_channel,
    tiles,
    share,
    splits,
    count,
    momentum,
    eps,
    slope,
    TRAINING: tl.constexpr,
    AFFINE: tl.constexpr,
    TRACKED: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Normalise by the statistics of the batch (TRAINING) or by the running ones, scale, shift, activate.

    Args:
        batches: int64, how many batches the running statistics have seen; None when nobody counts.
        saved: float32; the first (2, channels) become mean and 1 / standard deviation, for the backward
            pass; behind them is what ``statistics`` wrote.
        splits, count: programs of ``statistics``, and elements of a channel.
        TRACKED: whether there are running statistics to update.
    """
    channel, live = own_channels(channels, BLOCK_B, CHANNELS_LAST)
    if TRAINING:
        partial = saved + 2 * channels
        mean, variance = joined(partial, splits, channel, live, channels, count, CHUNK, CHANNELS_LAST)
    else:
        mean = tl.load(running_mean + channel, mask=live, other=0.0).to(tl.float32)
        variance = tl.load(running_var + channel, mask=live, other=1.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(variance + eps)
    if tl.program_id(1) == 0:
        tl.store(saved + channel, mean, mask=live)
        tl.store(saved + channels + channel, inverse, mask=live)
        if TRAINING and TRACKED:
            unbiased = variance * (count / (count - 1.0))
            before = tl.load(running_mean + channel, mask=live, other=0.0).to(tl.float32)
            after = before + momentum * (mean - before)
            tl.store(running_mean + channel, after.to(running_mean.dtype.element_ty), mask=live)
            before = tl.load(running_var + channel, mask=live, other=0.0).to(tl.float32)
            after = before + momentum * (unbiased - before)
            tl.store(running_var + channel, after.to(running_var.dtype.element_ty), mask=live)
            if tl.program_id(0) == 0:
                tl.store(batches, tl.load(batches) + 1)
    scale = inverse
    if AFFINE:
        scale *= tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
        shift = tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
    else:
        shift = mean * 0.0
    mean, scale = across_rows(mean, CHANNELS_LAST), across_rows(scale, CHANNELS_LAST)
    shift = across_rows(shift, CHANNELS_LAST)
    first = tl.program_id(1) * share
    for tile in range(first, tl.minimum(first + share, tiles)):
        row, column = corner(tile, columns, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        there = inside(row, column, rows, columns, ALIGN, BLOCK_A, BLOCK_B)
        at = addresses(x, row, column, x_row, x_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        value = tl.load(at, mask=there, other=0.0).to(tl.float32)
        result = activate((value - mean) * scale + shift, slope, ACTIVATION)
        to = addresses(out, row, column, out_row, out_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        tl.store(to, result.to(out.dtype.element_ty), mask=there)


@triton.jit(
    do_not_specialize=[
        "rows", "columns", "channels", "x_row", "x_channel", "grad_row", "grad_channel", "tiles", "share",
        "slope",
    ]
)  # fmt: skip
def gradient_sums(
    x,
    grad,
    weight,
    bias,
    saved,
    rows,
    columns,
    channels,
    x_row,
    x_channel,
    grad_row,
    grad_channel,
    tiles,
    share,
    slope,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """Sums of the gradient behind the activation, and of its product with the normalised input.

    Args:
        saved: mean and 1 / standard deviation; behind them, (2, programs, channels) are written.
    """
    channel, live = own_channels(channels, BLOCK_B, CHANNELS_LAST)
    mean = across_rows(tl.load(saved + channel, mask=live, other=0.0), CHANNELS_LAST)
    inverse = across_rows(tl.load(saved + channels + channel, mask=live, other=0.0), CHANNELS_LAST)
    if AFFINE:
        scale = across_rows(tl.load(weight + channel, mask=live, other=0.0).to(tl.float32), CHANNELS_LAST)
        shift = across_rows(tl.load(bias + channel, mask=live, other=0.0).to(tl.float32), CHANNELS_LAST)
    once = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    product = tl.zeros((BLOCK_A, BLOCK_B), tl.float32)
    first = tl.program_id(1) * share
    for tile in range(first, tl.minimum(first + share, tiles)):
        row, column = corner(tile, columns, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        there = inside(row, column, rows, columns, ALIGN, BLOCK_A, BLOCK_B)
        at = addresses(x, row, column, x_row, x_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        normal = (tl.load(at, mask=there, other=0.0).to(tl.float32) - mean) * inverse
        at = addresses(grad, row, column, grad_row, grad_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        back = tl.load(at, mask=there, other=0.0).to(tl.float32)
        if AFFINE:
            back *= derivative(normal * scale + shift, slope, ACTIVATION)
        else:
            back *= derivative(normal, slope, ACTIVATION)
        once += back
        product += back * normal
    to = saved + 2 * channels + tl.program_id(1) * channels + channel
    tl.store(to, total(once, CHANNELS_LAST), mask=live)
    tl.store(to + tl.num_programs(1) * channels, total(product, CHANNELS_LAST), mask=live)


# Long: a kernel is one function.
@triton.jit(
    do_not_specialize=[
        "rows", "columns", "channels", "x_row", "x_channel", "grad_row", "grad_channel", "out_row",
        "out_channel", "tiles", "share", "splits", "count", "slope",
    ]
)  # fmt: skip
def input_gradient(
    x,
    grad,
    weight,
    bias,
    saved,
    weight_grad,
    bias_grad,
    out,
    rows,
    columns,
    channels,
    x_row,
    x_channel,
    grad_row,
    grad_channel,
    out_row,
    out_channel,
    tiles,
    share,
    splits,
    count,
    slope,
    TRAINING: tl.constexpr,
    AFFINE: tl.constexpr,
    ACTIVATION: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_A: tl.constexpr,
    BLOCK_B: tl.constexpr,
):
    """The gradients of input, weight and bias (Ioffe and Szegedy, arXiv 1502.03167, section 3).

    Args:
        saved: mean and 1 / standard deviation, and what ``gradient_sums`` wrote.
        TRAINING: whether the statistics were those of the batch, and so depend on the input.
    """
    channel, live = own_channels(channels, BLOCK_B, CHANNELS_LAST)
    mean = across_rows(tl.load(saved + channel, mask=live, other=0.0), CHANNELS_LAST)
    inverse = tl.load(saved + channels + channel, mask=live, other=0.0)
    partial = saved + 2 * channels
    once = summed(partial, 0, splits, channel, live, channels, CHUNK, CHANNELS_LAST)
    product = summed(partial, 1, splits, channel, live, channels, CHUNK, CHANNELS_LAST)
    factor = inverse
    if AFFINE:
        scale = tl.load(weight + channel, mask=live, other=0.0).to(tl.float32)
        shift = across_rows(tl.load(bias + channel, mask=live, other=0.0).to(tl.float32), CHANNELS_LAST)
        factor *= scale
        scale = across_rows(scale, CHANNELS_LAST)
        if tl.program_id(1) == 0:
            tl.store(weight_grad + channel, product.to(weight_grad.dtype.element_ty), mask=live)
            tl.store(bias_grad + channel, once.to(bias_grad.dtype.element_ty), mask=live)
    once, product = across_rows(once / count, CHANNELS_LAST), across_rows(product / count, CHANNELS_LAST)
    inverse, factor = across_rows(inverse, CHANNELS_LAST), across_rows(factor, CHANNELS_LAST)
    first = tl.program_id(1) * share
    for tile in range(first, tl.minimum(first + share, tiles)):
        row, column = corner(tile, columns, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        there = inside(row, column, rows, columns, ALIGN, BLOCK_A, BLOCK_B)
        at = addresses(x, row, column, x_row, x_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        normal = (tl.load(at, mask=there, other=0.0).to(tl.float32) - mean) * inverse
        at = addresses(grad, row, column, grad_row, grad_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        back = tl.load(at, mask=there, other=0.0).to(tl.float32)
        if AFFINE:
            back *= derivative(normal * scale + shift, slope, ACTIVATION)
        else:
            back *= derivative(normal, slope, ACTIVATION)
        if TRAINING:
            back -= once + normal * product
        to = addresses(out, row, column, out_row, out_channel, ALIGN, BLOCK_A, BLOCK_B, CHANNELS_LAST)
        tl.store(to, (back * factor).to(out.dtype.element_ty), mask=there)
