"""Which images are of one clip, as names tell, and which clips validate where the source does not say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

import numpy as np

from toolkit import console
from toolkit.dataset.own.reading import Image
from toolkit.errors import ToolkitError

BLOCK = 20
"""Most frames that go to one split together where nothing says which clip they are of."""

COLOUR = {"color", "colour", "eo", "optical", "rgb", "vis", "visible"}
HEAT = {"fir", "infrared", "ir", "lwir", "mwir", "nir", "swir", "thermal", "tir"}
SENSORS = frozenset(COLOUR | HEAT)
"""Words by which folders and files of several sensors tell their pictures of one moment apart."""

Place = tuple[str, int]
"""The clip of a frame, empty where it has no name, and the frame's number in it."""


def places(names: Sequence[str]) -> list[Place]:
    """The clip of each image and its number there, from the names.

    A word of a name, between ``_``, ``-``, ``.`` or spaces, may end in a number. Of the names with as many
    words, the frame number is in the last place where most share what stands before it with others, and
    differ in the number: not in a hash behind it. What stands before is the clip. Where no place is so, the
    last number counts; a name without one is a clip of its own.
    """
    alike: dict[int, list[int]] = {}
    numbered = [_numbers(name) for name in names]
    for i, (words, _) in enumerate(numbered):
        alike.setdefault(words, []).append(i)
    found: list[Place] = [("", 0)] * len(names)
    for words, rows in alike.items():
        tables = [numbered[i][1] for i in rows]
        word = next((at for at in reversed(range(words)) if _varies(tables, at)), None)
        for i, table in zip(rows, tables, strict=True):
            last = table[max(table)] if table else (PurePosixPath(names[i]).with_suffix("").as_posix(), 0)
            found[i] = last if word is None else table.get(word, last)
    return found


def _numbers(name: str) -> tuple[int, dict[int, Place]]:
    """How many words a name has, and of those that end in a number what stands before it, and the number."""
    path = PurePosixPath(name)
    words = list(re.finditer(r"[^_\-. ]+", path.stem))
    table: dict[int, Place] = {}
    for at, word in enumerate(words):
        if digits := re.search(r"[0-9]+$", word[0]):
            before = path.stem[: word.start() + digits.start()].rstrip("_-. ")
            folder = "" if path.parent == PurePosixPath(".") else path.parent.as_posix()
            table[at] = "/".join(filter(None, (folder, before))), int(digits[0])
    return len(words), table


def _varies(tables: Iterable[dict[int, Place]], at: int) -> bool:
    """Whether most names share what stands before the number of a word, and differ in it."""
    tables = list(tables)
    numbers: dict[str, list[int]] = {}
    for table in tables:
        if at in table:
            clip, number = table[at]
            numbers.setdefault(clip, []).append(number)
    return 2 * sum(len(each) for each in numbers.values() if len(set(each)) > 1) > len(tables)


def moments(names: Sequence[str]) -> list[int]:
    """For each image the first one of its moment: itself, or what another sensor saw, as the names say.

    Two names are of one moment where they differ in the suffix, in folders that name a sensor, such as
    ``visible`` and ``thermal_8_bit``, or in such a word of the file's name, and not in anything else.
    """
    rows: dict[tuple[str, ...], dict[frozenset[str], int]] = {}
    found = []
    for row, name in enumerate(names):
        path = PurePosixPath(name)
        folders, words = path.parts[:-1], _words(path.stem)
        scene = [folder for folder in folders if SENSORS.isdisjoint(_words(folder))]
        scene += ["/", *(word for word in words if word not in SENSORS)]
        seen = rows.setdefault(tuple(scene), {})
        sensors = SENSORS.intersection(words).union(*(SENSORS.intersection(_words(f)) for f in folders))
        found.append(row if sensors in seen else next(iter(seen.values()), row))
        seen.setdefault(sensors, row)
    return found


def _words(text: str) -> list[str]:
    return re.findall(r"[^_\-. ]+", text.casefold())


