"""The parts of a dataset, which stand for LTDv2's months: by date, camera, folder, name or a number."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from pathlib import PurePosixPath

import numpy as np

from toolkit import console
from toolkit.dataset.own.reading import Image
from toolkit.errors import CallError, ToolkitError

WAYS = (
    "date, day, camera, folder, name:2 (of the words of the file's name), meta.KEY, or TABLE.KEY of another "
    "table of the image, or meta.KEY:4 (ranges)"
)

_DATE = re.compile(r"(\d{4})\D?([01]\d)\D?([0-3]\d)?")


def name_parts(images: Sequence[Image], by: str | None) -> tuple[list[str], str]:
    """The part of each image, and by what they were made.

    Args:
        images: of all splits.
        by: one of :data:`WAYS`, or with a name for it, ``altitude=name:2``; None: by date or folder, if
            these differ, else one part.

    Raises:
        ToolkitError: no such way, or images that it cannot tell apart.
    """
    named = re.fullmatch(r"([\w -]+)=(.+)", by or "")
    if named:
        return name_parts(images, named[2])[0], named[1].strip()
    if by is None:
        for way in ("date", "folder"):
            parts = [_way(way)(image) for image in images]
            if all(parts) and len(set(parts)) > 1:
                return parts, way
        return ["all"] * len(images), "nothing"
    ranges = re.fullmatch(r"(?:meta\.)?(.+):(\d+)", by) if "." in by else None
    if ranges:
        return _ranges(images, ranges[1], int(ranges[2])), ranges[1]
    parts = [_way(by)(image) for image in images]
    unknown = parts.count("")
    if unknown:
        first = images[parts.index("")]
        raise ToolkitError(
            f"--by {by} does not tell a part for {unknown:,} of {len(images):,} images",
            found=f"{first.name}, date {first.date or 'unknown'}, meta {sorted(first.meta) or 'empty'}",
            expected=WAYS,
        )
    return parts, by.removeprefix("meta.")


def apart(parts: Sequence[str], classes: Iterable[str]) -> list[str]:
    """The parts; one that has the name of a class, or of what stands for all parts, as ``part NAME``.

    Scores, tables and comparisons have a row of each. A single part stands for all, and keeps its name.
    """
    taken = {"all", "global", *(each.casefold() for each in classes)}
    clash = {part for part in parts if part.casefold() in taken} if len(set(parts)) > 1 else set()
    if clash:
        named = ", ".join(sorted(clash))
        console.warn(
            f"parts called {named}: each is called `part ...`, for classes or all images are called so"
        )
    return [f"part {part}" if part in clash else part for part in parts]


def _way(by: str) -> Callable[[Image], str]:
    kind, _, key = by.partition(":")
    if kind in ("date", "day"):
        return lambda image: _date(image.date, day=kind == "day")
    if kind == "camera":
        return lambda image: str(next((image.meta[k] for k in image.meta if _of_camera(k)), ""))
    if kind == "folder":
        return lambda image: PurePosixPath(image.name).parent.name
    if kind == "name" and key.isdecimal() and int(key) > 0:
        return lambda image: _word(image.name, int(key))
    if "." in by.strip("."):
        return lambda image: _plain(image.meta.get(by.removeprefix("meta.")))
    raise CallError(f"no parts by {by}", expected=WAYS)


def _of_camera(key: str) -> bool:
    return key.rpartition(".")[2].lower().startswith("cam")


def _date(text: str, *, day: bool) -> str:
    found = _DATE.match(text.strip())
    if not found or (day and not found[3]):
        return ""
    return "-".join(part for part in found.groups()[: 2 + day] if part)


def _word(name: str, number: int) -> str:
    words = [word for word in re.split(r"[_\-. ]+", PurePosixPath(name).stem) if word]
    return words[number - 1] if number <= len(words) else ""


def _plain(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _ranges(images: Sequence[Image], key: str, count: int) -> list[str]:
    """Ranges of a number with about as many images each, named by their ends."""
    values = [image.meta.get(key) for image in images]
    known = [float(v) for v in values if isinstance(v, (int, float)) and np.isfinite(v)]
    if len(known) < len(images) or count < 2:
        raise ToolkitError(
            f"--by meta.{key}:{count} makes no ranges",
            found=f"a number in {len(known):,} of {len(images):,} images",
            expected="a number in every image, and two ranges or more",
        )
    edges = np.unique(np.quantile(known, np.linspace(0, 1, count + 1)[1:-1]))
    names = [f"to {edges[0]:g}", *(f"{a:g} to {b:g}" for a, b in pairwise(edges))]
    names.append(f"over {edges[-1]:g}")
    return [names[i] for i in np.searchsorted(edges, known, side="left").tolist()]


def order(parts: Sequence[str]) -> list[str]:
    """The distinct parts; numbers in them count by their value."""

    def key(text: str) -> list[tuple[int, float, str]]:
        words = re.split(r"(\d+(?:\.\d+)?)", text)
        return [(0, float(w), "") if re.fullmatch(r"\d+(?:\.\d+)?", w) else (1, 0.0, w) for w in words if w]

    return sorted(set(parts), key=key)
