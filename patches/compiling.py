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
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager, suppress
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


_claims: Any = bytearray(256)
"""Shared by the processes that compile together: what one of them has begun to build for all."""

_INDEX = struct.Struct("H")
"""A job as it goes through a pipe; so few bytes are written and read whole."""


def compile_all(jobs: Sequence[Callable[[], object]], target: Target) -> None:
    """Run jobs that each compile a kernel, in processes forked from this one, which has not used a device.

    What does not compile, or kills its process, is left for the launch that needs it to report.
    """
    with beside(jobs, target) as wait:
        wait(len(jobs))


@contextmanager
def beside(jobs: Sequence[Callable[[], object]], target: Target) -> Iterator[Callable[[int], None]]:
    """Run such jobs, begun in their order, while this process goes on: inside, it may open the device.

    This process forks once, before the first line inside runs, and its fork forks the others: each begins as
    soon as it is there, and nobody here waits for the last. What nobody waited for is dropped at the end.

    Yields:
        What waits until as many jobs are done, counted from the first; for all, where one killed its process.
    """
    trim_kernels()
    with ExitStack() as stack:
        yield _begin(jobs, target, stack).wait if jobs else lambda count: None


class _Compilers:
    """What the process that wants kernels has of those that compile them.

    Args:
        done: pipe that each job comes out of when it is done, and that ends with the last process.
    """

    def __init__(self, done: int) -> None:
        self._done, self._seen = done, set[int]()

    def wait(self, count: int) -> None:
        """Wait for the first jobs."""
        while not self._seen.issuperset(range(count)):
            read = os.read(self._done, 4096)
            if not read:
                return
            self._seen.update(index for (index,) in _INDEX.iter_unpack(read))


def _begin(jobs: Sequence[Callable[[], object]], target: Target, stack: ExitStack) -> _Compilers:
    global _claims
    shared = multiprocessing.get_context("fork").RawArray
    _claims, dropped = shared("B", len(_claims)), shared("B", 1)
    due, to_do = os.pipe()
    done, finished = os.pipe()

    def compile_what_is_due() -> None:
        without_device(target)
        while (read := os.read(due, _INDEX.size)) and not dropped[0]:
            (index,) = _INDEX.unpack(read)
            with suppress(Exception):
                _build_launcher(jobs[index]())
            os.write(finished, read)

    def fork_compilers() -> None:
        os.close(to_do)
        os.close(done)
        count = min(len(jobs), os.cpu_count() or 1)
        for process in [_fork(compile_what_is_due) for _ in range(count)]:
            os.waitpid(process, 0)

    def end() -> None:
        dropped[0] = 1
        os.waitpid(first, 0)
        os.close(done)

    first = _fork(fork_compilers)
    stack.callback(end)
    os.close(due)
    os.close(finished)
    with suppress(BrokenPipeError):
        os.write(to_do, b"".join(map(_INDEX.pack, range(len(jobs)))))
    os.close(to_do)
    return _Compilers(done)


def _fork(call: Callable[[], None]) -> int:
    """A process that makes a call and ends; its number."""
    process = os.fork()
    if not process:
        with suppress(BaseException):
            call()
        os._exit(0)
    return process


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
