"""What a run was made with, and whether this place is the same: ``environment.json``."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from toolkit import __version__, machine
from toolkit.errors import ToolkitError, reason
from toolkit.files import replacing
from toolkit.provenance import sha256

if TYPE_CHECKING:
    from toolkit.training.session import TrainingPlan

ROOT = Path(__file__).resolve().parents[1]
FILE = "environment.json"
"""Name of the file, in the run's folder of weights."""

PACKAGES = ("torch", "torchvision", "triton", "ultralytics-opencv-headless", "numpy", "polars", "hotcoco")


class Environment(msgspec.Struct, frozen=True):
    """Everything outside a run's plan that its weights depend on.

    Attributes:
        image: id of the container's image, "" outside a container.
        profile: of the image.
        commit: of the source, with "-dirty" when files differ from it; "" when unknown.
        versions: of Python, this project and the packages that compute.
        cards: AMD GPUs by their true architecture, and the GPUs that PyTorch names.
        driver: of the kernel.
        data: SHA-256 of the dataset's index.
        model: SHA-256 of the checkpoint that training starts from, "" for random weights.
        seed: of the run.
        command: what was typed.
        images: which of each split were used.
    """

    image: str
    profile: str
    commit: str
    versions: dict[str, str]
    cards: tuple[str, ...]
    driver: str
    data: str
    model: str
    seed: int
    command: tuple[str, ...]
    images: str = "all images"


def commit() -> str:
    """The source's commit: of the checkout, or of the image."""
    git = ["git", "-C", str(ROOT)]
    if not (ROOT / ".git").exists():
        return os.environ.get("TOOLKIT_COMMIT", "")
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")


def here(plan: TrainingPlan) -> Environment:
    """What a run of this plan would be made with, if it started now.

    Raises:
        ToolkitError: the data is not prepared.
    """
    import torch

    from toolkit.dataset import index
    from toolkit.training.session import describe

    found = machine.read()
    gpus = (torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count()))
    return Environment(
        image=os.environ.get("TOOLKIT_IMAGE", ""),
        profile=os.environ.get("TOOLKIT_PROFILE", ""),
        commit=commit(),
        versions={
            "python": platform.python_version(),
            "ltdv2-toolkit": __version__,
            **{name: _version(name) for name in PACKAGES},
        },
        cards=(*(card.arch for card in found.cards), *gpus),
        driver=found.driver,
        data=sha256(index.load(plan.data).path),
        model=sha256(Path(plan.model)) if plan.model.endswith(".pt") else "",
        seed=int(plan.arguments.get("seed", 0)),
        command=tuple(sys.argv[1:]),
        images=describe(plan.subsets),
    )


def write(environment: Environment, weights: Path) -> None:
    """Write ``environment.json`` into a run's folder of weights, made if it is missing."""
    with replacing(weights / FILE) as path:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(environment), indent=2) + b"\n")


def read(weights: Path) -> Environment:
    """Read ``environment.json`` of a run's folder of weights.

    Raises:
        ToolkitError: it is missing or damaged.
    """
    try:
        return msgspec.json.decode((weights / FILE).read_bytes(), type=Environment)
    except (OSError, msgspec.DecodeError) as error:
        raise ToolkitError(
            f"cannot read {weights / FILE}", reason(error), "what `toolkit train` wrote beside the weights"
        ) from error


def differences(then: Environment, now: Environment) -> list[str]:
    """What is not as it was, a line each; the command that was typed does not count."""
    before, after = _flat(then), _flat(now)
    return [
        f"{name}: then {before.get(name) or 'none'}, now {after.get(name) or 'none'}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _flat(environment: Environment) -> Mapping[str, str]:
    fields = msgspec.structs.asdict(environment)
    del fields["command"]
    versions: dict[str, str] = fields.pop("versions")
    fields["cards"] = ", ".join(environment.cards)
    return {**{name: str(value) for name, value in fields.items()}, **versions}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
