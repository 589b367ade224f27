"""LTDv2 as it is published: its files, splits, months and ids.

What a submission needs too stands in ``submission``: labels and the size of a frame (``validate.py``),
competitions and their phases (``competitions.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import numpy.typing as npt

from submission.competitions import PHASES
from toolkit.errors import ToolkitError

REPOSITORY = "vapaau/LTDv2"
REVISION = "4431e6229f60e934843f2780b4829ec6939f3b9b"
"""The dataset at Hugging Face, and the revision that all figures of this project are of."""

SplitName = Literal["train", "val", "test"]

ANNOTATIONS: dict[SplitName, str] = {
    "train": "Train.json",
    "val": "Valid.json",
    "test": "TestNoLabels.json",
}
"""The annotation file of each split, as the organisers name it."""

ARCHIVE = "frames.zip"
"""All frames, below the folder ``frames``; unpacked, that folder serves as well."""

FILES = (*ANNOTATIONS.values(), ARCHIVE)

SPLITS: dict[str, SplitName] = {name: phase.split for name, phase in PHASES.items()}
"""The split that each phase of the challenge is scored on."""

TRAINING_IMAGES = 329_299
"""Images of the split train."""

MONTHS: Mapping[str, str] = {
    "jan": "202101",
    "feb": "202102",
    "mar": "202103",
    "apr": "202104",
    "may": "202005",
    "jun": "202006",
    "jul": "202007",
    "aug": "202008",
}
"""The months that the consistency is taken over, and the digits by which an id belongs to one."""

EIGHT_MONTHS = tuple(MONTHS.values())
"""Months of training and validation."""

TEST_MONTHS = (*EIGHT_MONTHS, "202009")
"""September occurs in the testing ids alone."""

MONTH_DIGITS = 10**11
"""An id of 17 digits divided by this leaves its first six, YYYYMM."""


def read_ids(image_ids: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """The clip of each id and the second in its day, from YYYYMM CCC DD HH MM SS; (images,) int64 both.

    Raises:
        ToolkitError: an id does not read so.
    """
    clip, time = image_ids // 10**6, image_ids % 10**6
    hour, minute, of_minute = time // 10_000, time // 100 % 100, time % 100
    day, month = clip % 100, clip // 10**5 % 100
    sound = (image_ids >= 10**16) & (image_ids < 10**17) & (month >= 1) & (month <= 12)
    sound &= (day >= 1) & (day <= 31) & (hour < 24) & (minute < 60) & (of_minute < 60)
    if not sound.all():
        raise ToolkitError(
            f"{int((~sound).sum()):,} ids have no clip and time to read",
            found=str(image_ids[~sound][0]),
            expected="LTDv2's ids, YYYYMM CCC DD HH MM SS, such as 20200502214230715",
            fix="ids of other data say neither clip nor second: its boxes cannot be linked",
        )
    seconds = hour * 3600 + minute * 60 + of_minute
    # A clip of two minutes that began before midnight ends after it.
    names, inverse = np.unique(clip, return_inverse=True)
    latest = np.zeros(len(names), np.int64)
    np.maximum.at(latest, inverse, seconds)
    return clip, seconds + np.where(latest[inverse] - seconds > 12 * 3600, 24 * 3600, 0)
