"""Clips as evidence: boxes of one object joined over the seconds of its clip, scores and classes voted along.

LTDv2's clips have a frame a second. A box is joined to the track whose predicted place it overlaps (what
stands stays, what moves goes on as it went), in the manner of SORT (Bewley and others, ICIP 2016); what has
been seen once has no motion yet and is joined to the nearest box of its size. Along a track, as in Seq-NMS
(Han and others, 2016) and Seq-Bbox (Belhassen and others, 2019), a box takes part of the track's mean score
and the class that the track's scores vote for, and a second without a box between two with one gets one. What
cannot be joined stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from submission import Detections
from submission.detections import to_offsets
from submission.templates import template
from toolkit import console
from toolkit.errors import CallError, ToolkitError
from toolkit.ltdv2 import SPLITS, read_ids

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.int64]

REACH = 1.0
"""How far, in square roots of its area, an object may go in the second after it was first seen."""

LIKENESS = 1.6
"""Largest ratio of two areas, or of their inverse, of an object that has no motion yet."""

UNSURE = 0.1
"""A box of a lower score begins a track only if the next second has one for it: most are nothing."""

ROUNDS = 3
"""Of mutual choice: a pair is made where both are each other's best, then the rest choose again."""


@dataclass(frozen=True)
class LinkOptions:
    """How boxes are joined.

    Attributes:
        iou: overlap of a box with a track's predicted place, of the same class; across classes 0.2 more.
        gap: seconds that an object may be unseen; gaps no longer are filled. 0 fills nothing.
        share: part of the track's mean score in a box's new score, 0 to 1.
        filled: score of a filled box, as a part of the mean of its neighbours'.
        min_hits: boxes that make a track; fewer are left as they are.
    """

    iou: float = 0.2
    gap: int = 2
    share: float = 0.5
    filled: float = 0.9
    min_hits: int = 3

    def __post_init__(self) -> None:
        if not (0 < self.iou <= 1 and 0 <= self.share <= 1 and 0 <= self.filled <= 1 and 0 <= self.gap <= 10):
            raise CallError(
                "boxes cannot be linked with these options",
                found=f"iou {self.iou:g}, gap {self.gap}, share {self.share:g}, filled {self.filled:g}",
                expected="iou above 0, iou, share and filled up to 1, a gap of 0 to 10 seconds",
            )


@dataclass(frozen=True)
class LinkResult:
    """What came of linking.

    Attributes:
        detections: the images in their old order, new scores, classes and filled boxes.
        clips: number of clips.
        tracks: of at least ``min_hits`` boxes.
        joined: boxes in them.
        relabelled: boxes whose class another vote changed.
        filled: boxes added in gaps.
    """

    detections: Detections
    clips: int
    tracks: int
    joined: int
    relabelled: int
    filled: int


@dataclass(frozen=True)
class _Gap:
    """Filled boxes as columns: image (a position), box, score, track."""

    image: Ints
    boxes: Floats
    scores: Floats
    track: Ints


def link(detections: Detections, options: LinkOptions | None = None) -> LinkResult:
    """Join the boxes of each clip and vote along the tracks.

    Args:
        detections: predictions with LTDv2's ids, which say clip and second; values checked
            (:func:`submission.validate.check_values`).
        options: see :class:`LinkOptions`.

    Raises:
        ToolkitError: an id has no clip or time to read.
    """
    options = options or LinkOptions()
    clip, second = read_ids(detections.image_ids)
    # In the order of time whatever the file's was: sums of floats depend on it.
    order = np.lexsort((second, clip))
    ordered, second = detections.select(detections.image_ids[order]), second[order]
    ends = np.flatnonzero(np.diff(clip[order], append=-1)) + 1
    starts = np.concatenate([[0], ends[:-1]]).astype(np.int64)
    track = np.empty(len(detections.scores), np.int64)
    begun = 0
    with console.progress("linking", len(order)) as advance:
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
            begun = _join(ordered, range(start, end), second[start:end], track, begun, options)
            advance(end - start)
    result = _vote(ordered, track, begun, second, options, len(starts))
    return replace(result, detections=result.detections.select(detections.image_ids))


def check_one_split(detections: Detections, source: str) -> None:
    """Refuse predictions of more than one split: a clip belongs to one.

    Raises:
        ToolkitError: some ids are the challenge's validation ids and some its test ids.
    """
    counts: dict[str, int] = {}
    for phase, split in SPLITS.items():
        found = int(np.isin(detections.image_ids, template(phase)).sum())
        name = "validation" if split == "val" else split
        counts[name] = max(found, counts.get(name, 0))
    if sum(count > 0 for count in counts.values()) > 1:
        raise ToolkitError(
            f"{source} holds predictions of two splits",
            found=" and ".join(f"{count:,} {name} ids" for name, count in counts.items() if count),
            expected="one split a file",
            fix="link the file of each split alone",
        )


