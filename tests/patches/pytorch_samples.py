"""PyTorch's own samples of every convolution, with gradients: through the overrides as without them.

Run by test_pytorch_samples.py in a process of its own: importing PyTorch's samples forbids the whole process
to set a backend's flags.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import patches

NAMES = [f"nn.functional.conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2, 3)]
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2}
"""Largest difference, relative to the largest value: rounding, and for bf16 two roundings to 8 bits."""


@pytest.fixture(scope="module")
def operators() -> dict[str, Any]:
    from torch.testing._internal.common_methods_invocations import op_db

    return {op.name: op for op in op_db if op.name in NAMES}


def _tensors(sample: Any) -> list[Tensor]:
    return [
        each for each in (sample.input, *sample.args, *sample.kwargs.values()) if isinstance(each, Tensor)
    ]


def _outcome(operator: Any, sample: Any) -> list[Tensor]:
    """Output and gradients of a sample, the incoming gradient the same at every call."""
    out: Tensor = operator(sample.input, *sample.args, **sample.kwargs)
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype)
    wanted = [each for each in _tensors(sample) if each.requires_grad]
    return [out.detach(), *torch.autograd.grad(out, wanted, grad)]


def _samples(operator: Any, dtype: torch.dtype) -> Iterator[Any]:
    yield from operator.sample_inputs("cpu", dtype, requires_grad=True)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("name", NAMES)
def test_output_and_gradients_are_those_of_unpatched_pytorch(
    operators: dict[str, Any], name: str, dtype: torch.dtype
) -> None:
    tried = 0
    for sample in _samples(operators[name], dtype):
        plain = _outcome(operators[name], sample)
        with patches.enabled("cpu", route="gemm"):
            served = _outcome(operators[name], sample)
        _alike(served, plain, TOLERANCE[dtype])
        tried += 1
    assert tried >= 10


def _alike(served: Sequence[Tensor], plain: Sequence[Tensor], tolerance: float) -> None:
    for ours, theirs in zip(served, plain, strict=True):
        assert (ours.shape, ours.stride(), ours.dtype) == (theirs.shape, theirs.stride(), theirs.dtype)
        if theirs.numel():
            largest = float(theirs.double().abs().max()) or 1.0
            assert float((ours.double() - theirs.double()).abs().max()) <= tolerance * largest


@pytest.mark.parametrize(
    "name", [f"nn.functional.conv{kind}{n}d" for kind in ("", "_transpose") for n in (1, 2)]
)
def test_first_and_second_gradients_pass_the_numeric_check(operators: dict[str, Any], name: str) -> None:
    operator = operators[name]
    for sample in _samples(operator, torch.float64):
        places = [n for n, each in enumerate(sample.args) if isinstance(each, Tensor)]

        def call(first: Tensor, *others: Tensor, sample: Any = sample, places: list[int] = places) -> Tensor:
            arguments = list(sample.args)
            for n, other in zip(places, others, strict=True):
                arguments[n] = other
            out: Tensor = operator(first, *arguments, **sample.kwargs)
            return out

        tensors = (sample.input, *(sample.args[n] for n in places))
        with patches.enabled("cpu", route="gemm"):
            assert torch.autograd.gradcheck(call, tensors, fast_mode=True)
            assert torch.autograd.gradgradcheck(
                call, tensors, fast_mode=True, gen_non_contig_grad_outputs=True
            )
