"""Fail the build of an image that does not hold what its profile says, or that replaced its PyTorch.

The pins are in the environment (build arguments); a pin without a local part ("2.14.1") accepts any build of
that version ("2.14.1+cpu"), and "none" that the package is not there.
"""

import importlib.metadata
import os
import sys
from pathlib import Path

from find_torch import fingerprint

PINS = {
    "torch": "TORCH",
    "torchvision": "TORCHVISION",
    "triton": "TRITON",
    "numpy": "NUMPY",
    "ultralytics-opencv-headless": "ULTRALYTICS",
}

TORCH_BEFORE = Path("/opt/torch.pth")
"""What find_torch.py printed when PyTorch had just been installed."""


def installed(package: str) -> str:
    """Version of a package, or "none"."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "none"


def problems() -> list[str]:
    """What is wrong with this image, a line each."""
    found = []
    for package, variable in PINS.items():
        pin = os.environ.get(variable, "")
        version = installed(package)
        if pin and pin not in (version, version.split("+")[0]):
            found.append(f"{package}: found {version}, the profile pins {pin}")
    python = ".".join(str(part) for part in sys.version_info[:2])
    if python != os.environ["PYTHON"]:
        found.append(f"Python: found {python}, the profile pins {os.environ['PYTHON']}")
    folder, before = TORCH_BEFORE.read_text().splitlines()
    import torch

    if str(Path(torch.__file__).parents[1]) != folder or f"# {fingerprint()}" != before:
        found.append(
            f"PyTorch was replaced: found {torch.__version__} in {torch.__file__}, expected {before}"
        )
    return found


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or 0)
