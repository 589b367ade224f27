"""Machine code of sm_90 as the disassembler prints it: instructions, what each waits for, and the loop.

The upper 23 bits of an instruction tell the scheduler when the next may issue: cycles to stall, the barriers
that this one sets when it has written or read, and those that it waits for (Jia et al., "Dissecting the
NVIDIA Volta GPU Architecture via Microbenchmarking", arXiv 1804.06826, section 2.1; sm_90 has the same bits).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

NONE = 7
"""The number of a barrier that is not set."""

_LABEL = re.compile(r"^(\.L_\w+):")
_FIRST = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?(\S+)([^;]*);\s+/\* 0x[0-9a-f]+ \*/")
_SECOND = re.compile(r"^\s+/\* (0x[0-9a-f]+) \*/")
_REGISTERS = re.compile(r"\bREG:(\d+)")


class Instruction(NamedTuple):
    """One instruction.

    Attributes:
        name: with its suffixes, ``LDS.128``; operands: the text behind it.
        stall: cycles until the next one of this warp may issue.
        written, read: number of the barrier that is released when it has written its result or read its
            operands; :data:`NONE` for none.
        waits: a bit for each barrier that has to be released before it issues.
    """

    name: str
    operands: str
    stall: int
    written: int
    read: int
    waits: int

    @property
    def kind(self) -> str:
        """The name without suffixes."""
        return self.name.partition(".")[0]


class Program(NamedTuple):
    """A kernel.

    Attributes:
        instructions: in order; loop: first and last of the body of its loop, or None.
        registers: of a thread.
    """

    instructions: tuple[Instruction, ...]
    loop: tuple[int, int] | None
    registers: int


def tools() -> Path:
    """The folder of Triton's own ``nvdisasm`` and ``cuobjdump``."""
    import triton

    return Path(triton.__file__).parent / "backends" / "nvidia" / "bin"


def disassembled(cubin: bytes) -> Program:
    """A compiled kernel.

    Raises:
        FileNotFoundError: this Triton came without the disassembler.
        ValueError: the kernel has several loops.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = _output(tools() / "nvdisasm", "-c", "-hex", file.name)
        usage = _output(tools() / "cuobjdump", "--dump-resource-usage", file.name)
    found = _REGISTERS.search(usage)
    if found is None:
        raise ValueError(f"no number of registers in {usage!r}")
    return read(text, int(found[1]))


def _output(*command: Path | str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def read(text: str, registers: int) -> Program:
    """The program in what ``nvdisasm -c -hex`` prints.

    Raises:
        ValueError: it has several loops.
    """
    instructions: list[Instruction] = []
    labels: dict[str, int] = {}
    half: tuple[str, str] | None = None
    for line in text.splitlines():
        if label := _LABEL.match(line):
            labels[label[1]] = len(instructions)
        elif first := _FIRST.match(line):
            half = first[1], first[2].strip()
        elif half is not None and (second := _SECOND.match(line)):
            control = int(second[1], 16) >> 41
            instructions.append(
                Instruction(*half, control & 15, control >> 5 & 7, control >> 8 & 7, control >> 11 & 63)
            )
            half = None
    loops = list(_loops(instructions, labels))
    if len(loops) > 1:
        raise ValueError(f"{len(loops)} loops, where the kernels have one")
    return Program(tuple(instructions), loops[0] if loops else None, registers)


def _loops(instructions: list[Instruction], labels: dict[str, int]) -> list[tuple[int, int]]:
    """Ranges from a branch's target to the branch; not the one behind the end, which jumps to itself."""
    found = []
    for index, each in enumerate(instructions):
        target = re.search(r"\.L_\w+", each.operands) if each.kind == "BRA" else None
        if target is not None and labels[target[0]] < index:
            found.append((labels[target[0]], index))
    return found
