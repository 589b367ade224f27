"""What of a plan will probably not be meant: settings that leave a run without learning or without choice."""

from __future__ import annotations

from typing import Any

from toolkit import console
from toolkit.runs.plan import TrainingPlan
from toolkit.training.preset import configuration

READ = "8.4.190"
"""The Ultralytics whose loop ``loop.py`` beside this follows, and which ultralytics.md is about."""

LEAST_WARM_UP = 100
"""Batches that Ultralytics warms up for at least, if it does."""


def cautions(plan: TrainingPlan, images: int) -> list[str]:
    """Sentences about a plan that may be carried out all the same; none for one that is as usual.

    Args:
        plan: that is decided.
        images: samples of an epoch; 0 where that is not known.
    """
    from ultralytics import __version__ as installed  # slow to import, as configuration() does too

    values = configuration(plan)
    said: list[str] = []
    if _numbers(installed) > _numbers(READ):
        said.append(
            f"Ultralytics {installed} is newer than {READ}, whose training loop was read: what its loop "
            f"does since then is not done; `pip install ultralytics-opencv-headless=={READ}` has that one"
        )
    if not values.time:  # else its epochs are counted while it runs
        said += of_length(values, plan.number("epochs"), -(-images // plan.number("batch")))
    if not values.val:
        said.append("val=False: best.pt is that of the last epoch, nothing chooses it")
    return said


def of_length(values: Any, epochs: int, batches: int, begun: int = 0) -> list[str]:
    """Sentences about a run that is too short for its settings.

    Args:
        values: Ultralytics' configuration.
        epochs: of the run.
        batches: of an epoch; 0 where that is not known.
        begun: epochs that are over.
    """
    said = []
    if values.mosaic and values.close_mosaic >= epochs - begun > 0:
        said.append(
            f"close_mosaic={values.close_mosaic} leaves all {epochs - begun} {'further ' if begun else ''}"
            "epochs without mosaic; close_mosaic=0 keeps it"
        )
    warm_up = max(round(values.warmup_epochs * batches), LEAST_WARM_UP) if values.warmup_epochs > 0 else 0
    if batches and warm_up >= epochs * batches:
        said.append(
            f"the warm-up of {warm_up:,} batches is as long as the run of {epochs * batches:,}: "
            "the learning rate never reaches lr0; warmup_epochs=0 leaves it out"
        )
    return said


def warn_of_length(values: Any, epochs: int, batches: int) -> None:
    """Say :func:`of_length` of a run whose first epoch is over."""
    for sentence in of_length(values, epochs, batches, begun=1):
        console.warn(sentence)


def _numbers(version: str) -> tuple[int, ...]:
    """Of 8.4.190, to compare by."""
    return tuple(int(part) for part in version.split(".") if part.isdecimal())
