#!/usr/bin/env python3
"""Compile the Triton route for AMD cards on any machine, and read what the compiler says about each kernel.

    python3 scripts/check_amd_isa.py
    python3 scripts/check_amd_isa.py --arch gfx1010 --verbose

Every kernel and tile that the route chooses for the layers of YOLOv8n and YOLO11n goes through Triton's own
AMD backend down to the code object, as it would on a card: on gfx101x with buffer operations off, and with
the 32-bit pointer range that a launch on tensors under 2 GB carries. It fails on a spill, on more than 256
vector registers, on more than 64 KiB of LDS, on a buffer store for gfx101x, on an instruction that the target
lacks (the assembler refuses it) and on a compiler that dies. Prints registers, LDS and occupancy. Needs torch
and Triton 3.6 or later, no GPU.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from patches.convolution.problem import ConvProblem

ARCHITECTURES = ("gfx1010", "gfx1012", "gfx1030", "gfx1100", "gfx1103", "gfx1151", "gfx1201")
# No packed dot product of fp16 (LLVM: "Cannot select ... FDOT2"): the route multiplies in fp32 there.
WITHOUT_PACKED_DOT = ("gfx1010",)
# One of each generation also compiles fp16; the others of a generation differ in registers, not in
# instructions.
HALF = ("gfx1010", "gfx1030", "gfx1100", "gfx1201")
MOST_REGISTERS = 256
MOST_LDS = 64 * 1024

# (batch, channels in, channels out, kernel, stride, input size, groups, bias): each class of tile, as often
# as a flag of a kernel differs. Sizes do not matter beyond that: no shape compiles a variant of its own.
LAYERS = (
    (8, 3, 16, 3, 2, 640, 1, False),
    (8, 3, 32, 3, 2, 640, 1, False),
    (8, 3, 64, 3, 2, 640, 1, False),
    (8, 16, 16, 3, 1, 160, 1, False),
    (8, 16, 32, 3, 2, 320, 1, False),
    (8, 32, 32, 1, 1, 160, 1, False),
    (8, 32, 32, 3, 1, 80, 1, False),
    (8, 32, 64, 3, 2, 160, 1, False),
    (8, 64, 64, 1, 1, 80, 1, True),
    (8, 64, 4, 1, 1, 80, 1, True),
    (8, 64, 64, 3, 1, 80, 1, False),
    (8, 64, 128, 3, 2, 80, 1, False),
    (1, 64, 64, 3, 1, 20, 1, False),
    (8, 64, 64, 3, 1, 80, 64, False),
    (8, 64, 64, 3, 2, 80, 64, False),
)


@dataclass(frozen=True)
class Job:
    """One kernel, named by a problem that needs it and its place among the launches of that problem."""

    architecture: str
    layer: tuple[int, int, int, int, int, int, int, bool]
    channels_last: bool
    half: bool
    index: int = 0
    table: str = "RDNA"


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


def jobs(architectures: Iterable[str], table: str = "RDNA") -> list[Job]:
    """All of the work for some architectures, every variant of a kernel once."""
    from patches.convolution.triton_kernels.ahead import variant

    unique: dict[tuple[Any, ...], Job] = {}
    for architecture in architectures:
        for layer in LAYERS:
            for channels_last, half in ((False, False), (True, False), (False, True)):
                if half and architecture not in HALF:
                    continue
                for index, launch in enumerate(
                    launches(Job(architecture, layer, channels_last, half, 0, table))
                ):
                    job = Job(architecture, layer, channels_last, half, index, table)
                    unique.setdefault((architecture, half, variant(launch)), job)
    return list(unique.values())


def launches(job: Job) -> list[Any]:
    """The launches that the route would make for the job's problem, built on tensors without data."""
    from patches.convolution.triton_kernels import tiles
    from patches.convolution.triton_kernels.ahead import Recorder

    batch, c_in, c_out, k, s, size, groups, bias = job.layer
    dtype = torch.float16 if job.half else torch.float32
    layout = torch.channels_last if job.channels_last else torch.contiguous_format
    problem = ConvProblem(
        batch, c_in, size, size, c_out, (k, k), (s, s), (k // 2, k // 2), (1, 1), groups, bias, dtype, "cuda",
        job.channels_last,
    )  # fmt: skip

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta").to(memory_format=layout)

    x, weight = empty(batch, c_in, size, size), empty(c_out, c_in // groups, k, k)
    grad = empty(batch, c_out, *problem.output_size)
    upcast = job.architecture in WITHOUT_PACKED_DOT
    builder = Recorder(0, tiles.Tiles(18, getattr(tiles, job.table)), upcast=upcast)
    builder.forward(problem, x, weight, torch.empty(c_out, dtype=dtype, device="meta") if bias else None)
    builder.backward(problem, grad, x, weight, (c_in > 3, True, bias))
    return builder.made


def compile_kernel(job: Job) -> Kernel:
    """Compile one kernel and read the assembly."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, compile

    launch = launches(job)[job.index]
    os.environ["AMDGCN_USE_BUFFER_OPS"] = "0" if job.architecture.startswith("gfx101") else "1"
    storage = "*fp16" if job.half else "*fp32"
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, name in enumerate(launch.kernel.arg_names):
        if name in launch.constants:
            signature[name], constants[(index,)] = "constexpr", launch.constants[name]
        elif name in ("bias", "bias_grad") and not launch.constants["HAS_BIAS"]:
            signature[name], constants[(index,)] = "constexpr", None
        elif name in ("src", "weight", "bias", "out", "grad", "partial", "weight_grad", "bias_grad"):
            signature[name] = "*fp32" if name == "partial" else storage
            attributes[(index,)] = [["tt.divisibility", 16], ["tt.pointer_range", 32]]
        else:
            signature[name] = "i32"
    source = ASTSource(launch.kernel, signature, constants, attributes)
    target = GPUTarget("hip", job.architecture, 32)
    compiled = compile(source, target=target, options=dict(launch.options))
    flags = {name: value for name, value in launch.constants.items() if value}
    return read(
        job.architecture,
        launch.kernel.__name__,
        f"{describe(job)} {flags} {launch.options}",
        compiled.asm["amdgcn"],
        compiled.metadata.shared,
        launch.options["num_warps"],
    )


def describe(job: Job) -> str:
    """A job's problem in a few words."""
    return f"{job.layer}{' channels_last' if job.channels_last else ''}{' fp16' if job.half else ''}"


def read(architecture: str, name: str, detail: str, assembly: str, lds: int, warps: int) -> Kernel:
    """Judge a kernel by its assembly, the metadata in it, and the bytes of LDS that a launch asks for."""

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
    waves = occupancy(architecture, registers, lds, warps)
    return Kernel(architecture, name, detail, registers, lds, waves, tuple(faults))


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


def check(work: list[Job], processes: int, cache: Path) -> Iterator[Kernel]:
    """Compile all jobs; a compiler that raises or dies becomes a fault of its kernel."""
    # gfx101x compiles with other settings, which Triton's cache key ignores.
    for family in (True, False):
        part = [job for job in work if job.architecture.startswith("gfx101") is family]
        os.environ["TRITON_CACHE_DIR"] = str(cache / ("gfx101x" if family else "others"))
        while part:
            done = 0
            try:
                with ProcessPoolExecutor(processes) as pool:
                    for found in pool.map(_attempt, part):
                        yield found
                        done += 1
                break
            except BrokenProcessPool:
                yield _alone(part[done])
                part = part[done + 1 :]


def _attempt(job: Job) -> Kernel:
    try:
        return compile_kernel(job)
    except Exception as error:
        return _failed(
            job, f"the compiler failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )


def _alone(job: Job) -> Kernel:
    """A job in a process of its own, to see whether it is the one that kills its process."""
    try:
        with ProcessPoolExecutor(1) as pool:
            return pool.submit(_attempt, job).result()
    except BrokenProcessPool:
        return _failed(job, "the compiler died")


def _failed(job: Job, fault: str) -> Kernel:
    name = launches(job)[job.index].kernel.__name__
    return Kernel(job.architecture, name, describe(job), 0, 0, 0, (fault,))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "ltdv2-toolkit" / "isa")
    parser.add_argument("--verbose", action="store_true", help="a line for each kernel")
    options = parser.parse_args()

    kernels = list(check(jobs(options.arch), options.processes, options.cache))
    print(f"{'target':<9} {'kernel':<24} {'variants':>8} {'registers':>10} {'LDS, bytes':>11} {'waves':>6}")
    groups: dict[tuple[str, str], list[Kernel]] = {}
    for kernel in kernels:
        groups.setdefault((kernel.architecture, kernel.name), []).append(kernel)
    for (architecture, name), found in groups.items():
        lines = [[each] for each in found] if options.verbose else [found]
        for line in lines:
            print(
                f"{architecture:<9} {name:<24} {len(line):>8} {_span(k.registers for k in line):>10}"
                f" {_span(k.lds for k in line):>11} {_span(k.waves for k in line):>6}"
                + (f"  {line[0].detail}" if options.verbose else "")
            )
    faulty = [kernel for kernel in kernels if kernel.faults]
    for kernel in faulty:
        print(
            f"{kernel.architecture} {kernel.name}: {'; '.join(kernel.faults)}: {kernel.detail}",
            file=sys.stderr,
        )
    print(f"{len(kernels)} kernels, {len(faulty)} at fault")
    return 1 if faulty else 0


def _span(values: Iterable[int]) -> str:
    found = sorted(values)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


if __name__ == "__main__":
    sys.exit(main())
