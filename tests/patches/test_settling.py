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
from patches.convolution.selftest import SelfTestResult
from patches.normalization.torch_only import TorchOnly
from patches.settling import ASIDE, OWN_NORMS, PLAN, quickest, winner


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


def test_another_way_is_replaced_as_the_plan_is() -> None:
    for least, chosen in ((0.985, "triton"), (0.975, ASIDE)):
        assert winner({PLAN: 1.2, "triton": 1.0, ASIDE: least}, "triton") == chosen


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


def settle_graphs(
    session: dispatch.Session,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    eager: float,
    graphs: dict[str, float],
) -> tuple[Callable[[], bool], list[str]]:
    """What judges a step of so many seconds by graphs of so many, and the ways that were recorded.

    The ways with fused norms are offered. Of a way without seconds the graph has no place.
    """
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))
    offered = [way for way in graphs if way != PLAN and not way.endswith(OWN_NORMS)]
    monkeypatch.setattr(settling, "ways", lambda session, problems: iter(offered))
    recorded: list[str] = []

    def record() -> Callable[[], object]:
        recorded.append(session.way)
        if session.way not in graphs:
            raise torch.cuda.OutOfMemoryError("out of memory\nand more")
        return lambda: session.way

    def step() -> None:
        convolutions()

    monkeypatch.setattr(settling, "timed", lambda call: eager if call is step else graphs[session.way])
    return lambda: settling.settle_graph(session, step, record), recorded


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
    settle, recorded = settle_graphs(session, monkeypatch, tmp_path, eager, graphs)
    session.use(ASIDE)
    assert settle() is served
    assert (session.way, recorded) == (way, [PLAN, "triton", ASIDE])
    session.use(ASIDE)
    assert settle() is served
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
def test_a_step_has_another_name_where_norms_are_fused_with_other_activations(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served = lambda setting, is_fused: lambda problem, x: TorchOnly(problem)  # noqa: E731
    monkeypatch.setattr(dispatch.normalizations, "chooser", served)
    names = []
    for activations in ([], [nn.ReLU()], [nn.SiLU()], [nn.SiLU(), nn.ReLU()], [nn.ReLU(), nn.SiLU()]):
        with patches.enabled("cpu", normalization="torch"):
            session = dispatch.current()
            assert session is not None
            for activation in activations:
                nn.Sequential(nn.BatchNorm2d(2), activation)(torch.randn(2, 2, 5, 5))
            names.append(settling.step_name(session, [LAYER]))
    assert len(set(names)) == 4 and names[-1] == names[-2]


Settles = Callable[..., tuple[str, set[str]]]


@pytest.fixture
def settles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Settles]:
    """What a new session settles on, as on a card, where a step takes so many ms by each way; and by which
    ways it was timed. What is not on the clock has no memory."""
    monkeypatch.setenv("CONVROUTES_PLAN", str(tmp_path / "plan.json"))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(settling, "find_out", lambda session, step: None)
    monkeypatch.setattr(settling, "ways", lambda session, problems: iter(["triton", ASIDE]))

    def settle(
        clock: dict[str, float], recomputes: bool = False, fused: bool = True, normalization: str = "auto"
    ) -> tuple[str, set[str]]:
        patches.enable("cpu", normalization=normalization)
        session, now, timed = dispatch.current(), [0.0], set[str]()
        assert session is not None and session.planner.file.path == tmp_path / "plan.json"

        def step() -> None:
            timed.add(session.way)
            if session.way not in clock:
                raise torch.cuda.OutOfMemoryError("out of memory\nand more")
            now[0] += clock[session.way] / 1000

        with monkeypatch.context() as card:
            card.setattr(settling.time, "perf_counter", lambda: now[0])
            card.setattr(session, "device", "cuda")
            card.setattr(session.ledger, "problems", lambda: {LAYER})
            card.setattr(session.norms, "kinds", lambda: {"silu"} if fused else set())
            card.setattr(session.norms, "recomputes", recomputes)
            found = patches.settle(step)
        assert found == session.way
        return found, timed

    yield settle
    patches.disable()


