"""Compiling Triton kernels on all processors before a device is touched.

Triton compiles when a kernel is first launched, one after the other, about a second each. Everything that a
compiled kernel depends on is known without the device: its types, constants and the name of the target. So
processes that never open the device fill Triton's cache, and launches find it there.
"""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple

import torch

from .environment import trim_kernels

HANDED_DOWN = "CONVROUTES_TARGET"
"""Variable in which a process that has opened the device tells its children what it is, as JSON."""


class Target(NamedTuple):
    """What kernels are compiled for, and the card's compute units, from which tiles are chosen."""

    backend: str
    architecture: int | str
    warp: int
    units: int


def can_fork() -> bool:
    """Whether this system can; without, each kernel is compiled when it is first launched."""
    return "fork" in multiprocessing.get_all_start_methods()


def handed_down(device: str) -> dict[str, str]:
    """Variables that spare a child asking what ``device`` is; none where this process has not opened it."""
    if device == "cpu" or not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return {}
    return {HANDED_DOWN: json.dumps(_ask(device))}


def target_of(device: str) -> Target:
    """The target of a device, as it was handed down or asked by a process of its own.

    This process stays without a context.

    Raises:
        RuntimeError: the device does not answer.
    """
    if known := os.environ.get(HANDED_DOWN):
        return Target(*json.loads(known))
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        try:
            return pool.submit(_ask, device).result()
        except BrokenProcessPool as error:
            raise RuntimeError(f"a process that asked {device} what it is died") from error


def target_here() -> Target:
    """The target of the device in use; opens it."""
    return _ask(f"cuda:{torch.cuda.current_device()}")


def _ask(device: str) -> Target:
    properties = torch.cuda.get_device_properties(device)
    units = properties.multi_processor_count
    if torch.version.hip is not None:
        name = properties.gcnArchName.partition(":")[0]
        return Target("hip", name, getattr(properties, "warp_size", 32), units)
    return Target("cuda", properties.major * 10 + properties.minor, 32, units)


class Deviceless:
    """Stands in for Triton's driver where kernels are compiled and not run."""

    def __init__(self, target: Target) -> None:
        self._target = target

    def get_current_device(self) -> int:
        """The only one."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """The default one."""
        return 0

    def get_current_target(self) -> Any:
        """What is compiled for."""
        from triton.backends.compiler import GPUTarget

        return GPUTarget(self._target.backend, self._target.architecture, self._target.warp)


_jobs: Sequence[Callable[[], object]] = ()
"""What the processes of a pool inherit: a kernel cannot be sent."""

_claims: Any = bytearray(256)
"""Shared by the processes of a pool: what one of them has begun to build for all."""


def compile_all(jobs: Sequence[Callable[[], object]], target: Target) -> None:
    """Run jobs that each compile a kernel, in processes forked from this one, which has not used a device.

    What does not compile, or kills its process, is left for the launch that needs it to report.
    """
    with beside(jobs, target) as wait:
        wait(len(jobs))


@contextmanager
def beside(jobs: Sequence[Callable[[], object]], target: Target) -> Iterator[Callable[[int], None]]:
    """Run such jobs, in their order, while this process goes on: inside, it may open the device.

    Every process is forked before the first line inside runs. What nobody waited for is dropped at the end.

    Yields:
        What waits until as many jobs are done, counted from the first.
    """
    global _jobs, _claims
    trim_kernels()
    context = multiprocessing.get_context("fork")
    _jobs, _claims = jobs, context.RawArray("B", len(_claims))
    pool = ProcessPoolExecutor(
        min(len(jobs), os.cpu_count() or 1) or 1,
        mp_context=context,
        initializer=without_device,
        initargs=(target,),
    )
    pending: list[Future[None]] = []

    def wait(count: int) -> None:
        with suppress(BrokenProcessPool):
            for each in pending[:count]:
                each.result()

    try:
        with suppress(BrokenProcessPool):
            pending += [pool.submit(_compile, index) for index in range(len(jobs))]
        yield wait
    finally:
        pool.shutdown(cancel_futures=True)
        _jobs = ()


def die_of_aborts() -> None:
    """In a process that compiles: an abort of LLVM ends it, which others notice.

    A fork inherits the handlers of LLVM and its linker, and these can hand the signal to each other without
    end: the process then works for ever, and who waits for it waits for ever.
    """
    signal.signal(signal.SIGABRT, signal.SIG_DFL)


def without_device(target: Target) -> None:
    """Let this process compile for a target, whatever devices there are, and never run a kernel."""
    die_of_aborts()
    from triton.runtime import driver

    driver.set_active(Deviceless(target))


def _compile(index: int) -> None:
    with suppress(Exception):
        _build_launcher(_jobs[index]())


_DRIVERS = {"cuda": ("nvidia", "CudaUtils", "CudaLauncher"), "hip": ("amd", "HIPUtils", "HIPLauncher")}
"""Of Triton, by the backend of a target: folder, and the classes whose making calls the C compiler."""


def _build_launcher(compiled: Any) -> None:
    """Have what Triton builds in C when a kernel is first loaded in its cache by then: 0.3 s for each.

    That is a module for all kernels and, up to Triton 3.6, a launcher for each kernel and kind of arguments.
    """
    folder, utils, launcher = _DRIVERS[compiled.metadata.target.backend]
    driver = importlib.import_module(f"triton.backends.{folder}.driver")
    if _claim(utils):
        with suppress(Exception):
            getattr(driver, utils)()
    if _claim(f"{compiled.metadata.name} {compiled.src.signature}"):
        getattr(driver, launcher)(compiled.src, compiled.metadata)


def _claim(what: str) -> bool:
    """Whether no other process of the pool builds this; two that ask at the very same time both do."""
    slot = zlib.crc32(what.encode()) % len(_claims)
    claimed, _claims[slot] = _claims[slot], 1
    return not claimed
