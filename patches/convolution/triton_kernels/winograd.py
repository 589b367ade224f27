"""3 x 3 convolutions of stride 1 by Winograd's F(2 x 2, 3 x 3): forward and input gradient are one kernel.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (arXiv 1509.09308), section 4.1: four
pixels of the output, ``Y = A^T [U * V] A`` with ``U = G g G^T`` of the weight and ``V = B^T d B`` of a patch
of 4 x 4 pixels, take 16 products a pair of channels, where the sum over taps takes 36.

The usual layout keeps sixteen accumulators, one a position of ``U * V``. Here the positions come one after
the other, with the channels inside: one accumulator takes the products of a position, and is added to the
outputs that the position is part of. Five accumulators instead of sixteen leave room for tiles that read each
word of shared memory often. The price is that every position reads its pixels again: each row of ``B^T`` has
two entries that are not zero, so four pixels and three additions make an element of ``V``, which all channels
written share.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .border import OUTSIDE, within


@triton.jit(
    do_not_specialize=["channels", "filters", "weight_k", "weight_m", "weight_y", "weight_x"]
)  # fmt: skip
def winograd_weight(
    weight,
    out,
    channels,
    filters,
    weight_k,
    weight_m,
    weight_y,
    weight_x,
    TRANSPOSED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """``G g G^T`` of every pair of channels: ``out[position, k, m]``, 16 positions.

    Program ids: blocks of pairs. TRANSPOSED: the weight is turned by 180 degrees, for the input gradient.
    Strides (elements) of the weight over channels read (k), channels written (m), rows and columns.
    """
    pair = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    pairs = channels * filters
    live = pair < pairs
    weight += pair // filters * weight_k + pair % filters * weight_m
    out += pair
    if TRANSPOSED:
        weight += 2 * weight_y + 2 * weight_x
        weight_y = -weight_y
        weight_x = -weight_x
    for j in tl.static_range(4):
        # Column j of g G^T, one row of the weight after the other.
        top = column(weight, weight_x, live, j)
        middle = column(weight + weight_y, weight_x, live, j)
        bottom = column(weight + 2 * weight_y, weight_x, live, j)
        outer = 0.5 * (top + bottom)
        tl.store(out + j * pairs, top, mask=live)
        tl.store(out + (4 + j) * pairs, outer + 0.5 * middle, mask=live)
        tl.store(out + (8 + j) * pairs, outer - 0.5 * middle, mask=live)
        tl.store(out + (12 + j) * pairs, bottom, mask=live)


@triton.jit
def column(row, weight_x, live, J: tl.constexpr):
    """Entry J of a row of the weight times ``G^T``; G's rows are (2, 0, 0), (1, 1, 1), (1, -1, 1), (0, 0, 2),
    halved.
    """
    if J == 0:
        made = tl.load(row, mask=live, other=0.0)
    elif J == 3:
        made = tl.load(row + 2 * weight_x, mask=live, other=0.0)
    else:
        outer = tl.load(row, mask=live, other=0.0) + tl.load(row + 2 * weight_x, mask=live, other=0.0)
        inner = tl.load(row + weight_x, mask=live, other=0.0)
        made = 0.5 * (outer + inner) if J == 1 else 0.5 * (outer - inner)
    return made


@triton.jit
def differences(i):
    """Row i of ``B^T``, (1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, 1, 0, -1): ``d[first] + sign *
    d[second]``.
    """
    return i - 2 * (i // 3), 2 - i // 2 + 2 * (i // 3), 2 * (i % 2) * (1 - i // 2) - 1.0


@triton.jit
def shares(i):
    """What position i adds to the two outputs, a column of ``A^T``: (1, 1, 1, 0), (0, 1, -1, -1)."""
    return 1.0 - i // 3, 0.0 + (i + 2) // 3 - 2 * (i // 2)


@triton.jit
def entry(src, at, inside, k_live, EVEN_K: tl.constexpr, CHANNELS_LAST: tl.constexpr):
    """One pixel of every patch, of some channels; 0 where it lies outside of the image."""
    if CHANNELS_LAST:
        mask = inside[:, None] if EVEN_K else inside[:, None] & k_live[None, :]
    else:
        mask = inside[None, :] if EVEN_K else inside[None, :] & k_live[:, None]
    return tl.load(src + at, mask=mask, other=0.0)


# Long: a kernel is one function.
@triton.jit(
    do_not_specialize=[
        "batch", "channels", "filters", "src_h", "src_w", "out_h", "out_w", "src_n", "src_c",
        "src_y", "src_x", "out_n", "out_c", "out_y", "out_x", "pad_h", "pad_w",
    ]
)  # fmt: skip
def winograd_gather(
    src,
    weight,
    bias,
    out,
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
    pad_h,
    pad_w,
    HAS_BIAS: tl.constexpr,
    EVEN_K: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ALIGN: tl.constexpr,
    FILTERS_ALIGN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHAIN: tl.constexpr,
):
    """One tile of BLOCK_M channels x BLOCK_N squares of 2 x 2 pixels.

    Program ids: (tiles of channels x tiles of squares of all images). Offsets are of 32 bits.

    Args:
        weight: of ``winograd_weight``.
        channels, filters: channels read and written.
        src_*, out_*: sizes and strides (elements) of the tensor read and written.
        pad_h, pad_w: rows and columns by which the output reaches back into the border; for the input
            gradient 2 less those of the forward pass, which may be negative.
        EVEN_K: the channels read are a multiple of BLOCK_K.
        CHAIN: products that are summed one after the other; a multiple of BLOCK_K. Rounding grows with it.
        ALIGN, FILTERS_ALIGN: elements of the activations and of the weight that one access may take at once.
    """
    m_tiles = tl.cdiv(filters, BLOCK_M)
    m = (tl.program_id(0) % m_tiles) * BLOCK_M + tl.arange(0, BLOCK_M)
    first_square = (tl.program_id(0) // m_tiles) * BLOCK_N
    square = first_square + tl.arange(0, BLOCK_N)
    columns = (out_w + 1) // 2
    area = (out_h + 1) // 2 * columns
    image = square // area
    y = square % area // columns * 2 - pad_h
    x = square % area % columns * 2 - pad_w
    src_at = image * src_n + y * src_y + x * src_x
    # One test then tells squares beyond the last from those that read something.
    y = tl.where(image < batch, y, OUTSIDE)
    m_live = m < filters // FILTERS_ALIGN * FILTERS_ALIGN
    pairs = channels * filters

    if CHANNELS_LAST:
        y00 = tl.zeros((BLOCK_N, BLOCK_M), dtype=tl.float32)
        src_at = tl.multiple_of(src_at, ALIGN)[:, None]
    else:
        y00 = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
        # Not true, but it only chooses which thread loads which pixel: nothing here is known to be aligned.
        src_at = tl.max_contiguous(src_at, BLOCK_N)[None, :]
    y01 = y00
    y10 = y00
    y11 = y00

    for position in range(16):
        i = position // 4
        j = position % 4
        top, bottom, sign_y = differences(i)
        left, right, sign_x = differences(j)
        in00 = within(y + top, x + left, src_h, src_w)
        in01 = within(y + top, x + right, src_h, src_w)
        in10 = within(y + bottom, x + left, src_h, src_w)
        in11 = within(y + bottom, x + right, src_h, src_w)
        for first in range(0, channels, CHAIN):
            rest = tl.minimum(channels - first, CHAIN)
            src_first = first if CHANNELS_LAST else first * src_c
            src00 = src + tl.multiple_of(src_first + top * src_y + left * src_x, ALIGN)
            src01 = src + tl.multiple_of(src_first + top * src_y + right * src_x, ALIGN)
            src10 = src + tl.multiple_of(src_first + bottom * src_y + left * src_x, ALIGN)
            src11 = src + tl.multiple_of(src_first + bottom * src_y + right * src_x, ALIGN)
            u_at = weight + tl.multiple_of(position * pairs + first * filters, FILTERS_ALIGN)

            products = tl.zeros_like(y00)
            for step in range(0, tl.cdiv(rest, BLOCK_K)):
                k = step * BLOCK_K + tl.arange(0, BLOCK_K)
                k_live = k < rest
                at = src_at + (k[None, :] if CHANNELS_LAST else (k * src_c)[:, None])
                upper = entry(src00, at, in00, k_live, EVEN_K, CHANNELS_LAST)
                upper += sign_x * entry(src01, at, in01, k_live, EVEN_K, CHANNELS_LAST)
                lower = entry(src10, at, in10, k_live, EVEN_K, CHANNELS_LAST)
                lower += sign_x * entry(src11, at, in11, k_live, EVEN_K, CHANNELS_LAST)
                v = upper + sign_y * lower
                k_weight = tl.multiple_of(k * filters, FILTERS_ALIGN)
                if CHANNELS_LAST:
                    mask = m_live[None, :] if EVEN_K else m_live[None, :] & k_live[:, None]
                    u = tl.load(u_at + (m[None, :] + k_weight[:, None]), mask=mask, other=0.0)
                    products = tl.dot(v, u, products, input_precision="ieee")
                else:
                    mask = m_live[:, None] if EVEN_K else m_live[:, None] & k_live[None, :]
                    u = tl.load(u_at + (m[:, None] + k_weight[None, :]), mask=mask, other=0.0)
                    products = tl.dot(u, v, products, input_precision="ieee")

            upper_share, lower_share = shares(i)
            left_share, right_share = shares(j)
            y00 += (upper_share * left_share) * products
            y01 += (upper_share * right_share) * products
            y10 += (lower_share * left_share) * products
            y11 += (lower_share * right_share) * products

    if HAS_BIAS:
        b = tl.load(bias + m, mask=m_live, other=0.0)
        b = b[None, :] if CHANNELS_LAST else b[:, None]
        y00 += b
        y01 += b
        y10 += b
        y11 += b
    if CHANNELS_LAST:
        y_out = square % area // columns * 2
        x_out = square % area % columns * 2
        out_at = tl.multiple_of(image * out_n + y_out * out_y + x_out * out_x, ALIGN)
        out_at = out + (out_at[:, None] + tl.multiple_of(m, ALIGN)[None, :])
        live = (image < batch)[:, None] & m_live[None, :]
        right_live = (x_out + 1 < out_w)[:, None] & live
        lower_live = (y_out + 1 < out_h)[:, None]
        tl.store(out_at, y00, mask=live)
        tl.store(out_at + out_x, y01, mask=right_live)
        tl.store(out_at + out_y, y10, mask=lower_live & live)
        tl.store(out_at + (out_y + out_x), y11, mask=lower_live & right_live)
    else:
        # Both columns of a square lie side by side.
        half = tl.arange(0, 2 * BLOCK_N)
        square = first_square + half // 2
        image = square // area
        y_out = square % area // columns * 2
        x_out = square % area % columns * 2 + half % 2
        out_at = image * out_n + y_out * out_y + x_out * out_x
        out_at = out + (out_at[None, :] + (m * out_c)[:, None])
        live = ((image < batch) & (x_out < out_w))[None, :] & m_live[:, None]
        tl.store(out_at, tl.join(y00, y01).reshape(BLOCK_M, 2 * BLOCK_N), mask=live)
        live = (y_out + 1 < out_h)[None, :] & live
        tl.store(out_at + out_y, tl.join(y10, y11).reshape(BLOCK_M, 2 * BLOCK_N), mask=live)
