"""A step decides who serves: the quickest way by more than chance, remembered, and undone like the rest."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_convolution_gemm import LAYER
from torch import nn

import patches
from patches import dispatch, settling
from patches.convolution.planfile import Card, PlanFile
from patches.normalization.torch_only import TorchOnly
from patches.settling import ASIDE, PLAN, quickest, winner


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ({PLAN: 1.0, "triton": 0.99, ASIDE: 0.985}, PLAN),
        ({PLAN: 1.0, "triton": 0.97, ASIDE: 0.9}, ASIDE),
        ({PLAN: 1.0, "triton": 0.7, ASIDE: 0.9}, "triton"),
        ({PLAN: 1.0}, PLAN),
    ],
)
def test_a_way_replaces_the_plan_when_it_is_quicker_by_more_than_chance(
    seconds: dict[str, float], chosen: str
) -> None:
    assert winner(seconds) == chosen


def test_a_busy_processor_slows_all_ways_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, now = {"plan": 3.0, "triton": 2.0, ASIDE: 1.0}, [0.0]
    way = [PLAN]
    busy = iter([7.0] * 6 + [1.0] * 1000)  # somebody else has the processor at first
    monkeypatch.setattr(settling.time, "perf_counter", lambda: now[0])

    def step() -> None:
        now[0] += clock[way[0]] * next(busy)

    found = quickest(clock, lambda name: way.__setitem__(0, name), step)
    assert found == pytest.approx(clock)


@pytest.mark.parametrize(
    ("clock", "longer"),
    [
        ({PLAN: 1.0, "triton": 0.99, ASIDE: 2.0}, {PLAN, "triton"}),
        ({PLAN: 1.0, "triton": 2.0, ASIDE: 0.5}, set()),
        ({PLAN: 2.0, "triton": 1.0, ASIDE: 1.04}, {PLAN, "triton", ASIDE}),
        ({PLAN: 1.0}, set()),
    ],
)
def test_ways_that_are_close_are_timed_for_longer(
    clock: dict[str, float], longer: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now, way, steps = [0.0], [PLAN], Counter[str]()
    monkeypatch.setattr(settling.time, "perf_counter", lambda: now[0])

    def step() -> None:
        steps[way[0]] += 1
        now[0] += clock[way[0]] / 1000

    assert quickest(clock, lambda name: way.__setitem__(0, name), step) == pytest.approx(
        {name: seconds / 1000 for name, seconds in clock.items()}
    )
    assert steps == {name: 2 * (settling.MOST if name in longer else settling.ROUNDS) for name in clock}


@pytest.fixture
def session() -> Iterator[dispatch.Session]:
    """One that stands as it would on a card, after every choice was made: on the CPU all is native."""
    patches.enable("cpu")
    found = dispatch.current()
    assert found is not None
    yield found
    patches.disable()


def convolutions() -> int:
    nn.functional.conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3))
    return patches.report().calls


def test_overrides_that_stand_aside_see_no_call_and_come_back(session: dispatch.Session) -> None:
    before = convolutions()
    session.use(ASIDE)
    assert convolutions() == before
    with patches.enabled("cpu"):
        assert convolutions() == 1
    assert convolutions() == before, "what was enabled before is enabled again, as it was"
    assert patches.report().enabled
    session.use(PLAN)
    assert convolutions() == before + 1
    session.use(ASIDE)
    patches.disable()
    assert not patches.report().enabled


def test_a_way_that_was_judged_is_remembered_and_a_failure_leaves_the_plan(
    session: dispatch.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_PLAN", str(tmp_path / "plan.json"))

    def judged(found: dict[str, float]) -> Callable[..., dict[str, float]]:
        return lambda ways, use, step: found

    monkeypatch.setattr(settling, "quickest", judged({PLAN: 0.004, "triton": 0.003}))
    name = session.planner.step_name([LAYER])
    assert settling.judge(session, name, (PLAN, "triton"), lambda: None) == "triton"
    told = session.notes[-1]
    assert told == "a training step by plan 4.0 ms, triton 3.0 ms: route triton serves alone"
    assert PlanFile(tmp_path / "plan.json", Card.here("cpu"), print).steps == {name: "triton"}

    def exhausted(ways: object, use: Callable[[str], None], step: object) -> dict[str, float]:
        use(ASIDE)
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(settling, "quickest", exhausted)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        settling.judge(session, "other", (PLAN, ASIDE), lambda: None)
    session.use(PLAN)
    before = patches.report().calls
    assert convolutions() == before + 1
    assert session.planner.file.steps == {name: "triton"}


@pytest.mark.parametrize(
    ("eager", "graphs", "served", "way"),
    [
        (0.010, {PLAN: 0.006, "triton": 0.005, ASIDE: 0.008}, True, "triton"),
        (0.010, {PLAN: 0.0095, "triton": 0.0099, ASIDE: 0.012}, False, ASIDE),
        (0.010, {PLAN: 0.0089, "triton": 0.0091, ASIDE: 0.0092}, True, PLAN),
    ],
)
def test_a_graph_serves_where_it_brings_a_tenth_and_is_remembered(
    session: dispatch.Session,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    eager: float,
    graphs: dict[str, float],
    served: bool,
    way: str,
) -> None:
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setattr(settling, "ways", lambda session, problems: iter(["triton", ASIDE]))
    recorded: list[str] = []

    def record() -> Callable[[], object]:
        recorded.append(session.way)
        return lambda: session.way

    def step() -> None:
        convolutions()

    monkeypatch.setattr(settling, "timed", lambda call: eager if call is step else graphs[session.way])
    session.use(ASIDE)
    assert settling.settle_graph(session, step, record) is served
    assert (session.way, recorded) == (way, [PLAN, "triton", ASIDE])
    session.use(ASIDE)
    assert settling.settle_graph(session, step, record) is served
    assert (session.way, len(recorded)) == (way, 3), "what was judged is remembered"


def test_a_step_that_no_graph_holds_goes_on_as_it_was_settled(
    session: dispatch.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))

    def record() -> Callable[[], object]:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    assert not settling.settle_graph(session, lambda: convolutions(), record)
    assert session.way == PLAN
    told = "no CUDA graph of a training step: RuntimeError: operation not permitted when stream is capturing"
    assert session.notes[-1] == told


class FailsToCompile(Exception):
    """As Triton's errors: none of PyTorch's."""


def test_a_kernel_that_triton_cannot_compile_is_said_and_leaves_the_way_that_was_settled(
    session: dispatch.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=FailsToCompile))
    session.use(ASIDE)

    def record() -> Callable[[], object]:
        raise FailsToCompile("out of resource: shared memory")

    assert not settling.settle_graph(session, lambda: convolutions(), record)
    assert session.way == ASIDE
    told = "no CUDA graph of a training step: FailsToCompile: out of resource: shared memory"
    assert session.notes[-1] == told


def test_memory_that_runs_out_while_graphs_are_judged_leaves_the_way_that_was_settled(
    session: dispatch.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))
    session.use(ASIDE)

    def exhausted() -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        settling.settle_graph(session, exhausted, lambda: exhausted)
    assert session.way == ASIDE
    assert not settling.settle_graph(session, lambda: convolutions(), lambda: exhausted)
    assert session.way == ASIDE
    assert session.planner.file.steps == {}, "another time the memory may suffice"


def test_without_a_card_no_graph_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        raise AssertionError("the step was run")

    with patches.enabled("cpu"):
        assert not patches.settle_graph(step, lambda: step)
    monkeypatch.setenv("CONVROUTES_GRAPH", "on")
    with pytest.raises(ValueError, match="CONVROUTES_GRAPH=on: expected one of auto, off"):
        patches.enable("cpu")


def test_nothing_is_timed_on_a_cpu_or_for_a_single_route() -> None:
    def step() -> None:
        raise AssertionError("the step was run")

    assert patches.settle(step) == ""
    with patches.enabled("cpu"):
        assert patches.settle(step) == "auto"
    with patches.enabled("cpu", "gemm"):
        assert patches.settle(step) == "gemm"


def test_a_step_has_a_name_by_its_problems_in_any_order(session: dispatch.Session) -> None:
    from dataclasses import replace

    other = replace(LAYER, batch=7)
    names = {session.planner.step_name(each) for each in ([LAYER, other], [other, LAYER, LAYER], [LAYER])}
    assert len(names) == 2


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="PyTorch 1 keeps its own batch norms")
@pytest.mark.parametrize(("activation", "only_time"), [(nn.ReLU(), True), (nn.SiLU(), False)])
def test_batch_norms_that_save_no_memory_are_left_to_pytorch_where_that_is_quicker(
    monkeypatch: pytest.MonkeyPatch, activation: nn.Module, only_time: bool
) -> None:
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), activation)
    image = torch.randn(2, 1, 5, 5, requires_grad=True)
    served = lambda setting, is_fused: lambda problem, x: TorchOnly(problem)  # noqa: E731
    monkeypatch.setattr(dispatch.normalizations, "chooser", served)
    seen = [0, 0]

    def counted() -> tuple[int, int]:
        """Convolutions and batch norms of a step that were served."""
        block(image).sum().backward()
        report = patches.report()
        before, seen[:] = tuple(seen), (report.calls, report.normalizations)
        return seen[0] - before[0], seen[1] - before[1]

    with patches.enabled("cpu", normalization="torch"):
        session = dispatch.current()
        assert session is not None and not session.norms.only_takes_time(), "none was seen"
        assert counted() == (2, 1)
        assert session.norms.only_takes_time() is only_time
        with monkeypatch.context() as passing, torch.backends.cudnn.flags(enabled=False):
            passing.setattr(session.planner, "trusted", lambda name, dtype: True)
            offered = [*settling.ways(session, [LAYER])]
        assert (settling.OUT in offered, ASIDE in offered) == (only_time, True)
        session.use(settling.OUT)
        assert counted() == (0, 0)
        with patches.enabled("cpu"):
            pass
        assert counted() == (0, 0), "what was enabled before is enabled again, as it was"
        session.use(ASIDE)
        assert counted() == (0, 1)
        session.use(PLAN)
        assert counted() == (2, 1)
    assert nn.Sequential.forward.__module__ == "torch.nn.modules.container"
