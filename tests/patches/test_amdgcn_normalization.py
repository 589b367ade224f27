"""Batch norm and activation as machine code of a card: see scripts/amdgcn."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", minversion="3.6", reason="Triton's AMD backend needs Triton")

import execute_amd_kernels
from amdgcn import norms, variants
from check_amd_isa import COMPUTE_UNITS, Job, NormJob, layer

from patches.convolution.problem import ConvProblem
from patches.normalization.problem import NormProblem

PLAIN = NormProblem(3, 5, 4, 7, torch.float32)


@pytest.mark.parametrize(
    "problem",
    [
        PLAIN,
        replace(PLAIN, channels=8, width=4, channels_last=True),
        replace(PLAIN, training=False, activation="hardswish"),
        replace(PLAIN, activation="leaky_relu", slope=0.1, affine=False, channels_last=True),
        replace(PLAIN, dtype=torch.float16, channels=8, width=8),
    ],
    ids=str,
)
def test_forward_and_backward_agree_with_float64_on_gfx1010(problem: NormProblem) -> None:
    assert norms.execute(problem, "gfx1010", units=4) == ""


def test_bf16_agrees_on_gfx1201() -> None:
    assert norms.execute(replace(PLAIN, dtype=torch.bfloat16), "gfx1201", units=4) == ""


def test_the_smallest_problem_launches_the_variant_that_was_asked_for() -> None:
    job = NormJob("gfx1010", NormProblem(16, 80, 40, 40, torch.float32), index=2)
    chosen = execute_amd_kernels.execution(job)
    assert chosen is not None
    assert execute_amd_kernels.name(job) in chosen.names()
    assert chosen.problem.batch * chosen.problem.height * chosen.problem.width < 16 * 40 * 40


@pytest.mark.parametrize("index", range(4))
def test_the_smallest_convolution_launches_the_variant_that_was_asked_for(index: int) -> None:
    job = Job("gfx1010", layer(1, 64, 128, 3, 2, 1, False), COMPUTE_UNITS[0], index)
    chosen = execute_amd_kernels.execution(job)
    assert chosen is not None
    assert isinstance(chosen.problem, type(job.problem))
    assert variants.cost(chosen.problem) < variants.cost(job.problem) / 100
    assert execute_amd_kernels.name(job) in chosen.names()


@pytest.mark.parametrize(
    ("problem", "index"),
    [
        (layer(1, 64, 4, 1, 1, 1, True), 1),
        (layer(1, 64, 80, 1, 1, 1, True), 2),
        (replace(layer(1, 3, 16, 3, 2, 1, False), channels_last=True), 2),
        (replace(layer(1, 64, 64, 1, 1, 1, False), channels_last=True), 0),
    ],
    ids=["head, input gradient", "head, weight gradient", "behind images", "behind an attention"],
)
def test_what_models_store_otherwise_is_executed_so(problem: ConvProblem, index: int) -> None:
    job = Job("gfx1010", problem, COMPUTE_UNITS[0], index, formats=problem.formats[-1])
    chosen = execute_amd_kernels.execution(job)
    assert chosen is not None
    assert execute_amd_kernels.name(job) in chosen.names()
    assert execute_amd_kernels.name(job) != execute_amd_kernels.name(replace(job, formats=None))
    assert chosen.run() == ""


def test_what_a_record_names_is_not_executed_again() -> None:
    job = Job("gfx1010", layer(1, 64, 128, 3, 2, 1, False), COMPUTE_UNITS[0], 2)
    executions, wrong = execute_amd_kernels.plan([job], set())
    assert (len(executions), wrong) == (1, [])
    (names,) = executions.values()
    assert [name.split()[1] for name in names] == ["weight_gradient", "reduce_partials"]
    assert execute_amd_kernels.plan([job], set(names)) == ({}, [])
