"""`batch=-1`: the largest batch that fits into a part of the GPU's memory, measured in a child process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import msgspec

from patches import children
from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.runs.folder import decode_path, encode_json
from toolkit.runs.plan import ULTRALYTICS, TrainingPlan
from toolkit.training import arguments

LARGEST = 1024
"""Images in a batch beyond which nobody gains by more."""


def settle(plan: TrainingPlan) -> int:
    """Images in a batch of a plan that names none; on a CPU Ultralytics' own, as there.

    The trials run in a child process: a GPU's context would stay with this one for the whole training.

    Raises:
        ToolkitError: several GPUs share the batch, or not one image fits.
    """
    wanted = plan.arguments["batch"]
    if plan.ranks > 1:
        raise ToolkitError(
            f"batch={wanted} measures one GPU",
            found=f"device {plan.device}",
            fix=f"name the images in a batch, a multiple of {plan.ranks}",
        )
    if plan.device == "cpu":
        return ULTRALYTICS["batch"]
    child = subprocess.run(
        children.command("toolkit.training.autobatch"),
        input=encode_json(plan),
        env=children.environment(),
        stdout=subprocess.PIPE,
        check=False,
    )
    words = child.stdout.split()
    if child.returncode or not words or not words[-1].isdigit():
        raise ToolkitError(
            f"batch={wanted} could not be measured",
            found=f"status {child.returncode} of the trial",
            fix="name the images in a batch",
        )
    images = int(words[-1])
    part = arguments.memory_part(wanted)
    if not images:
        raise ToolkitError(
            f"not one image of {plan.number('imgsz')} px fits into {100 * part:.0f} % of the GPU",
            fix="choose a smaller --model or --imgsz",
        )
    console.note(f"batch {images}: the largest that fits into {100 * part:.0f} % of the GPU's memory")
    return images


def largest(memory_of: Callable[[int], int | None], limit: float) -> int:
    """The largest batch that needs at most ``limit``, by doubling and then halving the interval.

    Args:
        memory_of: bytes that a batch of so many images needs; None where it does not fit at all.
        limit: bytes.

    Returns:
        0 if not one image fits; at most :data:`LARGEST`. The answer was tried.
    """

    def fits(images: int) -> bool:
        needed = memory_of(images)
        return needed is not None and needed <= limit

    low, high = 0, 1
    while high <= LARGEST and fits(high):
        low, high = high, 2 * high
    if not low or low == LARGEST:
        return low
    while high - low > max(1, low // 16):  # an eighth of a step of doubling says enough
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _measure(plan: TrainingPlan) -> int:
    import torch

    from toolkit.machine.device import torch_device
    from toolkit.training import probe

    total = torch.cuda.get_device_properties(torch_device(plan.device)).total_memory
    part = arguments.memory_part(plan.arguments["batch"])
    return largest(lambda images: probe.gpu_memory(plan, images), part * total)


if __name__ == "__main__":
    found = _measure(msgspec.json.decode(sys.stdin.buffer.read(), type=TrainingPlan, dec_hook=decode_path))
    sys.stdout.write(f"{found}\n")
