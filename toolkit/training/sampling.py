"""The order of the samples as a function of (seed, epoch), and a loader that can enter an epoch anywhere.

With a dataset whose samples depend on (seed, epoch, image, batch size) alone, nothing remembers what ran
before. So a run goes on, with any number of loader workers and of ranks, with exactly the samples that the
run that was cut off would have drawn.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from toolkit.dataset.batches import BatchMemory, Copies
from toolkit.dataset.grey import channels_that_differ
from toolkit.dataset.loader import PREFETCH, RING, use_server
from toolkit.dataset.order import EpochOrder, Rows
from toolkit.runs.folder import Batch

WORKER_RETRIES = 3
"""Times that loader workers may die over one batch before the batch is left to the supervisor."""


SEEDS = 64
"""Batches whose seeds are derived together: it takes as long as to derive one."""


def batch_seed(seed: int, epoch: int, batch: int) -> int:
    """A 32-bit seed that depends on all three (numpy's SeedSequence)."""
    return _seeds(seed, epoch, batch // SEEDS)[batch % SEEDS]


@lru_cache(maxsize=1)
def _seeds(seed: int, epoch: int, block: int) -> tuple[int, ...]:
    return tuple(np.random.SeedSequence((seed, epoch, block)).generate_state(SEEDS).tolist())


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's generators of this process (of the CPU, and of cards in use).

    They draw what they draw after ``torch.manual_seed``, which costs more than all else that is done for a
    batch here: for each kind of device that is not in use it keeps the seed, and with it the caller's stack
    as text.
    """
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - Ultralytics' transforms draw from the global generator
    torch.default_generator.manual_seed(seed)
    for generator in torch.cuda.default_generators:  # none before the first use of a card
        generator.manual_seed(seed)


class EpochSampler(Sampler[int]):
    """What is left of one epoch, batch after batch; of each batch the part of one rank.

    Yields ``epoch * span + sample``, which tells a seeded dataset the epoch as well
    (:class:`toolkit.dataset.ultralytics.LTDv2Dataset`).

    Args:
        images: in an epoch.
        batch: images in a batch, over all ranks; a multiple of ``ranks``.
        seed: of the run.
        rank, ranks: this process among those that share each batch.
        order: what an epoch shows; each image once by default.
    """

    def __init__(
        self,
        images: int,
        batch: int,
        seed: int,
        rank: int = 0,
        ranks: int = 1,
        order: EpochOrder | None = None,
    ) -> None:
        self.images, self.batch, self.seed = images, batch, seed
        self.order = order or EpochOrder(images, seed)
        self.rank, self.ranks = rank, ranks
        self.epoch = 0
        self.start = 0
        self.skipped: frozenset[Batch] = frozenset()
        self.is_last = False

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch."""
        whole, rest = divmod(self.images, self.batch)
        return (whole * self.batch + max(rest, self.ranks if rest else 0)) // self.ranks

    def enter(
        self,
        epoch: int,
        start: int = 0,
        skipped: frozenset[Batch] = frozenset(),
        *,
        is_last: bool = False,
    ) -> None:
        """Continue with ``epoch`` at sample ``start``, without the batches ``skipped``.

        Nothing is loaded ahead of the end of an epoch that ``is_last``.
        """
        self.epoch, self.start, self.skipped, self.is_last = epoch, start, skipped, is_last

    def batches(self) -> Iterator[Batch]:
        """The batches that are left."""
        return self._batches(self.epoch, self.start)

    def following(self) -> Batch | None:
        """The batch that comes behind this epoch; None where nothing is loaded ahead."""
        return None if self.is_last else next(self._batches(self.epoch + 1, 0), None)

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        for first in range(start, self.images, self.batch):
            batch = Batch(epoch, first, self.batch)
            if batch not in self.skipped:
                yield batch

    def end(self) -> Batch:
        """Behind the last batch, where there would be another."""
        return Batch(self.epoch, -(-self.images // self.batch) * self.batch, self.batch)

    def __iter__(self) -> Iterator[int]:
        samples = self.order.samples(self.epoch)
        for batch in self.batches():
            yield from self._of_this_rank(batch, samples)

    def ahead(self) -> Iterator[list[int]]:
        """What is left of the epoch, batch by batch, and behind it the next epoch, and the next."""
        epoch, start = self.epoch, self.start
        while True:
            samples = self.order.samples(epoch)
            for batch in self._batches(epoch, start):
                yield self._of_this_rank(batch, samples)
            if self.is_last:
                return
            epoch, start = epoch + 1, 0

    def _of_this_rank(self, batch: Batch, samples: Rows) -> list[int]:
        positions = np.arange(batch.first, min(batch.first + self.batch, self.images))
        # The last batch may hold fewer images than there are ranks: every rank still needs one.
        shared = np.resize(positions, max(len(positions), self.ranks))
        mine: list[int] = (batch.epoch * self.order.span + samples[shared[self.rank :: self.ranks]]).tolist()
        return mine


class _Ahead:
    """The batches of an order as PyTorch's loader asks for them, without a border between epochs."""

    def __init__(self, order: EpochSampler) -> None:
        self.order = order

    def __iter__(self) -> Iterator[list[int]]:
        return self.order.ahead()


class ResumableLoader(DataLoader[Any]):
    """Loads what is left of an epoch and knows how far the epoch has come.

    A worker that dies costs nothing: the workers are started again at the batch that was due.

    At the end of an epoch the workers go on with the next one. If another is entered then, or not at its
    beginning, what they have loaded is dropped.

    A worker is at most :data:`PREFETCH` batches ahead of the one that is handed out, which is copied before
    another is asked for: so its memory may be used again after :data:`RING` batches.

    Attributes:
        handed_out: the batch last yielded; None before the first.
        following: the batch that is due after it; behind the last one, where there would be another.
        samples_done: samples of the epoch, over all ranks, up to the end of that batch.

    Args:
        dataset: an Ultralytics dataset.
        order: which samples.
        workers: loader processes, kept over epochs.
        pin_memory: for copies to a GPU.
        on_worker_death: told about each death.
    """

    def __init__(
        self,
        dataset: Any,
        order: EpochSampler,
        *,
        workers: int,
        pin_memory: bool,
        on_worker_death: Callable[[str], None],
    ) -> None:
        dataset.batches = BatchMemory(RING)
        for_workers: dict[str, Any] = {"persistent_workers": True, "prefetch_factor": PREFETCH}
        super().__init__(
            dataset,
            batch_size=order.batch // order.ranks,
            sampler=order,
            num_workers=workers,
            collate_fn=partial(dataset.batches.collate, dataset.collate_fn),
            pin_memory=pin_memory,
            **(for_workers if workers else {}),
        )
        use_server(self)
        if workers:
            object.__setattr__(self, "batch_sampler", _Ahead(order))  # a DataLoader forbids it otherwise
        self.order = order
        self.on_worker_death = on_worker_death
        self.handed_out: Batch | None = None
        self.following = order.end()
        self.samples_done = 0
        self._comes_next: tuple[Batch, frozenset[Batch]] | None = None
        self._copies = Copies()
        # Memory of the workers that stays mapped: to map it anew for each batch takes longer than to copy it.
        self._mapped: deque[Tensor] = deque(maxlen=RING * workers)

    def __len__(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.order.images // self.order.batch)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: no worker is started before the first batch is asked for.
        order = self.order
        deaths: Counter[Batch] = Counter()
        left = deque(order.batches())
        batches: Iterator[Any] | None = None
        if left and self._iterator is not None and self._comes_next == (left[0], order.skipped):
            batches = self._iterator
        self._comes_next = None
        while left:
            due = left[0]
            try:
                if batches is None:
                    batches = super().__iter__()
                batch = next(batches)
            except (
                Exception
            ) as error:  # a dead worker shows as a RuntimeError, a reset connection, a lost file
                deaths[due] += 1
                if not self._worker_is_dead() or deaths[due] >= WORKER_RETRIES:
                    raise
                self.on_worker_death(f"{type(error).__name__}: {error}")
                self.reset()
                batches = None
                continue
            if self.num_workers and not self.pin_memory:
                images = batch["img"]
                self._mapped.append(images)
                copy = self._copies.of(images[:, : channels_that_differ(images)])
                batch["img"] = copy.expand_as(images)
            self.handed_out = left.popleft()
            self.following = left[0] if left else order.end()
            self.samples_done = order.start = min(due.first + due.size, order.images)
            coming = left[0] if left else order.following()
            self._comes_next = (coming, order.skipped) if coming is not None and self.num_workers else None
            yield batch

    @property
    def batch_number(self) -> int:
        """Of the batch last yielded, in its epoch; -1 before the first."""
        return self.handed_out.number if self.handed_out else -1

    def _worker_is_dead(self) -> bool:
        # A connection breaks a moment before its process counts as dead.
        sentinels = [worker.sentinel for worker in getattr(self._iterator, "_workers", ())]
        return bool(sentinels and wait(sentinels, timeout=2.0))

    def reset(self) -> None:
        """Stop the workers; the next batch starts new ones, which see the dataset as it is then."""
        self.close()
        self._iterator = None

    def close(self) -> None:
        """Stop the workers."""
        self._mapped.clear()
        if self._iterator is not None and self.num_workers:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined]
