"""From the start of a process to the end of the first training step of YOLOv8n: the process that is timed.

``python -m toolkit.benchmark.first_batch PRECISION BEGUN``, which scripts/bench_card.py calls with an empty
plan and an empty Triton cache. It gets ready in the order of :mod:`toolkit.training.worker`: the tests of the
card begin before torch is imported. It prints rows of a table as JSON.
"""

from __future__ import annotations

import json
import sys
import time

from patches.stopwatch import Stopwatch, described
from toolkit.quiet import keep_libraries_quiet
from toolkit.training.precision import rehearse_convolutions

Row = tuple[str, str, str]
"""What was measured, the figures, and the limit or what there is to say."""


def rows(precision: str, begun: float) -> list[Row]:
    """Train the first step on the first GPU, then settle.

    Args:
        precision: "fp32" or "mixed".
        begun: when this process was started, by ``time.monotonic``.
    """
    keep_libraries_quiet()
    parts = Stopwatch()
    parts.add("start of the process", time.monotonic() - begun)
    mixed = precision == "mixed"
    with parts.during("imports of torch and the toolkit"):
        rehearse_convolutions("0", mixed)

        import torch

        import patches
        from patches import dispatch, settling
        from toolkit.benchmark import steps
        from toolkit.machine.eager import compiler_left_out
    with parts.during("CUDA context"):
        torch.zeros(1, device="cuda")
        torch.cuda.synchronize()
    with compiler_left_out(), patches.enabled("cuda"):
        with parts.during("imports of Ultralytics, model"):
            _, gradients = steps.steps("yolov8n", mixed=mixed)
        session = dispatch.current()
        assert session is not None
        with parts.during("first steps"):
            settling.find_out(session, gradients)
            torch.cuda.synchronize()
        whole = time.monotonic() - begun
        with parts.during("settling"):
            way = patches.settle(gradients)
        planner = session.planner
        title = f"YOLOv8n b16, {precision}"
        found = [
            (f"process start to the first step, {title}", f"{whole:.1f} s", "25 s"),
            ("its parts, and then", str(parts), way),
            (f"of the first steps ({len(planner.file.choices)} problems)", str(planner.watch), ""),
        ]
        found += [
            (f"self-test: {name}", f"{each.seconds:.1f} s: {described(each.phases)}", each.reason)
            for name, each in planner.file.verdicts.items()
        ]
        return found


def main() -> None:
    """Print the rows, as the last line."""
    precision, begun = sys.argv[1:]
    sys.stdout.write(json.dumps(rows(precision, float(begun))) + "\n")


if __name__ == "__main__":
    main()
