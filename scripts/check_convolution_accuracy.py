#!/usr/bin/env python3
"""Compare a route with float64 on random problems, beside PyTorch's own fp32 convolution.

    python3 scripts/check_convolution_accuracy.py --device cpu
    python3 scripts/check_convolution_accuracy.py --device cuda --route gemm --problems 500

The relative error (Frobenius norm) of output and gradients of input, weight and bias may be at most
twice that of PyTorch's own convolution: its largest and its root mean square. On a single problem it may be
four times as large, where PyTorch's root mean square over all problems counts if PyTorch happened to do
better on that one; how many are beyond twice is printed. No problem is skipped: one that the route does not
serve fails. The exit code is the number of failures, at most 100.
Needs torch alone.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from patches.convolution.registry import NAMES
from toolkit.benchmark import accuracy
from toolkit.benchmark.measure import forced_route, missing_device, positive


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--route", choices=NAMES, default="gemm")
    parser.add_argument("--problems", type=positive, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    obstacle = forced_route() or missing_device(options.device)
    if obstacle:
        sys.exit(obstacle)

    problems = accuracy.problems(options.problems, options.device, options.seed)
    if options.route == "triton" and options.device == "cuda":
        from patches.convolution.triton_kernels.ahead import compile_ahead

        compile_ahead(problems)
    found = accuracy.compare(list(accuracy.sample(problems, options.route)))

    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{options.problems} problems, route {options.route}, {device}, torch {torch.__version__}")
    titles = ("largest", "PyTorch", "rms", "PyTorch", "worst ratio", "beyond 2")
    print(f"{'relative error':<16}" + "".join(f"{title:>12}" for title in titles))
    for each in found:
        columns = "".join(f"{value:>12.2e}" for value in (*each.largest, *each.rms))
        worst = max(ratio for ratio, _ in each.ratios)
        print(f"{each.name:<16}{columns}{worst:>12.2f}{len(each.beyond(accuracy.ALLOWED)):>12}")
        for failure in each.failures:
            print(f"  {failure}")
    failures = sum(len(each.failures) for each in found)
    print(f"{failures} failures")
    return min(failures, 100)


if __name__ == "__main__":
    sys.exit(main())
