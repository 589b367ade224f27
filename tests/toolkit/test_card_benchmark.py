"""What the table of one card is made of, as far as it goes without a card."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

import patches
from patches import dispatch
from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem
from toolkit.benchmark import kept, steps, winograd
from toolkit.benchmark.measure import returned_and_done

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_card.py"


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("bench_card", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Three(Gemm):
    """Serves 3 x 3 alone."""

    def supports(self, problem: ConvProblem) -> bool:
        return problem.kernel == (3, 3)


class Off(Three):
    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super().forward(problem, x, weight, bias) * (1 + 1e-4)


def problem(kernel: int, bias: bool = False) -> ConvProblem:
    return ConvProblem(
        2, 16, 6, 5, 24, (kernel, kernel), (1, 1), (kernel // 2, kernel // 2), (1, 1), 1, bias,
        torch.float32, "cpu", False,
    )  # fmt: skip


def test_both_passes_of_what_the_second_route_serves_are_timed() -> None:
    asked = {problem(3): 2, problem(1): 5, problem(3, bias=True): 1}
    found = list(winograd.compare(asked, (Gemm(), Three()), "cpu"))
    assert [(each.problem, each.count, each.name) for each in found] == [
        (each, asked[each], name)
        for each in asked
        if each.kernel == (3, 3)
        for name in ("forward", "input gradient")
    ]
    assert all(min(each.seconds) > 0 for each in found)


def test_routes_that_disagree_are_not_timed() -> None:
    with pytest.raises(ValueError, match=r"forward of 2x16x6x5 -> 24, .* winograd differs from triton by 1"):
        list(winograd.compare({problem(3): 1}, (Gemm(), Off()), "cpu"))


def test_the_route_gets_tiles_that_the_table_of_nvidia_lacks() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    from patches.convolution.triton_kernels import TritonRoute
    from patches.convolution.triton_kernels.tiles import NVIDIA

    plain, served = winograd.routes(132)
    assert isinstance(plain, TritonRoute) and isinstance(served, TritonRoute)
    assert served._tiles is not None
    assert (NVIDIA.winograd, served._tiles.table.gather) == (None, NVIDIA.gather)
    assert served._tiles.table.winograd is not None


def test_a_call_returns_before_its_device_is_done() -> None:
    called: list[int] = []
    returned, done = returned_and_done(lambda: called.append(1), "cpu")
    assert called == [1] and 0 <= returned <= done


def test_every_section_says_what_it_does_and_how_long_it_takes(bench: ModuleType) -> None:
    assert set(bench.MINUTES) == set(bench.SECTIONS)
    assert all(section.__doc__ for section in bench.SECTIONS.values())


def test_a_dry_call_needs_no_card_and_counts_the_models_that_are_asked_for() -> None:
    command = [
        sys.executable,
        SCRIPT,
        "models",
        "host",
        "--dry",
        "--precisions",
        "mixed",
        "--models",
        "yolov8n",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == [
        "| `python3 scripts/bench_card.py models`",
        "| `python3 scripts/bench_card.py host`",
        "| all of it",
    ]
    assert [row[1] for row in rows] == ["0.6 min", "1.0 min", "1.6 min"]


def test_each_way_to_keep_what_a_step_needs_serves_when_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool | None]] = []

    def step() -> None:
        session = dispatch.current()
        assert session is not None
        seen.append((session.norms.joins, session.norms.recomputes))

    enable = patches.enable
    monkeypatch.setattr(steps, "LEAST", 3)
    monkeypatch.setattr(kept, "TrainingStep", lambda *_, **__: step)
    monkeypatch.setattr(kept.patches, "enable", lambda *_: enable("cpu", "native"))
    monkeypatch.setattr(kept, "_recorded", lambda step, _: (step, len(seen)))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = list(kept.compare("yolov8n", True))
    ways = [(False, False), (True, False), (False, True), (True, True)]
    turns = [each for each in ways for _ in range(2)]
    assert seen == [*ways, *turns[::-1], *turns, *turns[::-1]]
    assert [(each.way, each.peak) for each in found] == [*zip(kept.WAYS, (1, 2, 3, 4), strict=True)]
    assert dispatch.current() is None
