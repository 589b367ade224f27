"""Every route by its name."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable

from .. import COLUMN_BUDGET
from .gemm import Gemm
from .native import Native
from .problem import Route
from .registry import NAMES, ROUTES


def make(name: str, column_budget: int = COLUMN_BUDGET) -> Route:
    """A route by its name, or any other as "module:attribute", which is called without arguments.

    Args:
        name: one of :data:`NAMES`, or an import path.
        column_budget: limit of the column buffer of the route "gemm", bytes.

    Raises:
        ValueError: no such route.
        ImportError: the route needs a package that is not there.
        RuntimeError: Triton was imported before it was made safe for this card.
    """
    for kind in ROUTES:
        if kind.name == name and kind.package and importlib.util.find_spec(kind.package) is None:
            raise ImportError(f"{kind.package} is not installed")
    if name in ("native", "library"):
        return Native(library=name == "library")
    if name == "gemm":
        return Gemm(column_budget)
    if name in ("triton", "winograd"):
        from . import triton_kernels

        triton_kernels.prepare()
        return triton_kernels.TritonRoute() if name == "triton" else triton_kernels.WinogradRoute()
    module, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"route {name!r}: expected one of {', '.join(NAMES)}")
    route: Route = getattr(importlib.import_module(module), attribute)()
    return route


def available(
    names: Iterable[str], column_budget: int, wanted: str, note: Callable[[str], None]
) -> dict[str, Route]:
    """The routes that can be made on this machine, by name.

    Args:
        names, column_budget: see :func:`make`.
        wanted: the route that was asked for by name, if any.
        note: called with a sentence for each route whose kernels cannot be used.

    Raises:
        ValueError: a package is missing that the wanted route needs.
    """

    def attempt(name: str) -> Route | None:
        try:
            return make(name, column_budget)
        except ImportError as error:
            if name == wanted:
                raise ValueError(f"route {name!r} is not available: {error}") from error
        except RuntimeError as error:
            note(f"route {name} is not available: {error}")
        return None

    made = {name: attempt(name) for name in names}
    return {name: route for name, route in made.items() if route is not None}
