"""The order in which an epoch shows its images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def epoch_order(images: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """(images,) the images of an epoch, shuffled: a function of its arguments alone.

    So the sampler can enter an epoch anywhere, and every worker knows which images came before one.
    """
    return np.random.default_rng((seed, epoch)).permutation(images)
