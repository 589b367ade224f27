"""Which card to use and which profile serves it: one decision for doctor, commands and containers."""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec

from patches.runtime import RuntimeDevice
from toolkit.machine.kernel import Card, Machine

PROFILES = {
    "gfx1010": "rdna1",
    "gfx1011": "rdna1",
    "gfx1012": "rdna1",
    **dict.fromkeys(("gfx1030", "gfx1031", "gfx1032", "gfx1033", "gfx1034", "gfx1035", "gfx1036"), "rdna2"),
    **dict.fromkeys(("gfx1100", "gfx1101", "gfx1102", "gfx1103"), "rdna3"),
    **dict.fromkeys(("gfx1150", "gfx1151", "gfx1152", "gfx1153"), "rdna3"),
    **dict.fromkeys(("gfx1200", "gfx1201"), "rdna4"),
}
"""Profile of ``docker/profiles`` by architecture."""


class Choice(msgspec.Struct, frozen=True):
    """A recommended setting and the reason for it."""

    value: str
    reason: str


def best_card(found: Machine, served: Container[str] = PROFILES.keys()) -> Card | None:
    """The visible card to train on: one of the architectures ``served``, discrete, with the most memory."""
    known = [card for card in found.visible if card.arch in served] or list(found.visible)
    return max(known, key=lambda card: (not card.integrated, card.memory_bytes), default=None)


def default_number(found: Machine, gpus: int, *, hip: bool) -> int:
    """PyTorch's number of the GPU to use where nobody names one.

    Args:
        found: the machine.
        gpus: how many PyTorch sees; 0 where it was not asked.
        hip: whether PyTorch is built for AMD's cards: others are not numbered as the kernel numbers those.
    """
    card = best_card(found)
    if card is None or (gpus and not hip):
        return 0
    number = found.visible.index(card)
    return min(number, gpus - 1) if gpus else number


def recommend_profile(card: Card | None, others: Sequence[RuntimeDevice] = ()) -> Choice:
    """The profile of ``docker/profiles`` for a card; ``cpu`` without one.

    Args:
        others: the devices that the runtime found, AMD's or not.
    """
    if card is None and others and others[0].arch.startswith("sm_"):
        return Choice("nvidia", f"its image holds PyTorch's ordinary build, as {others[0].name} needs")
    if card is None and others:
        return Choice(
            "cpu", f"no profile holds kernels for {others[0].name}: train on it outside a container"
        )
    if card is None:
        return Choice("cpu", "no AMD GPU that this process may use")
    if card.arch not in PROFILES:
        return Choice("cpu", f"no profile holds kernels for {card.arch}")
    return Choice(PROFILES[card.arch], f"AMD publishes a PyTorch with kernels for {card.arch}")
