#!/usr/bin/env python3
"""Compile the Triton kernels for AMD cards on any machine, and read what the compiler says about each kernel.

    python3 scripts/check_amd_isa.py
    python3 scripts/check_amd_isa.py --arch gfx1010 --verbose
    python3 scripts/check_amd_isa.py --sample 1000

Every variant of a kernel that the routes choose for the layers in scripts/layers (YOLOv8n and YOLO11n, with
80 classes and with the challenge's four, for images of 480 to 1280 pixels) goes through Triton's own AMD
backend down to the code object, in NCHW and in channels_last and as else models store what they hand it
(``ConvProblem.formats``), whatever the batch and the card's number of compute units. So does every variant
that the route's self-test launches. All as it would on a card: with buffer operations off, and with the
32-bit pointer range that a launch on tensors under 2 GB carries. All targets compile fp32. One of each
generation also compiles fp16, bf16 where it has it, kernels of 5 x 5 and 7 x 7 and odd numbers of channels
(not in bf16), and each kind of layer with 64-bit offsets (in fp32). What the route refuses on AMD
(``spills_on_amd``) is left out. The kernels of batch norm and activation follow, for the same layers and for
each kind in their self-test.

It fails on a spill, on more than 256 vector registers, on more than 64 KiB of LDS, on a buffer store for
gfx101x, on an instruction that the target lacks (the assembler refuses it), on aligned activations that no
instruction reads or writes several elements of, and on a compiler that dies. Prints registers, LDS and
occupancy. A sample has all of gfx1010, one of each kernel in each type for the other cards, and more by
chance, others every day. Needs torch and Triton 3.6 or later, no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

sys.path[:0] = map(str, Path(__file__).resolve().parents[:2])

import torch
from amdgcn.audit import Kernel, read

from patches.compiling import die_of_aborts
from patches.convolution.problem import ConvProblem, Formats
from patches.convolution.selftest import problems_of
from patches.convolution.triton_kernels.route import spills_on_amd
from patches.convolution.triton_kernels.transformed import suits
from patches.normalization import selftest
from patches.normalization.problem import NormProblem
from toolkit.benchmark.measure import load_layers

LAYERS = Path(__file__).resolve().parent / "layers"

ARCHITECTURES = ("gfx1010", "gfx1012", "gfx1030", "gfx1100", "gfx1103", "gfx1151", "gfx1201")
# No packed dot product of fp16 (LLVM: "Cannot select ... FDOT2"): the route multiplies in fp32 there.
WITHOUT_PACKED_DOT = ("gfx1010",)
# One of each generation; the others differ in registers, not in instructions.
GENERATIONS = ("gfx1010", "gfx1030", "gfx1100", "gfx1201")
WITH_BFLOAT16 = ("gfx1100", "gfx1201")
STORAGE = {
    torch.float32: "*fp32",
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.int64: "*i64",
}
BUFFER_OPS = False  # as patches.environment.prepare sets it
# The card that the tiles were chosen for first: a sample has all of its variants.
WHOLE = "gfx1010"

MODELS = ("yolov8n", "yolo11n")
CLASSES = 4
# Sides of images in the toolkit's presets, pixels; the layers were recorded at the second.
SIZES = (480, 640, 960, 1280)
RECORDED = 640
# Of the card: with one, no tile is too large to fill it; with very many, all are.
COMPUTE_UNITS = (1, 2**20)
# Makes every tensor of an 80 x 80 layer longer than 2^31 elements, so that its offsets need 64 bits.
WIDE_BATCH = 2**18
# (channels in, channels out, kernel, stride, groups, bias)
LARGE = (
    (64, 64, 5, 1, 1, False),
    (64, 64, 5, 1, 64, False),
    (64, 64, 5, 2, 64, False),
    (3, 64, 7, 2, 1, False),
    (64, 64, 7, 1, 64, False),
)
TRANSPOSED = (
    (64, 64, 2, 2, 1, True),
    (64, 64, 3, 1, 1, True),
    (64, 64, 3, 2, 1, True),
    (64, 64, 3, 1, 64, True),
)
ROW = (64, 64, 3, 1, 1, False)
# Channels that no access of several elements fits.
RAGGED = (
    (17, 19, 1, 1, 1, False),
    (17, 19, 3, 1, 1, False),
    (17, 70, 3, 1, 1, False),
    (17, 13, 3, 1, 1, False),
    (17, 61, 3, 1, 1, False),
)
WIDE = (
    (3, 16, 3, 2, 1, False),
    (16, 16, 3, 1, 1, False),
    (32, 32, 3, 1, 1, False),
    (64, 64, 3, 1, 1, False),
    (64, 64, 1, 1, 1, False),
    (64, CLASSES, 1, 1, 1, True),
    (64, 128, 3, 2, 1, False),
    (64, 64, 3, 1, 64, False),
)


@dataclass(frozen=True)
class Job:
    """One kernel, named by a problem that needs it and its place among the launches of that problem.

    Attributes:
        winograd: of the route "winograd", not of "triton".
        formats: of the tensors; the first of the problem's when None.
    """

    architecture: str
    problem: ConvProblem
    units: int = COMPUTE_UNITS[0]
    index: int = 0
    table: str = "RDNA"
    winograd: bool = False
    formats: Formats | None = None


@dataclass(frozen=True)
class NormJob:
    """One kernel of a batch norm with its activation, by its place among the launches of a problem."""

    architecture: str
    problem: NormProblem
    index: int = 0
    units: int = 36


def problems(architecture: str) -> list[ConvProblem]:
    """What is compiled for an architecture."""
    models = [
        of_images(problem, size)
        for model in MODELS
        for recorded in load_layers(LAYERS / f"{model}.json", 1, "cuda", torch.float32)
        for problem in (recorded, with_classes(recorded))
        for size in SIZES
    ]
    found = list(models)
    if architecture in GENERATIONS:
        large = [layer(1, *shape) for shape in LARGE + RAGGED]
        large += [replace(layer(1, *shape), transposed=True, padding=(0, 0)) for shape in TRANSPOSED]
        large.append(replace(layer(1, *ROW), height=1, kernel=(1, ROW[2]), stride=(1, 1), padding=(0, 1)))
        found += large + [layer(WIDE_BATCH, *shape) for shape in WIDE]
        found += [replace(each, dtype=torch.float16) for each in models + large]
    if architecture in WITH_BFLOAT16:
        found += [replace(each, dtype=torch.bfloat16) for each in models]
    both = [replace(each, channels_last=layout) for each in found for layout in (False, True)]
    both += [problem for dtype in dtypes(architecture) for problem in problems_of("cuda", dtype)]
    return [problem for problem in dict.fromkeys(both) if not spills_on_amd(problem)]


def dtypes(architecture: str) -> list[torch.dtype]:
    """The types in which an architecture's kernels are compiled."""
    half = [torch.float16] if architecture in GENERATIONS else []
    return [torch.float32, *half, *[torch.bfloat16] * (architecture in WITH_BFLOAT16)]