class _Active:
    """Tracks that may still go on, as columns."""

    def __init__(self) -> None:
        self.ids = np.empty(0, np.int64)
        self.boxes = np.empty((0, 4), np.float32)
        self.labels = np.empty(0, np.int64)
        self.speed = np.empty((0, 2), np.float32)
        self.hits = np.empty(0, np.int64)
        self.last = np.empty(0, np.int64)
        self.patience = np.empty(0, np.int64)

    def keep(self, mask: npt.NDArray[np.bool_]) -> None:
        for name in ("ids", "boxes", "labels", "speed", "hits", "last", "patience"):
            setattr(self, name, getattr(self, name)[mask])

    def update(self, chosen: Ints, boxes: Floats, now: int, patience: int) -> None:
        """Tracks ``chosen`` go on at ``boxes``, and then may be unseen for ``patience - 1`` seconds."""
        passed = (now - self.last[chosen])[:, None]
        moved = (_centres(boxes) - _centres(self.boxes[chosen])) / np.maximum(passed, 1)
        known = (self.hits[chosen] > 1)[:, None]
        self.speed[chosen] = np.where(known, 0.5 * self.speed[chosen] + 0.5 * moved, moved)
        self.boxes[chosen], self.last[chosen] = boxes, now
        self.hits[chosen] += 1
        self.patience[chosen] = patience

    def begin(self, first: int, boxes: Floats, labels: Ints, now: int, patience: Ints) -> Ints:
        """New tracks, numbered from ``first``."""
        n = len(boxes)
        new = np.arange(first, first + n)
        self.ids = np.concatenate([self.ids, new])
        self.boxes = np.concatenate([self.boxes, boxes])
        self.labels = np.concatenate([self.labels, labels])
        self.speed = np.concatenate([self.speed, np.zeros((n, 2), np.float32)])
        self.hits = np.concatenate([self.hits, np.ones(n, np.int64)])
        self.last = np.concatenate([self.last, np.full(n, now)])
        self.patience = np.concatenate([self.patience, patience])
        return new


def _join(
    detections: Detections, frames: range, seconds: Ints, track: Ints, begun: int, options: LinkOptions
) -> int:
    """Number the tracks of one clip into ``track``; returns how many have begun by then."""
    active = _Active()
    for frame, now in zip(frames, seconds.tolist(), strict=True):
        rows = slice(int(detections.offsets[frame]), int(detections.offsets[frame + 1]))
        boxes, labels = detections.boxes[rows].astype(np.float32), detections.labels[rows]
        active.keep(now - active.last <= active.patience)
        found = np.full(len(boxes), -1, np.int64)
        if len(boxes) and len(active.ids):
            passed = (now - active.last)[:, None]
            ahead = active.boxes + np.tile(active.speed * passed.astype(np.float32), 2)
            same = active.labels[:, None] == labels[None]
            overlap = overlaps(ahead, boxes)
            fits = overlap >= options.iou + np.where(same, np.float32(0), np.float32(0.2))
            _choose(np.where(fits, overlap + np.float32(0.3) * same, np.float32(0)), found)
            young = (active.hits == 1) & ~np.isin(np.arange(len(active.ids)), found)
            left = np.flatnonzero(found < 0)
            if young.any() and len(left):
                _begin_moving(active, np.flatnonzero(young), boxes, labels, left, passed, found)
        old = found >= 0
        numbers = np.empty(len(boxes), np.int64)
        numbers[old] = active.ids[found[old]]
        active.update(found[old], boxes[old], now, options.gap + 1)
        patience = np.where(detections.scores[rows][~old] >= UNSURE, options.gap + 1, 1)
        numbers[~old] = active.begin(begun, boxes[~old], labels[~old], now, patience)
        begun += int((~old).sum())
        track[rows] = numbers
    return begun


def _begin_moving(
    active: _Active, young: Ints, boxes: Floats, labels: Ints, left: Ints, passed: Ints, found: Ints
) -> None:
    """Join what was seen once to the nearest free box of its class and size."""
    here, there = active.boxes[young], boxes[left]
    areas, centres, ends = _areas(here)[:, None], _centres(here), _centres(there)
    reach = np.maximum(areas * REACH**2 * passed[young] ** 2, 1e-9)
    distance = (centres[:, None, 0] - ends[None, :, 0]) ** 2 + (centres[:, None, 1] - ends[None, :, 1]) ** 2
    ratio = _areas(there)[None] / np.maximum(areas, 1e-9)
    fits = (distance < reach) & (ratio < LIKENESS) & (ratio > 1 / LIKENESS)
    fits &= active.labels[young][:, None] == labels[left][None]
    chosen = np.full(len(left), -1, np.int64)
    _choose(np.where(fits, 1 - distance / reach, 0.0), chosen)
    joined = chosen >= 0
    found[left[joined]] = young[chosen[joined]]


def _choose(worth: Floats, found: Ints) -> None:
    """Give each column the row that is its best and whose best it is; 0 is no pair. ``worth`` is spoilt."""
    rows, columns = np.arange(worth.shape[0]), np.arange(worth.shape[1])
    for _ in range(ROUNDS):
        best = worth.argmax(axis=1)
        mutual = (worth.argmax(axis=0)[best] == rows) & (worth[rows, best] > 0)
        if not mutual.any():
            return
        found[columns[best[mutual]]] = rows[mutual]
        worth[mutual] = 0.0
        worth[:, best[mutual]] = 0.0


