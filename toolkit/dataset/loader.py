"""Loader workers that start fast, share what they can, and never see a GPU.

Workers are forked, but from a small server process that was started afresh (``forkserver``), not from the
trainer: the server imports PyTorch and Ultralytics once, before any GPU context exists in it, and each worker
begins as a copy of it that shares its memory. A spawned worker imports everything again, which takes seconds
and a quarter of a gigabyte each; a worker forked from the trainer inherits its GPU context, which hangs ROCm.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any

import torch
from torch.utils.data import Sampler
from ultralytics.data.build import InfiniteDataLoader, seed_worker

from toolkit.dataset.ultralytics import LTDv2Dataset

PRELOAD = "toolkit.dataset.preload"
"""Module that the server imports before it forks the first worker."""

PREFETCH = 4
"""Batches that each worker keeps ready; mosaics differ in cost, so two would let a fast device wait."""


def worker_context() -> BaseContext:
    """The multiprocessing context for loader workers: a fork server that has imported what they need."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    with _without_gpu():
        forkserver.ensure_running()
    return context


@contextmanager
def _without_gpu() -> Iterator[None]:
    """Hide GPUs from processes started meanwhile: a loader worker has no business with one."""
    names = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "-1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def build_loader(
    dataset: LTDv2Dataset,
    batch: int,
    workers: int,
    *,
    shuffle: bool,
    sampler: Sampler[int] | None = None,
    pin_memory: bool = False,
    drop_last: bool = False,
    seed: int = 0,
) -> InfiniteDataLoader:
    """A loader whose workers persist over epochs, for training or validation.

    Args:
        dataset: what to load.
        batch: samples a batch.
        workers: processes; 0 loads in this one. Never more than there are batches.
        shuffle: whether the order is random; a ``sampler`` decides it instead if given.
        sampler: yields indices of the dataset.
        pin_memory: copy batches to page-locked memory, so that transfers to the GPU run beside training.
        drop_last: leave out a last batch that is not full.
        seed: of the order.
    """
    batch = min(batch, len(dataset))
    workers = min(workers, -(-len(dataset) // batch))
    options: dict[str, Any] = {}
    if workers:
        options = {"multiprocessing_context": worker_context(), "prefetch_factor": PREFETCH}
    return InfiniteDataLoader(
        dataset=dataset,
        batch_size=batch,
        shuffle=shuffle and sampler is None,
        sampler=sampler,
        num_workers=workers,
        pin_memory=pin_memory,
        drop_last=drop_last and len(dataset) > batch,
        collate_fn=dataset.collate_fn,
        worker_init_fn=seed_worker,
        generator=torch.Generator().manual_seed(seed),
        **options,
    )
