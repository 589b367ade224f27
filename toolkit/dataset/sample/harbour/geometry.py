"""Where things on the quay appear in the frame.

Read off a real LTDv2 frame: a person of 1.75 m is 12 pixels tall where the feet are at row 98, 17 at 115,
36 at 170 and 42 at 195; lines along the quay meet at column 40 of the horizon, row 59.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

HORIZON, VANISHING = 59.0, 40.0
PIXELS_A_METRE = 0.177
"""At so many rows below the horizon, for each row."""

FOCAL = 1470.0
"""Pixels; a lens of 25 mm over a sensor of 17 micrometres a pixel."""

EDGE = 0.275
"""Columns by which the edge of the quay departs from the vanishing point, for each row below the horizon."""

DEPTH = FOCAL / PIXELS_A_METRE
"""Rows below the horizon = DEPTH / metres from the camera."""


def scale(distance: Array) -> Array:
    """Pixels a metre, at so many metres from the camera."""
    return FOCAL / distance


def foot(across: Array, distance: Array) -> tuple[Array, Array]:
    """Column and row of a point of the ground.

    Args:
        across: metres from the edge of the quay, to the right.
        distance: metres from the camera.
    """
    below = DEPTH / distance
    return VANISHING + (EDGE + PIXELS_A_METRE * across) * below, HORIZON + below
