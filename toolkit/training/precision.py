"""What the convolutions of a training compute in, by Ultralytics' argument ``amp``. Imports no torch."""

from __future__ import annotations

import patches


def half_name(amp: object) -> str:
    """The dtype of mixed precision besides fp32, as torch names it."""
    return "bfloat16" if amp == "bf16" else "float16"


def mixed_precision(device: str, amp: bool | str) -> bool:
    """Whether Ultralytics trains so on a device ("cuda" or "cpu"), by its argument ``amp``."""
    return device == "cuda" and amp not in (False, "fp32")


def rehearse_convolutions(device: str, amp: object) -> None:
    """Begin the self-tests of a card that is new while the trainer gets ready (:func:`patches.rehearse`).

    Args:
        device: of the training, in Ultralytics' words; of several the first, whose kind the others are.
        amp: Ultralytics' argument, by which the dtype of the convolutions goes.
    """
    if device != "cpu":
        mixed = mixed_precision("cuda", amp if isinstance(amp, str) else bool(amp))
        patches.rehearse(half_name(amp) if mixed else "float32", f"cuda:{device.partition(',')[0]}")
