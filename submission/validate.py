"""What the organisers would refuse, found before they do.

The evaluator refuses ids that its phase does not have and, in its first version, ids that are missing;
wrong labels, impossible boxes and scores it would take and score badly. All of it is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from submission.competitions import PHASES
from submission.detections import Detections, refuse
from submission.errors import SubmissionError
from submission.templates import template

LABELS = {1: "person", 2: "bicycle", 3: "motorcycle", 4: "vehicle"}
"""The challenge's labels. The dataset's category 0, background, is never submitted."""


FRAME = (384, 288)
"""Width and height of LTDv2's frames, pixels."""


def check_values(
    detections: Detections, source: str = "the predictions", labels: Iterable[int] = LABELS
) -> None:
    """Check that there are images, and every box, score and label.

    Args:
        detections: of any images.
        source: names them in messages.
        labels: those that there are; the challenge's by default.

    Raises:
        SubmissionError: no image at all, NaN or infinite numbers, x2 < x1 or y2 < y1, a score outside [0, 1],
            or a label that is none of ``labels``; the first ten are named with their ids.
    """
    if not len(detections):
        raise SubmissionError(f"{source} has no images", expected="predictions of at least one")
    d, known = detections, sorted(labels)
    finite = np.isfinite(d.boxes).all(axis=1)
    upright = (d.boxes[:, 2] >= d.boxes[:, 0]) & (d.boxes[:, 3] >= d.boxes[:, 1])
    rules: list[tuple[Any, Callable[[int], str], str]] = [
        (~finite, lambda i: f"box {d.boxes[i].tolist()}", "finite coordinates"),
        (finite & ~upright, lambda i: f"box {d.boxes[i].tolist()}", "corners with x1 <= x2 and y1 <= y2"),
        (~((d.scores >= 0) & (d.scores <= 1)), lambda i: f"score {d.scores[i]}", "scores in [0, 1]"),
        (~np.isin(d.labels, known), lambda i: f"label {d.labels[i]}", f"labels {known[0]} to {known[-1]}"),
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
        fix = _corners_hint(d.boxes[finite]) if (rules[1][0]).any() else ""
        refuse(source, len(rows), offences(), expected, fix)


def _corners_hint(boxes: npt.NDArray[np.float64]) -> str:
    """How boxes that are no corners become some: what the first two numbers are decides.

    A centre has half of its box on either side, a first corner all of it to the right and below; whichever
    does not fit into the frame for all boxes is ruled out.

    Args:
        boxes: (n, 4) finite numbers of all detections.
    """
    x, y, width, height = boxes.T
    parts = bool(len(boxes)) and boxes.max() <= 1 and boxes.min() >= 0
    right, below = (1.0, 1.0) if parts else FRAME
    slack = 0.01 * right
    centres = bool(((x - width / 2 >= -slack) & (y - height / 2 >= -slack)).all())
    corners = bool(((x + width <= right + slack) & (y + height <= below + slack)).all())
    from_corner = "if they are [x, y, width, height] of the first corner, x2 = x + width, y2 = y + height"
    from_centre = (
        "if they are [x, y, width, height] of the centre, x1 = x - width / 2, x2 = x + width / 2, so y"
    )
    ways = [from_corner] * corners + [from_centre] * centres
    scale = f"; and pixels: x times {FRAME[0]}, y times {FRAME[1]}" if parts else ""
    return "; ".join(ways or [from_corner, from_centre]) + scale


def check_same_images(sets: Mapping[str, Detections]) -> list[str]:
    """Make sure that several sets of predictions are of the same split.

    Args:
        sets: the name of each in messages -> the detections.

    Returns:
        A line for each set that lacks images which another one has.

    Raises:
        SubmissionError: two sets are of different phases, or have no image in common.
    """
    phases = {source: _phase_of(d) for source, d in sets.items()}
    if len(set(phases.values()) - {None}) > 1:
        raise SubmissionError(
            "these are predictions of different splits",
            found=", ".join(f"{source} of {phase or 'neither phase'}" for source, phase in phases.items()),
            expected="predictions of the same images",
        )
    everything = np.unique(np.concatenate([d.image_ids for d in sets.values()]))
    lines = []
    for source, detections in sets.items():
        others = [d.image_ids for name, d in sets.items() if name != source]
        if others and len(detections) and not np.isin(detections.image_ids, np.concatenate(others)).any():
            raise SubmissionError(
                f"{source} has no image in common with the others",
                found=f"{len(detections):,} other ids, the first {detections.image_ids[0]}",
                expected="predictions of the same images",
            )
        missing = len(everything) - len(np.unique(detections.image_ids))
        if missing:
            lines.append(f"{source} has no entry for {missing:,} of {len(everything):,} images")
    return lines


def check_overlap(detections: Detections, expected: npt.NDArray[np.int64], source: str, whose: str) -> None:
    """Make sure that predictions and what they are held against have at least one image in common.

    Raises:
        SubmissionError: they have none: one of them is of another split.
    """
    if len(detections) and len(expected) and not np.isin(detections.image_ids, expected).any():
        phase = _phase_of(detections)
        raise SubmissionError(
            f"{source} has no image of {whose}",
            found=f"{len(detections):,} other ids" + (f", of the phase {phase}" if phase else ""),
            expected="predictions and truth of the same split",
        )


def _phase_of(detections: Detections) -> str | None:
    """The phase that more than half of the ids are of."""
    if not len(detections):
        return None
    shares = {phase: np.isin(detections.image_ids, template(phase)).mean() for phase in PHASES}
    best = max(PHASES, key=lambda phase: shares[phase])
    return best if shares[best] > 0.5 else None


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
