"""Which epochs of a run end with a validation and with weights: those that end a pass over the frames.

An epoch that shows a part of the frames is short. A validation after each would take the time that the part
was to free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Passes:
    """The passes of a run over its training frames.

    Attributes:
        every: epochs of a pass.
        period: epochs from one whose weights are kept for good to the next; below 1: none are.
        scores: metrics that a validation finds beside Ultralytics' own.
    """

    every: int = 1
    period: int = -1
    scores: tuple[str, ...] = ()

    def ends_with(self, epoch: int) -> bool:
        """Whether an epoch, counted from 0, is the last of a pass."""
        return not (epoch + 1) % self.every

    def keeps(self, epoch: int) -> bool:
        """Whether the weights of an epoch, counted from 0, are kept for good."""
        return self.period >= 1 and not (epoch + 1) % self.period

    def without(self, metrics: Iterable[str]) -> dict[str, float]:
        """The metrics of an epoch that is not validated: NaN under the names that one has which is."""
        return dict.fromkeys((*metrics, *self.scores), math.nan)
