"""The pixels of a sample: decoded or from the cache, a channel for each view, enlarged for the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from toolkit.dataset.cache import choose, open_frames
from toolkit.dataset.frames import FrameError, Frames
from toolkit.dataset.index import Split
from toolkit.dataset.joined import JoinedSplit
from toolkit.dataset.mosaic import PADDING
from toolkit.dataset.planes import Grey, Layers, channels_of, new_canvas
from toolkit.dataset.recent import RecentFrames
from toolkit.dataset.shared import SharedFrames, Store, store_for
from toolkit.dataset.views import Sources, Views

Size = tuple[int, int]
"""Height and width, pixels."""


class Pixels:
    """The channels of a split's images. Another process opens the frames itself.

    Args:
        split: that the images are of.
        views: what the channels show.
        longer: side that an image is enlarged to, pixels.
        augment: whether samples are augmented: they then come in any order, and the channels of an enlarged
            pixel lie together, where Ultralytics' steps are faster; else each channel is one piece of memory.
        images: that samples are made of; all by default.
        ranks: see :func:`toolkit.dataset.shared.store_for`.

    Attributes:
        frames: of the split.
        origin: in words, where the frames come from, archive or cache, and why; in training also whether each
            is decoded once.
        store: where decoded frames stay in training, if they fit into memory and come from no cache.
        sources: where the channels come from.
    """

    def __init__(
        self,
        split: Split,
        views: Views,
        longer: int,
        augment: bool,
        images: int | None = None,
        ranks: int | None = None,
    ) -> None:
        self.split, self.views, self.longer, self.augment = split, views, longer, augment
        self._parts = split.parts if isinstance(split, JoinedSplit) else [split]
        chosen = [choose(part) for part in self._parts]
        self._cached = [cached for cached, _ in chosen]
        self.origin = "; ".join(dict.fromkeys(words for _, words in chosen))
        self.sources = Sources(views, self._parts, split)
        self.store: Store | None = None
        if augment and not all(self._cached):
            touched = min(
                len(split), (len(split) if images is None else images) * (1 + len(self.sources.rows))
            )
            self.store, words = store_for(len(split), touched, split.training.images, ranks)
            self.origin += f"; each {words}"
        self.frames = self._open()

    def _open(self) -> Frames:
        frames = open_frames(self._parts, self._cached)
        if self.store is not None:
            return SharedFrames(frames, self.store)
        if self.augment or self.views.is_plain:
            return frames
        images = self.split.training.images  # in the order of time, mostly: neighbours come soon again
        return RecentFrames(frames, int((images["height"].astype(int) * images["width"]).max()))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "frames": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.frames = self._open()

    def read(
        self, row: int, size: Size, kept: Callable[[Grey], Grey] | None = None
    ) -> tuple[Grey | Layers, int]:
        """The channels of an image as recorded.

        Args:
            row: of the image in the split.
            size: that its annotations say.
            kept: gives a channel's pixels in memory that stays; by default all channels are copied into one
                array, which may be written.

        Returns:
            (height, width, channels) uint8, in layers if they are ``kept``, and how many channels the frame
            itself stands in for.

        Raises:
            FrameError: the frame does not decode or has another size.
        """
        grey = self.frames.grey(row)
        if grey.shape != size:
            found, expected = ("{1} x {0}".format(*shape) for shape in (grey.shape, size))
            raise FrameError(self.frames.name(row), "has another size", found, f"{expected} pixels")
        if kept is None:
            return self.sources.stack(self.frames, row, grey)
        planes, stood_in = self.sources.planes(self.frames, row, grey)
        return Layers([kept(plane) for plane in planes]), stood_in

    def recorded(self, row: int) -> Grey:
        """The channels of an image, whatever its size. Raises FrameError: its frame does not decode."""
        return self.sources.stack(self.frames, row, self.frames.grey(row))[0]

    def blank(self, size: Size) -> Grey:
        """What stands for an image without a frame, enlarged: (height, width, channels) of padding."""
        return self.enlarged(np.full((*size, self.views.channels), PADDING, np.uint8))

    def enlarged_size(self, size: Size) -> Size:
        """The size of an image whose longer side is what the network takes, parts of pixels rounded up."""
        height, width = (-(-side * self.longer // max(size)) for side in size)
        return height, width

    def enlarged(self, channels: Grey) -> Grey:
        """An image at its enlarged size, (height, width, channels)."""
        height, width = self.enlarged_size((channels.shape[0], channels.shape[1]))
        if channels.shape[:2] == (height, width):
            return channels
        if self.augment:
            large = np.asarray(cv2.resize(channels, (width, height)), np.uint8)
            return large.reshape(height, width, self.views.channels)
        resized = new_canvas((height, width, self.views.channels))
        for channel, place in zip(channels_of(channels), channels_of(resized), strict=True):
            cv2.resize(channel, (width, height), dst=place)
        return resized
