"""Where words can stand in a picture: none over another, none cut off by the border."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt


class Room:
    """What of a picture is still free for words.

    Args:
        window: what is shown: x1, y1, x2, y2, pixels.
        taken: (n, 4) what no word may cover: x1, y1, x2, y2, pixels.
    """

    def __init__(self, window: tuple[float, float, float, float], taken: npt.ArrayLike = ()) -> None:
        self.window = window
        self.taken: npt.NDArray[np.float64] = np.array(taken, np.float64).reshape(-1, 4)

    def place(
        self, x: float, length: float, height: float, tops: Iterable[float]
    ) -> tuple[float, float] | None:
        """Take the first free one of some places, and return its left and its top.

        Args:
            x: where the words should begin, pixels; moved as far as the border asks.
            length, height: of the words, pixels.
            tops: of the places, the best first.

        Returns:
            None if no place is free.
        """
        first, highest, last, lowest = self.window
        left = min(max(x, first), max(last - length, first))
        for top in tops:
            corners = np.array([left, top, left + length, top + height])
            if top >= highest and top + height <= lowest and not self._covers(corners):
                self.taken = np.vstack([self.taken, corners])
                return left, top
        return None

    def _covers(self, place: npt.NDArray[np.float64]) -> bool:
        others = self.taken
        return bool(((place[:2] < others[:, 2:]) & (others[:, :2] < place[2:])).all(1).any())
