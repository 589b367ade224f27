"""Vector instructions that are no row of a table: between lanes, between register files, packed, matrices.

"RDNA 1.0 Instruction Set Architecture" 12.10 (VOP3P) and 12.11; "RDNA3 Instruction Set Architecture""
" 7.9 "Wave
Matrix Multiply Accumulate"; "RDNA4 Instruction Set Architecture" 7.12, where the layout of A and B differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .assembly import Instruction, Operand, Program
from .faults import Stuck, UnknownInstruction
from .operands import DTYPES as DTYPES
from .operands import literal_bits, put, put_float, reader, words, writer
from .step import Surroundings
from .team import EXEC, Team
from .vector import VECTOR, fma
from .waits import Owed

U32 = np.uint32


@dataclass(frozen=True)
class Computed:
    """A vector instruction in two halves, so that a dual one can read all before it writes."""

    compute: Callable[[Team], Any]
    write: Callable[[Team, Any], None]
    reads: Owed
    writes: Owed
    unit: str = "valu"


def registers(operands: tuple[Operand, ...]) -> Owed:
    return frozenset(r for each in operands for r in each.registers() if r != ("s", EXEC))


def signal(machine: Surroundings, team: Team) -> None:
    """A wave announces itself at a split barrier."""
    if team.signalled:
        raise Stuck("a second signal before the wait for the first")
    team.signalled = True


def arrive(machine: Surroundings, team: Team) -> None:
    """A wave waits at a split barrier, which only waves that signalled will pass."""
    if not team.signalled:
        raise Stuck("a wait at a barrier that the wave has not signalled")
    team.signalled = False


def decode(instruction: Instruction, program: Program) -> Computed | None:
    """The instruction, if it is one of these."""
    name = instruction.name
    if name in SPECIAL:
        return SPECIAL[name](instruction)
    if name.startswith("v_wmma_"):
        return _matrix(instruction, program)
    if name.startswith("v_pk_"):
        return _packed(instruction)
    return None


def _scalar_result(instruction: Instruction, compute: Callable[[Team], Any]) -> Computed:
    target, *sources = instruction.operands

    def write(team: Team, value: Any) -> None:
        team.s[target.index] = value

    return Computed(compute, write, registers(tuple(sources)), registers((target,)))


def _read_first_lane(instruction: Instruction) -> Computed:
    word = words(instruction.operands[1])

    def compute(team: Team) -> Any:
        value = np.broadcast_to(word(team), (team.size, 32))
        return value[np.arange(team.size), np.argmax(team.lanes(), axis=1)]

    return _scalar_result(instruction, compute)


def _read_lane(instruction: Instruction) -> Computed:
    word, lane = words(instruction.operands[1]), words(instruction.operands[2])

    def compute(team: Team) -> Any:
        chosen = np.broadcast_to(lane(team), (team.size, 1))[:, 0] & U32(31)
        return np.broadcast_to(word(team), (team.size, 32))[np.arange(team.size), chosen]

    return _scalar_result(instruction, compute)


def _write_lane(instruction: Instruction) -> Computed:
    target, value, lane = instruction.operands
    read, which = words(value), words(lane)

    def write(team: Team, _: Any) -> None:
        chosen = np.broadcast_to(which(team), (team.size, 1))[:, 0] & U32(31)
        team.v[target.index][np.arange(team.size), chosen] = np.broadcast_to(read(team), (team.size, 1))[:, 0]

    return Computed(lambda team: None, write, registers((value, lane)), registers((target,)))


def _permute_rows(instruction: Instruction) -> Computed:
    target, source, low, upper = instruction.operands
    crossed = 16 if "x16" in instruction.name else 0
    word, selectors = words(source), (words(low), words(upper))
    lane = np.arange(32)

    def compute(team: Team) -> Any:
        halves = [np.broadcast_to(read(team), (team.size, 1))[:, 0].astype(np.uint64) for read in selectors]
        pair = halves[0] | halves[1] << np.uint64(32)
        chosen = (pair[:, None] >> (4 * (lane & 15)).astype(np.uint64) & np.uint64(15)).astype(np.int64)
        value = np.broadcast_to(word(team), (team.size, 32))
        return np.take_along_axis(value, (lane & 16 ^ crossed) | chosen, axis=1)

    return Computed(
        compute, lambda team, value: put(team, target.index, value),
        registers((source, low, upper)), registers((target,)),
    )  # fmt: skip


def _scalar_function(instruction: Instruction) -> Computed:
    """v_s_sqrt_f32 and its like: what the vector instruction computes, of a scalar (gfx12)."""
    word, function = words(instruction.operands[1]), VECTOR[instruction.name.replace("v_s_", "v_")].compute

    def compute(team: Team) -> Any:
        value = np.broadcast_to(word(team), (team.size, 1))[:, 0].view(np.float32)
        return np.asarray(function(value)).view(U32)

    return _scalar_result(instruction, compute)


def _swap(instruction: Instruction) -> Computed:
    first, second = instruction.operands

    def write(team: Team, values: Any) -> None:
        put(team, first.index, values[0])
        put(team, second.index, values[1])

    both = registers((first, second))
    return Computed(lambda team: (team.v[second.index].copy(), team.v[first.index].copy()), write, both, both)


def flags(text: str | None, count: int, default: int = 0) -> list[bool]:
    """One flag an operand from "[0,1,0]"."""
    if text is None:
        return [bool(default)] * count
    return [bool(int(each)) for each in text.strip("[]").split(",")][:count]


def _mixed(instruction: Instruction) -> Computed:
    """v_fma_mix*: each operand is fp32, or a half as fp16 where op_sel_hi says so."""
    target, *sources = instruction.operands
    halves = flags(instruction.modifiers.get("op_sel_hi"), 3)
    upper = flags(instruction.modifiers.get("op_sel"), 3)
    readers = [
        reader(each, "f16" if half else "f32", half and up)
        for each, half, up in zip(sources, halves, upper, strict=True)
    ]

    def compute(team: Team) -> Any:
        values = [np.asarray(read(team)).astype(np.float32) for read in readers]
        return fma(*values)

    if instruction.name == "v_fma_mix_f32":
        write: Callable[[Team, Any], None] = lambda team, value: put_float(team, target.index, value)  # noqa: E731
    else:
        store = writer(target, "f16", instruction.name == "v_fma_mixhi_f16")
        write = lambda team, value: store(team, np.asarray(value).astype(np.float16))  # noqa: E731
    return Computed(compute, write, registers(tuple(sources)), registers((target,)))


PACKED: dict[str, tuple[str, Callable[..., Any]]] = {
    "v_pk_add_f16": ("f16", lambda x, y: x + y),
    "v_pk_mul_f16": ("f16", lambda x, y: x * y),
    "v_pk_fma_f16": ("f16", lambda x, y, z: (x.astype(np.float64) * y + z).astype(np.float16)),
    "v_pk_max_f16": ("f16", np.fmax),
    "v_pk_min_f16": ("f16", np.fmin),
    "v_pk_add_u16": ("u16", lambda x, y: x + y),
    "v_pk_sub_u16": ("u16", lambda x, y: x - y),
    "v_pk_sub_i16": ("i16", lambda x, y: x - y),
    "v_pk_add_i16": ("i16", lambda x, y: x + y),
    "v_pk_mul_lo_u16": ("u16", lambda x, y: x * y),
    "v_pk_mad_u16": ("u16", lambda x, y, z: x * y + z),
    "v_pk_lshlrev_b16": ("u16", lambda n, x: x << (n & np.uint16(15))),
    "v_pk_lshrrev_b16": ("u16", lambda n, x: x >> (n & np.uint16(15))),
    "v_pk_ashrrev_i16": ("i16", lambda n, x: x >> (n & np.int16(15))),
}


def _packed(instruction: Instruction) -> Computed:
    """Two halves at once; op_sel and op_sel_hi say which half of each operand goes into which."""
    if instruction.name not in PACKED:
        raise UnknownInstruction("no such packed instruction in the tables")
    kind, function = PACKED[instruction.name]
    target, *sources = instruction.operands
    count = len(sources)
    chosen = (
        flags(instruction.modifiers.get("op_sel"), count),
        flags(instruction.modifiers.get("op_sel_hi"), count, 1),
    )
    negated = (
        flags(instruction.modifiers.get("neg_lo"), count),
        flags(instruction.modifiers.get("neg_hi"), count),
    )
    raw = [_pair(each, kind) for each in sources]

    def half(team: Team, which: int) -> Any:
        values = []
        for read, upper, negative in zip(raw, chosen[which], negated[which], strict=True):
            bits = (np.asarray(read(team)) >> U32(16 * upper)).astype(np.uint16)
            values.append((bits ^ np.uint16(0x8000 * negative)).view(DTYPES[kind]))
        return np.asarray(function(*values)).view(np.uint16).astype(U32)

    return Computed(
        lambda team: half(team, 0) | half(team, 1) << U32(16), lambda team, value: put(team, target.index,
        value), registers(tuple(sources)), registers((target,)),
    )  # fmt: skip


def _pair(operand: Operand, kind: str) -> Callable[[Team], Any]:
    """Two halves of an operand; a constant is in the lower one, a float of gfx11 and integers in full."""
    if operand.kind == "literal" and isinstance(operand.value, float):
        bits = U32(literal_bits(operand.value, kind))
        return lambda team: bits
    return words(operand)


def _matrix(instruction: Instruction, program: Program) -> Computed:
    """D = A B + C of 16 x 16 matrices spread over a wave; the sum is fp32, rounded once here."""
    if not instruction.name.startswith("v_wmma_f32_16x16x16_"):
        raise UnknownInstruction("no such matrix instruction in the tables")
    kind = instruction.name.rpartition("_")[2]
    target, a, b, c = instruction.operands
    doubled = program.generation == 11
    lane = np.arange(32)
    row = np.arange(8)[:, None]
    rows = 2 * row + (lane >= 16) if doubled else row + 8 * (lane >= 16)
    columns = np.broadcast_to(lane & 15, (8, 32))

    def factor(team: Team, operand: Operand) -> Any:
        """(waves, 16 rows or columns, 16 steps), as float64."""
        bits = team.v[operand.index : operand.index + operand.count]
        halves = np.stack([bits & U32(0xFFFF), bits >> U32(16)], axis=1).reshape(-1, *bits.shape[1:])
        if kind == "f16":
            values = halves.astype(np.uint16).view(np.float16).astype(np.float64)
        else:
            values = (halves << U32(16)).view(np.float32).astype(np.float64)
        values = values.transpose(1, 2, 0)
        return values[:, :16] if doubled else np.concatenate([values[:, :16], values[:, 16:]], axis=2)

    def compute(team: Team) -> Any:
        product = factor(team, a) @ factor(team, b).transpose(0, 2, 1)
        spread = product[:, rows, columns].transpose(1, 0, 2)
        if c.kind == "literal":
            return (spread + float(c.value)).astype(np.float32)
        return (spread + team.vf[c.index : c.index + 8]).astype(np.float32)

    def write(team: Team, value: Any) -> None:
        for k in range(8):
            put_float(team, target.index + k, value[k])

    if kind not in ("f16", "bf16") or a.count != (8 if doubled else 4):
        raise UnknownInstruction("no such matrix instruction in the tables")
    return Computed(compute, write, registers((a, b, c)), registers((target,)), "matrix")


SPECIAL: dict[str, Callable[[Instruction], Computed]] = {
    "v_readfirstlane_b32": _read_first_lane,
    "v_readlane_b32": _read_lane,
    "v_writelane_b32": _write_lane,
    "v_permlane16_b32": _permute_rows,
    "v_permlanex16_b32": _permute_rows,
    **{f"v_s_{name}_f32": _scalar_function for name in ("rcp", "rsq", "sqrt", "exp", "log")},
    "v_swap_b32": _swap,
    "v_fma_mix_f32": _mixed,
    "v_fma_mixlo_f16": _mixed,
    "v_fma_mixhi_f16": _mixed,
}
