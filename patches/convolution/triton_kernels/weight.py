"""The weight gradient (and the bias gradient with it): a product over all pixels, reduced in two fixed-order
steps.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit(
    do_not_specialize=[
        "batch", "channels", "filters", "src_h", "src_w", "grad_h", "grad_w", "grad_n", "grad_c",
        "grad_y", "grad_x", "src_n", "src_c", "src_y", "src_x", "pad_h", "pad_w", "dil_h", "dil_w",
        "pixels_per_split", "split_size",
    ]
)  # fmt: skip
def weight_gradient(
    grad,
    src,
    partial,
    batch,
    channels,
    filters,
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
    POINTWISE: tl.constexpr,
    ONE_TAP: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    GRAD_ALIGN: tl.constexpr,
    ALIGN: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Partial sums over one share of the pixels: BLOCK_M filters x BLOCK_N (tap, channel) pairs of one group.

    ``partial`` is (splits, groups * filters * taps * channels [+ groups * filters for the bias]), fp32: a row
    a split.

    Args:
        channels, filters: within one group.
        pixels_per_split: pixels of the output that one split sums, a multiple of BLOCK_K.
        split_size: elements in one row of ``partial``.
        ONE_TAP: channels are a multiple of BLOCK_N, so that a tile has a single shift.
        GRAD_ALIGN, ALIGN: elements that one load may take at once from ``grad`` and ``src``.
        POINTWISE, WIDE, UPCAST: as in ``gather_gemm``.
    """
    pairs = channels * KH * KW
    n_tiles = tl.cdiv(pairs, BLOCK_N)
    tile_m = tl.program_id(0) // n_tiles
    tile_n = tl.program_id(0) % n_tiles
    group = tl.program_id(1)
    split = tl.program_id(2)
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    if CHANNELS_LAST:
        m_live = m < filters // GRAD_ALIGN * GRAD_ALIGN
        n_live = n < tl.multiple_of(pairs, ALIGN)
    else:
        m_live = m < filters
        n_live = n < pairs
    if ONE_TAP:
        tap = tile_n * BLOCK_N // channels
        c = tile_n * BLOCK_N % channels + tl.arange(0, BLOCK_N)
    else:
        tap = n // channels
        c = n % channels
    dy = tap // KW * dil_h - pad_h
    dx = tap % KW * dil_w - pad_w

    if WIDE:
        grad += tl.multiple_of(group.to(tl.int64) * filters * grad_c, GRAD_ALIGN)
        src += tl.multiple_of(group.to(tl.int64) * channels * src_c, ALIGN)
        m_at = m.to(tl.int64)
        c_at = c.to(tl.int64)
        begin = split.to(tl.int64) * pixels_per_split
    else:
        grad += tl.multiple_of(group * filters * grad_c, GRAD_ALIGN)
        src += tl.multiple_of(group * channels * src_c, ALIGN)
        m_at = m
        c_at = c
        begin = split * pixels_per_split
    shift = tl.multiple_of(dy * src_y + dx * src_x, ALIGN)
    if CHANNELS_LAST:
        n_at = c_at + shift
    else:
        m_at = tl.multiple_of(m_at * grad_c, GRAD_ALIGN)
        n_at = tl.multiple_of(c_at * src_c, ALIGN) + shift

    area = grad_h * grad_w
    total = batch.to(tl.int64) * area if WIDE else batch * area
    if not CHANNELS_LAST:
        total = tl.multiple_of(total, GRAD_ALIGN)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if CHANNELS_LAST:
        ones = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32)
    else:
        ones = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)

    for start in range(0, pixels_per_split, BLOCK_K):
        pixel = begin + start + tl.arange(0, BLOCK_K)
        live = pixel < total
        image = pixel // area
        rest = pixel % area
        y = rest // grad_w
        x = rest % grad_w
        if POINTWISE:
            grad_at = image * grad_n + rest * grad_x
            src_at = image * src_n + rest * src_x
        else:
            grad_at = image * grad_n + y * grad_y + x * grad_x
            src_at = image * src_n + y * SH * src_y + x * SW * src_x
        # As in gather_gemm: across rows the claim of contiguity only orders the threads.
        if CHANNELS_LAST:
            grad_at = tl.multiple_of(grad_at, GRAD_ALIGN)
            src_at = tl.multiple_of(src_at, ALIGN)
            g = tl.load(
                grad + (grad_at[:, None] + m_at[None, :]), mask=live[:, None] & m_live[None, :], other=0.0
            )
        else:
            grad_at = tl.max_contiguous(tl.multiple_of(grad_at, GRAD_ALIGN), BLOCK_K)
            src_at = tl.max_contiguous(tl.multiple_of(src_at, ALIGN), BLOCK_K)
            g = tl.load(
                grad + (grad_at[None, :] + m_at[:, None]), mask=live[None, :] & m_live[:, None], other=0.0
            )

        if POINTWISE:
            inside = live
        elif ONE_TAP:
            y_in = y * SH + dy
            x_in = x * SW + dx
            inside = live & (y_in >= 0) & (y_in < src_h) & (x_in >= 0) & (x_in < src_w)
        elif CHANNELS_LAST:
            y_in = (y * SH)[:, None] + dy[None, :]
            x_in = (x * SW)[:, None] + dx[None, :]
            inside = live[:, None] & (y_in >= 0) & (y_in < src_h) & (x_in >= 0) & (x_in < src_w)
        else:
            y_in = (y * SH)[None, :] + dy[:, None]
            x_in = (x * SW)[None, :] + dx[:, None]
            inside = live[None, :] & (y_in >= 0) & (y_in < src_h) & (x_in >= 0) & (x_in < src_w)
        if CHANNELS_LAST:
            if POINTWISE or ONE_TAP:
                mask = inside[:, None] & n_live[None, :]
            else:
                mask = inside & n_live[None, :]
            s = tl.load(src + (src_at[:, None] + n_at[None, :]), mask=mask, other=0.0)
        else:
            if POINTWISE or ONE_TAP:
                mask = inside[None, :] & n_live[:, None]
            else:
                mask = inside & n_live[:, None]
            s = tl.load(src + (src_at[None, :] + n_at[:, None]), mask=mask, other=0.0)

        if HAS_BIAS:
            ones += g.to(tl.float32)
        if UPCAST:
            g = g.to(tl.float32)
            s = s.to(tl.float32)
        if CHANNELS_LAST:
            acc = tl.dot(tl.trans(g), s, acc, input_precision=PRECISION)
        else:
            acc = tl.dot(g, tl.trans(s), acc, input_precision=PRECISION)

    row = partial + split.to(tl.int64) * split_size
    at = (group * filters + m)[:, None] * pairs + n[None, :]
    tl.store(row + at, acc, mask=m_live[:, None] & n_live[None, :])
    if HAS_BIAS:
        sums = tl.sum(ones, axis=0) if CHANNELS_LAST else tl.sum(ones, axis=1)
        at = tl.num_programs(1) * filters * pairs + group * filters + m
        tl.store(row + at, sums, mask=m_live & (tile_n == 0))


