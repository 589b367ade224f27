"""What the channels of a sample show: the frame, neighbours in its clip, and the clip when it is empty.

A thing of six pixels is found by its motion where its shape says nothing: a frame a second before, and the
median of the clip, from which it differs (T-YOLO, WACV workshops 2023; Temporal-YOLOv8, Sensors 2024).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from toolkit import console
from toolkit.dataset import backgrounds
from toolkit.dataset.frames import FrameError, Frames
from toolkit.dataset.index import Split
from toolkit.errors import ToolkitError

MOST = 4
"""Channels of a sample: OpenCV pads a border of four."""

FARTHEST = 60
"""Frames from a frame to its neighbour."""

Grey = npt.NDArray[np.uint8]


class Views(msgspec.Struct, frozen=True):
    """The channels of a sample.

    Attributes:
        words: ``now``, the frame; ``before`` or ``before3``, the frame one or three before it in its clip;
            ``after`` likewise; ``background``, the clip's median.
    """

    words: tuple[str, ...] = ("now",)

    @classmethod
    def parse(cls, text: str) -> Views:
        """From what a person writes: ``now,before,background``.

        Raises:
            ToolkitError: a word that is none, a word twice, no ``now``, or more than :data:`MOST`.
        """
        words = tuple(text.lower().replace(" ", "").split(","))
        for word in words:
            if word not in ("now", "background") and not 1 <= abs(_offset(word)) <= FARTHEST:
                raise ToolkitError(
                    f"{word!r} is no channel of a sample",
                    expected=f"now, before, before2 to before{FARTHEST}, after, after2 ..., background",
                )
        if len(set(words)) < len(words) or "now" not in words or len(words) > MOST:
            raise ToolkitError(
                f"--frames {text} makes no sample",
                expected=f"now, and at most {MOST - 1} other channels, each once",
            )
        return cls(words)

    @property
    def is_plain(self) -> bool:
        """Whether a sample is the frame alone."""
        return self.words == ("now",)

    @property
    def channels(self) -> int:
        """Of a sample."""
        return len(self.words)

    def __str__(self) -> str:
        return ",".join(self.words)


PLAIN = Views()
"""The frame alone."""


def _offset(word: str) -> int:
    """Frames from a frame to its neighbour of that name; 0 for a word that names none."""
    found = re.fullmatch(r"(before|after)([1-9]\d*)?", word)
    return 0 if found is None else int(found.group(2) or 1) * (-1 if found.group(1) == "before" else 1)


def neighbours(split: Split, offset: int) -> npt.NDArray[np.int64]:
    """(images,) the row of each image's neighbour, ``offset`` frames on in its clip; -1: there is none."""
    order = np.lexsort((split.image_ids, split.clips))
    clips = split.clips[order]
    at = np.arange(len(order)) + offset
    there = (at >= 0) & (at < len(order))
    at = at.clip(0, max(len(order) - 1, 0))
    there &= clips[at] == clips
    there &= split.present[order[at]]
    rows = np.empty(len(order), np.int64)
    rows[order] = np.where(there, order[at], -1)
    return rows


class Sources:
    """Where the channels of a split's samples come from. Another process opens the backgrounds again.

    A neighbour that is not in the clip, is missing or does not decode is stood in for by the frame itself.

    Args:
        views: the channels.
        parts: the splits whose images the samples are of, one after the other.
        whole: all of them as one.

    Attributes:
        rows: of each word for a neighbour: (images,) its row, -1 where there is none.
        unreadable: neighbours that did not decode, in this process.
    """

    def __init__(self, views: Views, parts: Sequence[Split], whole: Split) -> None:
        self.views, self.unreadable = views, 0
        self.rows = {word: neighbours(whole, n) for word in views.words if (n := _offset(word))}
        self._warned: set[str] = set()
        self._pictures: list[Grey] = []
        self._files: list[Path] = []
        self._clips: list[npt.NDArray[np.int64]] = []
        self._starts = np.cumsum([0, *map(len, parts)])
        if "background" in views.words:
            for part in parts:
                backgrounds.ensure(part)
            self._files = [backgrounds.path_of(part) for part in parts]
            self._clips = [backgrounds.numbers(part) for part in parts]

    def missing(self) -> dict[str, int]:
        """Frames without a neighbour, by the word for it."""
        return {word: int((rows < 0).sum()) for word, rows in self.rows.items()}

    def planes(self, frames: Frames, row: int, now: Grey) -> tuple[list[Grey], int]:
        """The channels of an image, where they lie: those of a store, a cache or a file cannot be written.

        Args:
            frames: of the whole.
            row: of the image.
            now: its frame, (height, width).

        Returns:
            (height, width) uint8 of each channel, and the number of channels that the frame itself stands in
            for.
        """
        channels, stood_in = [], 0
        for word in self.views.words:
            other = now
            if word == "background":
                other = self._background(row)
            elif word in self.rows:
                found = self._neighbour(frames, int(self.rows[word][row]))
                if found is None or found.shape != now.shape:
                    stood_in += 1
                else:
                    other = found
            channels.append(other)
        return channels, stood_in

    def stack(self, frames: Frames, row: int, now: Grey) -> tuple[Grey, int]:
        """:meth:`planes` as one array, (height, width, channels), which may be written."""
        if self.views.is_plain:
            return (now if now.flags.writeable else now.copy())[..., None], 0
        channels, stood_in = self.planes(frames, row, now)
        return np.stack(channels).transpose(1, 2, 0), stood_in

    def _background(self, row: int) -> Grey:
        if not self._pictures:
            self._pictures = [np.load(path, mmap_mode="r") for path in self._files]
        part = int(np.searchsorted(self._starts, row, side="right")) - 1
        picture: Grey = self._pictures[part][self._clips[part][row - int(self._starts[part])]]
        return picture

    def _neighbour(self, frames: Frames, row: int) -> Grey | None:
        if row < 0:
            return None
        try:
            return frames.grey(row)
        except FrameError as error:
            self.unreadable += 1
            if error.name not in self._warned:
                self._warned.add(error.name)
                console.warn(f"{error.line()}; the frames beside it stand in for it")
            return None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_pictures": [], "_warned": set(), "unreadable": 0}