def steps_of(path: Path) -> dict[str, str]:
    return PlanFile(path, Card.here("cpu"), print).steps


FUSED = {PLAN: 100.0, "triton": 90.0, ASIDE: 120.0}
"""Milliseconds with fused norms: one way is the best by far."""

SLOW = {ASIDE + OWN_NORMS: 130.0}


@pytest.mark.parametrize(
    ("clock", "way"),
    [
        ({**FUSED, **SLOW, "triton" + OWN_NORMS: 0.99 * 90}, "triton"),
        ({**FUSED, **SLOW, "triton" + OWN_NORMS: 0.985 * 90}, "triton"),
        ({**FUSED, **SLOW, "triton" + OWN_NORMS: 0.975 * 90}, "triton" + OWN_NORMS),
        ({**FUSED, "triton" + OWN_NORMS: 89.0, ASIDE + OWN_NORMS: 80.0}, ASIDE + OWN_NORMS),
    ],
)
def test_fused_norms_stay_unless_pytorch_s_are_quicker_by_more_than_chance(
    settles: Settles, clock: dict[str, float], way: str
) -> None:
    assert settles(clock) == (way, set(clock)), "and by no way that is not close to the best"


def test_a_way_that_is_close_may_be_the_best_without_fused_norms(settles: Settles) -> None:
    fused = {PLAN: 100.0, "triton": 99.0, ASIDE: 105.0}
    clock = {**fused, PLAN + OWN_NORMS: 97.5, "triton" + OWN_NORMS: 95.0, ASIDE + OWN_NORMS: 99.0}
    assert settles(clock) == ("triton" + OWN_NORMS, set(clock))


def test_norms_are_not_timed_where_none_is_fused_or_they_were_asked_for_by_name(settles: Settles) -> None:
    assert settles(FUSED, fused=False) == ("triton", set(FUSED))
    assert settles(FUSED, normalization="torch") == ("triton", set(FUSED))
    assert settles(FUSED, recomputes=True) == ("triton", set(FUSED)), "memory is short"


def test_a_way_without_fused_norms_is_said_remembered_and_read_again(
    settles: Settles, tmp_path: Path
) -> None:
    clock, wanted = {**FUSED, **SLOW, "triton" + OWN_NORMS: 80.0}, "triton" + OWN_NORMS
    assert settles(clock)[0] == wanted
    (note,) = patches.report().notes
    costs = "plan 100.0 ms, triton 90.0 ms, aside 120.0 ms, triton with PyTorch's norms 80.0 ms"
    said = "route triton serves alone, batch norms are PyTorch's own"
    assert note == f"a training step by {costs}, aside with PyTorch's norms 130.0 ms: {said}"
    assert f"\n  by what a training step takes: {said}\n" in str(patches.report())
    assert [*steps_of(tmp_path / "plan.json").values()] == [wanted]
    assert settles({}) == (wanted, set()), "another session timed it again"
    assert patches.report().way == said
    # By other norms it is another step.
    assert settles(FUSED, fused=False, normalization="off") == ("triton", set(FUSED))
    assert sorted(steps_of(tmp_path / "plan.json").values()) == ["triton", wanted]


def test_a_way_that_an_older_version_remembered_is_judged_anew(settles: Settles, tmp_path: Path) -> None:
    assert settles(FUSED, fused=False)[0] == "triton"
    path = tmp_path / "plan.json"
    PlanFile(path, Card.here("cpu"), print).remember({}, {}, dict.fromkeys(steps_of(path), "out"))
    assert [*steps_of(path).values()] == ["out"]
    assert settles(FUSED, fused=False) == ("triton", set(FUSED))
    assert [*steps_of(path).values()] == ["triton"]


def test_norms_stay_fused_where_the_memory_does_not_suffice_for_pytorch_s(
    settles: Settles, tmp_path: Path
) -> None:
    assert settles(FUSED) == ("triton", {*FUSED, ASIDE + OWN_NORMS})
    note, judged = patches.report().notes
    assert note == "no training step with PyTorch's own batch norms: OutOfMemoryError: out of memory"
    assert judged.endswith("aside 120.0 ms: route triton serves alone")
    assert not (tmp_path / "plan.json").exists(), "another time the memory may suffice"


