"""The device that PyTorch works on: which one, with which patches, and where Ultralytics' words go."""

from __future__ import annotations

import logging
import shutil
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path

import torch

import patches
import patches.ultralytics
from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.machine import checks, kernel
from toolkit.machine.cards import default_number
from toolkit.machine.eager import compiler_left_out

with redirect_stdout(sys.stderr):
    # When it is first imported, Ultralytics announces the settings file that it makes.
    from ultralytics.utils import LOGGER, USER_CONFIG_DIR, tqdm
for _handler in LOGGER.handlers:
    if type(_handler) is logging.StreamHandler and _handler.stream is sys.stderr:
        _handler.setStream(sys.stdout)


AUTO = "auto"
"""The device that is taken without a flag; of a training also the batch and the workers that fit it."""


def resolve_device(flag: str | None) -> str:
    """The device in Ultralytics' words: ``cpu``, ``0``, ``0,1``; without a flag or with ``auto`` the GPU
    that `toolkit doctor` recommends, else the CPU.

    Raises:
        ToolkitError: the flag names a GPU that is not there.
    """
    if flag == AUTO:
        flag = None
    device = _choose(flag)
    console.detail(f"device {device}" + ("" if flag else ", chosen by the toolkit"))
    return device


def _choose(flag: str | None) -> str:
    gpus = torch.cuda.device_count()
    if not flag and not gpus:
        return "cpu"
    if not flag:
        hip = bool(torch.version.hip)
        return str(default_number(kernel.read(), gpus, hip=hip)) if hip and gpus > 1 else "0"
    flag = flag.removeprefix("cuda:")
    if flag == "cpu":
        return flag
    wanted = flag.split(",")
    if not all(part.isdecimal() and int(part) < gpus for part in wanted):
        closed = checks.closed_devices() if torch.version.hip else []
        raise ToolkitError(
            f"no device {flag}",
            found=f"{gpus} GPU(s) that PyTorch {torch.__version__} can use"
            + "".join(f"; {each.subject} {each.found}" for each in closed[:1]),
            expected="cpu, or GPU numbers such as 0 or 0,1",
            fix=closed[0].advice if closed else "`toolkit doctor` says what this machine has",
        )
    return ",".join(wanted)


def torch_device(device: str) -> torch.device:
    """The (first) torch device of :func:`resolve_device`'s answer."""
    return torch.device("cpu" if device == "cpu" else f"cuda:{device.split(',')[0]}")


@contextmanager
def running(device: str, *, patched: bool = True, compiled: bool = False) -> Iterator[None]:
    """Inside, convolutions on ``device`` go through the patches and Ultralytics is quiet and offline.

    Args:
        device: what :func:`resolve_device` returned.
        patched: False leaves the convolutions and Ultralytics as they are, but for the logger and the fonts.
        compiled: whether PyTorch's compiler will be at work; else it is not imported.
    """
    _provide_fonts()
    with ExitStack() as stack:
        if not compiled:
            stack.enter_context(compiler_left_out())
        stack.enter_context(_output_to_stderr())
        if patched:
            stack.enter_context(patched_convolutions(torch_device(device).type))
            stack.enter_context(_empty_tensors_left_empty())
            patches.ultralytics.apply()
            stack.callback(patches.ultralytics.restore)
        yield


@contextmanager
def _empty_tensors_left_empty() -> Iterator[None]:
    """With deterministic algorithms PyTorch (2.2 or newer) fills each tensor that is made empty, for the
    case that somebody reads what nobody wrote: one kernel more for each convolution and batch norm.
    """
    deterministic = getattr(torch.utils, "deterministic", None)
    if deterministic is None:
        yield
        return
    before = deterministic.fill_uninitialized_memory
    deterministic.fill_uninitialized_memory = False
    try:
        yield
    finally:
        deterministic.fill_uninitialized_memory = before


@contextmanager
def patched_convolutions(kind: str, route: str = "auto") -> Iterator[None]:
    """:func:`patches.enabled` on "cuda" or "cpu".

    Raises:
        ToolkitError: an unknown or missing route.
    """
    with ExitStack() as stack:
        try:
            stack.enter_context(patches.enabled(kind, route))
        except ValueError as error:
            raise ToolkitError("the convolution patches cannot be enabled", found=str(error)) from error
        yield


@contextmanager
def _output_to_stderr() -> Iterator[None]:
    """Ultralytics prints its log and its bars on standard output, which belongs to results.

    With ``-q`` its warnings are left; its bars go with its log's level.
    """
    level = LOGGER.level
    if console.level() is console.Level.QUIET:
        LOGGER.setLevel(logging.WARNING)
    redirected = []
    for handler in LOGGER.handlers:
        if type(handler) is logging.StreamHandler:
            if getattr(handler.stream, "closed", False):  # by whoever had standard output replaced before
                handler.stream = sys.stderr
            else:
                redirected.append((handler, handler.setStream(sys.stderr)))
    if not sys.stderr.isatty():
        tqdm.is_noninteractive_console = lambda: True  # a line a minute, no carriage returns
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        LOGGER.setLevel(level)
        for handler, before in redirected:
            if before is not None:
                handler.setStream(before)


def _provide_fonts() -> None:
    """Put a free font where Ultralytics looks for Arial, which it would fetch from the network otherwise."""
    from matplotlib import get_data_path

    source = Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    for name in ("Arial.ttf", "Arial.Unicode.ttf"):
        target = Path(USER_CONFIG_DIR) / name
        if not target.exists():
            shutil.copyfile(source, target)
