"""The images of a batch in one piece of memory, which its samples are rendered into."""

from __future__ import annotations

import math
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from toolkit.dataset.grey import channels_that_differ
from toolkit.dataset.planes import Grey, new_canvas

Samples = list[dict[str, Any]]


class BatchMemory:
    """Where the samples of a batch are rendered, so that nothing is left to copy when they are collated.

    A worker's batches lie in shared memory that is used again and again. PyTorch takes new shared memory for
    every batch, which the kernel clears page by page: 5 ms for 16 frames of 640 x 640 pixels. A process that
    loads by itself takes new memory, which its batches own.

    A sample that was made elsewhere, as the mix of two is, is copied in.

    Args:
        kept: batches whose memory a worker uses in turn; none of them may be read when its turn comes again.
            0: each sample has memory of its own.
    """

    def __init__(self, kept: int = 0) -> None:
        self.kept = kept
        self._ring: deque[Tensor] = deque(maxlen=kept)
        self._images: Tensor | None = None
        self._turn: tuple[int, int] | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_ring": deque(maxlen=self.kept), "_images": None}

    def samples(self, make: Callable[[int], dict[str, Any]], indices: Sequence[int]) -> Samples:
        """The samples of a batch, each made while a part of the batch's memory is free for its canvas."""
        self._images, made = None, []
        try:
            for part, index in enumerate(indices):
                self._turn = part, len(indices)
                made.append(make(index))
        finally:
            self._turn = None
        return made

    def canvas(self, shape: tuple[int, ...]) -> Grey:
        """As :func:`new_canvas` gives it; the first that a sample asks for lies in the batch."""
        if not self.kept or self._turn is None or len(shape) != 3:
            return new_canvas(shape)
        (part, samples), self._turn = self._turn, None
        planes = (shape[2], *shape[:2])
        if self._images is None:
            self._images = self._memory((samples, *planes))
        if self._images.shape[1:] != planes:
            return new_canvas(shape)
        rendered: Grey = self._images[part].numpy().transpose(1, 2, 0)
        return rendered

    def collate(self, collate: Callable[..., dict[str, Any]], samples: Samples) -> dict[str, Any]:
        """The batch, by a dataset's ``collate_fn``, its images in the memory that they were rendered into."""
        image = samples[0]["img"]
        shape = (len(samples), channels_that_differ(image), *image.shape[1:])
        memory, self._images = self._images, None
        if memory is None:
            memory = self._memory(shape)
        return collate(samples, out=memory if memory.shape == shape else None)

    def _memory(self, shape: tuple[int, ...]) -> Tensor:
        if get_worker_info() is None:
            return torch.empty(shape, dtype=torch.uint8)
        if len(self._ring) == self.kept and self._ring[0].shape == shape:
            memory = self._ring.popleft()
        else:
            memory = torch.empty(shape, dtype=torch.uint8).share_memory_()  # type: ignore[no-untyped-call]
        self._ring.append(memory)
        return memory


class Copies:
    """Copies of tensors of bytes, in memory that comes back when nothing refers to the copy any more.

    So the kernel clears pages for the two batches that a loop holds at a time, not for every batch.
    """

    def __init__(self) -> None:
        self._spare: deque[Grey] = deque(maxlen=2)

    def of(self, tensor: Tensor) -> Tensor:
        """A copy, in one piece."""
        size = math.prod(tensor.shape)
        memory = self._spare.popleft() if self._spare else np.empty(size, np.uint8)
        if len(memory) < size:
            memory = np.empty(size, np.uint8)
        lent = memory[:size]
        weakref.finalize(lent, self._spare.append, memory).atexit = False
        return torch.from_numpy(lent).view(tensor.shape).copy_(tensor)
