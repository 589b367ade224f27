"""From a call of ``aten::convolution`` to the problem that it is, or to the reason why it is none.

A 1-d convolution is one of images with a single row: PyTorch's own kernels lift it so as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .problem import ConvProblem

_TRANSPOSED_IS_NCHW = torch.__version__.startswith("1.")
"""PyTorch 1 answers a transposed convolution in NCHW, whatever its input is stored in."""

_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


class Call(NamedTuple):
    """What is known of a call beside its numbers: a key is one of these, as a plain tuple.

    Attributes:
        x, weight, bias: shapes; bias is None where there is none.
        stride, padding, dilation: as PyTorch hands them over, one number for all axes or one for each.
        output_padding: of a transposed convolution, likewise; None of any other.
        channels_last: see :func:`answers_channels_last`.
        devices, dtypes: of all tensors.
    """

    x: tuple[int, ...]
    weight: tuple[int, ...]
    bias: tuple[int, ...] | None
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    output_padding: tuple[int, ...] | None
    channels_last: bool
    devices: tuple[torch.device, ...]
    dtypes: tuple[torch.dtype, ...]


def problem_of(call: Call, layouts: tuple[torch.layout, ...], device: str) -> ConvProblem | str:
    """The problem that a call is; for a call that is none, why.

    Args:
        call: the key under which the answer is remembered.
        layouts: of input and weight.
        device: "cuda" or "cpu".
    """
    axes = len(call.x) - 2
    reason = _why_not(call, axes, layouts)
    if reason:
        return reason
    transposed = call.output_padding is not None
    channels = call.weight[:2] if not transposed else call.weight[1::-1]
    problem = ConvProblem(
        batch=call.x[0],
        channels_in=call.x[1],
        height=call.x[2] if axes == 2 else 1,
        width=call.x[-1],
        channels_out=channels[0] * call.groups if transposed else channels[0],
        kernel=_both(call.weight[2:], 1, axes),
        stride=_both(call.stride, 1, axes),
        padding=_both(call.padding, 0, axes),
        dilation=_both(call.dilation, 1, axes),
        groups=call.groups,
        bias=call.bias is not None,
        dtype=call.dtypes[0],
        device=device,
        channels_last=call.channels_last and not (transposed and _TRANSPOSED_IS_NCHW),
        transposed=transposed,
        output_padding=_both(call.output_padding or (0,), 0, axes),
    )
    return problem if min(problem.output_size) >= 1 else "malformed arguments"


def answers_channels_last(x: Tensor, weight: Tensor) -> bool:
    """Whether PyTorch would answer in NHWC: input or weight is stored so, slices of such tensors included.

    PyTorch's own rule, c10::is_channels_last_strides_2d. An input of a 1-d convolution is made contiguous
    before it becomes one of rows (at::convolution); its weight is not.
    """
    for tensor in (x, weight):
        strides = tensor.stride()
        if len(strides) == 4:
            if strides[1] <= strides[3]:
                (_, c, h, w), (sn, sc, sh, sw) = tensor.shape, strides
                if 0 < c * sc <= sw and w * sw <= sh and sc != h * sh <= sn:
                    return True
        elif len(strides) == 3 and strides[1] <= strides[2]:
            (_, c, w), (sn, sc, sw) = tensor.shape, strides
            if 0 < c * sc <= sw and sc != w * sw <= sn and (tensor is weight or tensor.is_contiguous()):
                return True
    return False


def _both(values: tuple[int, ...], row: int, axes: int) -> tuple[int, int]:
    """Values by axis as (height, width); ``row`` is that of the height that a 1-d convolution lacks."""
    return (values[0] if axes == 2 else row, values[-1])


def _why_not(call: Call, axes: int, layouts: tuple[torch.layout, ...]) -> str:
    """Why a call is no problem for a route; empty when it is one.

    Everything asked here is in the key of the call: the answer is remembered under it.
    """
    if axes not in (1, 2) or len(call.weight) != axes + 2:
        return f"{axes}-d convolution"
    dtype = call.dtypes[0]
    if call.dtypes.count(dtype) != len(call.dtypes):
        return "mixed dtypes"
    if dtype not in _DTYPES:
        return f"dtype {str(dtype).removeprefix('torch.')}"
    if 0 in (*call.x, *call.weight):
        return "empty tensor"
    if set(layouts) != {torch.strided}:
        return "layout that is not strided"
    return "" if _is_well_formed(call, axes) else "malformed arguments"


def _is_well_formed(call: Call, axes: int) -> bool:
    groups, (first, second) = call.groups, call.weight[:2]
    settings = [call.stride, call.padding, call.dilation]
    if call.output_padding is not None:
        settings.append(call.output_padding)
    if (
        groups < 1
        or first % groups
        or any(len(each) not in (1, axes) for each in settings)
        or call.devices.count(call.devices[0]) != len(call.devices)
        or min(*call.stride, *call.dilation) < 1
        or min(call.padding) < 0
    ):
        return False
    if call.output_padding is None:
        return second * groups == call.x[1] and call.bias in (None, (first,))
    stride, dilation, extra = (
        _both(each, 1, axes) for each in (call.stride, call.dilation, call.output_padding)
    )
    return (
        first == call.x[1]
        and call.bias in (None, (second * groups,))
        and min(call.output_padding) >= 0
        and all(
            more < max(step, apart)
            for more, step, apart in zip(extra[-axes:], stride[-axes:], dilation[-axes:], strict=True)
        )
    )
