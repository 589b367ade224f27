"""What RDNA's instructions mean, written on Python's integers: bits in, bits out."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

WORD = 0xFFFFFFFF


def s(x: int, bits: int = 32) -> int:
    """As a signed integer."""
    return (x & ((1 << bits) - 1) ^ (1 << (bits - 1))) - (1 << (bits - 1))


def f(x: int) -> Any:
    """The fp32 with these bits, in float64."""
    return np.uint32(x & WORD).view(np.float32).astype(np.float64)


def h(x: int) -> Any:
    """The fp16 with these bits, in float64."""
    return np.uint16(x & 0xFFFF).view(np.float16).astype(np.float64)


def b(x: Any) -> int:
    """The bits of the nearest fp32."""
    return int(np.float64(x).astype(np.float32).view(np.uint32))


def g(x: Any) -> int:
    """The bits of the nearest fp16."""
    return int(np.float64(x).astype(np.float16).view(np.uint16))


def clamp(x: float, least: int, most: int) -> int:
    return 0 if math.isnan(x) else most if x >= most else least if x <= least else int(x)


def larger(x: float, y: float) -> float:
    """Of two numbers; of a number and NaN the number; +0 above -0."""
    if math.isnan(x) or math.isnan(y):
        return y if math.isnan(x) else x
    return max((x, math.copysign(1, x)), (y, math.copysign(1, y)))[0]


def smaller(x: float, y: float) -> float:
    return -larger(-x, -y)


def field(x: int, at: int, width: int, signed: bool = False) -> int:
    width &= 31
    value = (s(x) if signed else x) >> (at & 31) & ((1 << width) - 1)
    return s(value, width) if signed and width else value


def bytes_of(x: int, y: int, selector: int) -> int:
    data = (x << 32 | y).to_bytes(8, "little")
    signs = [255 * (data[k] >> 7) for k in (1, 3, 5, 7)]
    return sum(
        (data[n] if n < 8 else signs[n - 8] if n < 12 else 0 if n == 12 else 255) << 8 * k
        for k, n in enumerate(selector.to_bytes(4, "little"))
    )


def dot(x: int, y: int, z: int) -> int:
    return b(f(z) + h(x) * h(y) + h(x >> 16) * h(y >> 16))


def bf(x: int) -> Any:
    return f((x & 0xFFFF) << 16)


def carry(total: int) -> tuple[int, bool]:
    return total, not 0 <= total <= WORD


def tiny(x: float) -> bool:
    """Whether it is a denormal as fp32."""
    return 0 < abs(x) < 2.0**-126


def power(x: int) -> int:
    """The biased exponent."""
    return x >> 23 & 255


def div_scale(x: int, d: int, n: int) -> tuple[int, bool]:
    """V_DIV_SCALE_F32 of "RDNA3 Instruction Set Architecture", 16.9, branch for branch."""
    up, down = b(f(x) * 2.0**64), b(f(x) * 2.0**-64)
    if f(n) == 0 or f(d) == 0:
        return 0x7FC00000, False
    if power(n) - power(d) >= 96:
        return up if f(x) == f(d) else x, True
    if tiny(f(d)):
        return up, False
    if tiny(1 / f(d)) and tiny(f(n) / f(d)):
        return up if f(x) == f(d) else x, True
    if tiny(1 / f(d)):
        return down, False
    if tiny(f(n) / f(d)):
        return up if f(x) == f(n) else x, True
    return up if power(n) <= 23 else x, False


def div_fmas(x: int, y: int, z: int, scaled: int) -> int:
    total = b(f(x) * f(y) + f(z))
    return b(f(total) * 2.0 ** (64 if power(z) > 127 else -64)) if scaled else total


def div_fixup(q: int, d: int, n: int) -> int:
    sign = (d ^ n) & 0x80000000
    if math.isnan(f(n)) or math.isnan(f(d)):
        return n if math.isnan(f(n)) else d
    if f(d) == f(n) == 0 or (math.isinf(f(d)) and math.isinf(f(n))):
        return 0xFFC00000
    if f(d) == 0 or math.isinf(f(n)):
        return sign | 0x7F800000
    if math.isinf(f(d)) or f(n) == 0 or power(n) - power(d) < -150:
        return sign
    return sign | q & 0x7FFFFFFF


VECTOR: dict[str, Callable[..., Any]] = {
    "v_mov_b32": lambda x: x,
    "v_mov_b16": lambda x: x,
    "v_not_b32": lambda x: ~x,
    "v_bfrev_b32": lambda x: int(f"{x:032b}"[::-1], 2),
    "v_not_b16": lambda x: ~x,
    "v_and_b32": lambda x, y: x & y,
    "v_or_b32": lambda x, y: x | y,
    "v_xor_b32": lambda x, y: x ^ y,
    "v_xnor_b32": lambda x, y: ~(x ^ y),
    "v_and_b16": lambda x, y: x & y,
    "v_or_b16": lambda x, y: x | y,
    "v_xor_b16": lambda x, y: x ^ y,
    "v_lshlrev_b32": lambda n, x: x << (n & 31),
    "v_lshrrev_b32": lambda n, x: x >> (n & 31),
    "v_ashrrev_i32": lambda n, x: s(x) >> (n & 31),
    "v_lshlrev_b16": lambda n, x: x << (n & 15),
    "v_lshrrev_b16": lambda n, x: x >> (n & 15),
    "v_ashrrev_i16": lambda n, x: s(x, 16) >> (n & 15),
    "v_lshlrev_b64": lambda n, x: x << (n & 63),
    "v_lshrrev_b64": lambda n, x: x >> (n & 63),
    "v_ashrrev_i64": lambda n, x: s(x, 64) >> (n & 63),
    "v_alignbit_b32": lambda x, y, n: (x << 32 | y) >> (n & 31),
    "v_alignbyte_b32": lambda x, y, n: (x << 32 | y) >> 8 * (n & 3),
    "v_bfe_u32": field,
    "v_bfe_i32": lambda x, at, n: field(x, at, n, True),
    "v_bfi_b32": lambda x, y, z: x & y | ~x & z,
    "v_perm_b32": bytes_of,
    "v_add_nc_u32": lambda x, y: x + y,
    "v_sub_nc_u32": lambda x, y: x - y,
    "v_subrev_nc_u32": lambda x, y: y - x,
    "v_add_nc_u16": lambda x, y: x + y,
    "v_sub_nc_u16": lambda x, y: x - y,
    "v_add_nc_i32": lambda x, y: x + y,
    "v_sub_nc_i32": lambda x, y: x - y,
    "v_mul_lo_u16": lambda x, y: x * y,
    "v_mul_lo_u32": lambda x, y: x * y,
    "v_mul_hi_u32": lambda x, y: x * y >> 32,
    "v_mul_hi_i32": lambda x, y: s(x) * s(y) >> 32,
    "v_mul_u32_u24": lambda x, y: (x & 0xFFFFFF) * (y & 0xFFFFFF),
    "v_mul_i32_i24": lambda x, y: s(x, 24) * s(y, 24),
    "v_mad_u32_u24": lambda x, y, z: (x & 0xFFFFFF) * (y & 0xFFFFFF) + z,
    "v_mad_i32_i24": lambda x, y, z: s(x, 24) * s(y, 24) + z,
    "v_mad_u16": lambda x, y, z: x * y + z,
    "v_mad_co_u64_u32": lambda x, y, z: (x * y + z, x * y + z >= 1 << 64),
    "v_mad_co_i64_i32": lambda x, y, z: (s(x) * s(y) + z, None),
    "v_add3_u32": lambda x, y, z: x + y + z,
    "v_xad_u32": lambda x, y, z: (x ^ y) + z,
    "v_lshl_add_u32": lambda x, n, y: (x << (n & 31)) + y,
    "v_add_lshl_u32": lambda x, y, n: (x + y) << (n & 31),
    "v_lshl_or_b32": lambda x, n, y: x << (n & 31) | y,
    "v_and_or_b32": lambda x, y, z: x & y | z,
    "v_or3_b32": lambda x, y, z: x | y | z,
    "v_xor3_b32": lambda x, y, z: x ^ y ^ z,
    "v_max_i32": lambda x, y: max(s(x), s(y)),
    "v_min_i32": lambda x, y: min(s(x), s(y)),
    "v_max_u32": max,
    "v_min_u32": min,
    "v_max_i16": lambda x, y: max(s(x, 16), s(y, 16)),
    "v_min_i16": lambda x, y: min(s(x, 16), s(y, 16)),
    "v_max3_i32": lambda *w: max(map(s, w)),
    "v_min3_i32": lambda *w: min(map(s, w)),
    "v_med3_i32": lambda *w: sorted(map(s, w))[1],
    "v_add_co_u32": lambda x, y: carry(x + y),
    "v_sub_co_u32": lambda x, y: carry(x - y),
    "v_subrev_co_u32": lambda x, y: carry(y - x),
    "v_add_co_ci_u32": lambda x, y, c: carry(x + y + c),
    "v_sub_co_ci_u32": lambda x, y, c: carry(x - y - c),
    "v_subrev_co_ci_u32": lambda x, y, c: carry(y - x - c),
    "v_cndmask_b32": lambda x, y, c: y if c else x,
    "v_cndmask_b16": lambda x, y, c: y if c else x,
    "v_add_f32": lambda x, y: b(f(x) + f(y)),
    "v_sub_f32": lambda x, y: b(f(x) - f(y)),
    "v_subrev_f32": lambda x, y: b(f(y) - f(x)),
    "v_mul_f32": lambda x, y: b(f(x) * f(y)),
    "v_mac_f32": lambda x, y, z: b(f(b(f(x) * f(y))) + f(z)),
    "v_mad_f32": lambda x, y, z: b(f(b(f(x) * f(y))) + f(z)),
    "v_madmk_f32": lambda x, k, y: b(f(b(f(x) * f(k))) + f(y)),
    "v_madak_f32": lambda x, y, k: b(f(b(f(x) * f(y))) + f(k)),
    "v_fmac_f32": lambda x, y, z: b(f(x) * f(y) + f(z)),
    "v_fma_f32": lambda x, y, z: b(f(x) * f(y) + f(z)),
    "v_fmamk_f32": lambda x, k, y: b(f(x) * f(k) + f(y)),
    "v_fmaak_f32": lambda x, y, k: b(f(x) * f(y) + f(k)),
    "v_max_f32": lambda x, y: b(larger(f(x), f(y))),
    "v_min_f32": lambda x, y: b(smaller(f(x), f(y))),
    "v_rcp_f32": lambda x: b(np.float64(1) / f(x)),
    "v_rcp_iflag_f32": lambda x: b(np.float64(1) / f(x)),
    "v_rsq_f32": lambda x: b(1 / np.sqrt(f(x))),
    "v_sqrt_f32": lambda x: b(np.sqrt(f(x))),
    "v_exp_f32": lambda x: b(np.exp2(f(x))),
    "v_log_f32": lambda x: b(np.log2(f(x))),
    "v_div_scale_f32": div_scale,
    "v_div_fmas_f32": div_fmas,
    "v_div_fixup_f32": div_fixup,
    "v_ldexp_f32": lambda x, n: b(np.ldexp(f(x), max(-400, min(400, s(n))))),
    "v_trunc_f32": lambda x: b(np.trunc(f(x))),
    "v_floor_f32": lambda x: b(np.floor(f(x))),
    "v_rndne_f32": lambda x: b(np.rint(f(x))),
    "v_add_f16": lambda x, y: g(h(x) + h(y)),
    "v_sub_f16": lambda x, y: g(h(x) - h(y)),
    "v_mul_f16": lambda x, y: g(h(x) * h(y)),
    "v_fma_f16": lambda x, y, z: g(h(x) * h(y) + h(z)),
    "v_fmac_f16": lambda x, y, z: g(h(x) * h(y) + h(z)),
    "v_max_f16": lambda x, y: g(larger(h(x), h(y))),
    "v_min_f16": lambda x, y: g(smaller(h(x), h(y))),
    "v_cvt_f32_u32": lambda x: b(x),
    "v_cvt_f32_i32": lambda x: b(s(x)),
    "v_cvt_f32_ubyte0": lambda x: b(x & 255),
    "v_cvt_u32_f32": lambda x: clamp(f(x), 0, WORD),
    "v_cvt_i32_f32": lambda x: clamp(f(x), -(2**31), 2**31 - 1),
    "v_cvt_f32_f16": lambda x: b(h(x)),
    "v_cvt_f16_f32": lambda x: g(f(x)),
    "v_cvt_i32_i16": lambda x: s(x, 16),
    "v_cvt_u32_u16": lambda x: x & 0xFFFF,
    "v_pack_b32_f16": lambda x, y: x & 0xFFFF | (y & 0xFFFF) << 16,
    "v_dot2_f32_f16": dot,
    "v_dot2c_f32_f16": dot,
    "v_dot2_f32_bf16": lambda x, y, z: b(f(z) + bf(x) * bf(y) + bf(x >> 16) * bf(y >> 16)),
}
ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "lt": lambda x, y: x < y, "eq": lambda x, y: x == y, "le": lambda x, y: x <= y, "gt": lambda x, y: x > y,
    "ge": lambda x, y: x >= y, "ne": lambda x, y: x != y, "lg": lambda x, y: x < y or x > y,
    "o": lambda x, y: x == x and y == y, "u": lambda x, y: x != x or y != y, "nge": lambda x, y: not x >= y,
    "nlg": lambda x, y: not (x < y or x > y), "ngt": lambda x, y: not x > y, "nle": lambda x, y: not x <= y,
    "neq": lambda x, y: x != y, "nlt": lambda x, y: not x < y,
}  # fmt: skip


def overflow(total: int) -> tuple[int, bool]:
    return total, not -(2**31) <= total < 2**31


def packed_field(x: int, packed: int, signed: bool = False) -> int:
    width, at = packed >> 16 & 127, packed & 31
    if width > 31:
        return (s(x) if signed else x) >> at
    return field(x, at, width, signed)


# The result and, where the instruction sets it, the condition; True for "nonzero".
SCALAR: dict[str, Callable[..., Any]] = {
    "s_mov_b32": lambda x: x,
    "s_mov_b64": lambda x: x,
    "s_not_b32": lambda x: ~x,
    "s_abs_i32": lambda x: abs(s(x)),
    "s_brev_b32": lambda x: int(f"{x:032b}"[::-1], 2),
    "s_sext_i32_i8": lambda x: s(x, 8),
    "s_sext_i32_i16": lambda x: s(x, 16),
    "s_and_b32": lambda x, y: x & y,
    "s_or_b32": lambda x, y: x | y,
    "s_xor_b32": lambda x, y: x ^ y,
    "s_xnor_b32": lambda x, y: ~(x ^ y),
    "s_nand_b32": lambda x, y: ~(x & y),
    "s_nor_b32": lambda x, y: ~(x | y),
    "s_and_not1_b32": lambda x, y: x & ~y,
    "s_or_not1_b32": lambda x, y: x | ~y,
    "s_and_b64": lambda x, y: x & y,
    "s_or_b64": lambda x, y: x | y,
    "s_xor_b64": lambda x, y: x ^ y,
    "s_and_not1_b64": lambda x, y: x & ~y,
    "s_lshl_b32": lambda x, n: x << (n & 31),
    "s_lshr_b32": lambda x, n: x >> (n & 31),
    "s_ashr_i32": lambda x, n: s(x) >> (n & 31),
    "s_lshl_b64": lambda x, n: x << (n & 63),
    "s_lshr_b64": lambda x, n: x >> (n & 63),
    "s_ashr_i64": lambda x, n: s(x, 64) >> (n & 63),
    "s_bfe_u32": packed_field,
    "s_bfe_i32": lambda x, y: packed_field(x, y, True),
    "s_bfm_b32": lambda n, at: ((1 << (n & 31)) - 1) << (at & 31),
    "s_bitcmp0_b32": lambda x, n: not x >> (n & 31) & 1,
    "s_bitcmp1_b32": lambda x, n: x >> (n & 31) & 1,
    "s_add_co_i32": lambda x, y: overflow(s(x) + s(y)),
    "s_sub_co_i32": lambda x, y: overflow(s(x) - s(y)),
    "s_add_co_u32": lambda x, y: carry(x + y),
    "s_sub_co_u32": lambda x, y: carry(x - y),
    "s_add_nc_u64": lambda x, y: x + y,
    "s_sub_nc_u64": lambda x, y: x - y,
    "s_mul_u64": lambda x, y: x * y,
    "s_mul_i32": lambda x, y: x * y,
    "s_mul_hi_u32": lambda x, y: x * y >> 32,
    "s_mul_hi_i32": lambda x, y: s(x) * s(y) >> 32,
    **{f"s_lshl{n}_add_u32": lambda x, y, n=n: carry((x << n) + y) for n in (1, 2, 3, 4)},
    "s_max_i32": lambda x, y: (max(s(x), s(y)), s(x) >= s(y)),
    "s_min_i32": lambda x, y: (min(s(x), s(y)), s(x) < s(y)),
    "s_max_u32": lambda x, y: (max(x, y), x >= y),
    "s_min_u32": lambda x, y: (min(x, y), x < y),
    "s_pack_ll_b32_b16": lambda x, y: x & 0xFFFF | y << 16,
    "s_pack_lh_b32_b16": lambda x, y: x & 0xFFFF | y >> 16 << 16,
    "s_pack_hh_b32_b16": lambda x, y: x >> 16 | y >> 16 << 16,
    "s_pack_hl_b32_b16": lambda x, y: x >> 16 | y << 16,
    "s_cvt_f32_u32": lambda x: b(x),
    "s_cvt_f32_i32": lambda x: b(s(x)),
    "s_trunc_f32": lambda x: b(np.trunc(f(x))),
    "s_cvt_u32_f32": lambda x: clamp(f(x), 0, WORD),
    "s_cvt_i32_f32": lambda x: clamp(f(x), -(2**31), 2**31 - 1),
    "s_add_f32": lambda x, y: b(f(x) + f(y)),
    "s_sub_f32": lambda x, y: b(f(x) - f(y)),
    "s_mul_f32": lambda x, y: b(f(x) * f(y)),
    "s_fmamk_f32": lambda x, k, y: b(f(x) * f(k) + f(y)),
    "s_fmaak_f32": lambda x, y, k: b(f(x) * f(y) + f(k)),
}
# With an old value or the old condition among the operands.
SCALAR_STATE: dict[str, Callable[..., Any]] = {
    "s_cselect_b32": lambda c, x, y: x if c else y,
    "s_cselect_b64": lambda c, x, y: x if c else y,
    "s_add_co_ci_u32": lambda c, x, y: carry(x + y + c),
    "s_sub_co_ci_u32": lambda c, x, y: carry(x - y - c),
    "s_cmov_b32": lambda c, old, x: x if c else old,
    "s_bitset0_b32": lambda old, n: old & ~(1 << (n & 31)),
    "s_bitset1_b32": lambda old, n: old | 1 << (n & 31),
    "s_fmac_f32": lambda old, x, y: b(f(x) * f(y) + f(old)),
}
