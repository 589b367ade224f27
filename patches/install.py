"""The PyTorch that has kernels for a card, as a command for pip. Imports no torch.

The pins and indexes are those of the images that this project builds (``docker/profiles``; a test holds both
together). Nothing ran on AMD's cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

AMD_INDEX = "https://repo.amd.com/rocm/whl-multi-arch"
AMD_TORCH, AMD_TORCHVISION = "2.11.0+rocm7.14.0", "0.26.0+rocm7.14.0"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"

AMD_CARDS = frozenset(
    {"gfx1010", "gfx1011", "gfx1012"}
    | {f"gfx103{n}" for n in range(7)}
    | {"gfx1100", "gfx1101", "gfx1102", "gfx1103", "gfx1150", "gfx1151", "gfx1152", "gfx1153"}
    | {"gfx1200", "gfx1201"}
)
"""Architectures for which the index has kernels under an extra of their own."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia/gpus")


def command(architectures: Sequence[str], nvidia: bool) -> str:
    """The line that installs a PyTorch for the cards that were found; "" where none is known for one.

    Args:
        architectures: of AMD's cards, by the kernel driver.
        nvidia: whether the machine has a card of NVIDIA's.
    """
    extras = ",".join(f"device-{arch}" for arch in dict.fromkeys(architectures) if arch in AMD_CARDS)
    if extras:
        return (
            f'pip install --extra-index-url {AMD_INDEX} "torch[{extras}]=={AMD_TORCH}" '
            f'"torchvision=={AMD_TORCHVISION}"'
        )
    if nvidia:
        return "pip install torch torchvision"
    return "" if architectures else f"pip install --index-url {CPU_INDEX} torch torchvision"


def has_nvidia(driver: Path = NVIDIA_DRIVER) -> bool:
    """Whether NVIDIA's driver names a card."""
    return any(driver.glob("*/information"))
