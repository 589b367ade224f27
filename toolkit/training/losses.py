"""The losses of a batch, read while the card computes the next batch: the host does not wait for it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

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


class Landing:
    """Pinned memory of the host that a card copies the losses of a batch into, and an event behind the copy.

    Both are made once and serve batch after batch, but one at a time: from :meth:`begin` on until
    :meth:`finish` has returned.

    Args:
        values: one-dimensional, on a card; those that follow have the same shape, dtype and device.
    """

    def __init__(self, values: Tensor) -> None:
        self._place = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        self._arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]

    def begin(self, values: Tensor) -> None:
        """Copy ``values`` when the card has computed them; nothing waits."""
        self._place.copy_(values, non_blocking=True)
        self._arrived.record(torch.cuda.current_stream(values.device))

    def finish(self) -> list[float]:
        """Wait for the copy; its numbers."""
        self._arrived.synchronize()
        numbers: list[float] = self._place.tolist()
        return numbers


@dataclass
class _Landings:
    """Landings for tensors of one kind; those that nothing lands in at present are lent again."""

    make: Callable[[Tensor], Landing]
    free: list[Landing] = field(default_factory=list)

    def begin(self, values: Tensor) -> Callable[[], list[float]]:
        landing = self.free.pop() if self.free else self.make(values)
        landing.begin(values)

        def finish() -> list[float]:
            numbers = landing.finish()
            self.free.append(landing)  # not before: the numbers are out of it now
            return numbers

        return finish


@dataclass(frozen=True)
class _Due:
    names: tuple[str, ...]
    numbers: list[float] | Callable[[], list[float]]
    images: str

    def read(self) -> Reading:
        numbers = self.numbers() if callable(self.numbers) else self.numbers
        return Reading(dict(zip(self.names, numbers, strict=True)), self.images)


class LossReader:
    """Hands out losses in the order in which they were put in.

    Args:
        landing: makes memory that losses arrive in some time after they were put in, for tensors like the one
            it is given. None: a :class:`Landing` for those of a card; those of a processor are there at once.
    """

    def __init__(self, landing: Callable[[Tensor], Landing] | None = None) -> None:
        self._always_lands = landing is not None
        make = Landing if landing is None else landing
        self._landings: defaultdict[tuple[object, ...], _Landings] = defaultdict(lambda: _Landings(make))
        self._due: deque[_Due] = deque()

    def put(self, losses: Mapping[str, Tensor], images: str) -> None:
        """Begin to bring the losses of a batch to the host.

        Args:
            losses: components by name, each of one element, on one device.
            images: which batch it is, in words.
        """
        numbers: list[float] | Callable[[], list[float]]
        if self._always_lands or any(each.is_cuda for each in losses.values()):
            # Of tensors without dimensions, as Ultralytics' are, this is one kernel and nothing else.
            values = torch.stack(
                [each.reshape(()) if each.dim() else each for each in losses.values()]
            ).detach()
            numbers = self._landings[values.shape, values.dtype, values.device].begin(values)
        else:
            numbers = [each.item() for each in losses.values()]
        self._due.append(_Due(tuple(losses), numbers, images))

    def read(self, wait: bool) -> Iterator[Reading]:
        """The losses that were not handed out yet.

        Args:
            wait: for those of the newest batch too, if they are on their way. Those of the batch before it
                are always waited for, so that the host is never further ahead than one batch.
        """
        while self._due and (wait or len(self._due) > 1 or not callable(self._due[0].numbers)):
            yield self._due.popleft().read()
