"""Implicit GEMM without a column buffer: the forward pass and the input gradient are one kernel.

Both compute ``out[m, pixel] = sum over taps and k of weight[tap, k, m] * src[k, pixel shifted by tap]``: m
runs over the channels written, k over the channels read. Forward reads the input at ``pixel * stride + tap *
dilation - padding``. The input gradient reads the output's gradient; for a stride s it splits the pixels
written into s * s phases (one program id axis), and within a phase only every s-th tap contributes and its
shift is a constant, so a phase is a stride-1 gather over its own taps and no product with a structural zero
is formed.

The forward pass can leave the statistics of its output for a batch norm behind it, while the output is still
in registers: a mean and a sum of squares for each tile and channel, joined by who reads them (see
``patches.convolution.statistics``). Whether it does is an argument, so that it costs no further variant.

Integers are never specialized: a variant for sizes divisible by 16 and another for 1 would compile a kernel
again for a neighbouring shape. What alignment gives is passed as a constant instead (``ALIGN``).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .border import OUTSIDE, within
from .offsets import in_bytes, load_near


@triton.jit
def first_tap(phase, padding, dilation, K: tl.constexpr, S: tl.constexpr):
    """The smallest tap k with (phase + padding - k * dilation) divisible by the stride; K where there is
    none.
    """
    first = K
    for back in tl.static_range(K):
        first = tl.where((phase + padding - (K - 1 - back) * dilation) % S == 0, K - 1 - back, first)
    return first


@triton.jit
def leave_statistics(
    partial, value, live, m_live, first, total, at, size, BLOCK_N: tl.constexpr, AXIS: tl.constexpr
):
    """Mean of each channel in a tile, and the sum of squared distances from it.

    Args:
        value: of the tile, as stored; live: which pixels there are, along AXIS; m_live: which channels.
        first: pixel of the tile; total: pixels.
        at: where the channels' means go; their sums go ``size`` further.
    """
    there = tl.expand_dims(live, 1 - AXIS)
    number = tl.minimum(total - first, BLOCK_N).to(tl.int32).to(tl.float32)
    mean = tl.sum(tl.where(there, value, 0.0), axis=AXIS) * (1.0 / number)
    apart = tl.where(there, value - tl.expand_dims(mean, AXIS), 0.0)
    tl.store(partial + at, mean, mask=m_live)
    tl.store(partial + at + size, tl.sum(apart * apart, axis=AXIS), mask=m_live)


# Long: a kernel is one function.
@triton.jit(
    do_not_specialize=[
        "batch", "channels", "filters", "src_h", "src_w", "out_h", "out_w", "src_n", "src_c",
        "src_y", "src_x", "out_n", "out_c", "out_y", "out_x", "weight_g", "weight_t", "weight_k",
        "weight_m", "pad_h", "pad_w", "dil_h", "dil_w", "sums",
    ]
)  # fmt: skip
def gather_gemm(
    src,
    weight,
    bias,
    out,
    partial,
    batch,
    channels,
    filters,
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
    weight_t,
    weight_k,
    weight_m,
    pad_h,
    pad_w,
    dil_h,
    dil_w,
    sums,
    KH: tl.constexpr,
    KW: tl.constexpr,
    SH: tl.constexpr,
    SW: tl.constexpr,
    STEP_H: tl.constexpr,
    STEP_W: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    FLAT: tl.constexpr,
    POINTWISE: tl.constexpr,
    EVEN_K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    WEIGHT_ALIGN: tl.constexpr,
    FILTERS_ALIGN: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCKED: tl.constexpr,
    ITEM: tl.constexpr,
    FULL: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One tile of BLOCK_M channels x BLOCK_N pixels of one group (and, for the input gradient, of one phase).

    Program ids: (tiles of channels x tiles of pixels of all images, group, phase; forward has one phase).

    Args:
        partial: float32, (2, tiles of pixels, groups * filters), for ``sums``.
        channels, filters: channels read and written, each within one group.
        src_*, out_*: sizes and strides (elements) of the tensor read and written; weight_g, _t, _k, _m:
            strides of the weight over groups, taps, channels read and channels written.
        sums: whether to leave the output's statistics; of the forward pass without a bias.
        STEP_H, STEP_W: distance between the taps of one phase, stride / gcd(stride, dilation).
        FLAT: k runs over channels and taps together, for few channels; without it, over channels within a
            tap.
        POINTWISE: 1x1, stride 1, no padding, rows without gaps: pixels need no coordinates.
        EVEN_K: the channels read are a multiple of BLOCK_K.
        ALIGN, WEIGHT_ALIGN: elements that one access may take at once, where addresses are known to be
            aligned; FILTERS_ALIGN: the same for the mask over the channels written.
        UNIT: which of the weight's strides is 1: "m", "k" (with FLAT: channels and taps are one run) or
            "none".
        WIDE: offsets need 64 bits.
        BLOCKED: sum the products of a step on their own before they join the total, so that rounding grows
            with the square root of BLOCK_K and of the steps instead of that of all products. They are
            subtracted, and the sign turned at the end, because the compiler would fuse an addition into the
            product.
        ITEM: bytes of an element where loads take offsets in bytes (see ``offsets``); 0: in elements. What
            the lanes add to an address then stays in registers, and a step adds what is the same for all.
        FULL: with ITEM, the channels written are a multiple of BLOCK_M.
        UPCAST: multiply in fp32 what is stored in fp16, for architectures without the packed dot product.
    """
    if FLAT and TRANSPOSED:
        tl.static_assert(SH * SW == 1, "FLAT sums over all taps, and with a stride each phase has its own")
    m_tiles = tl.cdiv(filters, BLOCK_M)
    if WIDE:
        tile = tl.program_id(0).to(tl.int64)
    else:
        tile = tl.program_id(0)
    group = tl.program_id(1)
    m = (tile % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    pixel = (tile // m_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)

    if TRANSPOSED:
        phase_h = tl.program_id(2) // SW
        phase_w = tl.program_id(2) % SW
        # An output narrower than the stride has phases without pixels.
        grid_h = tl.maximum((out_h - phase_h + SH - 1) // SH, 0)
        grid_w = tl.maximum((out_w - phase_w + SW - 1) // SW, 0)
        first_h = first_tap(phase_h, pad_h, dil_h, KH, SH)
        first_w = first_tap(phase_w, pad_w, dil_w, KW, SW)
        taps_w = (KW - first_w + STEP_W - 1) // STEP_W
        taps = (KH - first_h + STEP_H - 1) // STEP_H * taps_w
    else:
        grid_h = out_h
        grid_w = out_w
        first_h = 0
        first_w = 0
        taps_w = KW
        taps = KH * KW

    area = grid_h * grid_w
    m_live = m < filters // FILTERS_ALIGN * FILTERS_ALIGN
    total = batch.to(tl.int64) * area if WIDE else batch * area
    if CHANNELS_LAST:
        live = pixel < total
    else:
        live = pixel < tl.multiple_of(total, ALIGN)
    image = pixel // tl.maximum(area, 1)
    rest = pixel % tl.maximum(area, 1)
    y = rest // tl.maximum(grid_w, 1)
    x = rest % tl.maximum(grid_w, 1)
    if TRANSPOSED:
        y_src = y
        x_src = x
        y_out = phase_h + y * SH
        x_out = phase_w + x * SW
    else:
        y_src = y * SH
        x_src = x * SW
        y_out = y
        x_out = x
    if POINTWISE:
        src_at = image * src_n + rest * src_x
        out_at = image * out_n + rest * out_x
    else:
        src_at = image * src_n + y_src * src_y + x_src * src_x
        out_at = image * out_n + y_out * out_y + x_out * out_x

    if WIDE:
        src += tl.multiple_of(group.to(tl.int64) * channels * src_c, ALIGN)
        out += tl.multiple_of(group.to(tl.int64) * filters * out_c, ALIGN)
    else:
        src += tl.multiple_of(group * channels * src_c, ALIGN)
        out += tl.multiple_of(group * filters * out_c, ALIGN)
    # One test then tells pixels beyond the last from those that read something.
    y_src = tl.where(live, y_src, OUTSIDE)
    weight += tl.multiple_of(group * weight_g, WEIGHT_ALIGN)
    m_weight = m if UNIT == "m" else tl.multiple_of(m * weight_m, WEIGHT_ALIGN)

    if CHANNELS_LAST:
        acc = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
    else:
        acc = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    if FLAT:
        blocks = tl.cdiv(channels * KH * KW, BLOCK_K)
        steps = blocks
    else:
        blocks = tl.cdiv(channels, BLOCK_K)
        steps = taps * blocks

    if ITEM:
        row = tl.arange(0, BLOCK_K)
        if FLAT:
            row = tl.zeros_like(row)
        if CHANNELS_LAST:
            src_lanes = in_bytes(src_at[:, None] + row[None, :], ITEM)
            weight_lanes = in_bytes(m_weight[None, :] + (row * weight_k)[:, None], ITEM)
        else:
            src_lanes = in_bytes(src_at[None, :] + (row * src_c)[:, None], ITEM)
            weight_lanes = in_bytes(m_weight[:, None] + (row * weight_k)[None, :], ITEM)

    for step in range(0, steps):
        if FLAT:
            flat = step * BLOCK_K + tl.arange(0, BLOCK_K)
            k = flat // (KH * KW)
            tap = flat % (KH * KW)
            kh = tap // KW
            kw = tap % KW
        else:
            k = (step % blocks) * BLOCK_K + tl.arange(0, BLOCK_K)
            tap = step // blocks
            kh = first_h + tap // taps_w * STEP_H
            kw = first_w + tap % taps_w * STEP_W
        k_live = k < channels
        if TRANSPOSED:
            # Exact, as the taps of a phase are chosen: a device rounds negative quotients towards zero.
            dy = (phase_h + pad_h - kh * dil_h) // SH
            dx = (phase_w + pad_w - kw * dil_w) // SW
        else:
            dy = kh * dil_h - pad_h
            dx = kw * dil_w - pad_w
        if WIDE:
            k = k.to(tl.int64)
        if FLAT and UNIT == "k":
            k_weight = flat
        elif UNIT == "k":
            k_weight = k + tl.multiple_of((kh * KW + kw) * weight_t, WEIGHT_ALIGN)
        else:
            k_weight = tl.multiple_of(k * weight_k + (kh * KW + kw) * weight_t, WEIGHT_ALIGN)
        k_src = k if CHANNELS_LAST else tl.multiple_of(k * src_c, ALIGN)

        if FLAT:
            # Every k has a shift of its own, so the test for the border is two-dimensional.
            k_src += dy * src_y + dx * src_x
            if CHANNELS_LAST:
                inside = within(y_src[:, None] + dy[None, :], x_src[:, None] + dx[None, :], src_h, src_w)
                mask = inside & k_live[None, :]
            else:
                inside = within(y_src[None, :] + dy[:, None], x_src[None, :] + dx[:, None], src_h, src_w)
                mask = inside & k_live[:, None]
        else:
            if POINTWISE:
                inside = live
                at = src_at
            else:
                inside = within(y_src + dy, x_src + dx, src_h, src_w)
                at = src_at + dy * src_y + dx * src_x
            if CHANNELS_LAST:
                at = tl.multiple_of(at, ALIGN)
                mask = inside[:, None] if EVEN_K else inside[:, None] & k_live[None, :]
            else:
                # The claim of contiguity holds within a row of pixels; across rows it only chooses which
                # thread loads which pixel, since the width of one load is bounded by ALIGN.
                at = tl.max_contiguous(tl.multiple_of(at, ALIGN), BLOCK_N)
                mask = inside[None, :] if EVEN_K else inside[None, :] & k_live[:, None]

        if ITEM:
            if FLAT:
                src_step = in_bytes(k_src[None, :] if CHANNELS_LAST else k_src[:, None], ITEM)
            else:
                first = (step % blocks) * BLOCK_K
                src_step = in_bytes(dy * src_y + dx * src_x + first * src_c, ITEM)
            # Claims as above.
            if FLAT and CHANNELS_LAST:
                s = load_near(src, src_lanes + src_step, mask, [1, 1], [1, 1])
            elif CHANNELS_LAST:
                s = load_near(src, src_lanes + src_step, mask, [1, ALIGN * ITEM], [1, BLOCK_K])
            else:
                s = load_near(src, src_lanes + src_step, mask, [1, ALIGN * ITEM], [1, BLOCK_N])
        elif FLAT:
            if CHANNELS_LAST:
                s = tl.load(src + (src_at[:, None] + k_src[None, :]), mask=mask, other=0.0)
            else:
                at = tl.max_contiguous(src_at, BLOCK_N)
                s = tl.load(src + (at[None, :] + k_src[:, None]), mask=mask, other=0.0)
        elif CHANNELS_LAST:
            s = tl.load(src + (at[:, None] + k_src[None, :]), mask=mask, other=0.0)
        else:
            s = tl.load(src + (at[None, :] + k_src[:, None]), mask=mask, other=0.0)

        if CHANNELS_LAST:
            mask = m_live[None, :] if EVEN_K else m_live[None, :] & k_live[:, None]
        else:
            mask = m_live[:, None] if EVEN_K else m_live[:, None] & k_live[None, :]
        if ITEM:
            if FLAT:
                weight_step = in_bytes(k_weight[:, None] if CHANNELS_LAST else k_weight[None, :], ITEM)
            else:
                weight_step = in_bytes((kh * KW + kw) * weight_t + first * weight_k, ITEM)
            if FULL:
                mask = None if EVEN_K else k_live[:, None] if CHANNELS_LAST else k_live[None, :]
            at = weight_lanes + weight_step
            if UNIT == "k":
                w = load_near(weight, at, mask, [1, WEIGHT_ALIGN * ITEM], [1, BLOCK_K])
            elif UNIT == "m" and CHANNELS_LAST:
                w = load_near(weight, at, mask, [1, WEIGHT_ALIGN * ITEM], [1, BLOCK_M])
            elif UNIT == "m":
                w = load_near(weight, at, mask, [WEIGHT_ALIGN * ITEM, 1], [BLOCK_M, 1])
            else:
                w = load_near(weight, at, mask, [1, 1], [1, 1])
        elif CHANNELS_LAST:
            w = tl.load(weight + (m_weight[None, :] + k_weight[:, None]), mask=mask, other=0.0)
        else:
            w = tl.load(weight + (m_weight[:, None] + k_weight[None, :]), mask=mask, other=0.0)

        if UPCAST:
            s = s.to(tl.float32)
            w = w.to(tl.float32)
        if CHANNELS_LAST:
            if BLOCKED:
                acc -= tl.dot(s, w, input_precision=PRECISION)
            else:
                acc = tl.dot(s, w, acc, input_precision=PRECISION)
        else:
            if BLOCKED:
                acc -= tl.dot(w, s, input_precision=PRECISION)
            else:
                acc = tl.dot(w, s, acc, input_precision=PRECISION)

    if BLOCKED:
        acc = -acc
    m_out = m
    if WIDE:
        m_out = m.to(tl.int64)
    if HAS_BIAS:
        b = tl.load(bias + group * filters + m, mask=m_live, other=0.0).to(tl.float32)
    if CHANNELS_LAST:
        if HAS_BIAS:
            acc += b[None, :]
        at = tl.multiple_of(out_at, ALIGN)[:, None] + tl.multiple_of(m_out, ALIGN)[None, :]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=live[:, None] & m_live[None, :])
    else:
        if HAS_BIAS:
            acc += b[:, None]
        at = tl.max_contiguous(tl.multiple_of(out_at, ALIGN), BLOCK_N)[None, :]
        at = at + tl.multiple_of(m_out * out_c, ALIGN)[:, None]
        tl.store(out + at, acc.to(out.dtype.element_ty), mask=live[None, :] & m_live[:, None])
    if not TRANSPOSED and not HAS_BIAS:
        if sums:
            width = filters * tl.num_programs(1)
            leave_statistics(
                partial,
                acc.to(out.dtype.element_ty).to(tl.float32),
                live,
                m_live,
                (tile // m_tiles) * BLOCK_N,
                total,
                (tile // m_tiles) * width + group * filters + m,
                tl.num_programs(0) // m_tiles * width,
                BLOCK_N,
                0 if CHANNELS_LAST else 1,
            )
