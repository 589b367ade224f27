"""Instructions that reach memory: scalar loads, global and buffer accesses, LDS.

"RDNA 1.0 Instruction Set Architecture", chapters 7 (scalar memory), 8 (vector memory, with the buffer
resource), 9 (flat and global) and 10 (data share), and the chapters of these names in "RDNA4 Instruction Set
Architecture".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np

from .assembly import Instruction, Operand, Program
from .faults import UnknownInstruction
from .lanes import swizzle_offset, swizzle_source
from .lds import offsets
from .operands import put, words
from .step import Step, Surroundings
from .team import EXEC, Team
from .waits import LDS, LOAD, SCALAR, STORE, Owed

U32, U64 = np.uint32, np.uint64
BITS = {"b32": 1, "b64": 2, "b96": 3, "b128": 4, "b256": 8, "b512": 16}
SMALL = {
    "u8": (1, "zero"), "i8": (1, "sign"), "u16": (2, "zero"), "i16": (2, "sign"), "b16": (2, "zero"),
    "b8": (1, "zero"),
    "d16_b16": (2, "low"), "d16_hi_b16": (2, "high"), "u16_d16": (2, "low"), "u16_d16_hi": (2, "high"),
    "b16_d16_hi": (2, "high"), "d16_u8": (1, "low"), "d16_hi_u8": (1, "high"), "b8_d16_hi": (1, "high"),
}  # fmt: skip
CACHE = frozenset(["offset", "glc", "slc", "dlc", "th", "scope", "offset0", "offset1", "offen"])


def decode(instruction: Instruction, program: Program) -> Step:
    """An instruction that reaches memory."""
    name = instruction.name
    if set(instruction.modifiers) - CACHE:
        raise UnknownInstruction(f"modifiers {sorted(set(instruction.modifiers) - CACHE)}")
    if name.startswith("s_load_"):
        return _scalar_load(instruction)
    if name.startswith("ds_"):
        return _lds(instruction)
    return _buffer(instruction, program) if name.startswith("buffer_") else _global(instruction)


def _registers(operand: Operand, count: int) -> Owed:
    return frozenset(r for r in operand.registers(count) if r != ("s", EXEC))


def address(operand: Operand) -> Callable[[Team], Any]:
    """A 64-bit address from two registers, broadcasting to (waves, 32)."""
    low, high = words(operand), words(operand, 1)
    return lambda team: low(team).astype(U64) | high(team).astype(U64) << U64(32)


def _scalar_load(instruction: Instruction) -> Step:
    count = BITS[instruction.name.removeprefix("s_load_")]
    target, base, *rest = instruction.operands
    start, offset = address(base), words(rest[0]) if rest else None
    fixed = int(instruction.modifiers.get("offset", "0"), 0)

    def run(machine: Surroundings, team: Team) -> None:
        at = np.broadcast_to(start(team), (team.size, 1))[:, 0]
        if offset is not None:
            at = at + np.broadcast_to(offset(team), (team.size, 1))[:, 0].astype(U64)
        at = at + U64(fixed & (2**64 - 1))
        for k in range(count):
            team.s[target.index + k] = machine.memory.load(at + U64(4 * k), 4)
        team.waits.issue(SCALAR, written)

    written = _registers(target, count)
    reads = _registers(base, 2) | (_registers(rest[0], 1) if rest else frozenset())
    return Step(instruction, "smem", run, reads, written)


def _global(instruction: Instruction) -> Step:
    _, way, kind = instruction.name.split("_", 2)
    stores = way == "store"
    if way not in ("load", "store"):
        raise UnknownInstruction("no such access to memory in the tables")
    first, second, base = instruction.operands
    data, vector = (second, first) if stores else (first, second)
    fixed = U64(int(instruction.modifiers.get("offset", "0"), 0) & (2**64 - 1))
    if base.kind == "off":
        where = address(vector)
        reads = _registers(vector, 2)
    else:
        start, index = address(base), words(vector)
        where = lambda team: start(team) + index(team).astype(U64)  # noqa: E731
        reads = _registers(vector, 1) | _registers(base, 2)

    def addresses(team: Team) -> Any:
        return where(team) + fixed

    return _transfer(instruction, kind, stores, data, addresses, reads)


def _transfer(
    instruction: Instruction, kind: str, stores: bool, data: Operand, addresses: Callable[[Team], Any],
    reads: Owed, inside: Callable[[Team], Any] | None = None,
) -> Step:  # fmt: skip
    """Load or store of the lanes that are on; those outside a buffer read 0 and store nothing."""
    if kind not in BITS and kind not in SMALL:
        raise UnknownInstruction(f"an access of kind {kind}")
    count, size = BITS.get(kind, 1), SMALL[kind][0] if kind in SMALL else 4
    registers = _registers(data, count)
    high = kind in SMALL and SMALL[kind][1] == "high"

    def run(machine: Surroundings, team: Team) -> None:
        on = team.lanes()
        if inside is not None:
            on = on & inside(team)
        at = np.broadcast_to(addresses(team), on.shape)[on]
        machine.traffic(team, instruction, at, on, size * count, stores)
        for k in range(count):
            index = data.index + k
            if stores:
                value = team.v[index][on]
                value = value >> U32(16) if high else value
                machine.memory.store(
                    at + U64(size * k), size, value.astype({1: np.uint8, 2: np.uint16, 4: U32}[size])
                )
                continue
            value = np.zeros(on.shape, U32)
            value[on] = extend(machine.memory.load(at + U64(size * k), size), kind)
            put(team, index, merge(team.v[index], value, kind))
        team.waits.issue(STORE if stores else LOAD, frozenset() if stores else registers)

    if stores:
        return Step(instruction, "vmem", run, reads | registers)
    return Step(instruction, "vmem", run, reads, registers, counter=LOAD)


def extend(values: Any, kind: str) -> Any:
    """Small values as words."""
    if kind in SMALL and SMALL[kind][1] == "sign":
        return values.view({1: np.int8, 2: np.int16}[SMALL[kind][0]]).astype(np.int32).view(U32)
    return values.astype(U32)


def merge(old: Any, new: Any, kind: str) -> Any:
    """What a load leaves in the register: halves keep the other half."""
    where = SMALL[kind][1] if kind in SMALL else "zero"
    if where == "low":
        return old & U32(0xFFFF0000) | new
    return old & U32(0xFFFF) | new << U32(16) if where == "high" else new


def _buffer(instruction: Instruction, program: Program) -> Step:
    """Through a resource of four words: base address, stride, number of records, and the bounds check.

    The check is chosen by OOB_SELECT, bits 29:28 of the last word ("RDNA 1.0 ISA", 8.1.5,
    table "Buffer Resource
    Descriptor"): 3 compares the offset with the number of records; 0 also wants the offset to lie inside the
    stride, which a raw buffer (stride 0) never satisfies. Triton leaves the field 0 on gfx101x.
    """
    _, way, kind = instruction.name.split("_", 2)
    stores = way == "store"
    data, vector, resource, scalar = instruction.operands
    if resource.count != 4 or kind not in {**BITS, **SMALL}:
        raise UnknownInstruction("no such access to a buffer in the tables")
    index = words(vector) if "offen" in instruction.modifiers else (lambda team: U32(0))
    fixed = U32(int(instruction.modifiers.get("offset", "0"), 0))
    shift = words(scalar)
    fields = [words(resource, k) for k in range(4)]
    size = 4 * BITS[kind] if kind in BITS else SMALL[kind][0]

    def offset(team: Team) -> Any:
        return index(team).astype(U64) + U64(fixed)

    def addresses(team: Team) -> Any:
        base = fields[0](team).astype(U64) | (fields[1](team) & U32(0xFFFF)).astype(U64) << U64(32)
        return base + offset(team) + shift(team).astype(U64)

    def inside(team: Team) -> Any:
        stride = fields[1](team) >> U32(16) & U32(0x3FFF)
        records, select = fields[2](team), fields[3](team) >> U32(28) & U32(3)
        raw = offset(team) + U64(size) <= records
        structured = (records > 0) & (offset(team) + U64(size) <= stride)
        return np.where(select == 3, raw, np.where(select == 2, records > 0, structured))

    reads = _registers(resource, 4) | _registers(scalar, 1)
    if "offen" in instruction.modifiers:
        reads |= _registers(vector, 1)
    return _transfer(instruction, kind, stores, data, addresses, reads, inside)


def _lds(instruction: Instruction) -> Step:
    name, operands = instruction.name, instruction.operands
    if name in ("ds_swizzle_b32", "ds_bpermute_b32"):
        return _lane_exchange(instruction)
    found = re.fullmatch(r"ds_(load|store)_(2addr_)?(stride64_)?(\w+)", name)
    if not found or (found[4] not in BITS and found[4] not in SMALL):
        raise UnknownInstruction("no such access to LDS in the tables")
    stores, two, kind = found[1] == "store", bool(found[2]), found[4]
    count, size = BITS.get(kind, 1), SMALL[kind][0] if kind in SMALL else 4
    place = operands[0] if stores else operands[1]
    data = operands[1:] if stores else (operands[0],) * (2 if two else 1)
    scale = size * count * (64 if found[3] else 1)
    keys = ("offset0", "offset1") if two else ("offset",)
    shifts = [int(instruction.modifiers.get(key, "0"), 0) * (scale if two else 1) for key in keys]
    moves = [
        (data[n].index + k + (n * count if not stores else 0), shift + size * k)
        for n, shift in enumerate(shifts)
        for k in range(count)
    ]
    where, high = words(place), kind in SMALL and SMALL[kind][1] == "high"
    registers = frozenset(("v", index) for index, _ in moves)

    def run(machine: Surroundings, team: Team) -> None:
        on = team.lanes()
        at = np.broadcast_to(where(team), on.shape)[on].astype(np.int64)
        groups, waves = offsets(team.group, on), offsets(team.wave, on)
        machine.banks(team, instruction, at, on, size * count, shifts)
        for index, shift in moves:
            if stores:
                value = team.v[index][on]
                value = value >> U32(16) if high else value
                value = value.astype({1: np.uint8, 2: np.uint16, 4: U32}[size])
                machine.lds.store(groups, waves, at + shift, size, value)
        loaded = []
        for index, shift in () if stores else moves:
            value = np.zeros(on.shape, U32)
            value[on] = extend(machine.lds.load(groups, waves, at + shift, size), kind)
            loaded.append((index, value))
        for index, value in loaded:
            put(team, index, merge(team.v[index], value, kind))
        team.waits.issue(LDS, frozenset() if stores else registers)

    reads = _registers(place, 1)
    if stores:
        return Step(instruction, "lds", run, reads | registers, needs=reads)
    return Step(instruction, "lds", run, reads, registers, needs=reads, counter=LDS)


def _lane_exchange(instruction: Instruction) -> Step:
    """ds_swizzle_b32 and ds_bpermute_b32: no memory, but counted and waited for like an access."""
    swizzle = instruction.name == "ds_swizzle_b32"
    target, first = instruction.operands[:2]
    source = first if swizzle else instruction.operands[2]
    word, index = words(source), words(first)
    text = instruction.modifiers.get("offset", "0")
    fixed = swizzle_source(swizzle_offset(text)) if swizzle else int(text, 0)

    def run(machine: Surroundings, team: Team) -> None:
        value = np.broadcast_to(word(team), (team.size, 32))
        lane = fixed if swizzle else (index(team).astype(np.int64) + fixed) >> 2 & 31
        chosen = np.broadcast_to(lane, value.shape)
        moved = np.take_along_axis(value, chosen, axis=1)
        on = np.take_along_axis(team.lanes(), chosen, axis=1)
        put(team, target.index, np.where(on, moved, U32(0)))
        team.waits.issue(LDS, written)

    written = _registers(target, 1)
    return Step(instruction, "lds", run, _registers(source, 1) | _registers(first, 1), written)
