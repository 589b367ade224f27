"""Reading and writing operands: a function for each, made once from what the assembly says.

Kinds of values: u32, i32, f32, b32 (bits), u64, i64, f64, and u16, i16, f16 in either half of a register;
mask (one flag a lane, in a scalar register). Values come as arrays that broadcast to (waves, 32).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Operand
from .faults import UnknownInstruction
from .team import EXEC, LANES, Team, bits_of, lanes_of

Reader = Callable[[Team], Any]
Writer = Callable[[Team, Any], None]

DTYPES: dict[str, Any] = {
    "u32": np.uint32, "i32": np.int32, "f32": np.float32, "b32": np.uint32, "u64": np.uint64, "i64": np.int64,
    "u16": np.uint16, "i16": np.int16, "f16": np.float16, "b16": np.uint16,
}  # fmt: skip
WORDS = {"u64": 2, "i64": 2}
U32 = np.uint32


def narrow(kind: str) -> bool:
    return kind in ("u16", "i16", "f16", "b16")


def literal_bits(value: int | float, kind: str) -> int:
    """The bits of a constant; a float is one of the type that the instruction reads."""
    if isinstance(value, float):
        dtype = np.float16 if narrow(kind) else np.float32
        return int(np.array(value, dtype).view(np.uint16 if narrow(kind) else U32))
    width = {"u64": 64, "i64": 64}.get(kind, 16 if narrow(kind) else 32)
    return value & ((1 << width) - 1)


def signed(operand: Operand, value: Any) -> Any:
    """Absolute value, then negation, of a float; signs alone change, NaN too."""
    if not (operand.absolute or operand.negated):
        return value
    value = np.asarray(value)
    bits: Any = {2: np.uint16, 4: np.uint32}[value.dtype.itemsize]
    sign = bits(1 << (8 * value.dtype.itemsize - 1))
    raw = value.view(bits)
    if operand.absolute:
        raw = raw & ~sign
    if operand.negated:
        raw = raw ^ sign
    return raw.view(value.dtype)


def words(operand: Operand, k: int = 0) -> Reader:
    """The k-th 32-bit word, uint32."""
    if operand.kind == "v":
        index = operand.index + k
        return lambda team: team.v[index]
    if operand.kind == "s":
        if operand.is_null:
            return lambda team: U32(0)
        index = operand.index + k
        return lambda team: team.s[index][:, None]
    if operand.kind == "literal":
        bits = U32(
            literal_bits(operand.value, "u64" if isinstance(operand.value, int) else "b32") >> 32 * k
            & 0xFFFFFFFF
        )
        return lambda team: bits
    raise UnknownInstruction(f"operand of kind {operand.kind}")


def reader(operand: Operand, kind: str, high: bool = False, select: str = "DWORD") -> Reader:
    """A function that reads the operand of a team as values of ``kind``.

    Args:
        high: the upper half of the register, for a kind of 16 bits.
        select: the part of the register that a sub-dword instruction takes.
    """
    if kind == "mask":
        return _mask_reader(operand)
    dtype = DTYPES[kind]
    if operand.kind == "literal":
        bits = literal_bits(operand.value, kind)
        width = {64: np.uint64, 32: U32, 16: np.uint16}[8 * np.dtype(dtype).itemsize]
        constant = signed(operand, np.array(bits, width).view(dtype))
        return lambda team: constant
    if kind in WORDS:
        low, upper = words(operand), words(operand, 1)
        return lambda team: (
            low(team).astype(np.uint64) | upper(team).astype(np.uint64) << np.uint64(32)
        ).view(dtype)
    word = words(operand)
    if select != "DWORD" or operand.sign_extended:
        return _selected(operand, kind, word, select)
    if narrow(kind):
        shift = U32(16 if high or operand.high else 0)
        return lambda team: signed(
            operand, ((word(team) >> shift) & U32(0xFFFF)).astype(np.uint16).view(dtype)
        )
    if operand.absolute or operand.negated:
        return lambda team: signed(operand, word(team).view(dtype))
    if kind == "f32" and operand.kind == "v":
        index = operand.index
        return lambda team: team.vf[index]
    return (lambda team: word(team).view(dtype)) if dtype is not U32 else word


def _selected(operand: Operand, kind: str, word: Reader, select: str) -> Reader:
    part, _, number = select.partition("_")
    width = {"BYTE": 8, "WORD": 16, "DWORD": 32}[part]
    shift, keep = U32(width * int(number or 0)), U32((1 << width) - 1)
    sign = U32(1 << (width - 1))

    def read(team: Team) -> Any:
        value = (word(team) >> shift) & keep
        if operand.sign_extended:
            value = (value ^ sign) - sign
        if narrow(kind):
            value = (value & U32(0xFFFF)).astype(np.uint16)
        return signed(operand, value.view(DTYPES[kind]))

    return read


def _mask_reader(operand: Operand) -> Reader:
    if operand.kind == "literal":
        constant = bool(operand.value)
        if operand.value not in (0, -1):
            raise UnknownInstruction(f"a mask of {operand.value}")
        return lambda team: np.full((team.size, LANES), constant)
    index = operand.index
    return lambda team: lanes_of(team.s[index])


def writer(
    operand: Operand, kind: str, high: bool = False, modifiers: dict[str, str] | None = None
) -> Writer:
    """A function that writes values of ``kind`` to the lanes that execute; 16 bits leave the other half
    be.
    """
    if kind == "mask":
        return _mask_writer(operand)
    if operand.kind != "v":
        raise UnknownInstruction("a vector result for a scalar register")
    dtype, index = DTYPES[kind], operand.index
    if kind in WORDS:

        def write_pair(team: Team, value: Any) -> None:
            bits = np.asarray(value).astype(dtype, copy=False).view(np.uint64)
            put(team, index, (bits & np.uint64(0xFFFFFFFF)).astype(U32))
            put(team, index + 1, (bits >> np.uint64(32)).astype(U32))

        return write_pair
    modifiers = modifiers or {}
    if modifiers.get("dst_sel", "DWORD") != "DWORD":
        return _insert(index, dtype, modifiers)
    if narrow(kind):
        shift = U32(16 if high or operand.high else 0)
        keep = U32(0xFFFF << 16 if shift == 0 else 0xFFFF)
        return lambda team, value: put(
            team,
            index,
            team.v[index] & keep
            | np.asarray(value).astype(dtype, copy=False).view(np.uint16).astype(U32) << shift,
        )
    if dtype is np.float32:
        return lambda team, value: put_float(team, index, value)
    if dtype is U32:
        return lambda team, value: put(team, index, value)
    return lambda team, value: put(team, index, np.asarray(value).astype(dtype, copy=False).view(U32))


def _insert(index: int, dtype: Any, modifiers: dict[str, str]) -> Writer:
    part, _, number = modifiers["dst_sel"].partition("_")
    width = {"BYTE": 8, "WORD": 16}[part]
    shift = U32(width * int(number))
    keep = U32((1 << width) - 1)
    unused = modifiers.get("dst_unused", "UNUSED_PAD")
    if unused not in ("UNUSED_PAD", "UNUSED_PRESERVE"):
        raise UnknownInstruction(unused)

    def write(team: Team, value: Any) -> None:
        bits = np.asarray(value).astype(dtype, copy=False)
        raw = bits.view(np.uint16 if bits.dtype.itemsize == 2 else U32).astype(U32) & keep
        rest = team.v[index] & ~(keep << shift) if unused == "UNUSED_PRESERVE" else U32(0)
        put(team, index, rest | raw << shift)

    return write


def put(team: Team, index: int, value: Any) -> None:
    """Write words to the lanes that execute."""
    if team.on is None:
        team.v[index] = value
    else:
        np.copyto(team.v[index], value, where=team.on)


def put_float(team: Team, index: int, value: Any) -> None:
    """Write floats to the lanes that execute."""
    if team.on is None:
        team.vf[index] = value
    else:
        np.copyto(team.vf[index], value, where=team.on)


def _mask_writer(operand: Operand) -> Writer:
    index = operand.index
    if operand.kind != "s":
        raise UnknownInstruction("a mask for a vector register")

    def write(team: Team, value: Any) -> None:
        if operand.is_null:
            return
        flags = np.broadcast_to(value, (team.size, LANES))
        team.s[index] = bits_of(flags if team.on is None else flags & team.on)
        if index == EXEC:
            team.refresh()

    return write
