"""What every drawn scene has of LTDv2: the size of a frame, ids, names, months."""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Protocol

import msgspec

from submission.validate import FRAME
from toolkit.errors import CallError

WIDTH, HEIGHT = FRAME

MOST_IMAGES = 9_600
"""Of a split."""

Box = tuple[int, Sequence[float]]
"""Label, and COCO's x, y, width, height in whole pixels."""


@dataclass(frozen=True)
class Frame:
    """A frame to be drawn.

    Attributes:
        split: train, val or test.
        id: LTDv2's 17-digit id.
        clip: folder of the clip below ``frames/``.
        name: path in frames.zip.
        date: ISO date and time.
        month: six digits.
        hour: of the day.
        place: number of the frame in its clip; neighbours are a second apart.
    """

    split: str
    id: int
    clip: str
    name: str
    date: str
    month: str
    hour: int
    place: int


class Scene(Protocol):
    """What can be drawn: a module with these three functions."""

    def choose_frames(self, counts: Mapping[str, int], seed: int) -> Iterator[Frame]:
        """The frames of each split, months alike, in clips."""

    def meta(self, frame: Frame, seed: int) -> dict[str, float]:
        """The weather at a frame, by LTDv2's names."""

    def draw(self, frames: Sequence[Frame], seed: int) -> Iterator[tuple[Frame, bytes, list[Box]]]:
        """JPEG and boxes of each frame; the frames of a clip follow one another."""


def template_ids(phase: str) -> list[str]:
    """The ids of the challenge's template ``development`` or ``testing``."""
    packed = files("submission").joinpath("templates", f"submission_template_{phase}.json.gz").read_bytes()
    with gzip.open(io.BytesIO(packed)) as file:
        return list(msgspec.json.decode(file.read(), type=dict[str, msgspec.Raw]))


def check_count(split: str, count: int) -> None:
    """Refuse a number of images that cannot be drawn.

    Raises:
        ToolkitError: it is below 0 or above :data:`MOST_IMAGES`.
    """
    if count < 0 or count > MOST_IMAGES:
        raise CallError(f"cannot draw {count} {split} images", expected=f"0 to {MOST_IMAGES:,}")
