"""PyTorch's compiler stays out of a process that compiles nothing.

PyTorch 2 imports it, with sympy and some nine hundred other modules, when an optimizer is made and makes a
step, to have it leave that alone; from 2.10 on also when deterministic algorithms are asked for, to tell it
so. torchvision imports it to ask it one question in one of its functions.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch.optim import Optimizer

COMPILER = "torch._dynamo"

Function = Callable[..., Any]


@contextmanager
def compiler_left_out() -> Iterator[None]:
    """Inside, optimizers and deterministic algorithms come without PyTorch's compiler.

    Once somebody has imported it, everything is as outside. Where PyTorch asks for it in other ways than from
    2.0 to 2.14, it is imported as ever.
    """
    set_deterministic = torch.use_deterministic_algorithms
    replaced: list[tuple[type, str, Function]] = []
    for kind in (each for each in vars(torch.optim).values() if isinstance(each, type)):
        for name, function in list(vars(kind).items()):
            if (short := _shortened(function)) is not None:
                setattr(kind, name, short)
                replaced.append((kind, name, function))
    torch.use_deterministic_algorithms = _by_debug_mode(set_deterministic)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms = set_deterministic
        for kind, name, function in replaced:
            _put_back(kind, name, function)


def _put_back(kind: type, name: str, function: Function) -> None:
    hooked = hasattr(getattr(kind, name), "hooked")  # a step, when the first optimizer of its kind was made
    setattr(kind, name, Optimizer.profile_hook_step(function) if hooked else function)
    if hooked:
        getattr(kind, name).hooked = True


def _shortened(function: Any) -> Function | None:
    """A method of an optimizer without the compiler; None for one that does not import it."""
    plain = getattr(function, "__wrapped__", None)
    if plain is None or not isinstance(function, FunctionType):
        return None
    if function.__globals__["__name__"] == "torch._compile":
        pass
    elif function.__code__.co_name == "_use_grad":  # a step, between two marks for the compiler
        plain = _with_grad_as_wanted(plain)
    else:
        return None

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        return (function if COMPILER in sys.modules else plain)(*arguments, **named)

    return call


def _with_grad_as_wanted(step: Function) -> Function:
    def call(optimizer: Any, *arguments: Any, **named: Any) -> Any:
        with torch.set_grad_enabled(optimizer.defaults["differentiable"]):
            return step(optimizer, *arguments, **named)

    return call


def _by_debug_mode(original: Function) -> Function:
    def use_deterministic_algorithms(mode: bool, *, warn_only: bool = False) -> None:
        if COMPILER in sys.modules:
            original(mode, warn_only=warn_only)
        else:
            torch.set_deterministic_debug_mode(("warn" if warn_only else "error") if mode else "default")

    return use_deterministic_algorithms


def import_torchvision() -> Any:
    """The module torchvision, whose suppression of overlaps Ultralytics takes if somebody has imported it.

    Its ``ops.roi_align`` asks the compiler whether it supports a device. The compiler is imported when that
    is called, or when torchvision wants anything else of it.
    """
    name = f"{COMPILER}.utils"
    if COMPILER not in sys.modules and "torchvision" not in sys.modules:
        sys.modules[name] = _StandIn(name)
    try:
        return importlib.import_module("torchvision")
    finally:
        if isinstance(sys.modules.get(name), _StandIn):
            del sys.modules[name]


class _StandIn(ModuleType):
    """A module of the compiler, until something of it is used."""

    def is_compile_supported(self, device_type: str) -> Any:
        return self._whole().is_compile_supported(device_type)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system looks whether there are such
            raise AttributeError(name)
        return getattr(self._whole(), name)

    def _whole(self) -> ModuleType:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return importlib.import_module(self.__name__)
