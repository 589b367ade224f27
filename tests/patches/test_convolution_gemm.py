"""The route ``gemm`` alone: right on every problem, within its budget, without loops over groups."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from convolution_cases import (
    KINDS,
    PLAIN,
    assert_correct,
    poison,
    problems,
    tensors,
    transposed_problems,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem

__all__ = ["poison"]

ALL_DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
LAYER = replace(PLAIN, batch=4, channels_in=8, height=20, width=24, bias=True)


@pytest.mark.usefixtures("poison")
@settings(max_examples=100, derandomize=True)
@given(
    problem=st.one_of(problems(ALL_DTYPES), transposed_problems(ALL_DTYPES)),
    budget=st.sampled_from([1, 3_000, 2**28]),
)
def test_agrees_with_float64_whatever_the_problem_and_the_chunks(problem: ConvProblem, budget: int) -> None:
    channels = problem.channels_out if problem.transposed else problem.channels_in
    smallest = channels * problem.kernel[0] * problem.kernel[1] * 8
    assert_correct(Gemm(max(budget, smallest)), problem)


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_convolution_agrees_with_float64(name: str) -> None:
    assert_correct(Gemm(), KINDS[name])


def test_channels_last_input_with_a_contiguous_gradient() -> None:
    problem = replace(LAYER, channels_last=True)
    x, weight, bias, grad = tensors(problem)
    assert_correct(Gemm(), problem, (x, weight.contiguous(), bias, grad.contiguous()))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("stride", [(1, 1), (2, 2)])
def test_answers_in_the_memory_format_of_the_problem(channels_last: bool, stride: tuple[int, int]) -> None:
    problem = replace(LAYER, channels_last=channels_last, stride=stride)
    x, weight, bias, grad = tensors(problem)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    with torch.inference_mode():
        out = Gemm().forward(problem, x, weight, bias)
        grad_x, _, _ = Gemm().backward(problem, grad, x, weight, (True, False, False))
    assert out.is_contiguous(memory_format=memory_format)
    assert grad_x is not None
    assert grad_x.is_contiguous(memory_format=memory_format)


class Calls(TorchDispatchMode):
    """Names of the operators called, and the size of the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        if isinstance(out, torch.Tensor) and "out" not in (kwargs or {}):
            self.largest = max(self.largest, out.numel() * out.element_size())
        return out


def calls_of(problem: ConvProblem, budget: int) -> Calls:
    x, weight, bias, grad = tensors(problem)
    with torch.no_grad(), Calls() as calls:
        Gemm(budget).forward(problem, x, weight, bias)
        Gemm(budget).backward(problem, grad, x, weight, (True, True, True))
    return calls


@pytest.mark.parametrize("budget", [20_000, 400_000])
def test_no_buffer_exceeds_the_budget_and_the_images(budget: int) -> None:
    """The columns of the layer take 4 x 72 x 480 x 4 bytes = 553 kB; every other tensor is an image."""
    problem = replace(LAYER, channels_out=8)
    padded_image = 4 * 8 * 22 * 26 * 4
    assert calls_of(problem, 2**28).largest > 500_000
    assert calls_of(problem, budget).largest <= max(budget, padded_image)


def test_a_column_taller_than_the_budget_is_declined() -> None:
    assert not Gemm(8 * 9 * 4 - 1).supports(LAYER)
    assert Gemm(8 * 9 * 4).supports(LAYER)


def test_an_integer_problem_is_declined() -> None:
    assert not Gemm().supports(replace(LAYER, dtype=torch.int64))


def test_the_number_of_operators_does_not_grow_with_the_groups() -> None:
    few = calls_of(replace(LAYER, batch=1, channels_in=4, channels_out=4, groups=2), 2**28)
    many = calls_of(replace(LAYER, batch=1, channels_in=64, channels_out=64, groups=32), 2**28)
    assert many.names == few.names


def test_a_pointwise_convolution_makes_no_columns() -> None:
    problem = replace(LAYER, channels_in=16, kernel=(1, 1), padding=(0, 0), bias=False)
    calls = calls_of(problem, 2**28)
    assert "copy_" not in calls.names
    assert calls.largest == 4 * 16 * 20 * 24 * 4


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    x, weight, _, grad = tensors(LAYER)
    with torch.inference_mode():
        for needs in [(True, False, False), (False, True, False), (False, False, True)]:
            gradients = Gemm().backward(LAYER, grad, x, weight, needs)
            assert tuple(g is not None for g in gradients) == needs
