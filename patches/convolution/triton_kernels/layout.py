"""How tensors lie in memory, in the words of the kernels: what one access may take, and weights to copy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor

from ..problem import ConvProblem


def named(tensor: str, axes: str, values: Sequence[int]) -> dict[str, int]:
    """Sizes or strides by the names that kernels give them: ``src_n``, ``src_c`` and so on."""
    return {f"{tensor}_{axis}": value for axis, value in zip(axes, values, strict=True)}


def reach(t: Tensor) -> int:
    """The offset of the last element, in elements."""
    return sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))


def linear(t: Tensor) -> bool:
    """Whether the pixels of a plane follow one another at one distance."""
    return t.stride(2) == t.stride(3) * t.shape[3]


class Numbers(NamedTuple):
    """What kernels are told of a problem and its two activations, by the names that they give it."""

    sizes: dict[str, int]
    planes: dict[str, int]
    strides: dict[str, int]
    shifts: dict[str, int]

    @classmethod
    def of(
        cls,
        p: ConvProblem,
        channels: int,
        filters: int,
        planes: Mapping[str, Tensor],
        strides: Mapping[str, Tensor],
    ) -> Numbers:
        """Of channels read and written of a group, and of the activations in the order of the kernel."""
        sides: dict[str, int] = {}
        steps: dict[str, int] = {}
        for name, tensor in planes.items():
            sides |= named(name, "hw", tensor.shape[2:])
        for name, tensor in strides.items():
            steps |= named(name, "ncyx", tensor.stride())
        sizes = {"batch": p.batch, "channels": channels, "filters": filters}
        return cls(sizes, sides, steps, named("pad", "hw", p.padding) | named("dil", "hw", p.dilation))


def vector(t: Tensor) -> int:
    """Elements in 16 bytes."""
    return 16 // t.element_size()


def divisible(t: Tensor, *counts: int) -> bool:
    """Whether a tensor and steps of so many elements keep to 16 bytes."""
    items = vector(t)
    return t.data_ptr() % 16 == 0 and all(n % items == 0 for n in counts)


def alignment(channels_last: bool, runs: bool, groups: int, *tensors: Tensor) -> int:
    """Elements of the fastest axis that one access may take at once in all of the tensors: 1, or 16 bytes'
    worth.

    Channels for channels_last; for NCHW pixels, where ``runs`` says that consecutive ones stay consecutive.
    """
    for t in tensors:
        n, c, y, x = t.stride()
        if channels_last:
            if c != 1 or not divisible(t, n, y, x, t.shape[1] // groups):
                return 1
        elif not runs or x != 1 or not divisible(t, n, c, t.shape[2] * t.shape[3]):
            return 1
    return vector(tensors[0])


def _tap_stride(weight: Tensor) -> int:
    return weight.stride(3) if weight.shape[3] > 1 else weight.stride(2)


def weight_layout(
    weight: Tensor, groups: int, flat: bool, transposed: bool, channels_last: bool
) -> tuple[Callable[[Tensor], Tensor] | None, tuple[int, int, int, int], str, int]:
    """How ``gather_gemm`` reads the weight: (copy to make first, strides, UNIT, WEIGHT_ALIGN).

    Threads that sit side by side should read elements that do: channels written, or (1x1, and ``flat``)
    channels read. Where the weight as stored offers neither, it is copied once to (groups, taps, channels
    read, channels written); weights are small. For channels_last only channels written will do: with channels
    read side by side in shared memory, sixteen threads read from the same banks, 3x the time for 1x1.
    """
    rows, kw = weight.shape[2:]
    taps = rows * kw
    regular = 1 in (rows, kw) or weight.stride(2) == kw * weight.stride(3)
    m_size, k_size = weight.shape[0] // groups, weight.shape[1]
    m, k, t = weight.stride(0), weight.stride(1), _tap_stride(weight) if taps > 1 else 0
    g = m_size * m
    if transposed:
        m_size, k_size, m, k = k_size, m_size, k, m
    items = vector(weight)
    if flat and not channels_last:
        if transposed and regular:
            return None, (g, t, k, m), "none", 1
        if regular and t == 1 and k == taps:
            return None, (g, t, k, m), "k", 1
        if not transposed:
            return _contiguous, (m_size * k_size * taps, 1, taps, k_size * taps), "k", 1
    elif regular and m == 1:
        return None, (g, t, k, m), "m", items if divisible(weight, g, t, k, m_size) else 1
    elif taps == 1 and k == 1 and not channels_last:
        return None, (g, t, k, m), "k", items if divisible(weight, g, m, k_size) else 1

    def pack(weight: Tensor) -> Tensor:
        if groups == 1:
            return weight.permute((2, 3, 0, 1) if transposed else (2, 3, 1, 0)).contiguous()
        w = weight.reshape(groups, -1, *weight.shape[1:])
        return w.permute((0, 3, 4, 1, 2) if transposed else (0, 3, 4, 2, 1)).contiguous()

    align = items if m_size % items == 0 else 1
    return pack, (taps * k_size * m_size, k_size * m_size, m_size, 1), "m", align


def _contiguous(weight: Tensor) -> Tensor:
    return weight.contiguous()


def is_pointwise(p: ConvProblem, src: Tensor, out: Tensor) -> bool:
    """Whether every pixel is made of the one in its place, and pixels need no coordinates."""
    alone = (*p.kernel, *p.stride, *p.padding) == (1, 1, 1, 1, 0, 0) and src.shape[2:] == out.shape[2:]
    return alone and linear(src) and linear(out)
