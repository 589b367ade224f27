"""The gradient of weight and bias: a product over all pixels, reduced in two steps of fixed order."""

from __future__ import annotations

import triton
import triton.language as tl

from .border import OUTSIDE, within
from .offsets import first_pixel, in_bytes, load_near, next_pixel

# Pairs that a warp reads side by side in NCHW, for 4 pixels each: with 4 the weight gradient takes 1.00x the
# time, with 16 1.39x, with 32 1.81x (one H200, ``scripts/tune_triton.py --quick --passes weight``).
ROWS = tl.constexpr(8)


# Long: a kernel is one function.
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
    ITEM: tl.constexpr,
    FULL: tl.constexpr,
    WARPS: tl.constexpr,
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
        GRAD_ALIGN, ALIGN: elements that one load may take at once from ``grad`` and ``src``; the latter for
            channels_last only.
        POINTWISE, WIDE, UPCAST, ITEM: as in ``gather_gemm``; with ITEM pixels are counted from step to step.
        FULL, WARPS: with ITEM, whether filters are a multiple of BLOCK_M, and over how many warps ``src`` is
            spread along the pixels.

    In NCHW both operands lie along the pixels, the axis that is summed. Stored so in shared memory, sixteen
    threads that multiply neighbouring pairs would read from the same banks. The compiler stores a tile in the
    order of the threads that loaded it, so ``src`` is loaded in four dimensions (with ITEM five, so that a
    thread has few pixels), of which pairs claim the longest runs, and is given the two of the product
    afterwards.
    """
    pairs = channels * KH * KW
    n_tiles = tl.cdiv(pairs, BLOCK_N)
    tile_m = tl.program_id(0) // n_tiles
    tile_n = tl.program_id(0) % n_tiles
    group = tl.program_id(1)
    split = tl.program_id(2)
    if CHANNELS_LAST:
        k = tl.arange(0, BLOCK_K)[:, None]
        k_grad = k
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[None, :]
        n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        m_live = m < filters // GRAD_ALIGN * GRAD_ALIGN
        n_live = n < pairs // ALIGN * ALIGN
    else:
        if ITEM:
            # (4, WARPS, ROWS, pairs / ROWS, pixels / 4 / WARPS)
            k = tl.arange(0, 4)[:, None, None, None, None]
            k += tl.arange(0, WARPS)[None, :, None, None, None] * 4
            k += tl.arange(0, BLOCK_K // 4 // WARPS)[None, None, None, None, :] * (4 * WARPS)
        else:
            # (pixels / 4, pairs / ROWS, ROWS, 4)
            k = tl.arange(0, BLOCK_K // 4)[:, None, None, None] * 4 + tl.arange(0, 4)[None, None, None, :]
        k_grad = tl.arange(0, BLOCK_K)[None, :]
        m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
        if ITEM:
            n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N // ROWS)[None, None, None, :, None] * ROWS
            n += tl.arange(0, ROWS)[None, None, :, None, None]
        else:
            n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N // ROWS)[None, :, None, None] * ROWS
            n += tl.arange(0, ROWS)[None, None, :, None]
        m_live = m < filters
        n_live = n < pairs
    if ONE_TAP:
        tap = tile_n * BLOCK_N // channels
        c = n - tl.multiple_of(tap * channels, BLOCK_N)
    elif CHANNELS_LAST:
        tap = tl.max_constancy(n // channels, [1, ALIGN])
        c = tl.max_contiguous(tl.multiple_of(n % channels, [1, ALIGN]), [1, ALIGN])
    else:
        tap = n // channels
        c = n % channels
    dy = tap // KW * dil_h - pad_h
    dx = tap % KW * dil_w - pad_w
    shift = dy * src_y + dx * src_x
    if not ONE_TAP:
        # One test then tells pairs and pixels beyond the last from those that read something.
        dy = tl.where(n_live, dy, OUTSIDE)

    if WIDE:
        grad += tl.multiple_of(group.to(tl.int64) * filters * grad_c, GRAD_ALIGN)
        src += tl.multiple_of(group.to(tl.int64) * channels * src_c, ALIGN)
        m_at = m.to(tl.int64)
        c = c.to(tl.int64)
        begin = tl.multiple_of(split.to(tl.int64) * pixels_per_split, BLOCK_K)
    else:
        grad += tl.multiple_of(group * filters * grad_c, GRAD_ALIGN)
        src += tl.multiple_of(group * channels * src_c, ALIGN)
        m_at = m
        begin = tl.multiple_of(split * pixels_per_split, BLOCK_K)
    if CHANNELS_LAST:
        n_at = tl.multiple_of(c + shift, [1, ALIGN])
    else:
        m_at = tl.multiple_of(m_at * grad_c, [GRAD_ALIGN, GRAD_ALIGN])
        n_at = c * src_c + shift

    area = grad_h * grad_w
    total = batch.to(tl.int64) * area if WIDE else batch * area
    if not CHANNELS_LAST:
        total = tl.multiple_of(total, GRAD_ALIGN)
    acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if CHANNELS_LAST:
        ones = tl.zeros((BLOCK_K, BLOCK_M), dtype=tl.float32)
    else:
        ones = tl.zeros((BLOCK_M, BLOCK_K), dtype=tl.float32)

    if ITEM:
        m_lanes, n_lanes = in_bytes(m_at, ITEM), in_bytes(n_at, ITEM)
        rows, columns = SH * src_y, SW * src_x
        # Along one axis: a thread would count each pixel again for what it has along the other.
        pixels = tl.arange(0, BLOCK_K)
        if CHANNELS_LAST:
            k = pixels
        grad_row, grad_col, grad_at = first_pixel(
            begin + pixels, grad_h, grad_w, grad_n, grad_y, grad_x, POINTWISE
        )
        src_row, src_col, src_at = first_pixel(begin + k, grad_h, grad_w, src_n, rows, columns, POINTWISE)
        left = tl.minimum(pixels_per_split, total - begin)
        if not CHANNELS_LAST:
            left = tl.multiple_of(left, GRAD_ALIGN)

    for start in range(0, pixels_per_split, BLOCK_K):
        if ITEM:
            live = pixels < left
            at = in_bytes(grad_at, ITEM)
            if CHANNELS_LAST:
                mask = live[:, None] if FULL else live[:, None] & m_live
                g = load_near(grad, at[:, None] + m_lanes, mask, [1, GRAD_ALIGN * ITEM], [1, BLOCK_M])
            else:
                mask = live[None, :] if FULL else live[None, :] & m_live
                g = load_near(grad, at[None, :] + m_lanes, mask, [1, GRAD_ALIGN * ITEM], [1, BLOCK_K])

            live = k < left
            y, x, at = tl.where(live, src_row * SH, OUTSIDE), src_col * SW, in_bytes(src_at, ITEM)
            if CHANNELS_LAST:
                live, y, x, at = live[:, None], y[:, None], x[:, None], at[:, None]
            mask = live if POINTWISE else within(y + dy, x + dx, src_h, src_w)
            if POINTWISE or ONE_TAP:
                mask = mask & n_live
            if CHANNELS_LAST:
                s = load_near(src, at + n_lanes, mask, [1, ALIGN * ITEM], [1, BLOCK_N])
            else:
                # As below: the claims only order the threads, as axes of equal runs are in no fixed order.
                s = load_near(src, at + n_lanes, mask, [1, 1, 1, 1, 1], [8, 4, 16, 2, 1])
                s = tl.permute(s, (4, 1, 0, 3, 2)).reshape(BLOCK_K, BLOCK_N)

            left -= BLOCK_K
            grad_row, grad_col, grad_at = next_pixel(
                grad_row, grad_col, grad_at, grad_h, grad_w, grad_n, grad_y, grad_x, BLOCK_K, POINTWISE
            )
            src_row, src_col, src_at = next_pixel(
                src_row, src_col, src_at, grad_h, grad_w, src_n, rows, columns, BLOCK_K, POINTWISE
            )
        else:
            pixel = begin + start + k_grad
            live = pixel < total
            image, rest = pixel // area, pixel % area
            if POINTWISE:
                grad_at = image * grad_n + rest * grad_x
            else:
                grad_at = image * grad_n + rest // grad_w * grad_y + rest % grad_w * grad_x
            if CHANNELS_LAST:
                grad_at = tl.multiple_of(grad_at, [GRAD_ALIGN, GRAD_ALIGN])
            else:
                # As in gather_gemm: across rows the claim of contiguity only orders the threads.
                grad_at = tl.max_contiguous(tl.multiple_of(grad_at, [1, GRAD_ALIGN]), [1, BLOCK_K])
            g = tl.load(grad + (grad_at + m_at), mask=live & m_live, other=0.0)

            pixel = begin + start + k
            live = pixel < total
            image, rest = pixel // area, pixel % area
            if POINTWISE:
                src_at = image * src_n + rest * src_x
                inside = live & n_live
            else:
                y, x = rest // grad_w * SH, rest % grad_w * SW
                src_at = image * src_n + y * src_y + x * src_x
                inside = within(tl.where(live, y, OUTSIDE) + dy, x + dx, src_h, src_w)
                if ONE_TAP:
                    inside = inside & n_live
            if CHANNELS_LAST:
                src_at = tl.multiple_of(src_at, [ALIGN, ALIGN])
                s = tl.load(src + (src_at + n_at), mask=inside, other=0.0)
            else:
                # Pairs are not contiguous; the claim only orders the threads, since no load is wider than
                # one.
                at = tl.max_contiguous(src_at + n_at, [1, 1, ROWS, 1])
                s = tl.load(src + at, mask=inside, other=0.0)
                s = tl.permute(s, (0, 3, 1, 2)).reshape(BLOCK_K, BLOCK_N)

        if HAS_BIAS:
            ones += g.to(tl.float32)
        if UPCAST:
            g = g.to(tl.float32)
            s = s.to(tl.float32)
        if CHANNELS_LAST:
            g = tl.trans(g)
        acc = tl.dot(g, s, acc, input_precision=PRECISION)

    row = partial + split.to(tl.int64) * split_size
    m = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    n = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    at = (group * filters + m)[:, None] * pairs + n[None, :]
    tl.store(row + at, acc, mask=(m < filters)[:, None] & (n < pairs)[None, :])
    if HAS_BIAS:
        sums = tl.sum(ones, axis=0) if CHANNELS_LAST else tl.sum(ones, axis=1)
        at = tl.num_programs(1) * filters * pairs + group * filters + m
        tl.store(row + at, sums, mask=(m < filters) & (tile_n == 0))


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
