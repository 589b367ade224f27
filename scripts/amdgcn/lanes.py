"""Moving values between lanes: data-parallel primitives, permutations, swizzles.

"RDNA 1.0 Instruction Set Architecture": chapter 6 (vector ALU) names DPP's patterns, chapter 13 their
encodings (format DPP16), chapter 12 has v_permlanex16_b32, ds_swizzle_b32 and ds_bpermute_b32.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from .faults import UnknownInstruction

LANE = np.arange(32)
ROW, COLUMN = LANE & 16, LANE & 15


def dpp_source(modifiers: dict[str, str]) -> Any:
    """The lane that each lane reads (-1: none), or None where the instruction reads its own."""
    for name, text in modifiers.items():
        if name == "quad_perm":
            order = np.array([int(each) for each in text.strip("[]").split(",")])
            return (LANE & ~3) | order[LANE & 3]
        if name in ("row_mirror", "row_half_mirror"):
            return ROW | (15 - COLUMN) if name == "row_mirror" else ROW | (COLUMN & 8) | (7 - (COLUMN & 7))
        if not name.startswith("row_") or name == "row_mask":
            continue
        n = int(text, 0)
        if name == "row_xmask":
            return ROW | (COLUMN ^ n)
        if name == "row_share":
            return ROW | n
        if name == "row_ror":
            return ROW | (COLUMN - n) & 15
        if name == "row_shr":
            return np.where(n <= COLUMN, LANE - n, -1)
        if name == "row_shl":
            return np.where(COLUMN + n < 16, LANE + n, -1)
        raise UnknownInstruction(f"{name}:{text}")
    return None


def dpp_written(modifiers: dict[str, str]) -> Any:
    """Lanes (32,) that the row and bank masks let the instruction write."""
    rows, banks = int(modifiers.get("row_mask", "0xf"), 0), int(modifiers.get("bank_mask", "0xf"), 0)
    return (rows >> (LANE >> 4) & 1).astype(bool) & (banks >> (COLUMN >> 2) & 1).astype(bool)


def swizzle_source(offset: int) -> Any:
    """The lane that each lane reads in ds_swizzle_b32: quads with bit 15 set, else 32 lanes by masks."""
    if offset >> 15:
        return (LANE & ~3) | (offset >> 2 * (LANE & 3) & 3)
    keep, insert, flip = offset & 31, offset >> 5 & 31, offset >> 10 & 31
    return ((LANE & keep) | insert) ^ flip


def swizzle_offset(text: str) -> int:
    """The offset field from LLVM's spelling of it, "swizzle(BITMASK_PERM, \\"00p11\\")" or a number."""
    if not text.startswith("swizzle("):
        return int(text, 0)
    kind, *rest = [part.strip() for part in text[8:-1].split(",")]
    if kind == "SWAP":
        return 31 | int(rest[0]) << 10
    if kind == "QUAD_PERM":
        return 0x8000 | sum(int(each) << 2 * k for k, each in enumerate(rest))
    if kind == "BROADCAST":
        size, lane = int(rest[0]), int(rest[1])
        return (31 & -size) | lane << 5
    if kind == "REVERSE":
        return 31 | (int(rest[0]) - 1) << 10
    if kind == "BITMASK_PERM":
        keep = insert = flip = 0
        for each in rest[0].strip('"'):
            keep, insert, flip = (
                keep << 1 | (each in "pi"),
                insert << 1 | (each == "1"),
                flip << 1 | (each == "i"),
            )
        return keep | insert << 5 | flip << 10
    raise UnknownInstruction(text)
