"""Which moments are drawn: clips of up to 120 frames, a second apart, with LTDv2's own ids.

An id reads YYYYMM CCC DD HH MM SS: month, number of the clip in its day, day, time. Validation and testing
ids are the challenge's; training clips are made up beside them, on the same days, as LTDv2's are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

import numpy as np

from toolkit.dataset.sample.layout import Frame, check_count, template_ids
from toolkit.ltdv2 import EIGHT_MONTHS, TEST_MONTHS

CLIP_FRAMES = 120
MINUTES_BETWEEN_CLIPS = 27
"""LTDv2's clip 1 of a day begins at about 00:28, clip 33 at 14:39, clip 47 at 20:57."""

Clips = Mapping[str, list[list[int]]]
"""Month -> the ids of each clip."""


def choose_frames(counts: Mapping[str, int], seed: int) -> Iterator[Frame]:
    """The frames of each split, months alike. Validation and test do not depend on the seed."""
    taken: set[str] = set()
    listed: dict[str, Clips] = {}
    for split, phase in (("val", "development"), ("test", "testing")):
        clips: dict[str, dict[str, list[int]]] = {month: {} for month in TEST_MONTHS}
        for number in sorted(template_ids(phase)):
            clips[number[:6]].setdefault(number[:11], []).append(int(number))
        taken.update(prefix for by_prefix in clips.values() for prefix in by_prefix)
        months = EIGHT_MONTHS if split == "val" else TEST_MONTHS
        listed[split] = {month: list(clips[month].values()) for month in months}
    listed["train"] = _made_up(taken, np.random.default_rng([seed, 1]))
    for split, available in listed.items():
        yield from _spread(split, counts[split], available)


def _made_up(taken: set[str], rng: np.random.Generator) -> Clips:
    """Two hundred clips a month that are in neither template."""
    months = {}
    for month in EIGHT_MONTHS:
        prefixes: list[str] = []
        for _ in range(10_000):
            prefix = f"{month}{rng.integers(1, 53):03d}{rng.integers(1, 29):02d}"
            if prefix not in taken and prefix not in prefixes:
                prefixes.append(prefix)
            if len(prefixes) == 200:
                break
        months[month] = [_ids(prefix, rng) for prefix in sorted(prefixes)]
    return months


def _ids(prefix: str, rng: np.random.Generator) -> list[int]:
    minute = int(prefix[6:9]) * MINUTES_BETWEEN_CLIPS + int(rng.integers(-9, 10))
    begin = datetime(2020, 1, 1) + timedelta(minutes=minute, seconds=int(rng.integers(0, 60)))
    times = (begin + timedelta(seconds=i) for i in range(CLIP_FRAMES))
    return [int(f"{prefix}{time:%H%M%S}") for time in times]


def _spread(split: str, count: int, clips: Clips) -> Iterator[Frame]:
    """``count`` frames, months alike, in clips that get longer as there are more of them."""
    check_count(split, count)
    for m, available in enumerate(clips.values()):
        left = (count + len(clips) - 1 - m) // len(clips)
        length = min(max(round(2 * left**0.5), 8), CLIP_FRAMES)
        number = min(-(-left // length), len(available)) if left else 0
        # Evenly over the numbers of clips, and so over the hours; the others follow if these are too short.
        first = [c * len(available) // number for c in range(number)]
        for place in dict.fromkeys([*first, *range(len(available))]):
            ids = available[place][: min(max(length, -(-left // len(available))), left)]
            left -= len(ids)
            yield from (_frame(split, number, i) for i, number in enumerate(ids))
            if not left:
                break


def _frame(split: str, number: int, place: int) -> Frame:
    digits = str(number)
    month, clip, day, hour, minute, second = (
        digits[a:b] for a, b in ((0, 6), (6, 9), (9, 11), (11, 13), (13, 15), (15, 17))
    )
    begin = datetime(2020, 1, 1, int(hour), int(minute), int(second)) - timedelta(seconds=place)
    folder = f"{month}{day}/clip_{int(clip)}_{begin:%H%M}"
    return Frame(
        split=split,
        id=number,
        clip=folder,
        name=f"frames/{folder}/image_{place:04d}.jpg",
        date=f"{month[:4]}-{month[4:]}-{day}T{hour}:{minute}:{second}",
        month=month,
        hour=int(hour),
        place=place,
    )
