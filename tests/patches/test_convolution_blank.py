"""A step can be walked through without computing a convolution: the answers have every outward property."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from patches.convolution.blank import Blank
from patches.convolution.native import Native
from patches.convolution.problem import ConvProblem
from patches.convolution.selftest import problems_of

OLD = pytest.mark.skipif(
    torch.__version__.startswith("1."), reason="PyTorch 1 fails at a transposed row in bfloat16 on a CPU"
)


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=OLD)])
def test_answers_look_like_those_of_pytorch(dtype: torch.dtype) -> None:
    for problem in problems_of("cpu", dtype)[:20]:
        blank, native = (_answers(route, problem) for route in (Blank(), Native(library=False)))
        for found, expected in zip(blank, native, strict=True):
            assert (found is None) == (expected is None)
            if found is not None and expected is not None:
                assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
                assert bool(torch.isfinite(found).all())
        assert blank[0] is not None and native[0] is not None
        assert blank[0].stride() == native[0].stride()
        assert 0.5 < float(blank[0].float().std()) < 2


def test_the_random_state_is_left_alone() -> None:
    problem = replace(problems_of("cpu", torch.float32)[0], bias=True)
    before = torch.get_rng_state()
    x = torch.ones(problem.batch, problem.channels_in, problem.height, problem.width)
    Blank().forward(problem, x, torch.ones(problem.weight_shape), None)
    assert torch.equal(torch.get_rng_state(), before)


def _answers(route: Blank | Native, problem: ConvProblem) -> list[torch.Tensor | None]:
    x = torch.ones(problem.batch, problem.channels_in, problem.height, problem.width, dtype=problem.dtype)
    x = x.to(memory_format=problem.memory_format)
    weight = torch.ones(problem.weight_shape, dtype=problem.dtype)
    bias = torch.ones(problem.channels_out, dtype=problem.dtype) if problem.bias else None
    with torch.inference_mode():
        out = route.forward(problem, x, weight, bias)
        return [out, *route.backward(problem, torch.ones_like(out), x, weight, (True, True, problem.bias))]
