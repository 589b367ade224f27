#!/usr/bin/env python3
"""Execute the variants that `make isa` compiles, each on the smallest problem that needs it.

    python3 scripts/execute_amd_kernels.py --arch gfx1010
    python3 scripts/execute_amd_kernels.py --sample 20

Each runs as machine code of its card on this processor (scripts/amdgcn) and is held against float64. A run
covers every launch of its problem, so variants are ticked off as they come by. Fails on a fault, on a wrong
number and on a variant for which no small problem was found. Needs Triton 3.6 or later, no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import os
import random
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import check_amd_isa
import torch
from amdgcn.faults import Fault
from amdgcn.variants import Key, execute, smallest, variants, wide_offsets


def run(job: check_amd_isa.Job) -> tuple[check_amd_isa.Job, list[Key], str]:
    """Execute one job's variant: the variants that were launched, and what is wrong ("" for nothing)."""
    torch.set_num_threads(1)
    problem = smallest(job.problem, job.index, job.architecture, job.units)
    if problem is None:
        return job, [], "no small problem needs this variant"
    try:
        wrong = execute(problem, job.problem, job.architecture, job.units)
    except Fault as fault:
        wrong = f"{type(fault).__name__}: {fault}"
    with wide_offsets(job.problem):
        return job, variants(problem, job.architecture, job.units), wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=list(check_amd_isa.ARCHITECTURES))
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--sample", type=int, help="so many jobs, another choice every day")
    parser.add_argument("--seed", type=int, default=datetime.date.today().toordinal())
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after so long")
    options = parser.parse_args()

    jobs = [job for job in check_amd_isa.jobs(options.arch) if isinstance(job, check_amd_isa.Job)]
    random.Random(options.seed).shuffle(jobs)
    jobs = jobs[: options.sample]
    left = {(job.architecture, job.problem.dtype, key(job)): job for job in jobs}
    count, done, failed = len(left), Counter[str](), 0
    end = time.monotonic() + 60 * options.minutes
    with ProcessPoolExecutor(options.processes) as pool:
        while left and time.monotonic() < end:
            batch = list(left.values())[: 4 * options.processes]
            for job, launched, wrong in pool.map(run, batch):
                if wrong:
                    failed += 1
                    left.pop((job.architecture, job.problem.dtype, key(job)), None)
                    print(f"{job.architecture} {check_amd_isa.describe(job)}: {wrong}", file=sys.stderr)
                for each in () if wrong else set(launched):
                    done[job.architecture] += (job.architecture, job.problem.dtype, each) in left
                    left.pop((job.architecture, job.problem.dtype, each), None)
    for architecture, number in sorted(done.items()):
        print(f"{architecture}: {number} variants executed and right")
    said = f"{done.total()} of {count} variants executed and right, {failed} at fault, {len(left)} left"
    print(f"{said} (seed {options.seed})")
    return 1 if failed else 0


def key(job: check_amd_isa.Job) -> Key:
    """What tells the job's variant from another."""
    from patches.convolution.triton_kernels.ahead import variant

    return variant(check_amd_isa.launches(job)[job.index])


if __name__ == "__main__":
    sys.exit(main())
