"""The routes, declared once: what a flag, the doctor and a benchmark may name. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RouteKind:
    """What is known of a route before it is made.

    Attributes:
        name: as in a flag.
        does: what it does, in a few words.
        devices: where it can serve.
        own: whether it is PyTorch's own kernels, with or without the vendor's library.
    """

    name: str
    does: str
    devices: tuple[str, ...] = ("cuda", "cpu")
    own: bool = False


ROUTES = (
    RouteKind("native", "PyTorch's own kernels", own=True),
    RouteKind("library", "the same with cuDNN or MIOpen", devices=("cuda",), own=True),
    RouteKind("gemm", "columns and a product"),
    RouteKind("triton", "fused kernels", devices=("cuda",)),
)

NAMES = tuple(route.name for route in ROUTES)
