"""What a program of a compiled kernel occupies on a multiprocessor: the counters of the model, from SASS.

Rates of compute capability 9.0 are those of the CUDA C++ Programming Guide (throughput of native arithmetic
instructions; technical specifications): of its four schedulers each issues a warp a cycle; fp32 has 32 lanes
a scheduler, integers and comparisons 16, special functions and conversions 4. Latencies are assumptions: 20
cycles for shared memory, 200 for the level 2 cache (table 3 of doi 10.1016/j.ultsonch.2023.106546).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from toolkit.benchmark.estimate import Card, Cost, Work

from . import banks, sass
from .sass import NONE, Instruction

H100 = Card("H100 SXM", 132, 1.98e9, 3.35e12, dual=2)
"""NVIDIA's data sheet: 66.9 TFLOP/s of fp32, 3.35 TB/s."""

SCHEDULERS = 4
REGISTERS, SHARED, WARPS, PROGRAMS = 65_536, 227 * 1024, 64, 32
"""Of a multiprocessor: 32-bit registers, bytes of shared memory for programs, the most warps and programs."""
RESERVED = 1024
"""Bytes of shared memory that each program takes beside its own."""

FMA = {"FFMA", "FADD", "FMUL", "FSEL", "HFMA2", "CS2R"}
HALF = {"IMAD", "IMUL", "VIADD"}
"""On the lanes of fp32, at half of their rate."""
SPECIAL = {"MUFU", "I2F", "F2I", "I2FP", "F2F", "POPC", "FLO"}
ELSEWHERE = {"LDS", "LDSM", "STS", "LDG", "STG", "LDGSTS", "LDC", "BAR", "BRA", "EXIT", "NOP", "DEPBAR",
             "LDGDEPBAR", "BSSY", "BSYNC", "WARPSYNC"}  # fmt: skip
"""Memory and control; what begins with U is the scheduler's own."""

LATENCY = {"LDS": 20, "LDSM": 20, "STS": 20, "LDG": 200, "STG": 20, "LDGSTS": 200, "LDC": 20, "MUFU": 20,
           "I2F": 20, "F2I": 20, "S2R": 20, "S2UR": 20}  # fmt: skip
OTHERS = 12


def cost(compiled: Any) -> Cost:
    """Of a kernel that Triton compiled for sm_90; a trip of its loop is a step.

    Raises:
        ValueError: it has several loops.
    """
    program = sass.disassembled(compiled.asm["cubin"])
    warps = compiled.metadata.num_warps
    everything = range(len(program.instructions))
    loop = range(program.loop[0], program.loop[1] + 1) if program.loop else range(0)
    rest = [program.instructions[index] for index in everything if index not in loop]
    body = [program.instructions[index] for index in loop]
    dots = banks.passes(compiled.asm["ttgir"])
    once = _work(rest, warps, 0, alone(rest))
    step = _work(body, warps, dots, alone(body * 3) - alone(body * 2)) if body else Work(0, 0, 0, 0)
    return Cost(resident(program.registers, compiled.metadata.shared, warps), once, step)


def resident(registers: int, shared: int, warps: int) -> int:
    """Programs that a multiprocessor holds."""
    threads = 32 * warps
    by_registers = REGISTERS // (-(-registers // 8) * 8 * threads)
    return min(by_registers, SHARED // (shared + RESERVED), WARPS // warps, PROGRAMS)


def _work(code: Sequence[Instruction], warps: int, dots: int, latency: float) -> Work:
    """Of a program of so many warps, each of which executes ``code`` once.

    Args:
        dots: passes over the banks of all warps' operands; latency: cycles of one warp alone.
    """
    kinds = Counter(each.kind for each in code)
    busy = warps * issue(kinds) / SCHEDULERS
    moved = sum(width(each) for each in code if each.kind in ("STS", "LDGSTS", "LDSM"))
    loads = sum(width(each) for each in code if each.kind == "LDS") if not dots else 0
    lds = dots + warps * (moved + loads)
    lines = warps * sum(width(each) for each in code if each.kind in ("LDG", "STG", "LDGSTS"))
    together = -(-warps // SCHEDULERS) * issue(kinds)
    return Work(busy, lds, lines, max(latency, together, lds))


def issue(kinds: Counter[str]) -> int:
    """Cycles of a scheduler for a warp's instructions, by the busiest of its pipes."""
    fma = sum(number * (1 if kind in FMA else 2) for kind, number in kinds.items() if kind in FMA | HALF)
    special = 8 * sum(number for kind, number in kinds.items() if kind in SPECIAL)
    other = FMA | HALF | SPECIAL | ELSEWHERE
    integers = 2 * sum(number for kind, number in kinds.items() if kind not in other and kind[0] != "U")
    return max(sum(kinds.values()), fma, special, integers)


def width(each: Instruction) -> int:
    """Passes of 128 bytes that a warp's access takes where no two words are in each other's way."""
    if each.kind == "LDSM":
        return int(each.name.rpartition(".")[2])
    return 4 if ".128" in each.name else 2 if ".64" in each.name else 1


def alone(code: Sequence[Instruction]) -> int:
    """Cycles of a warp that nothing else disturbs, by stalls and barriers."""
    now = 0
    released = [0] * (NONE + 1)
    copies, groups = 0, []
    for each in code:
        now = max(now, *(released[index] for index in range(6) if each.waits >> index & 1), 0)
        done = now + LATENCY.get(each.kind, OTHERS)
        if each.kind == "LDGSTS":
            copies = done
        elif each.kind == "LDGDEPBAR":
            groups.append(copies)
        elif each.name == "DEPBAR.LE":
            left = int(each.operands.rpartition(",")[2], 16)
            now = max([now, *groups[: len(groups) - left]])
        released[each.written] = max(released[each.written], done)
        released[each.read] = max(released[each.read], now + OTHERS)
        now += max(each.stall, 1)
    return now
