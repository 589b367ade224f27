"""A launch: the kernel's arguments in memory, the registers that the hardware sets, workgroup after
workgroup.

"User guide for AMDGPU backend" (LLVM), "Initial Kernel Execution State" and "Kernarg segment": which scalar
registers hold the address of the arguments and the numbers of the workgroup.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .assembly import TTMP, Program, parse
from .counters import Counters
from .decode import decode
from .faults import BadArguments, UnknownInstruction
from .lds import Lds
from .machine import Machine
from .memory import Memory, Span
from .step import Step
from .team import EXEC, LANES, POISON, SCALARS, Team

Grid = tuple[int, int, int]
# Waves that execute together: enough to hide Python, few enough for the registers to stay in the cache.
TOGETHER = 48
USER_REGISTERS = (
    ("private_segment_buffer", 4), ("dispatch_ptr", 2), ("queue_ptr", 2), ("kernarg_segment_ptr", 2),
    ("dispatch_id", 2), ("flat_scratch_init", 2), ("private_segment_size", 1),
)  # fmt: skip
KERNARG_ADDRESS = 1 << 44
FORMATS = {
    "i32": "<i",
    "u32": "<I",
    "i64": "<q",
    "u64": "<Q",
    "fp32": "<f",
    "i1": "<b",
    "i8": "<b",
    "i16": "<h",
}


@dataclass
class Kernel:
    """A program, decoded."""

    program: Program
    steps: list[Step]

    @classmethod
    def from_assembly(cls, assembly: str) -> Kernel:
        program = parse(assembly)
        metadata = program.metadata
        if metadata.get("private_segment_fixed_size"):
            raise UnknownInstruction("the kernel spills to scratch memory, which is not modelled")
        if metadata.get("float_denorm_mode_32", 3) != 3 or metadata.get("float_round_mode_32", 0) != 0:
            raise UnknownInstruction(
                "the kernel flushes denormals or rounds otherwise, which is not modelled"
            )
        if not metadata.get("wavefront_size32", 1):
            raise UnknownInstruction("waves of 64 lanes")
        return cls(program, decode(program))


def pack_arguments(
    program: Program, values: Sequence[tuple[str, int | float]], grid: Grid = (1, 1, 1), lanes: int = LANES
) -> bytes:
    """The kernarg segment: values ("i32", 5) at the offsets that the code object declares.

    Hidden arguments follow: the grid in workgroups, and ``lanes`` of a workgroup.

    Raises:
        BadArguments: their number or sizes are not what the code object declares.
    """
    visible = [each for each in program.arguments if not each["value_kind"].startswith("hidden")]
    if len(visible) != len(values):
        raise BadArguments(f"{len(values)} arguments, the code object declares {len(visible)}")
    segment = bytearray(program.metadata["kernarg_size"])
    for declared, (kind, value) in zip(visible, values, strict=True):
        packed = struct.pack("<Q" if kind.startswith("*") else FORMATS[kind], value)
        if len(packed) != int(declared["size"]):
            raise BadArguments(f"an argument of {len(packed)} bytes, declared with {declared['size']}")
        offset = int(declared["offset"])
        segment[offset : offset + len(packed)] = packed
    hidden = {"block_count": grid, "group_size": (lanes, 1, 1), "remainder": (0, 0, 0)}
    for declared in program.arguments:
        name, _, axis = declared["value_kind"].removeprefix("hidden_").rpartition("_")
        if name in hidden and declared["value_kind"].startswith("hidden_"):
            size, offset = int(declared["size"]), int(declared["offset"])
            segment[offset : offset + size] = hidden[name]["xyz".index(axis)].to_bytes(size, "little")
    return bytes(segment)


def launch(
    kernel: Kernel,
    grid: Grid,
    waves: int,
    lds: int,
    arguments: bytes,
    spans: list[Span],
    counters: Counters | None = None,
    only: Sequence[int] | None = None,
) -> None:
    """Execute workgroups of ``grid``.

    Args:
        waves: of a workgroup; lds: bytes that it asks for; arguments: see ``pack_arguments``.
        only: numbers of the workgroups, x fastest; all when None.
    """
    segment = Span(KERNARG_ADDRESS, np.frombuffer(arguments, np.uint8), "the arguments", writable=False)
    memory = Memory([*spans, segment])
    numbers = list(range(grid[0] * grid[1] * grid[2])) if only is None else list(only)
    together = max(1, TOGETHER // waves)
    grain = smallest_access(kernel.steps)
    for start in range(0, len(numbers), together):
        chosen = np.array(numbers[start : start + together])
        machine = Machine(
            kernel.steps, memory, Lds(len(chosen), waves, lds, grain), np.full(len(chosen), waves), counters
        )
        machine.run(first_team(kernel.program, grid, waves, chosen))
        if counters is not None:
            counters.workgroups += len(chosen)
            counters.waves += len(chosen) * waves


def smallest_access(steps: list[Step]) -> int:
    """Bytes of the smallest access to LDS: 1, 2 or 4."""
    kinds = [step.source.name for step in steps if step.unit == "lds"]
    if any(name.endswith(("8", "b8_d16_hi")) and "b128" not in name for name in kinds):
        return 1
    return 2 if any("16" in name.replace("b128", "") for name in kinds) else 4


def first_team(program: Program, grid: Grid, waves: int, groups: np.ndarray) -> Team:
    """All waves of some workgroups, as the hardware starts them; all else is poisoned."""
    size = len(groups) * waves
    group, wave = np.repeat(np.arange(len(groups)), waves), np.tile(np.arange(waves), len(groups))
    v = np.full((program.metadata["next_free_vgpr"] + 8, size, LANES), POISON, np.uint32)
    v[0] = np.arange(LANES) + LANES * wave[:, None]
    s = np.full((SCALARS, size), POISON, np.uint32)
    s[EXEC], s[EXEC + 1] = 0xFFFFFFFF, 0
    team = Team(v, s, np.zeros(size, bool), wave, group)
    number = np.repeat(groups, waves)
    place = (number % grid[0], number // grid[0] % grid[1], number // (grid[0] * grid[1]))
    known = {("v", 0), ("s", EXEC + 1)}
    at = 0
    for key, count in USER_REGISTERS:
        if not program.metadata.get(f"user_sgpr_{key}"):
            continue
        if key == "kernarg_segment_ptr":
            s[at], s[at + 1] = KERNARG_ADDRESS & 0xFFFFFFFF, KERNARG_ADDRESS >> 32
            known |= {("s", at), ("s", at + 1)}
        at += count
    if program.generation >= 12:
        s[TTMP + 9], s[TTMP + 7], s[TTMP + 8] = place[0], place[1] | place[2] << 16, wave << 25
        known |= {("s", TTMP + k) for k in (7, 8, 9)}
    else:
        at = program.metadata["user_sgpr_count"]
        for axis, name in enumerate("xyz"):
            if program.metadata.get(f"system_sgpr_workgroup_id_{name}"):
                s[at] = place[axis]
                known.add(("s", at))
                at += 1
    team.written = known
    return team
