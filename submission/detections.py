"""The value type for detections. Files are converted to it and from it at the edges, nowhere else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


class SubmissionError(ValueError):
    """A file that the organisers would refuse, or that is not what it says it is.

    Attributes:
        what, found, expected, fix: the four parts of the message, each may be empty but ``what``.
    """

    def __init__(self, what: str, found: str = "", expected: str = "", fix: str = "") -> None:
        self.what, self.found, self.expected, self.fix = what, found, expected, fix
        super().__init__("; ".join(part for part in (what, found, expected, fix) if part))


@dataclass(frozen=True, eq=False)
class Detections:
    """Boxes of many images, as columns.

    Image ``i`` owns rows ``offsets[i]:offsets[i + 1]`` of ``boxes``, ``scores`` and ``labels``.

    Attributes:
        image_ids: (images,) int64, LTDv2's 17-digit ids. Never pass them through a float: they exceed 2**53.
        offsets: (images + 1,) int64, non-decreasing, from 0 to the number of boxes.
        boxes: (n, 4) float64, corners x1, y1, x2, y2 in absolute pixels.
        scores: (n,) float64 in [0, 1].
        labels: (n,) int64, the challenge's labels 1 person, 2 bicycle, 3 motorcycle, 4 vehicle.
    """

    image_ids: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    boxes: npt.NDArray[np.float64]
    scores: npt.NDArray[np.float64]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        """Number of images, those without a box included."""
        return len(self.image_ids)