def test_a_way_is_not_remembered_while_a_self_test_is_to_be_repeated(
    settles: Settles, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    verdict = SelfTestResult("fused batch norm", False, "not enough memory", 1.0, transient=True)

    def find_out(session: dispatch.Session, step: object) -> None:
        session.planner.file.verdicts["fused batch norm float32"] = verdict

    with monkeypatch.context() as today:
        today.setattr(settling, "find_out", find_out)
        assert settles(FUSED, fused=False) == ("triton", set(FUSED))
    assert not (tmp_path / "plan.json").exists()
    clock = {**FUSED, **SLOW, "triton" + OWN_NORMS: 80.0}
    assert settles(clock) == ("triton" + OWN_NORMS, set(clock)), "another start has norms to time"


@pytest.mark.parametrize(
    ("own", "way"), [(0.00495, "triton"), (0.0047, "triton" + OWN_NORMS), (0.0080, "triton")]
)
def test_a_graph_has_fused_norms_unless_those_that_serve_are_quicker_by_more_than_chance(
    session: dispatch.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, own: float, way: str
) -> None:
    settled = "triton" + OWN_NORMS
    graphs = {PLAN: 0.006, "triton": 0.005, ASIDE: 0.008, settled: own}
    settle, recorded = settle_graphs(session, monkeypatch, tmp_path, 0.01, graphs)
    for _ in range(2):
        session.use(settled)
        assert settle()
        assert (session.way, recorded) == (way, list(graphs))


def test_a_graph_has_fused_norms_where_the_memory_does_not_suffice_for_one_with_pytorch_s(
    session: dispatch.Session, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settle, _ = settle_graphs(session, monkeypatch, tmp_path, 0.01, {PLAN: 0.006, "triton": 0.005})
    session.use("triton" + OWN_NORMS)
    assert settle()
    assert session.way == "triton"
    note, judged = session.notes[-2:]
    what = "no CUDA graph of a training step with PyTorch's own batch norms"
    assert note == f"{what}: OutOfMemoryError: out of memory"
    assert judged.endswith("the graph by triton serves")
    assert session.planner.file.steps == {}, "another time the memory may suffice"


@pytest.mark.skipif(torch.__version__.startswith("1."), reason="PyTorch 1 keeps its own batch norms")
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.SiLU()], ids=str)
def test_a_way_without_fused_norms_leaves_them_to_pytorch_until_another_serves(
    monkeypatch: pytest.MonkeyPatch, activation: nn.Module
) -> None:
    block = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), activation)
    original = nn.Sequential.forward
    served = lambda setting, is_fused: lambda problem, x: TorchOnly(problem)  # noqa: E731
    monkeypatch.setattr(dispatch.normalizations, "chooser", served)
    seen = [0, 0]

    def counted(size: int = 5) -> tuple[int, int]:
        """Convolutions and batch norms of a step that were served."""
        block(torch.randn(2, 1, size, size, requires_grad=True)).sum().backward()
        report = patches.report()
        before, seen[:] = tuple(seen), (report.calls, report.normalizations)
        return seen[0] - before[0], seen[1] - before[1]

    with patches.enabled("cpu", normalization="torch"):
        session = dispatch.current()
        assert session is not None and not session.norms.kinds(), "none was seen"
        assert counted() == (2, 1)
        assert session.norms.kinds()
        session.use(ASIDE + OWN_NORMS)
        assert counted() == (0, 0)
        assert nn.Sequential.forward is original, "PyTorch itself"
        with patches.enabled("cpu"):
            pass
        assert counted() == (0, 0), "what was enabled before is enabled again, as it was"
        session.use(ASIDE)
        assert counted() == (0, 1)
        session.use(PLAN + OWN_NORMS)
        assert counted() == (2, 0)
        assert counted(size=6) == (2, 0), "nor are norms replaced where a new problem comes"
        session.use(PLAN)
        assert counted() == (2, 1)
    assert nn.Sequential.forward is original