def overlaps(a: Floats, b: Floats) -> Floats:
    """IoU of each of ``a`` with each of ``b``; (n, 4) and (m, 4) corners to (n, m)."""
    wide = np.minimum(a[:, None, 2], b[None, :, 2]) - np.maximum(a[:, None, 0], b[None, :, 0])
    tall = np.minimum(a[:, None, 3], b[None, :, 3]) - np.maximum(a[:, None, 1], b[None, :, 1])
    common = np.maximum(wide, 0) * np.maximum(tall, 0)
    return np.asarray(common / np.maximum(_areas(a)[:, None] + _areas(b)[None] - common, 1e-9))


def _areas(boxes: Floats) -> Floats:
    return np.asarray(np.maximum(boxes[:, 2] - boxes[:, 0], 0) * np.maximum(boxes[:, 3] - boxes[:, 1], 0))


def _centres(boxes: Floats) -> Floats:
    return np.asarray((boxes[:, :2] + boxes[:, 2:]) / 2)


def _vote(
    detections: Detections, track: Ints, tracks: int, second: Ints, options: LinkOptions, clips: int
) -> LinkResult:
    image = np.repeat(np.arange(len(detections)), detections.counts)
    hits = np.bincount(track, minlength=tracks)
    total = np.bincount(track, detections.scores, minlength=tracks)
    is_track = hits >= options.min_hits
    voted = _voted(detections, track, tracks)
    in_track = is_track[track]
    labels = np.where(in_track, voted[track], detections.labels)
    mean = total / np.maximum(hits, 1)
    share = options.share * in_track
    scores = (1 - share) * detections.scores + share * mean[track]
    gaps = _fill(detections, track, is_track, image, second, scores, options)
    everything = np.concatenate([image, gaps.image])
    boxes = np.concatenate([detections.boxes, gaps.boxes])
    new_scores = np.concatenate([scores, gaps.scores]).clip(0, 1)
    new_labels = np.concatenate([labels, voted[gaps.track]])
    order = np.argsort(everything, kind="stable")
    linked = Detections(
        detections.image_ids,
        to_offsets(np.bincount(everything, minlength=len(detections))),
        boxes[order],
        new_scores[order],
        new_labels[order],
    )
    return LinkResult(
        linked,
        clips=clips,
        tracks=int(is_track.sum()),
        joined=int(in_track.sum()),
        relabelled=int((labels != detections.labels).sum()),
        filled=len(gaps.scores),
    )


def _voted(detections: Detections, track: Ints, tracks: int) -> Ints:
    """The class with the largest sum of scores along each track; (tracks,) int64."""
    kinds = np.unique(detections.labels)
    if not len(kinds):
        return np.empty(tracks, np.int64)
    votes = np.stack(
        [np.bincount(track, detections.scores * (detections.labels == k), minlength=tracks) for k in kinds]
    )
    return np.asarray(kinds[votes.argmax(axis=0)], np.int64)


def _fill(
    detections: Detections,
    track: Ints,
    is_track: npt.NDArray[np.bool_],
    image: Ints,
    second: Ints,
    scores: Floats,
    options: LinkOptions,
) -> _Gap:
    """Boxes between two of a track, on a straight line, in frames that the predictions have."""
    order = np.lexsort((second[image], track))
    before, after = order[:-1], order[1:]
    passed = second[image[after]] - second[image[before]]
    pairs = np.flatnonzero(
        (track[before] == track[after]) & is_track[track[before]] & (passed > 1) & (passed <= options.gap + 1)
    )
    parts = list(_steps(detections, before[pairs], after[pairs], passed[pairs], image, second))
    if not parts:
        return _Gap(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0), np.empty(0, np.int64))
    frames, boxes, rows = (np.concatenate(column) for column in zip(*parts, strict=True))
    a, b = before[pairs][rows], after[pairs][rows]
    return _Gap(frames, boxes, options.filled * (scores[a] + scores[b]) / 2, track[a])


def _steps(
    detections: Detections, before: Ints, after: Ints, passed: Ints, image: Ints, second: Ints
) -> Iterator[tuple[Ints, Floats, Ints]]:
    """For each second inside a gap: positions of its images, boxes, and the gaps' numbers."""
    # One number for clip and second, which ascends as the images do.
    moment = (
        np.unique(detections.image_ids // 10**6, return_inverse=True)[1].astype(np.int64) * 10**6 + second
    )
    for step in range(1, int(passed.max(initial=1))):
        rows = np.flatnonzero(passed > step)
        a, b = before[rows], after[rows]
        place = np.searchsorted(moment, moment[image[a]] + step).clip(max=len(moment) - 1)
        there = moment[place] == moment[image[a]] + step
        part = (step / passed[rows])[:, None]
        boxes = (1 - part) * detections.boxes[a] + part * detections.boxes[b]
        yield place[there], boxes[there], rows[there]
