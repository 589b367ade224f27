"""What each vector instruction computes: one row for each.

A row reads "results = operands", by kind (see ``operands``), and gives the function. The meaning is that of
"RDNA 1.0 Instruction Set Architecture", chapter 12, formats VOP1, VOP2, VOP3, VOP3P and VOPC; of what later
cards add, that of the same formats in "RDNA3" and "RDNA4 Instruction Set Architecture". Where the documents
allow an error of a unit in the last place (v_rcp_f32) the result here is the correctly rounded one. A fused
multiply-add is rounded from float64, which differs from a single rounding for one in 2^29 of random operands.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

U32, U64, I64, F32, F64 = np.uint32, np.uint64, np.int64, np.float32, np.float64
MASK5, MASK6 = U32(31), U64(63)


class Row(NamedTuple):
    """Kinds of the results, kinds of the operands, and the function between them.

    Attributes:
        accumulates: whether the old value of the result is the last operand.
    """

    results: tuple[str, ...]
    operands: tuple[str, ...]
    compute: Callable[..., Any]
    accumulates: bool = False


def row(kinds: str, compute: Callable[..., Any], *, accumulates: bool = False) -> Row:
    """A row from "f32 = f32 f32"."""
    results, _, operands = kinds.partition("=")
    return Row(tuple(results.split()), tuple(operands.split()), compute, accumulates)


def wide(x: Any) -> Any:
    """Unsigned words in 64 bits."""
    return np.asarray(x).astype(U64)


def wide_signed(x: Any) -> Any:
    """Signed words in 64 bits."""
    return np.asarray(x).astype(I64)


def low(x: Any) -> Any:
    """The lower word of 64 bits."""
    return np.asarray(x).view(U64).astype(U32) if np.asarray(x).dtype == I64 else np.asarray(x).astype(U32)


def high(x: Any) -> Any:
    """The upper word of 64 bits."""
    return (np.asarray(x).view(U64) >> U64(32)).astype(U32)


def u24(x: Any) -> Any:
    return x & U32(0xFFFFFF)


def i24(x: Any) -> Any:
    return (np.asarray(x) << np.int32(8)) >> np.int32(8)


def fma(x: Any, y: Any, z: Any) -> Any:
    """x * y + z: the product is exact in float64."""
    return (np.asarray(x).astype(F64) * y + z).astype(F32)


def fma_half(x: Any, y: Any, z: Any) -> Any:
    return (np.asarray(x).astype(F64) * y + z).astype(np.float16)


def largest(x: Any, y: Any) -> Any:
    """The larger number; NaN gives the other operand, +0 is larger than -0."""
    both = np.asarray(x) == y
    return np.where(both, np.where(np.signbit(x), y, x), np.fmax(x, y))


def smallest(x: Any, y: Any) -> Any:
    """The smaller number; NaN gives the other operand, -0 is smaller than +0."""
    both = np.asarray(x) == y
    return np.where(both, np.where(np.signbit(x), x, y), np.fmin(x, y))


def to_integer(x: Any, lowest: int, highest: int) -> Any:
    """Towards zero, clamped, NaN to 0."""
    whole = np.trunc(np.asarray(x).astype(F64))
    return np.clip(np.nan_to_num(whole, nan=0.0, posinf=2.0**40, neginf=-(2.0**40)), lowest, highest).astype(
        I64
    )


def reverse(x: Any) -> Any:
    """The bits of words from the last to the first."""
    words = np.ascontiguousarray(x, np.uint32)
    bits = np.unpackbits(words.reshape(-1, 1).view(np.uint8), axis=1, bitorder="little")
    return np.packbits(bits[:, ::-1], axis=1, bitorder="little").view(np.uint32).reshape(words.shape)


def extract(x: Any, offset: Any, width: Any) -> Any:
    """Bits of an unsigned word."""
    keep = (U64(1) << wide(width & MASK5)) - U64(1)
    return low(wide(x) >> wide(offset & MASK5) & keep)


def extract_signed(x: Any, offset: Any, width: Any) -> Any:
    """Bits of a signed word, the uppermost of them repeated."""
    width = wide_signed(width & MASK5)
    value = wide_signed(x) >> wide_signed(offset & MASK5) & ((I64(1) << width) - 1)
    sign = np.where(width > 0, I64(1) << np.maximum(width - 1, 0), 0)
    return ((value ^ sign) - sign).astype(np.int32)


def permute_bytes(x: Any, y: Any, selector: Any) -> Any:
    """Any four bytes of the eight of (x, y): 0 to 3 of y, 4 to 7 of x, 8 to 11 signs, 12 zeros, above
    ones.
    """
    pair = wide(x) << U64(32) | wide(y)
    result: Any = U64(0)
    for k in range(4):
        which = wide(selector) >> U64(8 * k) & U64(0xFF)
        byte = pair >> (U64(8) * (which & U64(7))) & U64(0xFF)
        sign = np.where(pair >> (U64(16) * (which & U64(3)) + U64(15)) & U64(1), U64(0xFF), U64(0))
        byte = np.where(which < 8, byte, np.where(which < 12, sign, np.where(which == 12, U64(0), U64(0xFF))))
        result = result | byte << U64(8 * k)
    return low(result)


def dot_halves(x: Any, y: Any, z: Any) -> Any:
    """z + x[0] y[0] + x[1] y[1] of halves, rounded once."""
    parts = [(halves(w, 0), halves(w, 1)) for w in (x, y)]
    total = np.asarray(z).astype(F64)
    for k in range(2):
        total = total + parts[0][k].astype(F64) * parts[1][k]
    return total.astype(F32)


def halves(word: Any, which: int) -> Any:
    """One half of words, as fp16."""
    return (np.asarray(word) >> U32(16 * which)).astype(np.uint16).view(np.float16)


def dot_bfloat16(x: Any, y: Any, z: Any) -> Any:
    """z + x[0] y[0] + x[1] y[1] of bf16."""
    total = np.asarray(z).astype(F64)
    for shift in (0, 16):
        a, b = ((np.asarray(w) >> U32(shift) << U32(16)).view(F32).astype(F64) for w in (x, y))
        total = total + a * b
    return total.astype(F32)


def add_carry(x: Any, y: Any, carry: Any = False) -> tuple[Any, Any]:
    total = wide(x) + wide(y) + wide(carry)
    return low(total), total >> U64(32) != 0


def subtract_borrow(x: Any, y: Any, borrow: Any = False) -> tuple[Any, Any]:
    total = wide_signed(x) - wide_signed(y) - wide_signed(borrow)
    return low(total), total < 0


def multiply_add(x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    product = wide(x) * wide(y)
    total = product + z
    return total, total < product


def multiply_add_signed(x: Any, y: Any, z: Any) -> tuple[Any, Any]:
    total = wide_signed(x) * wide_signed(y) + z
    return total, np.zeros(np.shape(total), bool)


def pack(x: Any, y: Any) -> Any:
    return np.asarray(x).view(np.uint16).astype(U32) | np.asarray(y).view(np.uint16).astype(U32) << U32(16)


def exponent(x: Any) -> Any:
    """The biased exponent of fp32."""
    return (np.asarray(x).view(U32) >> U32(23) & U32(255)).astype(np.int32)


def subnormal(x: Any) -> Any:
    """Whether a float64 would be a denormal as fp32."""
    return (x != 0) & (np.abs(x) < 2.0**-126)


def scale_for_division(x: Any, denominator: Any, numerator: Any) -> tuple[Any, Any]:
    """The denominator or the numerator (whichever ``x`` is), so scaled that the quotient stays normal.

    Also whether the quotient has to be scaled back (V_DIV_SCALE_F32).
    """
    up, down = x * F32(2.0**64), x * F32(2.0**-64)
    d, n = np.asarray(denominator).astype(F64), np.asarray(numerator).astype(F64)
    undefined = (n == 0) | (d == 0)
    large = exponent(numerator) - exponent(denominator) >= 96
    inverse, quotient = subnormal(1 / d), subnormal(n / d)
    scaled = np.select(
        [undefined, large, subnormal(d), inverse & quotient, inverse, quotient, exponent(numerator) <= 23],
        [
            F32(np.nan),
            np.where(x == denominator, up, x),
            up,
            np.where(x == denominator, up, x),
            down,
            np.where(x == numerator, up, x),
            up,
        ],
        x,
    )
    return scaled.astype(F32), ~undefined & (large | ~subnormal(d) & quotient)


def scale_back(x: Any, y: Any, z: Any, scaled: Any) -> Any:
    """x * y + z, scaled where ``scale_for_division`` said so (V_DIV_FMAS_F32)."""
    total = fma(x, y, z)
    return np.where(scaled, total * np.where(exponent(z) > 127, F32(2.0**64), F32(2.0**-64)), total)


def fix_quotient(quotient: Any, denominator: Any, numerator: Any) -> Any:
    """The quotient, with what IEEE 754 wants for zeros, infinities and NaN (V_DIV_FIXUP_F32)."""
    d, n = np.asarray(denominator), np.asarray(numerator)
    sign = np.where(np.signbit(d) ^ np.signbit(n), F32(-1), F32(1))
    invalid = (d == 0) & (n == 0) | np.isinf(d) & np.isinf(n)
    return np.select(
        [
            np.isnan(n),
            np.isnan(d),
            invalid,
            (d == 0) | np.isinf(n),
            np.isinf(d) | (n == 0) | (exponent(n) - exponent(d) < -150),
        ],
        [n, d, F32(np.nan), sign * F32(np.inf), sign * F32(0)],
        sign * np.abs(quotient),
    ).astype(F32)


VECTOR: dict[str, Row] = {
    "v_mov_b32": row("b32 = b32", lambda x: x),
    "v_mov_b16": row("b16 = b16", lambda x: x),
    "v_not_b32": row("b32 = b32", lambda x: ~x),
    "v_bfrev_b32": row("b32 = b32", reverse),
    "v_not_b16": row("b16 = b16", lambda x: ~x),
    "v_and_b32": row("b32 = b32 b32", lambda x, y: x & y),
    "v_or_b32": row("b32 = b32 b32", lambda x, y: x | y),
    "v_xor_b32": row("b32 = b32 b32", lambda x, y: x ^ y),
    "v_xnor_b32": row("b32 = b32 b32", lambda x, y: ~(x ^ y)),
    "v_and_b16": row("b16 = b16 b16", lambda x, y: x & y),
    "v_or_b16": row("b16 = b16 b16", lambda x, y: x | y),
    "v_xor_b16": row("b16 = b16 b16", lambda x, y: x ^ y),
    "v_lshlrev_b32": row("b32 = b32 b32", lambda n, x: x << (n & MASK5)),
    "v_lshrrev_b32": row("b32 = b32 b32", lambda n, x: x >> (n & MASK5)),
    "v_ashrrev_i32": row("i32 = i32 i32", lambda n, x: x >> (n & np.int32(31))),
    "v_lshlrev_b16": row("u16 = u16 u16", lambda n, x: x << (n & np.uint16(15))),
    "v_lshrrev_b16": row("u16 = u16 u16", lambda n, x: x >> (n & np.uint16(15))),
    "v_ashrrev_i16": row("i16 = i16 i16", lambda n, x: x >> (n & np.int16(15))),
    "v_lshlrev_b64": row("u64 = b32 u64", lambda n, x: x << (wide(n) & MASK6)),
    "v_lshrrev_b64": row("u64 = b32 u64", lambda n, x: x >> (wide(n) & MASK6)),
    "v_ashrrev_i64": row("i64 = b32 i64", lambda n, x: x >> (wide_signed(n) & I64(63))),
    "v_alignbit_b32": row(
        "b32 = b32 b32 b32", lambda x, y, n: low((wide(x) << U64(32) | wide(y)) >> wide(n & MASK5))
    ),
    "v_alignbyte_b32": row(
        "b32 = b32 b32 b32",
        lambda x, y, n: low((wide(x) << U64(32) | wide(y)) >> wide(U32(8) * (n & U32(3)))),
    ),
    "v_bfe_u32": row("u32 = u32 u32 u32", extract),
    "v_bfe_i32": row("i32 = i32 u32 u32", extract_signed),
    "v_bfi_b32": row("b32 = b32 b32 b32", lambda x, y, z: x & y | ~x & z),
    "v_perm_b32": row("b32 = b32 b32 b32", permute_bytes),
    "v_add_nc_u32": row("u32 = u32 u32", lambda x, y: x + y),
    "v_sub_nc_u32": row("u32 = u32 u32", lambda x, y: x - y),
    "v_subrev_nc_u32": row("u32 = u32 u32", lambda x, y: y - x),
    "v_add_nc_u16": row("u16 = u16 u16", lambda x, y: x + y),
    "v_sub_nc_u16": row("u16 = u16 u16", lambda x, y: x - y),
    "v_add_nc_i32": row("i32 = i32 i32", lambda x, y: x + y),
    "v_sub_nc_i32": row("i32 = i32 i32", lambda x, y: x - y),
    "v_mul_lo_u16": row("u16 = u16 u16", lambda x, y: x * y),
    "v_mul_lo_u32": row("u32 = u32 u32", lambda x, y: x * y),
    "v_mul_hi_u32": row("u32 = u32 u32", lambda x, y: high(wide(x) * wide(y))),
    "v_mul_hi_i32": row("i32 = i32 i32", lambda x, y: high(wide_signed(x) * wide_signed(y)).view(np.int32)),
    "v_mul_u32_u24": row("u32 = u32 u32", lambda x, y: u24(x) * u24(y)),
    "v_mul_i32_i24": row("i32 = i32 i32", lambda x, y: i24(x) * i24(y)),
    "v_mad_u32_u24": row("u32 = u32 u32 u32", lambda x, y, z: u24(x) * u24(y) + z),
    "v_mad_i32_i24": row("i32 = i32 i32 i32", lambda x, y, z: i24(x) * i24(y) + z),
    "v_mad_u16": row("u16 = u16 u16 u16", lambda x, y, z: x * y + z),
    "v_mad_co_u64_u32": row("u64 mask = u32 u32 u64", multiply_add),
    "v_mad_co_i64_i32": row("i64 mask = i32 i32 i64", multiply_add_signed),
    "v_add3_u32": row("u32 = u32 u32 u32", lambda x, y, z: x + y + z),
    "v_xad_u32": row("u32 = u32 u32 u32", lambda x, y, z: (x ^ y) + z),
    "v_lshl_add_u32": row("u32 = u32 u32 u32", lambda x, n, y: (x << (n & MASK5)) + y),
    "v_add_lshl_u32": row("u32 = u32 u32 u32", lambda x, y, n: (x + y) << (n & MASK5)),
    "v_lshl_or_b32": row("b32 = b32 b32 b32", lambda x, n, y: x << (n & MASK5) | y),
    "v_and_or_b32": row("b32 = b32 b32 b32", lambda x, y, z: x & y | z),
    "v_or3_b32": row("b32 = b32 b32 b32", lambda x, y, z: x | y | z),
    "v_xor3_b32": row("b32 = b32 b32 b32", lambda x, y, z: x ^ y ^ z),
    "v_max_i32": row("i32 = i32 i32", np.maximum),
    "v_min_i32": row("i32 = i32 i32", np.minimum),
    "v_max_u32": row("u32 = u32 u32", np.maximum),
    "v_min_u32": row("u32 = u32 u32", np.minimum),
    "v_max_i16": row("i16 = i16 i16", np.maximum),
    "v_min_i16": row("i16 = i16 i16", np.minimum),
    "v_max3_i32": row("i32 = i32 i32 i32", lambda x, y, z: np.maximum(np.maximum(x, y), z)),
    "v_min3_i32": row("i32 = i32 i32 i32", lambda x, y, z: np.minimum(np.minimum(x, y), z)),
    "v_med3_i32": row(
        "i32 = i32 i32 i32", lambda x, y, z: np.maximum(np.minimum(x, y), np.minimum(np.maximum(x, y), z))
    ),
    "v_add_co_u32": row("u32 mask = u32 u32", add_carry),
    "v_sub_co_u32": row("u32 mask = u32 u32", subtract_borrow),
    "v_subrev_co_u32": row("u32 mask = u32 u32", lambda x, y: subtract_borrow(y, x)),
    "v_add_co_ci_u32": row("u32 mask = u32 u32 mask", add_carry),
    "v_sub_co_ci_u32": row("u32 mask = u32 u32 mask", subtract_borrow),
    "v_subrev_co_ci_u32": row("u32 mask = u32 u32 mask", lambda x, y, c: subtract_borrow(y, x, c)),
    "v_cndmask_b32": row("b32 = b32 b32 mask", lambda x, y, c: np.where(c, y, x)),
    "v_cndmask_b16": row("b16 = b16 b16 mask", lambda x, y, c: np.where(c, y, x)),
    "v_add_f32": row("f32 = f32 f32", lambda x, y: x + y),
    "v_sub_f32": row("f32 = f32 f32", lambda x, y: x - y),
    "v_subrev_f32": row("f32 = f32 f32", lambda x, y: y - x),
    "v_mul_f32": row("f32 = f32 f32", lambda x, y: x * y),
    "v_mac_f32": row("f32 = f32 f32 f32", lambda x, y, z: x * y + z, accumulates=True),
    "v_mad_f32": row("f32 = f32 f32 f32", lambda x, y, z: x * y + z),
    "v_madmk_f32": row("f32 = f32 f32 f32", lambda x, k, y: x * k + y),
    "v_madak_f32": row("f32 = f32 f32 f32", lambda x, y, k: x * y + k),
    "v_fmac_f32": row("f32 = f32 f32 f32", fma, accumulates=True),
    "v_fma_f32": row("f32 = f32 f32 f32", fma),
    "v_fmamk_f32": row("f32 = f32 f32 f32", lambda x, k, y: fma(x, k, y)),
    "v_fmaak_f32": row("f32 = f32 f32 f32", fma),
    "v_max_f32": row("f32 = f32 f32", largest),
    "v_min_f32": row("f32 = f32 f32", smallest),
    "v_rcp_f32": row("f32 = f32", lambda x: F32(1) / x),
    "v_rcp_iflag_f32": row("f32 = f32", lambda x: F32(1) / x),
    "v_rsq_f32": row("f32 = f32", lambda x: (1 / np.sqrt(np.asarray(x).astype(F64))).astype(F32)),
    "v_sqrt_f32": row("f32 = f32", np.sqrt),
    "v_exp_f32": row("f32 = f32", np.exp2),
    "v_log_f32": row("f32 = f32", np.log2),
    "v_div_scale_f32": row("f32 mask = f32 f32 f32", scale_for_division),
    "v_div_fmas_f32": row("f32 = f32 f32 f32 mask", scale_back),
    "v_div_fixup_f32": row("f32 = f32 f32 f32", fix_quotient),
    "v_ldexp_f32": row("f32 = f32 i32", lambda x, n: np.ldexp(x, n).astype(F32)),
    "v_trunc_f32": row("f32 = f32", np.trunc),
    "v_floor_f32": row("f32 = f32", np.floor),
    "v_rndne_f32": row("f32 = f32", np.rint),
    "v_add_f16": row("f16 = f16 f16", lambda x, y: x + y),
    "v_sub_f16": row("f16 = f16 f16", lambda x, y: x - y),
    "v_mul_f16": row("f16 = f16 f16", lambda x, y: x * y),
    "v_fma_f16": row("f16 = f16 f16 f16", fma_half),
    "v_fmac_f16": row("f16 = f16 f16 f16", fma_half, accumulates=True),
    "v_max_f16": row("f16 = f16 f16", largest),
    "v_min_f16": row("f16 = f16 f16", smallest),
    "v_cvt_f32_u32": row("f32 = u32", lambda x: np.asarray(x).astype(F32)),
    "v_cvt_f32_i32": row("f32 = i32", lambda x: np.asarray(x).astype(F32)),
    "v_cvt_f32_ubyte0": row("f32 = u32", lambda x: (x & U32(255)).astype(F32)),
    "v_cvt_u32_f32": row("u32 = f32", lambda x: to_integer(x, 0, 2**32 - 1).astype(U32)),
    "v_cvt_i32_f32": row("i32 = f32", lambda x: to_integer(x, -(2**31), 2**31 - 1).astype(np.int32)),
    "v_cvt_f32_f16": row("f32 = f16", lambda x: np.asarray(x).astype(F32)),
    "v_cvt_f16_f32": row("f16 = f32", lambda x: np.asarray(x).astype(np.float16)),
    "v_cvt_i32_i16": row("i32 = i16", lambda x: np.asarray(x).astype(np.int32)),
    "v_cvt_u32_u16": row("u32 = u16", lambda x: np.asarray(x).astype(U32)),
    "v_pack_b32_f16": row("b32 = f16 f16", pack),
    "v_dot2_f32_f16": row("f32 = b32 b32 f32", dot_halves),
    "v_dot2c_f32_f16": row("f32 = b32 b32 f32", dot_halves, accumulates=True),
    "v_dot2_f32_bf16": row("f32 = b32 b32 f32", dot_bfloat16),
}

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "lt": np.less, "eq": np.equal, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "ne": np.not_equal, "lg": lambda x, y: (x < y) | (x > y),
    "o": lambda x, y: ~(np.isnan(x) | np.isnan(y)), "u": lambda x, y: np.isnan(x) | np.isnan(y),
    "nge": lambda x, y: ~(x >= y), "nlg": lambda x, y: ~((x < y) | (x > y)), "ngt": lambda x, y: ~(x > y),
    "nle": lambda x, y: ~(x <= y), "neq": np.not_equal, "nlt": lambda x, y: ~(x < y),
}  # fmt: skip
COMPARED = ("u16", "i16", "f16", "u32", "i32", "f32", "u64", "i64")

for _name, _compare in COMPARISONS.items():
    for _kind in COMPARED:
        VECTOR[f"v_cmp_{_name}_{_kind}"] = row(f"mask = {_kind} {_kind}", _compare)
