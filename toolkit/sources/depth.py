"""From 16 bits or degrees to the 8 bits that a model has learnt from, with one range for a whole source."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from toolkit import console
from toolkit.errors import CallError
from toolkit.sources.reading import Pixels, Source

SAMPLE = 16
"""Frames, spread over the source, that percentiles are taken of."""

DEFAULT = "0.5%:99.5%"

_NUMBER = r"[-+]?\d+(?:\.\d*)?"
_FIXED = re.compile(rf"({_NUMBER}):({_NUMBER})")
_PERCENT = re.compile(r"(\d+(?:\.\d*)?)%:(\d+(?:\.\d*)?)%")


@dataclass(frozen=True)
class Range:
    """Values that become 0 and 255; what lies between them is linear, what lies outside is cut off.

    Attributes:
        low, high: in the units of the frames.
    """

    low: float
    high: float

    def to_bytes(self, pixels: Pixels) -> Pixels:
        """(height, width) uint8, rounded to the nearest; what is no number becomes 0."""
        scaled = (pixels.astype(np.float64) - self.low) * (255 / (self.high - self.low))
        return np.nan_to_num(scaled, nan=0.0).round().clip(0, 255).astype(np.uint8)

    def __str__(self) -> str:
        return f"{self.low:.9g}:{self.high:.9g}"


class ToBytes:
    """Frames of a source in 8 bits. ``range`` is the one that they have, None while none was wider.

    Args:
        text: ``LOW:HIGH`` in the frames' own units, or percentiles, ``1%:99%``, of :data:`SAMPLE` frames.
        source: the frames. Where no sampled one is wider, the first that is counts alone.

    Raises:
        ToolkitError: the text says neither, or a range without extent.
    """

    def __init__(self, text: str, source: Source) -> None:
        fixed, percent = _FIXED.fullmatch(text), _PERCENT.fullmatch(text)
        found = fixed or percent
        low, high = (float(part) for part in found.groups()) if found else (1.0, 0.0)
        if low >= high or (percent and high > 100):
            raise CallError(
                f"no range {text}",
                expected="LOW:HIGH in the frames' units, such as 21000:26000, or percentiles such as 1%:99%",
            )
        self.percentiles, self.range = (low, high), None if percent else Range(low, high)
        sampled = (frame.pixels for frame in source.sample(SAMPLE))
        self.used = False
        if wide := [pixels for pixels in sampled if pixels is not None and pixels.dtype != np.uint8]:
            self._choose(wide)

    def __call__(self, pixels: Pixels) -> Pixels:
        """(height, width) or (height, width, 3) uint8."""
        if pixels.dtype == np.uint8:
            return pixels
        if not self.used:
            self._choose([pixels])
        assert self.range is not None  # _choose has made one
        return self.range.to_bytes(pixels)

    def _choose(self, wide: list[Pixels]) -> None:
        self.used = True
        if self.range is None:
            values = np.concatenate([pixels[np.isfinite(pixels)].ravel() for pixels in wide])
            ends = np.percentile(values, self.percentiles) if len(values) else np.zeros(2)
            bottom, top = (float(each) for each in ends)
            self.range = Range(bottom, top if top > bottom else bottom + 1)
        console.note(
            f"frames of more than 8 bits: {self.range.low:g} becomes black and {self.range.high:g} white "
            f"(the same again with --range {self.range})"
        )
