"""Two habits of Ultralytics that hang or surprise on the cards this package is for.

``check_amp`` loads another model, downloading it if need be, and judges the card by that; here the model that
is about to be trained is judged. ``InfiniteDataLoader`` forks its workers after the GPU context exists, which
hangs ROCm; here they are spawned, and end as forked ones do (:class:`Worker`). Ultralytics is imported by the
functions, not by this module.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Iterator
from multiprocessing import context
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

AMP_TOLERANCE = 0.1
"""Largest difference between the outputs with and without autocast, relative to the largest output."""

_undo: list[Callable[[], None]] = []


class Worker(context.SpawnProcess):
    """A spawned process that ends when its work has ended, without taking the interpreter down first.

    A forked process ends so. A spawned one finalizes Python. Until version 3.14, Python then ends a thread
    that asks for the interpreter by unwinding its stack, and the thread that hands a loader's batches over
    runs C++ that must not be unwound: now and then the worker aborts ("terminate called without an active
    exception"), and the process that closes the loader fails with it.
    """

    def _bootstrap(self, *args: Any, **kwargs: Any) -> NoReturn:
        os._exit(super()._bootstrap(*args, **kwargs))  # type: ignore[misc]


class WorkerContext(context.SpawnContext):
    """The start method "spawn" of multiprocessing, with :class:`Worker` for its processes."""

    Process = Worker


def apply() -> None:
    """Patch Ultralytics, also the modules that already hold ``check_amp`` by name; once is enough."""
    if _undo:
        return
    from ultralytics.data.build import InfiniteDataLoader
    from ultralytics.utils import checks

    loader: Any = InfiniteDataLoader
    original_check, original_init = checks.check_amp, loader.__init__

    @functools.wraps(original_init)
    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        if kwargs.get("num_workers", 0) > 0 and kwargs.get("multiprocessing_context") is None:
            kwargs["multiprocessing_context"] = WorkerContext()
        original_init(self, *args, **kwargs)

    loader.__init__ = init
    _replace_everywhere("check_amp", original_check, check_amp)

    def undo() -> None:
        loader.__init__ = original_init
        _replace_everywhere("check_amp", check_amp, original_check)

    _undo.append(undo)


def restore() -> None:
    """Undo :func:`apply`."""
    while _undo:
        _undo.pop()()


def check_amp(model: nn.Module) -> bool:
    """Whether ``model`` itself answers alike with and without autocast on the device that it is on.

    Args:
        model: an Ultralytics model; its training mode and its batch norm statistics are left as they are.

    Returns:
        False on a CPU, which trains in fp32, and where autocast raises, gives an output that is not finite,
        or differs by more than :data:`AMP_TOLERANCE`.
    """
    device = next(model.parameters()).device
    if device.type != "cuda":
        return False
    return agrees_under_autocast(model, device)


def agrees_under_autocast(model: nn.Module, device: torch.device) -> bool:
    """Compare two forward passes of ``model`` on one random image, fp32 against autocast."""
    first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, first.in_channels, 128, 128, generator=generator).to(device)
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            plain = list(_tensors(model(image)))
            with torch.autocast(device.type):
                mixed = list(_tensors(model(image)))
    except RuntimeError:
        return False
    finally:
        for module, mode in training.items():
            module.training = mode
    return all(_close(a.float(), b.float()) for a, b in zip(plain, mixed, strict=True))


def _close(plain: Tensor, mixed: Tensor) -> bool:
    limit = AMP_TOLERANCE * float(plain.abs().max()) if plain.numel() else 0.0
    return bool(torch.isfinite(mixed).all()) and bool(((plain - mixed).abs() <= limit).all())


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from _tensors(each)


def _replace_everywhere(name: str, old: object, new: object) -> None:
    """Rebind ``name`` in every Ultralytics module that imported ``old`` by name."""
    for module_name, module in list(sys.modules.items()):
        if module_name.partition(".")[0] == "ultralytics" and vars(module).get(name) is old:
            setattr(module, name, new)
