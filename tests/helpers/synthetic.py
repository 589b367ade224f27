"""A small split with a detector that drifts, for tests that look below the scores."""

from __future__ import annotations

import numpy as np

from submission import Detections
from toolkit.evaluation.context import Context
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import MONTHS


def synthetic(images_a_month: int = 40) -> tuple[GroundTruth, Detections, Context]:
    """A split whose detector loses recall month by month, with weather and clips of ten frames."""
    rng = np.random.default_rng(0)
    n = images_a_month * len(MONTHS)
    ids = np.array([int(d) * 10**11 + i for d in MONTHS.values() for i in range(images_a_month)])
    corners = rng.uniform(0, 240, (3 * n, 2))
    boxes = np.hstack([corners, corners + rng.uniform(8, 60, (3 * n, 2))])
    offsets = np.arange(0, 3 * n + 1, 3)
    labels = rng.integers(1, 5, 3 * n)
    missed = rng.random(3 * n) < np.repeat(np.linspace(0, 0.6, n), 3)
    found = boxes + rng.normal(0, 1, boxes.shape) + np.where(missed, 200.0, 0.0)[:, None]
    truth = GroundTruth(ids, offsets, boxes, labels)
    scores = np.where(missed, rng.uniform(0, 0.4, 3 * n), rng.uniform(0.3, 1, 3 * n))
    clips = np.array([f"frames/20210101/clip_{i // 10}" for i in range(n)])
    context = Context(
        np.array([f"{clip}/image_{i:04d}.jpg" for i, clip in enumerate(clips)]),
        clips,
        rng.uniform(0, 24, n),
        {"Temperature": np.linspace(-5, 30, n), "Humidity": rng.uniform(40, 100, n)},
    )
    return truth, Detections(ids, offsets, found, scores, labels), context
