"""The routes, declared once: what a flag, the doctor and a benchmark may name. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..runtime import Runtime


@dataclass(frozen=True)
class RouteKind:
    """What is known of a route before it is made.

    Attributes:
        name: as in a flag.
        devices: where it can serve.
        own: whether it is PyTorch's own kernels, with or without the vendor's library.
        package: the import that it needs beside torch; "" for none. Where that is missing the route is left
            out; its version is a part of what a measurement holds for. A field of ``patches.runtime.Runtime``
            has this name.
    """

    name: str
    devices: tuple[str, ...] = ("cuda", "cpu")
    own: bool = False
    package: str = ""

    def there(self, found: Runtime) -> bool:
        """Whether its package is."""
        return not self.package or bool(getattr(found, self.package))


ROUTES = (
    RouteKind("native", own=True),
    RouteKind("library", devices=("cuda",), own=True),
    RouteKind("gemm"),
    RouteKind("triton", devices=("cuda",), package="triton"),
    RouteKind("winograd", devices=("cuda",), package="triton"),
)

NAMES = tuple(route.name for route in ROUTES)

OWN = frozenset(route.name for route in ROUTES if route.own)
"""Those of them that are PyTorch's own kernels, with the vendor's library and without."""

PACKAGES = tuple(dict.fromkeys(route.package for route in ROUTES if route.package))
"""What routes import beside torch."""


def serving(device: str, found: Runtime) -> list[str]:
    """Names of the routes that can serve on a device, "cuda" or "cpu", with the packages that are there."""
    return [route.name for route in ROUTES if device in route.devices and route.there(found)]
