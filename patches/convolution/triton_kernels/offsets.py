"""Addresses that cost few vector instructions where the compiler does not see to it, as on AMD's cards.

A load of theirs takes an address of 64 bits that all lanes share and an offset of 32 bits without sign from
each lane ("RDNA 1.0 ISA", 9.3: global loads with SADDR). The compiler chooses it where an offset is a number
of bytes without sign; of a number of elements it makes an address of 64 bits a lane, five instructions each.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def in_bytes(elements, ITEM: tl.constexpr):
    """Offsets in bytes of 32-bit offsets in elements of ``ITEM`` bytes; a sum may wrap, where nothing is read
    there.
    """
    return elements.to(tl.uint32) * ITEM


@triton.jit
def load_near(base, offset, mask, ALIGN: tl.constexpr, RUN: tl.constexpr):
    """What lies ``offset`` bytes behind ``base``; zero where ``mask`` (None: everything is read) is false.

    Args:
        ALIGN, RUN: bytes to which addresses are known to be aligned, and how many elements follow one
            another, along each axis.
    """
    # The claims are made before the pointer has its type again: of a cast the compiler forgets them.
    at = base.to(tl.pointer_type(tl.int8)) + offset
    at = tl.max_contiguous(tl.multiple_of(at, ALIGN), RUN).to(base.dtype)
    return tl.load(at) if mask is None else tl.load(at, mask=mask, other=0.0)


@triton.jit
def first_pixel(pixel, height, width, stride_n, stride_y, stride_x, POINTWISE: tl.constexpr):
    """Row, column and offset of pixels numbered through all images; of POINTWISE ones, whose rows follow one
    another without gaps, the number within the image in the place of both.
    """
    image, rest = pixel // (height * width), pixel % (height * width)
    at = image * stride_n
    if POINTWISE:
        y, x = rest, rest
        at += rest * stride_x
    else:
        y, x = rest // width, rest % width
        at += y * stride_y + x * stride_x
    return y, x, at


@triton.jit
def next_pixel(
    y, x, at, height, width, stride_n, stride_y, stride_x, COUNT: tl.constexpr, POINTWISE: tl.constexpr
):
    """The pixels that come ``COUNT`` after those of ``first_pixel``: digits are added, and carried at most
    once, in the place of divisions.
    """
    area = height * width
    images, rest = COUNT // area, COUNT % area
    if POINTWISE:
        rows, columns, row = 0, rest, area
    else:
        rows, columns, row = rest // width, rest % width, width
    at += images * stride_n + rows * stride_y + columns * stride_x
    x += columns
    carry = x >= row
    x = tl.where(carry, x - row, x)
    if POINTWISE:
        y = x
        at += tl.where(carry, stride_n - row * stride_x, 0)
    else:
        at += tl.where(carry, stride_y - row * stride_x, 0)
        y = tl.where(carry, y + rows + 1, y + rows)
        carry = y >= height
        y = tl.where(carry, y - height, y)
        at += tl.where(carry, stride_n - height * stride_y, 0)
    return y, x, at
