"""From an instruction to the function that executes it, looked up in the tables once before anything runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from . import access, special
from .assembly import NAMED, Instruction, Operand, Program
from .faults import UnknownInstruction
from .lanes import dpp_source, dpp_written
from .operands import WORDS, Reader, Writer, literal_bits, narrow, reader, writer
from .scalar import SAVE_EXEC, SCALAR
from .special import Computed
from .step import Control, Step, Surroundings
from .team import EXEC, Team
from .vector import VECTOR, Row
from .waits import parse_wait

VCC = Operand("s", NAMED["vcc_lo"])
EXEC_OPERAND = Operand("s", EXEC)
TRANSCENDENTAL = ("v_rcp", "v_rsq", "v_sqrt", "v_exp", "v_log", "v_sin", "v_cos", "v_s_")
# Hints to the sequencer, caches, messages to the driver at the end: nothing that changes a result.
IGNORED = (
    "s_nop", "s_clause", "s_delay_alu", "s_inst_prefetch", "s_set_inst_prefetch_distance", "s_sendmsg",
    "s_setprio",
    "s_sleep", "s_code_end", "s_prefetch_inst", "s_icache_inv", "buffer_gl0_inv", "buffer_gl1_inv",
    "global_inv",
    "global_wb", "v_nop", "s_ttracedata",
)  # fmt: skip
CONDITIONS: dict[str, Callable[[Team], Any]] = {
    "s_branch": lambda team: np.ones(team.size, bool),
    "s_cbranch_scc0": lambda team: ~team.scc,
    "s_cbranch_scc1": lambda team: team.scc,
    "s_cbranch_vccz": lambda team: team.s[VCC.index] == 0,
    "s_cbranch_vccnz": lambda team: team.s[VCC.index] != 0,
    "s_cbranch_execz": lambda team: team.s[EXEC] == 0,
    "s_cbranch_execnz": lambda team: team.s[EXEC] != 0,
}
# Modifiers that the vector rows know; another would be ignored, and so is refused.
KNOWN = frozenset(
    [
        "op_sel",
        "src0_sel",
        "src1_sel",
        "dst_sel",
        "dst_unused",
        "quad_perm",
        "row_mirror",
        "row_half_mirror",
        "row_xmask",
        "row_share",
        "row_ror",
        "row_shr",
        "row_shl",
        "row_mask",
        "bank_mask",
        "bound_ctrl",
        "fi",
    ]
)


# Instructions by generation and text: of those of a hundred kernels two fifths are different ones.
_DECODED: dict[tuple[int, str], Step] = {}


def decode(program: Program) -> list[Step]:
    """All instructions of a program; equal ones, branches apart, share a step."""
    return [_decoded(instruction, program) for instruction in program.instructions]


def _decoded(instruction: Instruction, program: Program) -> Step:
    if instruction.name in CONDITIONS:
        return _attempt(instruction, program)
    key = (program.generation, instruction.text)
    step = _DECODED.get(key)
    if step is None:
        step = _DECODED[key] = _attempt(instruction, program)
    return step


def _attempt(instruction: Instruction, program: Program) -> Step:
    try:
        return _decode(instruction, program)
    except UnknownInstruction as error:
        raise UnknownInstruction(f"{error}: {instruction.text}") from None
    except (IndexError, KeyError, ValueError) as error:
        raise UnknownInstruction(f"{type(error).__name__} {error}: {instruction.text}") from error


def _decode(instruction: Instruction, program: Program) -> Step:
    name = instruction.name
    if name == "s_endpgm":
        return Step(instruction, "other", control=Control.END)
    if name in ("s_barrier", "s_barrier_wait"):
        return Step(
            instruction, "other", special.arrive if name.endswith("_wait") else None, control=Control.BARRIER
        )
    if name == "s_barrier_signal":
        return Step(instruction, "other", special.signal)
    if name in CONDITIONS:
        read = frozenset([("s", VCC.index)]) if "vcc" in name else frozenset[Any]()
        return Step(
            instruction, "salu", reads=read, control=Control.BRANCH, taken=CONDITIONS[name],
            target=program.labels[instruction.target],
        )  # fmt: skip
    if name.startswith("s_wait"):
        return _wait(instruction)
    if name in IGNORED or name.startswith(("s_delay", "s_sendmsg", "s_code_end")):
        return Step(instruction, "other")
    if name.startswith(("s_load_", "global_", "buffer_", "ds_")):
        return access.decode(instruction, program)
    return _vector(instruction, program) if name.startswith("v_") else _scalar(instruction)


def _wait(instruction: Instruction) -> Step:
    waits = parse_wait(instruction.name, instruction.target)

    def run(machine: Surroundings, team: Team) -> None:
        for counters, left in waits:
            team.waits.finish(counters, left)

    return Step(instruction, "wait", run if waits else None)


# Scalar


def scalar_reader(operand: Operand, kind: str) -> Callable[[Team], Any]:
    """A function that reads a scalar operand of all waves (waves,)."""
    if kind == "k16":
        constant = np.int32((int(operand.value) & 0xFFFF ^ 0x8000) - 0x8000)
        return lambda team: constant
    if operand.kind == "literal":
        bits = literal_bits(operand.value, kind)
        array = np.array(bits, np.uint64 if kind in WORDS else np.uint32)
        value = array.view(special.DTYPES[kind])[()]
        return lambda team: value
    if operand.kind != "s":
        raise UnknownInstruction("a vector register in a scalar instruction")
    read = reader(replace(operand, negated=operand.negated), kind)
    return lambda team: np.asarray(read(team)).reshape(-1)


def put_scalar(team: Team, operand: Operand, value: Any, kind: str) -> None:
    """Write a scalar result of all waves."""
    if operand.is_null:
        return
    array = np.asarray(value).astype(special.DTYPES[kind], copy=False)
    if kind in WORDS:
        bits = array.view(np.uint64)
        team.s[operand.index] = (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        team.s[operand.index + 1] = (bits >> np.uint64(32)).astype(np.uint32)
    else:
        team.s[operand.index] = array.view(np.uint32)
    if operand.index == EXEC:
        team.refresh()


def registers(operand: Operand, kind: str) -> set[tuple[str, int]]:
    """Registers that an operand of a kind is in, those that always hold a value left out."""
    return {each for each in operand.registers(WORDS.get(kind, 1)) if each != ("s", EXEC)}


def _scalar(instruction: Instruction) -> Step:
    name, operands = instruction.name, instruction.operands
    if name in SAVE_EXEC:
        return _save_exec(instruction)
    if name not in SCALAR:
        raise UnknownInstruction("no such scalar instruction in the tables")
    entry = SCALAR[name]
    sources = operands[1:] if entry.result else operands
    if len(sources) != len(entry.operands):
        raise UnknownInstruction(f"{len(sources)} operands, the table has {len(entry.operands)}")
    readers = [scalar_reader(each, kind) for each, kind in zip(sources, entry.operands, strict=True)]
    if entry.accumulates:
        readers.insert(0, scalar_reader(operands[0], entry.result))
    reads = {r for each, kind in zip(sources, entry.operands, strict=True) for r in registers(each, kind)}
    if entry.accumulates:
        reads |= registers(operands[0], entry.result)
    writes = registers(operands[0], entry.result) if entry.result else set()
    compute, sets, carries, result = entry.compute, entry.sets, entry.carries, entry.result

    def run(machine: Surroundings, team: Team) -> None:
        values = [read(team) for read in readers]
        value = compute(team.scc, *values) if carries else compute(*values)
        if sets == "given" and result:
            value, condition = value
            team.scc = np.broadcast_to(condition, (team.size,)).copy()
        elif sets == "given":
            team.scc = np.broadcast_to(value, (team.size,)).copy()
            return
        elif sets == "nonzero":
            team.scc = np.broadcast_to(np.asarray(value) != 0, (team.size,)).copy()
        put_scalar(team, operands[0], value, result)

    return Step(instruction, "salu", run, frozenset(reads), frozenset(writes))


def _save_exec(instruction: Instruction) -> Step:
    target, source = instruction.operands
    compute, read = SAVE_EXEC[instruction.name], scalar_reader(source, "b32")

    def run(machine: Surroundings, team: Team) -> None:
        old = team.s[EXEC].copy()
        team.s[EXEC] = compute(read(team), old)
        put_scalar(team, target, old, "b32")
        team.scc = team.s[EXEC] != 0
        team.refresh()

    return Step(
        instruction, "salu", run, frozenset(registers(source, "b32")), frozenset(registers(target, "b32"))
    )


# Vector


def _vector(instruction: Instruction, program: Program) -> Step:
    """A vector instruction; both halves of a dual one read before either writes."""
    parts = [_part(instruction, program)]
    if instruction.second is not None:
        parts.append(_part(instruction.second, program))
    reads = frozenset().union(*(part.reads for part in parts))
    writes = frozenset().union(*(part.writes for part in parts))
    unit = "trans" if instruction.name.startswith(TRANSCENDENTAL) else parts[0].unit
    first = parts[0]
    if len(parts) == 1:

        def run(machine: Surroundings, team: Team) -> None:
            first.write(team, first.compute(team))

    else:
        second = parts[1]

        def run(machine: Surroundings, team: Team) -> None:
            values = first.compute(team), second.compute(team)
            first.write(team, values[0])
            second.write(team, values[1])

    return Step(instruction, unit, run, reads, writes)


def _part(instruction: Instruction, program: Program) -> Computed:
    found = special.decode(instruction, program)
    if found is not None:
        return found
    name, operands = instruction.name, instruction.operands
    if name.startswith("v_cmpx_"):
        name, operands = (
            name.replace("cmpx", "cmp"),
            (EXEC_OPERAND, *(o for o in operands if o != EXEC_OPERAND)),
        )
    if name not in VECTOR:
        raise UnknownInstruction("no such vector instruction in the tables")
    entry = VECTOR[name]
    if set(instruction.modifiers) - KNOWN:
        raise UnknownInstruction(f"modifiers {sorted(set(instruction.modifiers) - KNOWN)}")
    return _row(entry, operands, instruction.modifiers)


def _row(entry: Row, operands: tuple[Operand, ...], modifiers: dict[str, str]) -> Computed:
    results, sources = operands[: len(entry.results)], list(operands[len(entry.results) :])
    kinds = entry.operands[:-1] if entry.accumulates else entry.operands
    if len(sources) == len(kinds) - 1 and kinds[-1] == "mask":
        sources.append(VCC)
    if len(sources) != len(kinds):
        raise UnknownInstruction(f"{len(sources)} operands, the table has {len(kinds)}")
    halves = [int(each) for each in modifiers.get("op_sel", "[]").strip("[]").split(",") if each]
    upper = dict(enumerate(halves))
    readers = [
        reader(each, kind, bool(upper.get(k)), modifiers.get(f"src{k}_sel", "DWORD"))
        for k, (each, kind) in enumerate(zip(sources, kinds, strict=True))
    ]
    high = bool(upper.get(len(sources)))
    if entry.accumulates:
        readers.append(reader(results[0], entry.operands[-1], high))
    reads = {r for each, kind in zip(sources, kinds, strict=True) for r in registers(each, kind)}
    if entry.accumulates:
        reads |= registers(results[0], entry.results[0])
    writes = {r for each, kind in zip(results, entry.results, strict=True) for r in registers(each, kind)}
    writers = [
        writer(each, kind, high and narrow(kind), modifiers)
        for each, kind in zip(results, entry.results, strict=True)
    ]
    compute = _plain(entry.compute, readers)
    write = _writing(writers)
    moved = dpp_source(modifiers)
    if moved is not None:
        compute, write = _permuted(entry.compute, readers, writers, modifiers, moved)
    return Computed(compute, write, frozenset(reads), frozenset(writes))


def _plain(function: Callable[..., Any], readers: list[Reader]) -> Callable[[Team], Any]:
    """The common shapes without a list."""
    if len(readers) == 1:
        (first,) = readers
        return lambda team: function(first(team))
    if len(readers) == 2:
        first, second = readers
        return lambda team: function(first(team), second(team))
    if len(readers) == 3:
        first, second, third = readers
        return lambda team: function(first(team), second(team), third(team))
    return lambda team: function(*[read(team) for read in readers])


def _writing(writers: list[Writer]) -> Callable[[Team, Any], None]:
    if len(writers) == 1:
        return writers[0]

    def write(team: Team, values: Any) -> None:
        for each, value in zip(writers, values, strict=True):
            each(team, value)

    return write


def _permuted(
    function: Callable[..., Any],
    readers: list[Reader],
    writers: list[Writer],
    modifiers: dict[str, str],
    moved: Any,
) -> tuple[Callable[[Team], Any], Callable[[Team, Any], None]]:
    """The first operand from other lanes; a lane without a source reads 0 or is not written."""
    zero, fetch = modifiers.get("bound_ctrl") == "1", modifiers.get("fi") == "1"
    allowed = dpp_written(modifiers)
    source = np.maximum(moved, 0)

    def valid(team: Team) -> Any:
        return (moved >= 0) & (True if fetch else team.lanes()[:, source])

    def compute(team: Team) -> Any:
        first = np.broadcast_to(readers[0](team), (team.size, 32))[:, source]
        first = np.where(valid(team), first, first.dtype.type(0))
        return function(first, *[read(team) for read in readers[1:]])

    def write(team: Team, value: Any) -> None:
        kept = team.on
        team.on = team.lanes() & allowed & (True if zero else valid(team))
        _writing(writers)(team, value)
        team.on = kept

    return compute, write
