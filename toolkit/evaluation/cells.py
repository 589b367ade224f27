"""The mean AP@0.5 of classes in months, of those that hold enough boxes to say something.

``global_map_bal`` is decided by the coefficient of variation of eight months, and that by classes with few or
no boxes in some of them: a number that an accident chooses is no number to choose weights by.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from submission.validate import LABELS
from toolkit.errors import ToolkitError
from toolkit.evaluation.scoring import Scores, month_masks
from toolkit.evaluation.truth import GroundTruth

NAME = "cell_map_50"
"""Of the number in results.csv."""

LEAST = 20
"""True boxes in a cell that counts."""

Counts = dict[tuple[str, int], int]
"""True boxes of each month and label."""


def counts(
    image_ids: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]
) -> Counts:
    """True boxes in each cell, the empty ones too.

    Args:
        image_ids: (images,) int64.
        offsets: (images + 1,) int64: image ``i`` owns ``labels[offsets[i]:offsets[i + 1]]``.
        labels: (boxes,) int64.
    """
    found: Counts = {}
    for month, mask in month_masks(image_ids).items():
        inside = labels[np.repeat(mask, np.diff(offsets))]
        found |= {(month, label): int((inside == label).sum()) for label in LABELS}
    return found


def mean(truth: GroundTruth, scores: Scores) -> float:
    """The mean AP@0.5 over cells of at least :data:`LEAST` true boxes; NaN where there is none."""
    filled = [cell for cell, n in counts(truth.image_ids, truth.offsets, truth.labels).items() if n >= LEAST]
    values = [(scores.months[month].map_50_per_class or {})[label] for month, label in filled]
    return float(np.mean(values)) if values else math.nan


def require(of: Counts, source: Path) -> None:
    """Raises ToolkitError: no cell is filled."""
    if not any(n >= LEAST for n in of.values()):
        raise ToolkitError(
            "--select-by cells has nothing to choose by",
            found=f"at most {max(of.values(), default=0)} true boxes of a class in a month in {source}",
            expected=f"{LEAST} or more in one of them",
            fix="leave --select-by out",
        )


def lacking(of: Counts) -> str:
    """Classes that some months have no box of while others do, in words; empty if there are none."""
    words = []
    for label, name in LABELS.items():
        empty = [month for (month, each), n in of.items() if each == label and not n]
        if empty and any(n for (_, each), n in of.items() if each == label):
            words.append(f"{name} in {', '.join(empty)}")
    return "; ".join(words)