@triton.jit(
    do_not_specialize=[
        "splits", "split_size", "weight_size", "pairs", "channels", "kernel_w", "weight_m",
        "weight_c", "weight_y", "weight_x",
    ]
)  # fmt: skip
def reduce_partials(
    partial,
    weight_grad,
    bias_grad,
    splits,
    split_size,
    weight_size,
    pairs,
    channels,
    kernel_w,
    weight_m,
    weight_c,
    weight_y,
    weight_x,
    HAS_BIAS: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the rows of ``partial`` in a fixed order and write both gradients in their own types and strides.

    Args:
        weight_size: elements of the weight, the first part of a row; the bias is the rest.
        pairs, channels: taps * channels, and channels, of one filter; kernel_w: width of the kernel.
        weight_m, _c, _y, _x: strides of ``weight_grad`` over filters, channels, rows and columns of the
            kernel.
    """
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    live = at < split_size
    acc = tl.zeros((BLOCK_S, BLOCK), dtype=tl.float32)
    for first in range(0, splits, BLOCK_S):
        split = first + tl.arange(0, BLOCK_S)
        offsets = split.to(tl.int64)[:, None] * split_size + at[None, :]
        acc += tl.load(partial + offsets, mask=(split < splits)[:, None] & live[None, :], other=0.0)
    sums = tl.sum(acc, axis=0)
    pair = at % pairs
    tap = pair // channels
    to = (
        at // pairs * weight_m
        + pair % channels * weight_c
        + tap // kernel_w * weight_y
        + tap % kernel_w * weight_x
    )
    tl.store(weight_grad + to, sums.to(weight_grad.dtype.element_ty), mask=at < weight_size)
    if HAS_BIAS:
        to = bias_grad + (at - weight_size)
        tl.store(to, sums.to(bias_grad.dtype.element_ty), mask=(at >= weight_size) & live)
