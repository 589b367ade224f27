"""Depthwise convolutions and groups of few channels: no product of tiles, each output is a sum of its own.

A group of a few channels fills a corner of a matrix tile and leaves the rest to zeros; here a thread keeps
one output (or, for the weight gradient, one tap) in a register and walks the group's channels and taps. Tiles
are (pixels, channels): one channel and many pixels for NCHW, few pixels and many channels for channels_last,
so that neighbouring threads read neighbouring elements in both.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .border import OUTSIDE, within


# Long: a kernel is one function.
@triton.jit(
    do_not_specialize=[
        "batch", "channels", "filters", "out_channels", "src_h", "src_w", "out_h", "out_w", "src_n",
        "src_c", "src_y", "src_x", "out_n", "out_c", "out_y", "out_x", "weight_g", "weight_k",
        "weight_m", "weight_y", "weight_x", "pad_h", "pad_w", "dil_h", "dil_w",
    ]
)  # fmt: skip
def grouped_gather(
    src,
    weight,
    bias,
    out,
    batch,
    channels,
    filters,
    out_channels,
    src_h,
    src_w,
    out_h,
    out_w,
    src_n,
    src_c,
    src_y,
    src_x,
    out_n,
    out_c,
    out_y,
    out_x,
    weight_g,
    weight_k,
    weight_m,
    weight_y,
    weight_x,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Forward, or with TRANSPOSED the input gradient, of BLOCK_P pixels x BLOCK_C channels.

    Program ids: (tiles of pixels x tiles of channels x images, phase; forward has one phase).

    Args:
        channels, filters: channels read and written, each within one group; out_channels: written in all
            groups.
        weight_g, _k, _m, _y, _x: strides of the weight over groups, channels read, channels written, rows,
            columns.
    """
    if WIDE:
        tile = tl.program_id(0).to(tl.int64)
    else:
        tile = tl.program_id(0)
    c_tiles = tl.cdiv(out_channels, BLOCK_C)
    if BLOCK_C == 1:
        # NCHW: pixels of one plane after the other, so that neighbouring programs share nothing but read in
        # order.
        if TRANSPOSED:
            plane = tl.cdiv(tl.cdiv(out_h, SH) * tl.cdiv(out_w, SW), BLOCK_P)
        else:
            plane = tl.cdiv(out_h * out_w, BLOCK_P)
        pixel_tile = tile % plane
        c = (tile // plane) % out_channels + tl.arange(0, 1)
        image = tile // plane // out_channels
    else:
        c = (tile % c_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
        if TRANSPOSED:
            plane = tl.cdiv(tl.cdiv(out_h, SH) * tl.cdiv(out_w, SW), BLOCK_P)
        else:
            plane = tl.cdiv(out_h * out_w, BLOCK_P)
        pixel_tile = tile // c_tiles % plane
        image = tile // c_tiles // plane
    c_live = c < out_channels

    if TRANSPOSED:
        phase_h = tl.program_id(1) // SW
        phase_w = tl.program_id(1) % SW
        grid_h = (out_h - phase_h + SH - 1) // SH
        grid_w = (out_w - phase_w + SW - 1) // SW
    else:
        phase_h = 0
        phase_w = 0
        grid_h = out_h
        grid_w = out_w
    pixel = pixel_tile * BLOCK_P + tl.arange(0, BLOCK_P)
    live = pixel < grid_h * grid_w
    y = pixel // tl.maximum(grid_w, 1)
    x = pixel % tl.maximum(grid_w, 1)
    group = c // filters
    m = c % filters
    if WIDE:
        first = group.to(tl.int64) * channels
    else:
        first = group * channels

    acc = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for k in range(0, channels):
        base = (first + k) * src_c
        w_base = group * weight_g + k * weight_k + m * weight_m
        for kh in tl.static_range(KH):
            for kw in tl.static_range(KW):
                if TRANSPOSED:
                    off_y = phase_h + pad_h - kh * dil_h
                    off_x = phase_w + pad_w - kw * dil_w
                    if (off_y % SH == 0) & (off_x % SW == 0):
                        y_in = y + off_y // SH
                        x_in = x + off_x // SW
                        inside = live & within(y_in, x_in, src_h, src_w)
                        at = tl.max_contiguous(image * src_n + y_in * src_y + x_in * src_x, BLOCK_P)
                        s = tl.load(
                            src + (at[:, None] + base[None, :]),
                            mask=inside[:, None] & c_live[None, :],
                            other=0.0,
                        )
                        w = tl.load(weight + w_base + kh * weight_y + kw * weight_x, mask=c_live, other=0.0)
                        acc += s.to(tl.float32) * w.to(tl.float32)[None, :]
                else:
                    y_in = y * SH + (kh * dil_h - pad_h)
                    x_in = x * SW + (kw * dil_w - pad_w)
                    inside = live & within(y_in, x_in, src_h, src_w)
                    at = tl.max_contiguous(image * src_n + y_in * src_y + x_in * src_x, BLOCK_P)
                    s = tl.load(
                        src + (at[:, None] + base[None, :]), mask=inside[:, None] & c_live[None, :], other=0.0
                    )
                    w = tl.load(weight + w_base + kh * weight_y + kw * weight_x, mask=c_live, other=0.0)
                    acc += s.to(tl.float32) * w.to(tl.float32)[None, :]
    if HAS_BIAS:
        acc += tl.load(bias + c, mask=c_live, other=0.0).to(tl.float32)[None, :]
    if TRANSPOSED:
        at = image * out_n + (phase_h + y * SH) * out_y + (phase_w + x * SW) * out_x
    else:
        at = image * out_n + y * out_y + x * out_x
    at = tl.max_contiguous(at, BLOCK_P)
    c_at = c.to(tl.int64) * out_c if WIDE else c * out_c
    tl.store(
        out + (at[:, None] + c_at[None, :]),
        acc.to(out.dtype.element_ty),
        mask=live[:, None] & c_live[None, :],
    )


# Long: a kernel is one function.
@triton.jit(
    do_not_specialize=[
        "batch", "channels", "filters", "out_channels", "src_h", "src_w", "grad_h", "grad_w",
        "grad_n", "grad_c", "grad_y", "grad_x", "src_n", "src_c", "src_y", "src_x", "pad_h",
        "pad_w", "dil_h", "dil_w", "pixels_per_split", "split_size",
    ]
)  # fmt: skip
def grouped_weight_gradient(
    grad,
    src,
    partial,
    batch,
    channels,
    filters,
    out_channels,
    src_h,
    src_w,
    grad_h,
    grad_w,
    grad_n,
    grad_c,
    grad_y,
    grad_x,
    src_n,
    src_c,
    src_y,
    src_x,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    pixels_per_split,
    split_size,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Partial sums of BLOCK_T taps x BLOCK_C filters against one channel of the group, over one share of the
    pixels.

    Program ids: (tiles of filters x tiles of taps, channel within the group, split). ``partial`` has the rows
    that ``weight_gradient`` writes.
    """
    c_tiles = tl.cdiv(out_channels, BLOCK_C)
    filter_at = (tl.program_id(0) % c_tiles) * BLOCK_C + tl.arange(0, BLOCK_C)
    tap = (tl.program_id(0) // c_tiles) * BLOCK_T + tl.arange(0, BLOCK_T)
    k = tl.program_id(1)
    split = tl.program_id(2)
    c_live = filter_at < out_channels
    t_live = tap < KH * KW
    dy = tap // KW * dil_h - pad_h
    dx = tap % KW * dil_w - pad_w
    channel = filter_at // filters * channels + k
    if WIDE:
        begin = split.to(tl.int64) * pixels_per_split
        c_grad = filter_at.to(tl.int64) * grad_c
        c_src = channel.to(tl.int64) * src_c
    else:
        begin = split * pixels_per_split
        c_grad = filter_at * grad_c
        c_src = channel * src_c
    t_src = dy * src_y + dx * src_x
    # One test then tells taps and pixels beyond the last from those that read something.
    dy = tl.where(t_live, dy, OUTSIDE)
    area = grad_h * grad_w

    acc = tl.zeros((BLOCK_T, BLOCK_P, BLOCK_C), dtype=tl.float32)
    ones = tl.zeros((BLOCK_P, BLOCK_C), dtype=tl.float32)
    for start in range(0, pixels_per_split, BLOCK_P):
        pixel = begin + start + tl.arange(0, BLOCK_P)
        live = pixel < (batch.to(tl.int64) * area if WIDE else batch * area)
        image = pixel // area
        rest = pixel % area
        y = rest // grad_w
        x = rest % grad_w
        at = tl.max_contiguous(image * grad_n + y * grad_y + x * grad_x, BLOCK_P)
        g = tl.load(grad + (at[:, None] + c_grad[None, :]), mask=live[:, None] & c_live[None, :], other=0.0)
        g = g.to(tl.float32)
        y_in = tl.where(live, y * SH, OUTSIDE)[None, :] + dy[:, None]
        inside = within(y_in, (x * SW)[None, :] + dx[:, None], src_h, src_w)
        at = tl.max_contiguous(image * src_n + y * SH * src_y + x * SW * src_x, BLOCK_P)
        at = at[None, :] + t_src[:, None]
        s = tl.load(
            src + (at[:, :, None] + c_src[None, None, :]),
            mask=inside[:, :, None] & c_live[None, None, :],
            other=0.0,
        )
        acc += s.to(tl.float32) * g[None, :, :]
        if HAS_BIAS:
            ones += g

    row = partial + split.to(tl.int64) * split_size
    at = filter_at[None, :] * (channels * KH * KW) + tap[:, None] * channels + k
    tl.store(row + at, tl.sum(acc, axis=1), mask=t_live[:, None] & c_live[None, :])
    if HAS_BIAS:
        at = out_channels * channels * KH * KW + filter_at
        first = (k == 0) & (tl.program_id(0) < c_tiles)
        tl.store(row + at, tl.sum(ones, axis=0), mask=c_live & first)
