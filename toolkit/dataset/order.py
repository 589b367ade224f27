"""The order in which an epoch shows its images."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Rows = npt.NDArray[np.int64]


def epoch_order(images: int, seed: int, epoch: int) -> Rows:
    """(images,) the images of an epoch, shuffled: a function of its arguments alone.

    So the sampler can enter an epoch anywhere, and every worker knows which images came before one.
    """
    return np.random.default_rng((seed, epoch)).permutation(images)


class EpochOrder:
    """What the epochs of a run show: all images, or every n-th of a sequence with some images several times.

    A sample is ``copy * images + image``: each showing of an image in an epoch is a sample of its own. The
    samples of an epoch are a function of (seed, epoch), and their number is that of every other epoch.

    Args:
        images: of the dataset.
        seed: of the run.
        sequence: (n,) images by clip and time, each as often as ``every`` epochs show it; once by default.
        every: an epoch takes each ``every``-th of the sequence. Where it begins changes from epoch to epoch:
            as many epochs as ``every`` show all of it.

    Attributes:
        size: samples of an epoch.
        span: one more than the largest sample.
    """

    def __init__(self, images: int, seed: int, sequence: Rows | None = None, every: int = 1) -> None:
        self.images, self.seed, self.every = images, seed, every
        self.sequence = np.arange(images) if sequence is None else sequence
        self.size = -(-len(self.sequence) // every)
        most = 1 if sequence is None else int(np.bincount(sequence).max())
        self.span = images * most

    def samples(self, epoch: int) -> Rows:
        """(size,) int64, the samples of an epoch in their order."""
        if self.every == 1:
            shown = self.sequence
        else:
            turn, place = divmod(epoch, self.every)
            first = int(np.random.default_rng((self.seed, turn, self.every)).permutation(self.every)[place])
            # Behind the end it goes on at the beginning, with what this epoch has not shown yet.
            shown = self.sequence[(first + self.every * np.arange(self.size)) % len(self.sequence)]
        if self.span > self.images:
            shown = np.sort(shown)
            new = np.concatenate(([True], shown[1:] != shown[:-1]))
            begins = np.maximum.accumulate(np.where(new, np.arange(len(shown)), 0))
            shown = shown + self.images * (np.arange(len(shown)) - begins)
        shuffled: Rows = shown[epoch_order(self.size, self.seed, epoch)]
        return shuffled
