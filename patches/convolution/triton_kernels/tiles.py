"""Which tile serves which problem: a table of measured figures, and the few integers that choose from it.

Times are sums over the layers of YOLOv8n at batch 16, 640 pixels, on one H200; a search is that of
``scripts/tune_triton.py``, which tries about twenty tiles for each layer.
"""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """Sizes of one program's tile (channels written, pixels or pairs, products per step), and how it is
    compiled.

    Attributes:
        resident: programs that a compute unit should hold at once; used where the work is split to fill the
            device.
    """

    m: int
    n: int
    k: int
    warps: int
    stages: int
    resident: int = 4


class Table(NamedTuple):
    """Tiles by the channels written: up to 16, up to 32, up to 64, more; for the two products.

    Attributes:
        gather: for forward and input gradient; the step is halved, down to 16, until the channels read are a
            multiple of it.
        flat: where channels and taps are summed as one axis, for few channels.
        small: where even so compute units would be idle.
        weight: for the weight gradient.
        weight_last: the same in channels_last; None where ``weight`` serves both.
        blocked: whether ``gather_gemm`` has the registers to sum each step on its own.
        ahead: whether it has those to load a step ahead in channels_last, where loads are wide.
        outputs: pixels times channels of a tile of ``grouped_gather``, which unrolls the taps: for up to nine
            taps, and for more.
        taps: the most in a tile of ``grouped_weight_gradient``: with 32-bit offsets, and with 64.
        spare: for more than 16 channels written where addresses take the most registers: 64-bit offsets,
            channels_last where nothing is aligned, or fewer channels read than a step takes; None where the
            other tiles leave room for them. With 64-bit offsets up to 16 take the tile of ``flat``.
        spare_weight: the same for the weight gradient, with 64-bit offsets.
        winograd: for ``winograd_gather``, whose ``n`` are squares of 2 x 2 pixels; None where nobody has
            looked whether it pays.
        winograd_small: for more than 32 channels written where workgroups are few, or addresses take the most
            registers.
        in_bytes: whether loads take offsets in bytes; see ``offsets``.
        filled: share of the channels in its tiles that there must be, else smaller ones serve; 0: any. The
            tiles of ``weight_last`` are chosen without.
    """

    gather: tuple[Tile, Tile, Tile, Tile]
    flat: tuple[Tile, Tile, Tile, Tile]
    small: Tile
    weight: tuple[Tile, Tile, Tile, Tile]
    weight_last: tuple[Tile, Tile, Tile, Tile] | None
    blocked: bool
    ahead: bool
    outputs: tuple[int, int]
    taps: tuple[int, int]
    spare: Tile | None
    spare_weight: Tile | None
    winograd: tuple[Tile, Tile, Tile, Tile] | None = None
    winograd_small: Tile | None = None
    in_bytes: bool = False
    filled: float = 0.0


# fp32. Forward and input gradient together: 8.3 ms with a search's best tile for each layer, 8.5 ms with
# these; a step of 32 that runs past 16 channels costs 1.74x; the small tile takes 0.92x at 20 x 20 pixels.
# Weight gradient: 7.2 ms with the best for each layer, 7.4 ms with these. It wants few warps with many sums
# each: the gradient lies along the pixels, so reading it from shared memory conflicts, and what is read
# should be used often. In channels_last nothing conflicts: 5.8 ms with the best, 6.0 with these.
NVIDIA = Table(
    gather=(Tile(16, 128, 16, 2, 2), Tile(32, 128, 32, 4, 2), Tile(64, 64, 32, 4, 2), Tile(64, 64, 32, 4, 2)),
    flat=(Tile(16, 128, 16, 4, 2), Tile(32, 128, 16, 4, 2), Tile(64, 64, 16, 4, 2), Tile(64, 64, 16, 4, 2)),
    small=Tile(32, 64, 16, 4, 2),
    weight=(
        Tile(16, 32, 32, 2, 1, 8),
        Tile(32, 64, 16, 2, 1, 8),
        Tile(64, 64, 32, 2, 1),
        Tile(128, 64, 16, 2, 1),
    ),
    weight_last=(
        Tile(16, 32, 32, 2, 1, 8),
        Tile(32, 32, 32, 1, 1, 8),
        Tile(64, 64, 16, 4, 1),
        Tile(64, 64, 16, 4, 1),
    ),
    blocked=True,
    ahead=True,
    outputs=(512, 512),
    taps=(16, 16),
    spare=None,
    spare_weight=None,
)

