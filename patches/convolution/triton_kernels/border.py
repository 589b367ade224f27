"""The test for the border of an image, which every kernel makes for every element that it reads."""

from __future__ import annotations

import triton
import triton.language as tl

# A row that is outside whatever tap or pixel is added to it, and twice of which is still a 32-bit number.
OUTSIDE = tl.constexpr(-(2**29))


@triton.jit
def within(y, x, height, width):
    """Whether 0 <= y < height and 0 <= x < width; unsigned, a negative number is a large one."""
    return (y.to(tl.uint32) < height.to(tl.uint32)) & (x.to(tl.uint32) < width.to(tl.uint32))
