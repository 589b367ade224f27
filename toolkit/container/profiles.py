"""Profiles: every pin of one image, ``docker/profiles/<name>.env``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from toolkit.errors import ToolkitError
from toolkit.machine.cards import best_card, recommend_profile
from toolkit.machine.kernel import Machine

ROOT = Path(__file__).resolve().parents[2]
"""The checkout that images are built from."""

NVIDIA_SIGNS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))
"""Device files of NVIDIA's driver: on Linux, and in Windows' subsystem for Linux."""


@dataclass(frozen=True)
class Profile:
    """The pins of one image.

    Attributes:
        name: of its file, without ``.env``.
        cards: architectures of AMD that it serves.
        pins: what the Dockerfile takes as build arguments.
        nvidia: whether it is for NVIDIA's cards.
    """

    name: str
    cards: tuple[str, ...]
    pins: Mapping[str, str]
    nvidia: bool = False

    def for_card(self, arch: str) -> Profile:
        """This profile with the kernels of ``arch`` instead of those of its usual card."""
        extra = self.pins.get("TORCH_EXTRA", "")
        if not extra or arch not in self.cards:
            return self
        return Profile(self.name, self.cards, {**self.pins, "TORCH_EXTRA": f"device-{arch}"})

    @property
    def variant(self) -> str:
        """Name of the profile; with another card's kernels than the usual ones, their architecture too."""
        usual = load_profile(self.name).pins.get("TORCH_EXTRA", "")
        extra = self.pins.get("TORCH_EXTRA", "")
        return self.name if extra == usual else f"{self.name}-{extra.removeprefix('device-')}"


def profile_names() -> list[str]:
    """Names of the profiles in ``docker/profiles``."""
    return sorted(path.stem for path in (ROOT / "docker/profiles").glob("*.env"))


def require_checkout() -> None:
    """Images are built from a checkout, which an installed package is none.

    Raises:
        ToolkitError: this is an installed package.
    """
    if not profile_names():
        raise ToolkitError(
            "there is nothing here to build an image from",
            found=f"the toolkit installed in {ROOT}",
            expected="a checkout of the project",
            fix="clone it and call the same verb there, or run a published image with docker run",
        )


def load_profile(name: str) -> Profile:
    """Read a profile.

    Raises:
        ToolkitError: there is none of that name, or a line of it is not KEY=VALUE.
    """
    require_checkout()
    path = ROOT / "docker/profiles" / f"{name}.env"
    if name not in profile_names():
        raise ToolkitError(f"no profile {name}", expected=", ".join(profile_names()))
    pins = {}
    for line in path.read_text().splitlines():
        if line and not line.startswith("#"):
            key, separator, value = line.partition("=")
            if not separator:
                raise ToolkitError(f"cannot read {path}", repr(line), "KEY=VALUE")
            pins[key] = value
    nvidia = pins.pop("GPU", "") == "nvidia"
    return Profile(name, tuple(pins.pop("CARDS", "").split()), pins, nvidia)


def choose_profile(name: str | None, found: Machine) -> Profile:
    """The named profile, or the one for this machine's card, with that card's kernels.

    Raises:
        ToolkitError: no name was given and there is no card, or no profile for it.
    """
    if name is None:
        require_checkout()
        choice = recommend_profile(best_card(found))
        if choice.value == "cpu" and not has_nvidia():
            raise ToolkitError(
                "no profile fits this machine", choice.reason, fix="say --profile=cpu to go without a card"
            )
        name = "nvidia" if choice.value == "cpu" else choice.value
    profile = load_profile(name)
    card = best_card(found, profile.cards)
    return profile.for_card(card.arch) if card else profile


def has_nvidia() -> bool:
    """Whether this machine runs NVIDIA's driver."""
    return any(sign.exists() for sign in NVIDIA_SIGNS)
