"""The losses of a batch, read while the card computes the next batch: the host does not wait for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reading:
    """The components of a batch's loss.

    Attributes:
        values: by name.
        images: which batch it was, in words.
    """

    values: dict[str, float]
    images: str


@dataclass(frozen=True)
class _Due:
    names: tuple[str, ...]
    place: Tensor
    arrived: torch.cuda.Event | None
    images: str

    def read(self) -> Reading:
        if self.arrived is not None:
            self.arrived.synchronize()
        return Reading(dict(zip(self.names, self.place.tolist(), strict=True)), self.images)


class LossReader:
    """Hands out losses in the order in which they were put in."""

    def __init__(self) -> None:
        self._due: deque[_Due] = deque()

    def put(self, losses: Mapping[str, Tensor], images: str) -> None:
        """Begin to bring the losses of a batch to the host.

        Args:
            losses: components by name, each of one element, on one device.
            images: which batch it is, in words.
        """
        values = torch.stack([each.detach().reshape(()) for each in losses.values()])
        arrived = None
        if values.is_cuda:
            place = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            place.copy_(values, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(torch.cuda.current_stream(values.device))
            values = place
        self._due.append(_Due(tuple(losses), values, arrived, images))

    def read(self, wait: bool) -> Iterator[Reading]:
        """The losses that were not handed out yet.

        Args:
            wait: for those of the newest batch too, if they are on their way. Those of the batch before it
                are always waited for, so that the host is never further ahead than one batch.
        """
        while self._due and (wait or len(self._due) > 1 or self._due[0].arrived is None):
            yield self._due.popleft().read()
