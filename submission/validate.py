"""What the organisers would refuse, found before they do.

The evaluator refuses ids that its phase does not have and, in its first version, ids that are missing;
wrong labels, impossible boxes and scores it would take and score badly. All of it is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from submission.detections import Detections, refuse

LABELS = {1: "person", 2: "bicycle", 3: "motorcycle", 4: "vehicle"}
"""The challenge's labels. The dataset's category 0, background, is never submitted."""


def check_values(detections: Detections, source: str = "the predictions") -> None:
    """Check every box, score and label.

    Raises:
        SubmissionError: NaN or infinite numbers, x2 < x1 or y2 < y1, a score outside [0, 1], or a label
            that is not 1 to 4; the first ten are named with their ids.
    """
    d = detections
    finite = np.isfinite(d.boxes).all(axis=1)
    upright = (d.boxes[:, 2] >= d.boxes[:, 0]) & (d.boxes[:, 3] >= d.boxes[:, 1])
    rules: list[tuple[Any, Callable[[int], str], str]] = [
        (~finite, lambda i: f"box {d.boxes[i].tolist()}", "finite coordinates"),
        (finite & ~upright, lambda i: f"box {d.boxes[i].tolist()}", "corners with x1 <= x2 and y1 <= y2"),
        (~((d.scores >= 0) & (d.scores <= 1)), lambda i: f"score {d.scores[i]}", "scores in [0, 1]"),
        (~np.isin(d.labels, list(LABELS)), lambda i: f"label {d.labels[i]}", "labels 1 to 4"),
    ]
    broken = np.logical_or.reduce([mask for mask, _, _ in rules])
    rows = np.flatnonzero(broken)
    image = np.searchsorted(d.offsets, rows, side="right") - 1

    def offences() -> list[str]:
        named = []
        for row, i in zip(rows[:10].tolist(), image[:10].tolist(), strict=True):
            what = " and ".join(describe(row) for mask, describe, _ in rules if mask[row])
            named.append(f"id {d.image_ids[i]}, detection {row - d.offsets[i]}: {what}")
        return named

    if len(rows):
        expected = ", ".join(text for mask, _, text in rules if mask.any())
        fix = ""
        if (rules[1][0]).any():
            fix = "if they are [x, y, width, height], make them corners first"
        refuse(source, len(rows), offences(), expected, fix)


def check_ids(
    detections: Detections,
    expected: npt.NDArray[np.int64],
    *,
    allow_missing: bool = False,
    source: str = "the predictions",
    whose: str = "the phase",
    hints: bool = True,
) -> Detections:
    """Bring detections into the order of a phase's ids.

    Args:
        detections: what is to be submitted.
        expected: (images,) int64, the phase's ids, each once.
        allow_missing: give ids without an entry empty lists instead of refusing.
        source: names the detections in messages.
        whose: names what has the expected ids.
        hints: name the options of ``toolkit submit`` that may help.

    Returns:
        Detections whose ``image_ids`` are ``expected``.

    Raises:
        SubmissionError: ids that the phase does not have, ids that are missing, or an id given twice.
    """
    ids = detections.image_ids
    unique, counts = np.unique(ids, return_counts=True)
    twice = unique[counts > 1]
    refuse(source, len(twice), (f"id {i} twice" for i in twice.tolist()), expected="every id once")
    unknown = ids[~np.isin(ids, expected)]
    if len(unknown):
        hint = "is this the right phase? --phase, --template" if hints and len(unknown) == len(ids) else ""
        refuse(
            source, len(unknown), (f"unknown id {i}" for i in unknown.tolist()), f"only ids of {whose}", hint
        )
    missing = expected[~np.isin(expected, ids)]
    if len(missing) and not allow_missing:
        refuse(
            source,
            len(missing),
            (f"missing id {i}" for i in missing.tolist()),
            f"all {len(expected):,} ids of {whose}",
            "fill them with empty lists: --allow-missing" if hints else "",
        )
    return detections.select(expected)
