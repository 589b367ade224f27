#!/usr/bin/env python3
"""Models and programs that nobody here wrote, through the routes as without them.

    python scripts/prove_programs.py timm torchvision diffusers segmentation ranks quantization yolo
    python scripts/prove_programs.py timm --part 2/4            # one quarter of a long list

Models have random weights and run forward and backward in float64, in training mode, on the CPU through the
route gemm; the largest difference of output and gradients, relative to the largest value of each tensor (or
to FLOOR of the model's, where that is larger), is compared with 1e-10. Programs run from the installed wheel.
A row a model or program; the status is 1 if one fails.
`make proofs` makes the environment that this needs.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import convroutes
import torch
from proofs import quantization, ranks, yolo
from proofs.comparing import Row, compared
from proofs.models import MODELS

PROGRAMS = {"ranks": ranks.rows, "quantization": quantization.rows, "yolo": yolo.rows}


def rows(subject: str, part: int, parts: int) -> Iterator[Row]:
    """The rows of a subject; of its models every ``parts``-th, beginning with ``part``."""
    if subject in PROGRAMS:
        yield from PROGRAMS[subject]()
        return
    for each in list(MODELS[subject]())[part - 1 :: parts]:
        yield compared(*each)


def main() -> int:
    """Print a row each; 1 if one fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("subjects", nargs="+", choices=(*MODELS, *PROGRAMS), metavar="SUBJECT")
    parser.add_argument("--part", default="1/1", help="N/M: every M-th model, beginning with the N-th")
    parser.add_argument("--json", type=Path, help="write the rows there, one a line")
    given = parser.parse_args()
    part, parts = map(int, given.part.split("/"))
    failed = 0
    for subject in given.subjects:
        for row in rows(subject, part, parts):
            failed += not row.passed
            print(f"{'passed' if row.passed else 'FAILED':<7} {subject:<13} {row.name:<38} {row.found:<40} "
                  f"{row.served:>6} served  {row.seconds:6.1f} s", flush=True)  # fmt: skip
            if given.json:
                with given.json.open("a") as file:
                    file.write(json.dumps({"subject": subject, **vars(row)}) + "\n")
    print(f"torch {torch.__version__}, convroutes {convroutes.__version__}: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