def split(images: Sequence[Image], parts: Sequence[str], val: float) -> list[Image]:
    """The images with a split each; without one to validate, whole clips are chosen, evenly over the parts.

    A clip that is longer than :data:`BLOCK` frames, or than a part's share, is cut into blocks of frames that
    follow each other. Over all parts the share is held within half a block; a part whose share is less than
    an image may have none. Of two images or more neither split is left empty.

    Args:
        images: of all splits.
        parts: the part of each.
        val: share of the images outside of the test split that validates.

    Raises:
        ToolkitError: it is no share.
    """
    if any(image.split == "val" for image in images):
        _warn_of_seen(images, moments([image.name for image in images]))
        return [replace(image, split=image.split or "train") for image in images]
    if not 0 < val < 1:
        raise ToolkitError(f"--val-part {val:g} is no part", expected="a number between 0 and 1")
    known = [i for i, image in enumerate(images) if image.split != "test"]
    first = [known[row] for row in moments([images[i].name for i in known])]
    paired = {i: leader for i, leader in zip(known, first, strict=True) if i != leader}
    if paired:
        console.note(
            f"{len(paired):,} images show what another sensor saw, as their names say: both go to one split"
        )
    clips = _clips(images, parts, [i for i in known if i not in paired])
    total, lone = sum(map(len, clips.values())), sum(len(rows) == 1 for rows in clips.values())
    if 2 * lone > total > 2:
        console.warn(
            f"the names tell no clip of {lone:,} of {total:,} images: validation may hold neighbours of what "
            "is trained on; expected names such as CLIP_0001.jpg"
        )
    chosen = _choose(clips, val)
    chosen |= {i for i, leader in paired.items() if leader in chosen}
    console.note(f"no validation split in the source: {len(chosen):,} images of whole clips were chosen")
    return [
        replace(image, split="val" if i in chosen else image.split or "train")
        for i, image in enumerate(images)
    ]


def _clips(
    images: Sequence[Image], parts: Sequence[str], rows: Iterable[int]
) -> dict[tuple[str, str], list[int]]:
    """Part and clip -> those of the images that are meant, in the order of their numbers."""
    where = places([image.name for image in images])
    clips: dict[tuple[str, str], list[int]] = {}
    for i in sorted(rows, key=lambda i: (*where[i], images[i].name)):
        clips.setdefault((parts[i], where[i][0]), []).append(i)
    return clips


def _warn_of_seen(images: Sequence[Image], first: Sequence[int]) -> None:
    """Say how many images that validate show what another sensor saw in the training."""
    split = {i: image.split or "train" for i, image in enumerate(images)}
    trained = {first[i] for i in split if split[i] == "train"}
    if seen := sum(split[i] == "val" and first[i] in trained for i in split):
        console.warn(
            f"{seen:,} images of the validation split show what another sensor saw in the training, as their "
            "names say: scores on them say little"
        )


def _choose(clips: dict[tuple[str, str], list[int]], val: float) -> set[int]:
    """The images that validate. What one part has too many or too few of the next ones make up for."""
    of_part: dict[str, list[list[int]]] = {}
    for (part, _), rows in clips.items():
        of_part.setdefault(part, []).append(rows)
    total, owed = sum(map(len, clips.values())), 0.0
    chosen: set[int] = set()
    for number, part in enumerate(sorted(of_part)):
        count = sum(map(len, of_part[part]))
        size = max(1, min(BLOCK, int(min(val, 1 - val) * count)))
        blocks = [
            block.tolist() for rows in of_part[part] for block in np.array_split(rows, -(-len(rows) // size))
        ]
        owed += val * count
        needed = val * count >= 1 or (number == len(of_part) - 1 and not chosen)
        for at in np.random.default_rng([0, number]).permutation(len(blocks)).tolist():
            length = len(blocks[at])
            if (needed or length / 2 <= owed) and len(chosen) + length < total:
                chosen |= set(blocks[at])
                owed, needed = owed - length, False
    return chosen