# fp16, for tensor cores. All three passes in channels_last: 3.6 ms with the best for each layer, 3.7 with
# these (4.9 with the tiles of fp32); in NCHW 5.8 and 6.2 (6.5). For forward and input gradient one tile is
# the best or nearly so above 32 channels, small problems too. bf16 takes the same, unmeasured.
NVIDIA_HALF = NVIDIA._replace(
    gather=(
        Tile(16, 128, 16, 2, 2),
        Tile(32, 128, 32, 4, 3),
        Tile(64, 64, 64, 4, 3),
        Tile(64, 64, 64, 4, 3),
    ),
    flat=(Tile(16, 256, 32, 4, 3), *NVIDIA.flat[1:]),
    small=Tile(64, 64, 64, 4, 3),
    weight=(
        Tile(16, 32, 64, 1, 1, 8),
        Tile(32, 64, 32, 2, 3, 8),
        Tile(64, 64, 64, 4, 3),
        Tile(128, 64, 32, 4, 3),
    ),
    weight_last=(
        Tile(16, 32, 64, 1, 1, 8),
        Tile(32, 32, 64, 2, 2, 8),
        Tile(64, 64, 64, 4, 3),
        Tile(64, 64, 64, 4, 3),
    ),
)

# Not measured. Tiles that need no more than 256 registers in any layout, and of those the ones that a model
# of the Radeon RX 5600 XT prefers (``toolkit bench card``): mostly 32 sums a thread, so that fewer threads
# compute addresses and each word read from LDS is used often. By that model 80 channels take 0.67x the time
# in five tiles of 16 that they take in two of 64 (weight gradient: 0.88x).
RDNA = Table(
    gather=(Tile(16, 128, 16, 4, 2), Tile(32, 128, 16, 4, 2), Tile(64, 64, 16, 4, 2), Tile(64, 64, 16, 4, 2)),
    flat=(Tile(16, 128, 16, 4, 1), Tile(32, 64, 16, 4, 1), Tile(64, 32, 16, 4, 1), Tile(64, 32, 16, 4, 1)),
    small=Tile(32, 64, 16, 4, 2),
    weight=(
        Tile(16, 64, 16, 2, 1, 8),
        Tile(32, 64, 16, 2, 1),
        Tile(64, 64, 16, 4, 1),
        Tile(64, 64, 16, 4, 1),
    ),
    weight_last=(
        Tile(16, 32, 16, 2, 1),
        Tile(32, 64, 16, 4, 1),
        Tile(64, 64, 16, 4, 1),
        Tile(64, 64, 16, 4, 1),
    ),
    blocked=False,
    ahead=False,
    outputs=(512, 128),
    taps=(16, 8),
    spare=Tile(32, 64, 16, 4, 2),
    spare_weight=Tile(32, 32, 16, 4, 1),
    winograd=(Tile(16, 32, 16, 2, 1), Tile(32, 32, 16, 2, 1), Tile(64, 32, 16, 4, 1), Tile(64, 32, 16, 4, 1)),
    winograd_small=Tile(64, 16, 16, 2, 1),
    in_bytes=True,
    filled=0.85,
)


# Pairs of channel and tap. With fewer a tile for more than 64 filters leaves too few programs: it took 1.09x
# the time of the next smaller for 1 x 1 layers, 0.88x for 3 x 3.
WIDEST_PAIRS = 576

# Pixels. In fp32 the rounding of a split's sum grows with its length; with 256 the weight gradient of small
# images was up to 2.7 times as far from float64 as cuDNN's.
SHORTEST_SPLIT = 64


