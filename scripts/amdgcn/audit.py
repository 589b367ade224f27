"""What the compiler's assembly says of a kernel: registers, LDS, occupancy, and why it must not run."""

from __future__ import annotations

import re
from dataclasses import dataclass

MOST_REGISTERS = 256
MOST_LDS = 64 * 1024


@dataclass(frozen=True)
class Kernel:
    """What the compiler says about one kernel.

    Attributes:
        detail: the problem and the tile.
        registers: vector registers of a lane; spills: registers, vector and scalar, that did not fit;
        lds: bytes of a workgroup; waves: waves that a SIMD holds; faults: why it must not run.
    """

    architecture: str
    name: str
    detail: str
    registers: int
    lds: int
    waves: int
    faults: tuple[str, ...]


def read(
    architecture: str, name: str, detail: str, assembly: str, lds: int, warps: int, element: int = 0
) -> Kernel:
    """Judge a kernel by its assembly, the metadata in it, and the bytes of LDS that a launch asks for.

    ``element`` is the size of what some access should take several of at once, bytes.
    """

    def number(key: str) -> int:
        found = re.search(rf"\.{key}:\s+(\d+)", assembly)
        if found is None:
            raise ValueError(f"the assembly of {name} for {architecture} has no .{key}")
        return int(found.group(1))

    registers = number("vgpr_count")
    spills = number("vgpr_spill_count") + number("sgpr_spill_count")
    faults = []
    if spills:
        faults.append(f"{spills} registers spilled")
    if registers > MOST_REGISTERS:
        faults.append(f"{registers} vector registers, at most {MOST_REGISTERS} exist")
    if lds > MOST_LDS:
        faults.append(f"{lds} bytes of LDS, at most {MOST_LDS} exist")
    if architecture.startswith("gfx101") and "buffer_store" in assembly:
        faults.append("a buffer store, which gfx101x drops silently")
    if element and widest(assembly) <= element:
        faults.append("aligned activations, and no access of more than one element")
    waves = occupancy(architecture, registers, lds, warps)
    return Kernel(architecture, name, detail, registers, lds, waves, tuple(faults))


def widest(assembly: str) -> int:
    """Bytes that one instruction moves between a lane and global memory at most."""
    sizes = {
        "dword": 4,
        "dwordx2": 8,
        "dwordx3": 12,
        "dwordx4": 16,
        "b32": 4,
        "b64": 8,
        "b96": 12,
        "b128": 16,
    }
    kinds = re.findall(r"(?:global|buffer|flat)_(?:load|store)_(\w+)", assembly)
    return max((sizes.get(kind, 2) for kind in kinds), default=0)


def occupancy(architecture: str, registers: int, lds: int, warps: int) -> int:
    """Waves of 32 lanes that one SIMD holds, by registers and by LDS (two SIMDs share 64 KiB).

    Register files and granules: LLVM's AMDGPU target, ``getTotalNumVGPRs`` and ``getVGPRAllocGranule``.
    """
    if architecture in ("gfx1100", "gfx1101", "gfx1151", "gfx1200", "gfx1201"):
        total, granule, most = 1536, 24, 16
    elif architecture.startswith("gfx101"):
        total, granule, most = 1024, 8, 20
    else:
        total, granule, most = 1024, 16, 16
    by_registers = total // (max(1, -(-registers // granule)) * granule)
    by_lds = MOST_LDS // lds * warps // 2 if lds else most
    return min(most, by_registers, max(by_lds, 0))
