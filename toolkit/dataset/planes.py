"""Images of which each channel lies in one piece of memory.

So a channel is sampled where it lies, and the tensor that a network takes is this memory.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Grey = npt.NDArray[np.uint8]


def new_canvas(shape: tuple[int, ...]) -> Grey:
    """Memory for an image, (height, width) or (height, width, channels), each channel in one piece."""
    planes = np.empty((*shape[2:], *shape[:2]), np.uint8)
    return planes if len(shape) == 2 else planes.transpose(1, 2, 0)


class Layers:
    """An image whose channels lie in memory of their own: no frame is copied to stand beside others.

    Args:
        planes: at least one channel, (height, width) each.

    Attributes:
        shape: as of an array, (height, width, channels).
    """

    def __init__(self, planes: list[Grey]) -> None:
        self.planes = planes
        self.shape = (*planes[0].shape, len(planes))

    def copy(self) -> Grey:
        """(height, width, channels) in new memory, each channel in one piece."""
        return np.stack(self.planes).transpose(1, 2, 0)


def channels_of(image: Grey | Layers) -> list[Grey]:
    """The channels of an image, (height, width) each, or the image where it is one."""
    if isinstance(image, Layers):
        return image.planes
    return [image] if image.ndim == 2 else [image[..., channel] for channel in range(image.shape[2])]