class Tiles:
    """The choice for one device and dtype.

    Attributes:
        units: compute units (streaming multiprocessors) of the device.
        table: the tiles of its family.
    """

    def __init__(self, units: int, table: Table = NVIDIA) -> None:
        self.units = units
        self.table = table

    def gather(
        self,
        filters: int,
        pixels: int,
        channels: int,
        copies: int,
        *,
        flat: bool,
        wide: bool,
        channels_last: bool,
        aligned: bool = True,
    ) -> Tile:
        """The tile for ``gather_gemm``.

        Args:
            filters, pixels: extent of the product's result; channels: read for each tap.
            copies: independent products, groups times phases.
            flat: whether channels and taps are summed as one axis.
            wide: whether offsets need 64 bits.
            channels_last: layout of what is read; aligned: whether one access takes several elements of it.
        """
        if flat:
            return self.table.flat[_size(filters)]
        size = self._filled(filters)
        tile = self.table.gather[size]
        if size >= 2 and -(-filters // tile.m) * -(-pixels // tile.n) * copies < self.units:
            tile = self.table.small
        while tile.k > 16 and channels % tile.k:
            tile = tile._replace(k=tile.k // 2)
        spare = self.table.spare
        if spare is not None and wide:
            tile = spare if size >= 1 else self.table.flat[size]
        elif spare is not None and size >= 1 and (channels < tile.k or (channels_last and not aligned)):
            tile = spare
        return tile if self.table.ahead or not channels_last else tile._replace(stages=1)

    def winograd(self, filters: int, squares: int, roomy: bool) -> Tile:
        """The tile for ``winograd_gather``.

        Args:
            filters, squares: extent of the product's result.
            roomy: whether addresses leave registers: not in channels_last where nothing is aligned.
        """
        assert self.table.winograd is not None
        size = self._filled(filters)
        tile, small = self.table.winograd[size], self.table.winograd_small
        few = -(-filters // tile.m) * -(-squares // tile.n) < 2 * self.units
        return small if small is not None and size >= 2 and (few or not roomy) else tile

    def _filled(self, filters: int) -> int:
        """The size of the largest tiles that the channels fill; the largest at all where they fill none."""
        for size in range(_size(filters), -1, -1):
            m = self.table.gather[size].m
            if filters >= self.table.filled * m * -(-filters // m):
                return size
        return _size(filters)

    def grouped(self, taps: int, pixels: int, channels_last: bool) -> tuple[int, int]:
        """Pixels and channels of a tile of ``grouped_gather``."""
        outputs = self.table.outputs[taps > 9]
        if channels_last:
            return outputs // 32, 32
        return min(outputs, max(64, 1 << (pixels - 1).bit_length())), 1

    def grouped_weight(self, taps: int, channels_last: bool, wide: bool) -> tuple[int, int, int]:
        """Taps, pixels and channels of a tile of ``grouped_weight_gradient``."""
        if channels_last:
            return 1, 32, 32
        return min(1 << (taps - 1).bit_length(), self.table.taps[wide]), 128, 1

    def weight(
        self, filters: int, pairs: int, pixels: int, groups: int, *, wide: bool, channels_last: bool
    ) -> tuple[Tile, int]:
        """The tile for ``weight_gradient``, and over how many splits the pixels are spread.

        Args:
            filters, pairs: extent of one group's result; pixels: products summed into each.
            wide: whether offsets need 64 bits.
            channels_last: layout of what is read.
        """
        tiles, size = self.table.weight, self._filled(filters)
        if channels_last and self.table.weight_last is not None:
            tiles, size = self.table.weight_last, _size(filters)
        tile = tiles[size if pairs >= WIDEST_PAIRS else min(size, 2)]
        if self.table.spare_weight is not None and wide:
            tile = self.table.spare_weight
        programs = -(-filters // tile.m) * -(-pairs // tile.n) * groups
        return tile, self.splits(programs, pixels, SHORTEST_SPLIT, tile.resident)

    def splits(self, programs: int, pixels: int, least: int, resident: int = 4) -> int:
        """How many splits share the pixels: enough to fill the device once, none with fewer than ``least``
        pixels.

        Rounded down: 531 programs on 528 places took 1.44x the time of 522.
        """
        return max(1, min(resident * self.units // programs, pixels // least, 1024))


def split_evenly(pixels: int, splits: int, block: int) -> tuple[int, int]:
    """Pixels of one split, the same for all and a multiple of the block; and how many splits that makes."""
    share = -(-pixels // (splits * block)) * block
    return share, -(-pixels // share)


def _size(filters: int) -> int:
    return 0 if filters <= 16 else 1 if filters <= 32 else 2 if filters <= 64 else 3
