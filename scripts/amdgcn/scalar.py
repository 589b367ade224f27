"""What each scalar instruction computes: one row for each, for all waves of a team at once.

The meaning is that of "RDNA 1.0 Instruction Set Architecture", chapter 12, formats SOP2, SOPK, SOP1 and SOPC;
of the floating-point ones that of the same formats in "RDNA4 Instruction Set Architecture". A function
returns the result, or the result and the condition (SCC); it gets the old condition as ``scc`` where the
row says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .vector import extract, extract_signed, fma, reverse, to_integer

U32, U64, I64, I32, F32 = np.uint32, np.uint64, np.int64, np.int32, np.float32
MASK5, MASK6 = U32(31), U64(63)


class ScalarRow(NamedTuple):
    """Kinds of the result ("" for none) and of the operands, the function, and the condition.

    Attributes:
        sets: "" (the condition stays), "nonzero" (of the result), or "given" (the function returns it).
        carries: whether the function gets the old condition first.
        accumulates: whether the old value of the result is the first operand.
    """

    result: str
    operands: tuple[str, ...]
    compute: Callable[..., Any]
    sets: str
    carries: bool
    accumulates: bool


def row(
    kinds: str,
    compute: Callable[..., Any],
    sets: str = "",
    *,
    carries: bool = False,
    accumulates: bool = False,
) -> ScalarRow:
    """A row from "u32 = u32 u32"."""
    result, _, operands = kinds.partition("=")
    return ScalarRow(result.strip(), tuple(operands.split()), compute, sets, carries, accumulates)


def wide(x: Any) -> Any:
    return np.asarray(x).astype(U64)


def wide_signed(x: Any) -> Any:
    return np.asarray(x).astype(I64)


def signed_overflow(total: Any) -> tuple[Any, Any]:
    return total.astype(I32), (total < -(2**31)) | (total >= 2**31)


def add_unsigned(x: Any, y: Any, carry: Any = 0) -> tuple[Any, Any]:
    total = wide(x) + wide(y) + wide(carry)
    return total.astype(U32), total >> U64(32) != 0


def subtract_unsigned(x: Any, y: Any, borrow: Any = 0) -> tuple[Any, Any]:
    total = wide_signed(x) - wide_signed(y) - wide_signed(borrow)
    return total.astype(U32), total < 0


def field_of(x: Any, packed: Any) -> Any:
    """Offset in bits 4:0, width in bits 22:16; a width of 32 and more is the whole word."""
    width = packed >> U32(16) & U32(127)
    return np.where(width > 31, x >> (packed & MASK5), extract(x, packed, width))


def signed_field_of(x: Any, packed: Any) -> Any:
    width = packed >> U32(16) & U32(127)
    whole = np.asarray(x).view(I32) >> (packed & MASK5).astype(I32)
    return np.where(width > 31, whole, extract_signed(x, packed, width)).astype(I32)


def shift_add(shift: int) -> Callable[..., Any]:
    def compute(x: Any, y: Any) -> tuple[Any, Any]:
        total = (wide(x) << U64(shift)) + wide(y)
        return total.astype(U32), total >> U64(32) != 0

    return compute


SCALAR: dict[str, ScalarRow] = {
    "s_mov_b32": row("b32 = b32", lambda x: x),
    "s_mov_b64": row("u64 = u64", lambda x: x),
    "s_movk_i32": row("i32 = k16", lambda k: k),
    "s_not_b32": row("b32 = b32", lambda x: ~x, "nonzero"),
    "s_brev_b32": row("b32 = b32", reverse),
    "s_abs_i32": row("b32 = i32", lambda x: np.abs(wide_signed(x)).astype(U32), "nonzero"),
    "s_sext_i32_i8": row("i32 = b32", lambda x: np.asarray(x).astype(np.int8).astype(I32)),
    "s_sext_i32_i16": row("i32 = b32", lambda x: np.asarray(x).astype(np.int16).astype(I32)),
    "s_cselect_b32": row("b32 = b32 b32", lambda scc, x, y: np.where(scc, x, y), carries=True),
    "s_cselect_b64": row("u64 = u64 u64", lambda scc, x, y: np.where(scc, x, y), carries=True),
    "s_cmov_b32": row("b32 = b32", lambda scc, old, x: np.where(scc, x, old), carries=True, accumulates=True),
    "s_and_b32": row("b32 = b32 b32", lambda x, y: x & y, "nonzero"),
    "s_or_b32": row("b32 = b32 b32", lambda x, y: x | y, "nonzero"),
    "s_xor_b32": row("b32 = b32 b32", lambda x, y: x ^ y, "nonzero"),
    "s_xnor_b32": row("b32 = b32 b32", lambda x, y: ~(x ^ y), "nonzero"),
    "s_nand_b32": row("b32 = b32 b32", lambda x, y: ~(x & y), "nonzero"),
    "s_nor_b32": row("b32 = b32 b32", lambda x, y: ~(x | y), "nonzero"),
    "s_and_not1_b32": row("b32 = b32 b32", lambda x, y: x & ~y, "nonzero"),
    "s_or_not1_b32": row("b32 = b32 b32", lambda x, y: x | ~y, "nonzero"),
    "s_and_b64": row("u64 = u64 u64", lambda x, y: x & y, "nonzero"),
    "s_or_b64": row("u64 = u64 u64", lambda x, y: x | y, "nonzero"),
    "s_xor_b64": row("u64 = u64 u64", lambda x, y: x ^ y, "nonzero"),
    "s_and_not1_b64": row("u64 = u64 u64", lambda x, y: x & ~y, "nonzero"),
    "s_lshl_b32": row("b32 = b32 b32", lambda x, n: x << (n & MASK5), "nonzero"),
    "s_lshr_b32": row("b32 = b32 b32", lambda x, n: x >> (n & MASK5), "nonzero"),
    "s_ashr_i32": row("i32 = i32 i32", lambda x, n: x >> (n & I32(31)), "nonzero"),
    "s_lshl_b64": row("u64 = u64 b32", lambda x, n: x << (wide(n) & MASK6), "nonzero"),
    "s_lshr_b64": row("u64 = u64 b32", lambda x, n: x >> (wide(n) & MASK6), "nonzero"),
    "s_ashr_i64": row("i64 = i64 b32", lambda x, n: x >> (wide_signed(n) & I64(63)), "nonzero"),
    "s_bfe_u32": row("u32 = u32 u32", field_of, "nonzero"),
    "s_bfe_i32": row("i32 = u32 u32", signed_field_of, "nonzero"),
    "s_bfm_b32": row("b32 = b32 b32", lambda n, at: ((U32(1) << (n & MASK5)) - U32(1)) << (at & MASK5)),
    "s_bitset0_b32": row("b32 = b32", lambda old, n: old & ~(U32(1) << (n & MASK5)), accumulates=True),
    "s_bitset1_b32": row("b32 = b32", lambda old, n: old | U32(1) << (n & MASK5), accumulates=True),
    "s_bitcmp0_b32": row("= b32 b32", lambda x, n: x >> (n & MASK5) & U32(1) == 0, "given"),
    "s_bitcmp1_b32": row("= b32 b32", lambda x, n: x >> (n & MASK5) & U32(1) == 1, "given"),
    "s_add_co_i32": row(
        "i32 = i32 i32", lambda x, y: signed_overflow(wide_signed(x) + wide_signed(y)), "given"
    ),
    "s_sub_co_i32": row(
        "i32 = i32 i32", lambda x, y: signed_overflow(wide_signed(x) - wide_signed(y)), "given"
    ),
    "s_addk_co_i32": row(
        "i32 = k16",
        lambda old, k: signed_overflow(wide_signed(old) + wide_signed(k)),
        "given",
        accumulates=True,
    ),
    "s_mulk_i32": row(
        "i32 = k16", lambda old, k: (wide_signed(old) * wide_signed(k)).astype(I32), accumulates=True
    ),
    "s_add_co_u32": row("u32 = u32 u32", add_unsigned, "given"),
    "s_sub_co_u32": row("u32 = u32 u32", subtract_unsigned, "given"),
    "s_add_co_ci_u32": row("u32 = u32 u32", lambda scc, x, y: add_unsigned(x, y, scc), "given", carries=True),
    "s_sub_co_ci_u32": row(
        "u32 = u32 u32", lambda scc, x, y: subtract_unsigned(x, y, scc), "given", carries=True
    ),
    "s_add_nc_u64": row("u64 = u64 u64", lambda x, y: x + y),
    "s_sub_nc_u64": row("u64 = u64 u64", lambda x, y: x - y),
    "s_mul_u64": row("u64 = u64 u64", lambda x, y: x * y),
    "s_mul_i32": row("u32 = u32 u32", lambda x, y: x * y),
    "s_mul_hi_u32": row("u32 = u32 u32", lambda x, y: (wide(x) * wide(y) >> U64(32)).astype(U32)),
    "s_mul_hi_i32": row(
        "i32 = i32 i32", lambda x, y: (wide_signed(x) * wide_signed(y) >> I64(32)).astype(I32)
    ),
    "s_lshl1_add_u32": row("u32 = u32 u32", shift_add(1), "given"),
    "s_lshl2_add_u32": row("u32 = u32 u32", shift_add(2), "given"),
    "s_lshl3_add_u32": row("u32 = u32 u32", shift_add(3), "given"),
    "s_lshl4_add_u32": row("u32 = u32 u32", shift_add(4), "given"),
    "s_max_i32": row("i32 = i32 i32", lambda x, y: (np.maximum(x, y), x >= y), "given"),
    "s_min_i32": row("i32 = i32 i32", lambda x, y: (np.minimum(x, y), x < y), "given"),
    "s_max_u32": row("u32 = u32 u32", lambda x, y: (np.maximum(x, y), x >= y), "given"),
    "s_min_u32": row("u32 = u32 u32", lambda x, y: (np.minimum(x, y), x < y), "given"),
    "s_pack_ll_b32_b16": row("b32 = b32 b32", lambda x, y: x & U32(0xFFFF) | y << U32(16)),
    "s_pack_lh_b32_b16": row("b32 = b32 b32", lambda x, y: x & U32(0xFFFF) | y & U32(0xFFFF0000)),
    "s_pack_hh_b32_b16": row("b32 = b32 b32", lambda x, y: x >> U32(16) | y & U32(0xFFFF0000)),
    "s_pack_hl_b32_b16": row("b32 = b32 b32", lambda x, y: x >> U32(16) | y << U32(16)),
    "s_cvt_f32_u32": row("f32 = u32", lambda x: np.asarray(x).astype(F32)),
    "s_cvt_f32_i32": row("f32 = i32", lambda x: np.asarray(x).astype(F32)),
    "s_cvt_u32_f32": row("u32 = f32", lambda x: to_integer(x, 0, 2**32 - 1).astype(U32)),
    "s_cvt_i32_f32": row("i32 = f32", lambda x: to_integer(x, -(2**31), 2**31 - 1).astype(I32)),
    "s_trunc_f32": row("f32 = f32", np.trunc),
    "s_add_f32": row("f32 = f32 f32", lambda x, y: x + y),
    "s_sub_f32": row("f32 = f32 f32", lambda x, y: x - y),
    "s_mul_f32": row("f32 = f32 f32", lambda x, y: x * y),
    "s_fmac_f32": row("f32 = f32 f32", lambda old, x, y: fma(x, y, old), accumulates=True),
    "s_fmamk_f32": row("f32 = f32 f32 f32", lambda x, k, y: fma(x, k, y)),
    "s_fmaak_f32": row("f32 = f32 f32 f32", fma),
}

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "eq": np.equal, "lg": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal,
}  # fmt: skip

for _name, _compare in COMPARISONS.items():
    for _kind in ("i32", "u32", "u64"):
        SCALAR[f"s_cmp_{_name}_{_kind}"] = row(f"= {_kind} {_kind}", _compare, "given")
    SCALAR[f"s_cmpk_{_name}_i32"] = row("= i32 k16", _compare, "given")
    SCALAR[f"s_cmpk_{_name}_u32"] = row("= u32 u32", _compare, "given")
for _name in ("lt", "le", "gt", "ge"):
    SCALAR[f"s_cmp_{_name}_f32"] = row("= f32 f32", COMPARISONS[_name], "given")
SCALAR["s_cmp_eq_f32"] = row("= f32 f32", np.equal, "given")
SCALAR["s_cmp_lg_f32"] = row("= f32 f32", lambda x, y: (x < y) | (x > y), "given")
SCALAR["s_cmp_neq_f32"] = row("= f32 f32", np.not_equal, "given")

SAVE_EXEC: dict[str, Callable[[Any, Any], Any]] = {
    "s_and_saveexec_b32": lambda x, on: x & on,
    "s_or_saveexec_b32": lambda x, on: x | on,
    "s_xor_saveexec_b32": lambda x, on: x ^ on,
    "s_and_not1_saveexec_b32": lambda x, on: x & ~on,
    "s_and_not0_saveexec_b32": lambda x, on: ~x & on,
    "s_or_not1_saveexec_b32": lambda x, on: x | ~on,
}
"""The result becomes the exec register, the old exec register is kept; the condition: any lane is on."""
