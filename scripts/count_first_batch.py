#!/usr/bin/env python3
"""What is compiled before the first batch on a new card: kernels, and their seconds on one processor core.

    python3 scripts/count_first_batch.py
    python3 scripts/count_first_batch.py --capability 80 --units 108

Kernels of the self-tests (Triton route, fused batch norm) in fp32 and fp16 for a card of NVIDIA's, of the
first by layout, and those that YOLOv8n with batch 16 needs. Every sixth of a self-test is compiled without a
device, into an empty cache; the mean stands for the others, and for those that the lines below it count.
Needs Triton, no GPU.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import torch

from patches import compiling
from patches.convolution import selftest, triton_kernels
from patches.convolution.problem import ConvProblem
from patches.normalization import selftest as norms
from toolkit.benchmark.measure import load_layers

SAMPLE = 6
LAYOUTS = {False: "NCHW", True: "channels_last"}

Jobs = Sequence[Callable[[], object]]


def mean_seconds(jobs: Jobs) -> float:
    """Of one core for a job, the assembler's process included, by a sample of them."""
    sample = jobs[::SAMPLE]
    before = os.times()
    for job in sample:
        job()
    return (sum(os.times()[:4]) - sum(before[:4])) / len(sample)


def model(dtype: torch.dtype, channels_last: bool) -> list[ConvProblem]:
    """The convolutions of YOLOv8n."""
    found = load_layers(ROOT / "scripts" / "layers" / "yolov8n.json", 16, "cuda", dtype)
    return [replace(each, channels_last=channels_last) for each in dict.fromkeys(found)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--capability", type=int, default=90, help="of the card, 90 for 9.0")
    parser.add_argument("--units", type=int, default=132, help="its multiprocessors")
    options = parser.parse_args()
    target = compiling.Target("cuda", options.capability, 32, options.units)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        triton_kernels.prepare()
        from patches.convolution.triton_kernels.ahead import jobs

        compiling.without_device(target)
        convolutions = partial(jobs, units=options.units, routes=("triton",))
        print("| dtype | what | kernels | seconds of one core |\n|---|---|---|---|")
        for dtype in (torch.float32, torch.float16):
            tested = selftest.problems_of("cuda", dtype)
            whole = convolutions(tested)
            mean = mean_seconds(whole)
            rows = {"self-test of the Triton route": len(whole)}
            for last, layout in LAYOUTS.items():
                own = [each for each in tested if each.channels_last == last]
                rows[f"of these, {layout}"] = len(convolutions(own))
                rows[f"YOLOv8n, {layout}"] = len(convolutions(model(dtype, last)))
            for name, count in rows.items():
                print(f"| {str(dtype)[6:]} | {name} | {count} | {count * mean:.0f} |", flush=True)
            work = norms.jobs(norms.problems(dtype), options.units)
            spent = len(work) * mean_seconds(work)
            print(f"| {str(dtype)[6:]} | self-test of batch norm | {len(work)} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()
