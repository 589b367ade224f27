"""The losses of a batch, read while the card computes the next batch: the host does not wait for it."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor


class Reading(NamedTuple):
    """The components of a batch's loss.

    Attributes:
        values: by name.
        images: which batch it was, as it was put in.
    """

    values: dict[str, float]
    images: Sequence[str]


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


class _Coming(NamedTuple):
    names: tuple[str, ...]
    finish: Callable[[], list[float]]
    images: Sequence[str]

    def read(self) -> Reading:
        return Reading(dict(zip(self.names, self.finish(), strict=True)), self.images)


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
        self._due: deque[Reading | _Coming] = deque()

    def put(self, losses: Mapping[str, Tensor], images: Sequence[str]) -> None:
        """Begin to bring the losses of a batch to the host.

        Args:
            losses: components by name, each of one element, on one device.
            images: which batch it is.
        """
        if self._always_lands or next(iter(losses.values())).is_cuda:
            # Of tensors without dimensions, as Ultralytics' are, this is one kernel and nothing else.
            values = torch.stack([each.reshape(()) if each.dim() else each for each in losses.values()])
            if values.requires_grad:
                values = values.detach()
            finish = self._landings[values.shape, values.dtype, values.device].begin(values)
            self._due.append(_Coming(tuple(losses), finish, images))
        else:
            self._due.append(Reading({name: each.item() for name, each in losses.items()}, images))

    def read(self, wait: bool) -> list[Reading]:
        """The losses that were not handed out yet.

        Args:
            wait: for those of the newest batch too, if they are on their way. Those of the batch before it
                are always waited for, so that the host is never further ahead than one batch.
        """
        due, found = self._due, []
        while due and (wait or len(due) > 1 or isinstance(due[0], Reading)):
            first = due.popleft()
            found.append(first if isinstance(first, Reading) else first.read())
        return found