def layer(
    batch: int, c_in: int, c_out: int, kernel: int, stride: int, groups: int, bias: bool
) -> ConvProblem:
    """A layer of 80 x 80 pixels, padded to keep them."""
    return ConvProblem(
        batch, c_in, 80, 80, c_out, (kernel, kernel), (stride, stride), (kernel // 2, kernel // 2), (1, 1),
        groups, bias, torch.float32, "cuda", False,
    )  # fmt: skip


def of_images(layer: ConvProblem, size: int) -> ConvProblem:
    """The layer as it is for images of another size than they had when it was recorded."""
    height, width = (side * size // RECORDED for side in (layer.height, layer.width))
    return replace(layer, height=height, width=width)


def with_classes(layer: ConvProblem) -> ConvProblem:
    """The layer as it is in a model of ``CLASSES`` classes: the class branch is 64 channels wide, not 80."""

    def width(channels: int) -> int:
        return 64 if channels == 80 else channels

    classes = layer.channels_out == 80 and layer.bias
    return replace(
        layer,
        channels_in=width(layer.channels_in),
        channels_out=CLASSES if classes else width(layer.channels_out),
        groups=width(layer.groups),
    )


def jobs(architectures: Iterable[str], table: str = "RDNA") -> list[Job]:
    """All of the work for some architectures, every variant of a kernel once."""
    unique: dict[tuple[Any, ...], Job] = {}
    for architecture in architectures:
        for problem, units, winograd in product(problems(architecture), COMPUTE_UNITS, (False, True)):
            if winograd and not suits(problem):
                continue
            for formats in problem.formats:
                job = Job(architecture, problem, units, table=table, winograd=winograd, formats=formats)
                alike = job if architecture in WITHOUT_PACKED_DOT else replace(job, architecture="")
                for index, found in enumerate(_variants(alike)):
                    unique.setdefault((architecture, problem.dtype, found), replace(job, index=index))
    return list(unique.values())


@cache
def _variants(job: Job) -> list[Any]:
    """The variants of a job's launches, which all cards but those without packed dot products share."""
    from patches.convolution.triton_kernels.ahead import variant

    return [variant(launch) for launch in launches(job)]


def launches(job: Job) -> list[Any]:
    """The launches that a route would make for the job's problem, built on tensors without data."""
    from patches.convolution.triton_kernels import ahead, tiles

    table = tiles.Tiles(job.units, getattr(tiles, job.table))
    upcast = job.architecture in WITHOUT_PACKED_DOT
    return ahead.launches(job.problem, table, job.formats, job.winograd, upcast)


def compile_kernel(job: Job | NormJob) -> Kernel:
    """Compile one kernel and read the assembly."""
    from triton.compiler import ASTSource

    if isinstance(job, NormJob):
        return compile_norm(job)
    launch = launches(job)[job.index]
    storage = STORAGE[job.problem.dtype]
    # A launch claims the 32-bit range of a pointer for tensors under 2 GB alone; Triton makes buffer
    # operations of such pointers, unless they are off.
    small = [] if launch.constants.get("WIDE") else [["tt.pointer_range", 32]]
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
            attributes[(index,)] = [["tt.divisibility", 16], *small]
        else:
            signature[name] = "i32"
    flags = {name: value for name, value in launch.constants.items() if value}
    aligned = max(launch.constants.get(name, 1) for name in ("ALIGN", "GRAD_ALIGN")) > 1
    return compile_source(
        job.architecture,
        launch,
        ASTSource(launch.kernel, signature, constants, attributes),
        f"{describe(job)} {flags} {launch.options}",
        job.problem.dtype.itemsize if aligned else 0,
    )


def compile_source(architecture: str, launch: Any, source: Any, detail: str, element: int) -> Kernel:
    """Compile a kernel as a launch has it, and read the assembly; ``element``: see :func:`read`."""
    from amdgcn.compiling import compile_for

    compiled = compile_for(architecture, source, launch.options, BUFFER_OPS)
    return read(
        architecture,
        launch.kernel.__name__,
        detail,
        compiled.asm["amdgcn"],
        compiled.metadata.shared,
        launch.options["num_warps"],
        element,
    )


def norm_jobs(architectures: Iterable[str]) -> list[NormJob]:
    """The kernels of every batch norm in the models, and of each other kind of batch norm, each once."""
    from patches.convolution.triton_kernels.ahead import variant
    from patches.normalization.launches import Kernels

    unique: dict[tuple[Any, ...], NormJob] = {}
    for architecture in architectures:
        for problem in norm_problems(architecture):
            job = NormJob(architecture, problem)
            for index, (launch, _) in enumerate(Kernels(problem, 0, job.units).launches()):
                key = (architecture, problem.dtype, variant(launch))
                unique.setdefault(key, replace(job, index=index))
    return list(unique.values())


def norm_problems(architecture: str) -> list[NormProblem]:
    """What is compiled for an architecture."""
    layers = [layer for layer in problems(architecture) if not layer.bias and layer.batch == 1]
    found = [
        NormProblem(
            16, layer.channels_out, *layer.output_size, layer.dtype, channels_last=layer.channels_last
        )
        for layer in layers
    ]
    kinds = [problem for dtype in dtypes(architecture) for problem in selftest.problems(dtype)]
    return list(dict.fromkeys(found + kinds))


def compile_norm(job: NormJob) -> Kernel:
    """Compile one kernel of a batch norm and read the assembly."""
    from triton.compiler import ASTSource

    from patches.normalization.launches import Kernels

    launch, tensors = Kernels(job.problem, 0, job.units).launches()[job.index]
    names = launch.kernel.arg_names
    signature: dict[str, str] = {}
    constants: dict[tuple[int, ...], Any] = {}
    attributes: dict[tuple[int, ...], list[list[object]]] = {}
    for index, (name, tensor) in enumerate(zip(names, tensors, strict=False)):
        if tensor is None:
            signature[name], constants[(index,)] = "constexpr", None
        else:
            signature[name] = STORAGE[tensor.dtype]
            attributes[(index,)] = [["tt.divisibility", 16], ["tt.pointer_range", 32]]
    for index, (name, value) in enumerate(zip(names[len(tensors) :], launch.arguments, strict=True)):
        if name in launch.constants:
            signature[name], constants[(len(tensors) + index,)] = "constexpr", value
        else:
            signature[name] = "fp32" if isinstance(value, float) else "i32"
    aligned = launch.constants.get("ALIGN", 1) > 1
    return compile_source(
        job.architecture,
        launch,
        ASTSource(launch.kernel, signature, constants, attributes),
        f"{job.problem} {launch.constants} {launch.options}",
        job.problem.dtype.itemsize if aligned else 0,
    )


def today() -> int:
    """The seed of a day's samples."""
    return datetime.date.today().toordinal()


def sample(work: Iterable[Job | NormJob], count: int, seed: int) -> list[Job | NormJob]:
    """So many jobs: one of each kernel in each type for each card, then any; a larger one holds a smaller."""
    shuffled = list(work)
    random.Random(seed).shuffle(shuffled)
    first: dict[tuple[str, str, torch.dtype], Job | NormJob] = {}
    for job in shuffled:
        first.setdefault((job.architecture, kernel_name(job), job.problem.dtype), job)
    return list(dict.fromkeys([*first.values(), *shuffled]))[:count]


def kernel_name(job: Job | NormJob) -> str:
    """Which kernel a job compiles a variant of."""
    if isinstance(job, Job):
        return str(launches(job)[job.index].kernel.__name__)
    from patches.normalization.launches import Kernels

    return str(Kernels(job.problem, 0, job.units).launches()[job.index][0].kernel.__name__)


def describe(job: Job | NormJob) -> str:
    """A job's problem in a few words."""
    p = job.problem
    if isinstance(p, NormProblem):
        return str(p)
    size = f"{p.batch}x{p.channels_in}x{p.height}x{p.width} to {p.channels_out}"
    kernel = f"kernel {p.kernel[0]}x{p.kernel[1]} stride {p.stride[0]} groups {p.groups}"
    layout = "channels_last" if p.channels_last else "NCHW"
    stored = f" ({job.formats})" if isinstance(job, Job) and job.formats else ""
    dtype = str(p.dtype).removeprefix("torch.")
    return f"{size} {kernel}{' bias' if p.bias else ''} {layout}{stored} {dtype}"


def check(work: Sequence[Job | NormJob], processes: int) -> Iterator[Kernel]:
    """Compile all jobs; a compiler that raises or dies becomes a fault of its kernel."""
    while work:
        done = 0
        try:
            with ProcessPoolExecutor(processes, initializer=die_of_aborts) as pool:
                for found in pool.map(_attempt, work):
                    yield found
                    done += 1
            break
        except BrokenProcessPool:
            yield _alone(work[done])
            work = work[done + 1 :]


def _attempt(job: Job | NormJob) -> Kernel:
    try:
        return compile_kernel(job)
    except Exception as error:
        return _failed(
            job, f"the compiler failed: {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        )


def _alone(job: Job | NormJob) -> Kernel:
    """A job in a process of its own, to see whether it is the one that kills its process."""
    try:
        with ProcessPoolExecutor(1, initializer=die_of_aborts) as pool:
            return pool.submit(_attempt, job).result()
    except BrokenProcessPool:
        return _failed(job, "the compiler died")


def _failed(job: Job | NormJob, fault: str) -> Kernel:
    return Kernel(job.architecture, kernel_name(job), describe(job), 0, 0, 0, (fault,))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sample", type=int, help=f"so many variants, and all of {WHOLE}")
    parser.add_argument("--seed", type=int, default=today(), help="which sample; default: the day")
    parser.add_argument("--verbose", action="store_true", help="a line for each kernel")
    options = parser.parse_args()
    try:
        import triton
    except ImportError:
        print("check_amd_isa: found no Triton, expected 3.6 or later: pip install triton", file=sys.stderr)
        return 2

    every = [*jobs(options.arch), *norm_jobs(options.arch)]
    work = every
    if options.sample is not None:
        whole = (job for job in every if job.architecture == WHOLE)
        chosen = {*whole, *sample(every, options.sample, options.seed)}
        work = [job for job in every if job in chosen]
    kernels = list(check(work, options.processes))
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
    of = f"{len(kernels)} of {len(every)} kernels" if len(work) < len(every) else f"{len(kernels)} kernels"
    seed = f" (seed {options.seed})" if options.sample is not None else ""
    print(f"Triton {triton.__version__}: {of}, {len(faulty)} at fault{seed}")
    return 1 if faulty else 0


def _span(values: Iterable[int]) -> str:
    found = sorted(values)
    return str(found[0]) if found[0] == found[-1] else f"{found[0]}-{found[-1]}"


if __name__ == "__main__":
    sys.exit(main())
