"""Loader workers that start fast, share what they can, and never see a GPU.

Workers are forked, but from a small server process that was started afresh (``forkserver``), not from the
trainer: the server imports PyTorch and Ultralytics once, before any GPU context exists in it, and each worker
begins as a copy of it that shares its memory. A spawned worker imports everything again, which takes seconds
and a quarter of a gigabyte each; a worker forked from the trainer inherits its GPU context, which hangs ROCm.

Nothing here imports PyTorch, so that the server can be started first and both import at the same time.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import TYPE_CHECKING, Any

from patches import children

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

PRELOAD = "toolkit.dataset.preload"
"""Module that the server imports before it forks the first worker."""

PREFETCH = 4
"""Batches that each worker keeps ready; mosaics differ in cost, so two would let a fast device wait."""

RING = PREFETCH + 2
"""Batches of a worker in shared memory: those ready, the one that is handed out, the one in the making."""


def loader_bytes(batch: int, workers: int, imgsz: int, channels: int = 1, *, validating: bool = True) -> int:
    """Shared memory of the batches that loaders keep ready, uint8.

    Args:
        batch: frames in a step.
        workers: loader processes.
        imgsz: side of the network's input, pixels.
        channels: that differ; the three of a model of colour images share one.
        validating: with Ultralytics' loader for validation, which has twice the workers and twice the batch
            and stays; training comes to its first batches without.
    """
    ahead = RING + (2 * 2 * PREFETCH if validating else 0)
    return ahead * workers * batch * channels * imgsz * imgsz


_started: set[int] = set()
"""Processes that have started their server: a process that was forked has to start its own."""


def start_server() -> BaseContext:
    """Start the server unless it runs; it imports on its own while this process goes on.

    The first time the GPUs are hidden in this process for a moment, so that no thread may open one then.

    Returns:
        The multiprocessing context whose processes are forked from it.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([PRELOAD])
    if os.getpid() not in _started:
        with _sheltered():
            forkserver.ensure_running()
        _started.add(os.getpid())
    return context


def use_server(loader: DataLoader[Any]) -> None:
    """Have the workers of a loader forked from the server; to be called before its first batch is."""
    if loader.num_workers:
        loader.multiprocessing_context = start_server()
        loader.worker_init_fn = _end_with_the_parent


def _end_with_the_parent(_: int) -> None:
    """A worker's parent is the server, so PyTorch's own watch does not see that the loader's process died."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _sheltered() -> Iterator[None]:
    """Hide GPUs from processes started meanwhile, and the user's folder from their imports.

    A loader worker has no business with either.
    """
    paths = children.paths()
    changes = {**dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"), "-1"), **paths}
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
