"""Which tile serves which problem: measured figures as data, chosen by a few integers."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Sizes of one program's tile, and how it is compiled."""

    m: int
    n: int
    k: int
    warps: int
    stages: int


class Tiles:
    """The choice for one device.

    Attributes:
        units: compute units (streaming multiprocessors) of the device.
    """

    def __init__(self, units: int) -> None:
        self.units = units

    def gather(self, filters: int, pixels: int, depth: int, copies: int, flat: bool) -> Tile:
        """The tile for ``gather_gemm``.

        Args:
            filters, pixels: extent of the product's result; depth: products summed into each.
            copies: independent products, groups times phases.
            flat: whether channels and taps are summed as one axis.
        """
        m = 16 if filters <= 16 else 32 if filters <= 32 else 64
        n = 256 if m == 16 else 128
        while n > 64 and -(-filters // m) * -(-pixels // n) * copies < 2 * self.units:
            n //= 2
        return Tile(m, n, 16, 4, 2)

    def weight(self, filters: int, pairs: int, pixels: int, groups: int, channels: int) -> tuple[Tile, int]:
        """The tile for ``weight_gradient`` and over how many splits the pixels are spread."""
        m = 16 if filters <= 16 else 32 if filters <= 32 else 64
        n = 64 if m < 64 else 64
        tile = Tile(m, n, 16, 4, 1)
        return tile, self.splits(-(-filters // m) * -(-pairs // n) * groups, pixels, 8 * tile.k)

    def splits(self, tiles: int, pixels: int, least: int) -> int:
        """How many programs share the pixels of one tile: enough to fill the device, none with under ``least``."""
        return max(1, min(-(-4 * self.units // tiles), pixels // least, 512))
