#!/usr/bin/env python3
"""Execute the variants that `make isa` compiles, each on the smallest problem that needs it.

    python3 scripts/execute_amd_kernels.py --arch gfx1010
    python3 scripts/execute_amd_kernels.py --sample 200
    python3 scripts/execute_amd_kernels.py --record build/executed.txt

Each runs as machine code of its card on this processor (scripts/amdgcn) and is held against float64. Fails
on a fault, on a wrong number and on a variant for which no small problem was found. A record names what was
right, a line a variant: what it names is not executed again, until its kernel or Triton changes. Needs
Triton 3.6 or later, no GPU.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import os
import sys
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import check_amd_isa
import torch
from amdgcn import norms, variants
from amdgcn.faults import Fault
from amdgcn.variants import Setup
from check_amd_isa import Job, NormJob

from patches.convolution.problem import ConvProblem
from patches.normalization.problem import NormProblem


@dataclass(frozen=True)
class Execution:
    """One pass over a small problem, which launches one or several variants.

    Attributes:
        wide: whether offsets have 64 bits; index: a launch of the pass.
    """

    problem: ConvProblem | NormProblem
    setup: Setup
    wide: bool = False
    index: int = 0

    def __str__(self) -> str:
        stored = f" ({self.setup.formats})" if self.setup.formats else ""
        return f"{self.setup.architecture} {self.problem}{stored}"

    def names(self) -> list[str]:
        """The variants that it launches."""
        p = self.problem
        if isinstance(p, NormProblem):
            found = norms.variants(p, self.setup.units)
        else:
            with variants.wide_offsets(self.wide):
                found = variants.launched(p, self.index, self.setup)
        return [_name(self.setup.architecture, p, each) for each in found]

    def run(self) -> str:
        """Execute it; "" where all is right, else what is wrong."""
        p = self.problem
        try:
            if isinstance(p, NormProblem):
                return norms.execute(p, self.setup.architecture, self.setup.units)
            with variants.wide_offsets(self.wide):
                return variants.execute(p, self.index, self.setup)
        except Fault as fault:
            return f"{type(fault).__name__}: {fault}"


def execution(job: Job | NormJob) -> Execution | None:
    """The cheapest execution of a job's variant; None where no small problem was found."""
    if isinstance(job, NormJob):
        smaller = norms.smallest(job.problem, job.index, job.units)
        return Execution(smaller, Setup(job.architecture, job.units))
    setup = Setup(job.architecture, job.units, job.winograd, job.formats)
    found = variants.smallest(job.problem, job.index, setup)
    wide, passes = variants.is_wide(job.problem), variants.passes(job.winograd)
    return found and Execution(found, setup, wide, passes.index(passes[job.index]))


def name(job: Job | NormJob) -> str:
    """What tells the job's variant from another, its kernel's source and Triton's version included."""
    if isinstance(job, NormJob):
        return _name(job.architecture, job.problem, norms.variants(job.problem, job.units)[job.index])
    from patches.convolution.triton_kernels.ahead import variant

    return _name(job.architecture, job.problem, variant(check_amd_isa.launches(job)[job.index]))


def _name(architecture: str, problem: ConvProblem | NormProblem, variant: variants.Key) -> str:
    import triton

    from patches.convolution.triton_kernels import gather, grouped, weight, winograd
    from patches.normalization import kernels

    modules = (gather, grouped, weight, winograd, kernels)
    source = next(vars(module)[variant[0]] for module in modules if variant[0] in vars(module))
    text = repr((source.cache_key, triton.__version__, problem.dtype, variant))
    return f"{architecture} {variant[0]} {hashlib.sha256(text.encode()).hexdigest()[:16]}"


def _start() -> None:
    """Of a process: one thread, and a collector that does not count decoded instructions again and again."""
    torch.set_num_threads(1)
    gc.set_threshold(200_000, 50, 50)


def plan(jobs: Iterable[Job | NormJob], done: set[str]) -> tuple[dict[Execution, list[str]], list[str]]:
    """Executions that cover jobs, each with its variants, and what is wrong with jobs that nothing covers."""
    executions: dict[Execution, list[str]] = {}
    covered, wrong = set(done), []
    for job in jobs:
        if name(job) in covered:
            continue
        chosen = execution(job)
        if chosen is None:
            wrong.append(f"{job.architecture} {check_amd_isa.describe(job)}: no small problem needs it")
            continue
        executions[chosen] = chosen.names()
        covered.update(executions[chosen])
    return executions, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(check_amd_isa.ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sample", type=int, help="so many variants, some of each kernel, others every day")
    parser.add_argument(
        "--seed", type=int, default=check_amd_isa.today(), help="which sample; default: the day"
    )
    parser.add_argument("--record", type=Path, help="add each variant that was right to this file")
    options = parser.parse_args()

    jobs = [*check_amd_isa.jobs(options.arch), *check_amd_isa.norm_jobs(options.arch)]
    jobs = check_amd_isa.sample(jobs, options.sample or len(jobs), options.seed)
    wanted = {name(job) for job in jobs}
    record = options.record
    done = set(record.read_text().splitlines()) if record and record.exists() else set()
    executions, wrong = plan(jobs, done)
    right = wanted & done
    with ProcessPoolExecutor(options.processes, initializer=_start) as pool:
        running = {pool.submit(Execution.run, each): each for each in executions}
        for future in as_completed(running):
            each = running[future]
            if future.result():
                wrong.append(f"{each}: {future.result()}")
                print(wrong[-1], file=sys.stderr, flush=True)
                continue
            right |= wanted & set(executions[each])
            if record:
                with record.open("a") as file:
                    file.writelines(f"{line}\n" for line in executions[each])
    for kernel, count in sorted(Counter(tuple(each.split()[:2]) for each in right).items()):
        print(f"{kernel[0]:<9} {kernel[1]:<24} {count:>5}")
    said = f"{len(right)} of {len(wanted)} variants executed and right"
    print(f"{said}, {len(wrong)} at fault (seed {options.seed})")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
