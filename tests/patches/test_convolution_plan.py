"""The plan: the fastest correct route, measured once, remembered, shared, never in the way of training."""

from __future__ import annotations

import json
import math
import multiprocessing
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_routes import Raising, Silent, Wrong
from test_convolution_gemm import LAYER
from torch import Tensor

from patches import dispatch, settling
from patches.convolution import planfile, tuning
from patches.convolution.gemm import Gemm
from patches.convolution.native import Native
from patches.convolution.planfile import Card, Choice, PlanFile
from patches.convolution.problem import ConvProblem, Route
from patches.convolution.selftest import SelfTestResult
from patches.convolution.tuning import Cost, Planner
from patches.settling import PLAN

COST = tuning._cost
CARD = Card("Radeon RX 5600 XT gfx1010", "amdgpu 6.1", "2.11.0", {"triton": "3.5.0"})


class Timed(Native):
    """PyTorch's own kernels under another name, with a speed that no busy machine can change."""

    def __init__(self, name: str) -> None:
        super().__init__(library=False)
        self.name = name


class Renamed(Gemm):
    """The route gemm under another name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


SECONDS = {"fast": 1e-3, "native": 2e-3, "slow": 3e-3}


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the routes measured, in order."""
    names: list[str] = []

    def cost(route: Route, *_: object) -> Cost:
        names.append(route.name)
        return Cost(SECONDS.get(route.name, 1e-6), 0)

    monkeypatch.setattr(tuning, "_cost", cost)
    return names


class Examiner:
    """A self-test that fails what it is told to ("fast", or "fast float16") and counts what it is asked."""

    def __init__(self, *failing: str, transient: bool = False) -> None:
        self.failing, self.asked, self.transient = failing, list[str](), transient

    def __call__(self, route: str, device: str, dtype: str) -> SelfTestResult:
        self.asked.append(f"{route} {dtype}")
        fails = route in self.failing or f"{route} {dtype}" in self.failing
        return SelfTestResult(route, not fails, "hangs" if fails else "", 1.0, fails and self.transient)


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "cache" / "plan.json"
    monkeypatch.setenv("TOOLKIT_CONV_PLAN", str(path))
    return path


def planner(
    *routes: Route, card: Card = CARD, examine: Examiner | None = None, notes: list[str] | None = None
) -> Planner:
    named = {route.name: route for route in (Native(library=False), *routes)}
    return Planner("cpu", named, (notes if notes is not None else []).append, card, examine or Examiner())


def test_the_fastest_route_is_chosen_and_every_time_is_kept(path: Path) -> None:
    chooser = planner(Timed("slow"), Timed("fast"))
    assert chooser.choose(LAYER).name == "fast"
    choice = chooser.file.choices[str(LAYER)]
    assert (choice.route, choice.seconds, choice.extra_bytes) == ("fast", SECONDS, dict.fromkeys(SECONDS, 0))


@pytest.mark.usefixtures("path")
def test_a_real_measurement_takes_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    tensors = tuning._tensors(LAYER)
    with torch.inference_mode():
        assert 0 < tuning._cost(Gemm(), LAYER, tensors, "cpu").seconds < 10


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize(("behind", "chosen"), [(1.02, "lean"), (1.1, "fast")])
def test_of_routes_that_are_as_fast_the_one_with_less_memory_serves(
    behind: float, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    costs = {"fast": Cost(1e-3, 900), "lean": Cost(behind * 1e-3, 100), "native": Cost(9e-3, 1)}
    monkeypatch.setattr(tuning, "_cost", lambda route, *_: costs[route.name])
    chooser = planner(Timed("fast"), Timed("lean"))
    assert chooser.choose(LAYER).name == chosen
    assert chooser.file.choices[str(LAYER)].extra_bytes == {"native": 1, "fast": 900, "lean": 100}


def test_what_a_self_test_took_is_read_again(path: Path) -> None:
    chooser = planner()
    result = SelfTestResult("triton", True, "", 9.0, phases={"start": 0.5, "tests": 1.5})
    chooser.file.remember({}, {"triton float32": result})
    assert planner().file.verdicts["triton float32"].phases == result.phases


def test_how_much_is_about_to_be_measured_is_said_once(path: Path) -> None:
    notes: list[str] = []
    chooser = planner(notes=notes)
    other = replace(LAYER, channels_out=LAYER.channels_out + 1)
    chooser.get_ready([LAYER, other, LAYER])
    assert notes.pop() == "measuring 2 kinds of convolution on this card, once"
    notes.clear()
    chooser.tune(LAYER)
    chooser.get_ready([LAYER])
    assert not notes, "nothing is left to measure"


def test_what_a_step_needs_is_tested_at_once_in_every_dtype(path: Path) -> None:
    together = threading.Barrier(4, timeout=60)
    examiner = Examiner()

    class Meeting(Examiner):
        def __call__(self, route: str, device: str, dtype: str) -> SelfTestResult:
            together.wait()
            return examiner(route, device, dtype)

    chooser = planner(Timed("fast"), examine=Meeting())
    chooser.get_ready([LAYER, replace(LAYER, dtype=torch.bfloat16)])
    assert sorted(examiner.asked) == [
        "fast bfloat16",
        "fast float32",
        "native bfloat16",
        "native float32",
    ]


def test_a_route_that_cannot_win_is_not_timed_at_length() -> None:
    class Counted(Gemm):
        calls = 0

        def forward(self, *args: Any) -> torch.Tensor:
            self.calls += 1
            return super().forward(*args)

    route, tensors = Counted(), tuning._tensors(LAYER)
    with torch.inference_mode():
        assert COST(route, LAYER, tensors, "cpu", once=1.0, worth=1e-9).seconds > 0
        assert route.calls == 1
        COST(route, LAYER, tensors, "cpu", once=1e-9, worth=1e-9)
    assert route.calls > 4


def test_a_second_process_measures_and_tests_nothing(path: Path, measured: list[str]) -> None:
    planner(Timed("slow"), Timed("fast")).choose(LAYER)
    measured.clear()
    examiner = Examiner()
    assert planner(Timed("slow"), Timed("fast"), examine=examiner).choose(LAYER).name == "fast"
    assert examiner.asked == measured == []


@pytest.mark.usefixtures("path")
def test_two_ranks_that_start_together_test_a_route_once() -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Examiner):
        def __call__(self, route: str, device: str, dtype: str) -> SelfTestResult:
            begun.set()
            go_on.wait(10)
            return super().__call__(route, device, dtype)

    examiner = Slow()
    with ThreadPoolExecutor() as ranks:
        first = ranks.submit(planner(Timed("fast"), examine=examiner).trusted, "fast", torch.float32)
        begun.wait(10)
        second = ranks.submit(planner(Timed("fast"), examine=examiner).trusted, "fast", torch.float32)
        time.sleep(0.2)  # as long as the second may take to begin a test of its own
        go_on.set()
        assert first.result() and second.result()
    assert examiner.asked == ["fast float32"]


@pytest.mark.parametrize("bad", [Wrong(), Silent(), Raising()], ids=lambda route: route.name)
@pytest.mark.usefixtures("path")
def test_a_route_that_is_wrong_on_this_problem_is_not_chosen_and_reported(bad: Route) -> None:
    notes: list[str] = []
    assert planner(bad, notes=notes).choose(replace(LAYER, channels_out=23)).name == "native"
    assert notes[-1].startswith(f"route {bad.name} is not used for 4x8x20x24 -> 23")


def test_a_route_that_failed_its_self_test_is_never_run(path: Path) -> None:
    notes: list[str] = []
    examiner = Examiner("raising")
    chooser = planner(Raising(), examine=examiner, notes=notes)
    assert chooser.choose(LAYER).name == "native"
    assert notes[-1] == (
        "the convolution route raising failed its self-test in float32 on this card and is not used: hangs "
        f"(to test it again, delete {path})"
    )
    assert json.loads(path.read_text())["self_tests"]["raising float32"]["passed"] is False


@pytest.mark.usefixtures("path")
def test_a_failure_in_one_dtype_is_not_held_against_the_others() -> None:
    examiner = Examiner("fast float16", "native float16", "slow float32")
    chooser = planner(Timed("fast"), Timed("slow"), Renamed("gemm"), examine=examiner)
    assert chooser.choose(LAYER).name == "gemm"
    assert not any("float16" in each for each in examiner.asked)
    half = replace(LAYER, dtype=torch.float16, bias=False)
    assert "fast" in chooser.file.choices[str(LAYER)].seconds
    assert chooser.choose(half).name == "gemm"
    assert "fast" not in chooser.file.choices[str(half)].seconds


class Zero(Gemm):
    """PyTorch's own kernels, as a card runs them that they were not built for: nothing is written."""

    name = "native"

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.zeros_like(super().forward(problem, x, weight, bias))


@pytest.mark.usefixtures("path")
def test_a_card_without_any_route_is_told_so_once_a_dtype() -> None:
    notes: list[str] = []
    chooser = planner(Timed("fast"), examine=Examiner("native", "fast"), notes=notes)
    for problem in (LAYER, replace(LAYER, channels_out=24), replace(LAYER, dtype=torch.float64)):
        assert chooser.choose(problem).name == "native"
    told = [note for note in notes if note.startswith("no convolution route passed its self-test in")]
    assert [note.split()[7] for note in told] == ["float32", "float64"]


class RaisingNative(Raising):
    name = "native"


@pytest.mark.parametrize("native", [Zero(), RaisingNative()], ids=["zeros", "raises"])
@pytest.mark.usefixtures("path")
def test_where_pytorchs_own_kernels_fail_their_self_test_another_route_serves(native: Route) -> None:
    notes: list[str] = []
    chooser = planner(native, Gemm(), examine=Examiner("native"), notes=notes)
    assert chooser.choose(LAYER).name == "gemm"
    assert list(chooser.file.choices[str(LAYER)].seconds) == ["gemm"]
    assert any("native failed its self-test in float32 on this card and serves only" in n for n in notes)
    assert not any("is not used for" in note for note in notes)


@pytest.mark.parametrize("native", [Zero(), RaisingNative()], ids=["zeros", "raises"])
@pytest.mark.usefixtures("path")
def test_kernels_of_pytorch_that_are_wrong_on_one_problem_reject_no_other_route(native: Route) -> None:
    notes: list[str] = []
    chooser = planner(native, Gemm(), Timed("fast"), notes=notes)
    assert chooser.choose(LAYER).name == "gemm"
    assert set(chooser.file.choices[str(LAYER)].seconds) == {"gemm", "fast"}
    assert [note.partition(" for ")[0] for note in notes if "not used" in note] == [
        "route native is not used"
    ]


@pytest.mark.usefixtures("path")
def test_kernels_of_pytorch_that_failed_do_not_serve_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tuning, "TUNING_SECONDS", 0.0)
    assert planner(Timed("fast"), examine=Examiner("native")).choose(LAYER).name == "fast"


@pytest.mark.usefixtures("path")
def test_pytorchs_own_kernels_serve_when_no_route_is_trusted() -> None:
    assert planner(Timed("fast"), examine=Examiner("native", "fast")).choose(LAYER).name == "native"


def test_a_choice_of_pytorchs_own_kernels_is_measured_again_once_they_fail(path: Path) -> None:
    planner(Timed("slow")).choose(LAYER)
    content = json.loads(path.read_text())
    content["self_tests"]["native float32"]["passed"] = False
    path.write_text(json.dumps(content))
    assert planner(Timed("slow")).choose(LAYER).name == "slow"


def test_a_failure_is_remembered_and_told_once_in_each_process(path: Path) -> None:
    planner(Timed("fast"), examine=Examiner("fast")).choose(LAYER)
    notes: list[str] = []
    examiner = Examiner()
    later = planner(Timed("fast"), examine=examiner, notes=notes)
    for problem in (replace(LAYER, stride=(2, 2)), replace(LAYER, groups=2)):
        assert later.choose(problem).name == "native"
    assert examiner.asked == []
    assert len(notes) == 1
    assert str(path) in notes[0]


@pytest.mark.usefixtures("path")
def test_the_last_batch_of_an_epoch_takes_its_neighbours_choice(measured: list[str]) -> None:
    chooser = planner(Timed("fast"))
    assert chooser.choose(LAYER).name == "fast"
    measured.clear()
    assert chooser.choose(replace(LAYER, batch=3)).name == "fast"
    assert chooser.choose(replace(LAYER, height=16)).name == "fast"
    assert measured == []


@pytest.mark.usefixtures("path")
def test_a_fresh_process_takes_a_neighbours_choice_from_the_file(measured: list[str]) -> None:
    planner(Timed("fast")).choose(LAYER)
    measured.clear()
    assert planner(Timed("fast")).choose(replace(LAYER, batch=3)).name == "fast"
    assert measured == []


def test_a_neighbours_choice_that_is_no_longer_trusted_is_not_taken(path: Path) -> None:
    planner(Timed("fast")).choose(LAYER)
    content = json.loads(path.read_text())
    content["self_tests"]["fast float32"]["passed"] = False
    path.write_text(json.dumps(content))
    assert planner(Timed("fast")).choose(replace(LAYER, batch=3)).name == "native"


@pytest.mark.usefixtures("path")
@pytest.mark.parametrize("flag", ["allow_tf32", "deterministic"])
def test_a_choice_does_not_serve_where_the_library_does_other_work(
    flag: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chooser, layer = planner(), replace(LAYER, device="cuda")
    measured: list[bool] = []

    def measure(problem: ConvProblem, _: list[str]) -> Choice:
        measured.append(getattr(torch.backends.cudnn, flag))
        return Choice("native", {}, {}, tuning._family(problem), tuning._pixels(problem))

    monkeypatch.setattr(chooser, "_measure", measure)
    for value in (False, True, False):
        monkeypatch.setattr(torch.backends.cudnn, flag, value)
        chooser.choose(layer)
        chooser.choose(replace(layer, batch=3))
    assert measured == [False, True]


@pytest.mark.usefixtures("path")
def test_a_problem_of_another_kind_or_size_is_measured_itself() -> None:
    chooser = planner(Timed("fast"))
    for problem in (LAYER, replace(LAYER, batch=1), replace(LAYER, stride=(2, 2))):
        chooser.choose(problem)
    assert len(chooser.file.choices) == 3


@pytest.mark.usefixtures("path")
def test_measuring_ends_when_its_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    chooser = planner(Timed("fast"))
    chooser.choose(LAYER)
    monkeypatch.setattr(tuning, "TUNING_SECONDS", 0.0)
    assert chooser.choose(replace(LAYER, batch=64)).name == "fast"
    assert chooser.choose(replace(LAYER, stride=(2, 2))).name == "native"


@pytest.mark.usefixtures("path")
def test_a_route_struck_off_during_training_is_not_chosen_again() -> None:
    routes = {route.name: route for route in (Native(library=False), Timed("fast"))}
    chooser = Planner("cpu", routes, [].append, CARD, Examiner())
    assert chooser.choose(LAYER).name == "fast"
    del routes["fast"]
    assert chooser.choose(LAYER).name == "native"
    assert chooser.choose(replace(LAYER, batch=3)).name == "native"


@pytest.mark.usefixtures("path")
def test_running_out_of_memory_leaves_pytorchs_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    with monkeypatch.context() as full:
        full.setattr(tuning, "_tensors", exhausted)
        chooser = planner(Timed("fast"))
        assert chooser.choose(LAYER).name == chooser.choose(LAYER).name == "native"
    assert planner(Timed("fast")).choose(LAYER).name == "fast"


class Hungry(Gemm):
    """Needs more memory than there is, in the words of a library."""

    name = "fast"

    def forward(self, *_: object) -> Tensor:
        raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


@pytest.mark.usefixtures("path")
def test_a_route_that_lacked_memory_is_measured_again_by_the_next_process(measured: list[str]) -> None:
    notes: list[str] = []
    short = planner(Hungry(), Timed("slow"), notes=notes)
    for _ in range(2):
        assert short.choose(LAYER).name == short.choose(replace(LAYER, groups=2)).name == "native"
    assert measured == ["native", "slow"] * 2
    assert [note for note in notes if "memory" in note] == [
        f"not enough memory to measure fast for {LAYER}; what is chosen without is not remembered (said once)"
    ]
    later = planner(Timed("fast"), Timed("slow"))
    assert later.choose(LAYER).name == "fast"
    assert planner(Timed("slow")).file.choices == later.file.choices


def test_a_self_test_that_lacked_memory_is_neither_remembered_nor_repeated(path: Path) -> None:
    examiner, notes = Examiner("fast", transient=True), list[str]()
    chooser = planner(Timed("fast"), examine=examiner, notes=notes)
    for problem in (LAYER, replace(LAYER, groups=2)):
        assert chooser.choose(problem).name == "native"
    assert examiner.asked == ["native float32", "fast float32"]
    assert notes[-1].endswith("(it is tested again at the next start)")
    content = json.loads(path.read_text())
    assert (list(content["self_tests"]), content["problems"]) == (["native float32"], {})
    assert planner(Timed("fast")).choose(LAYER).name == "fast"


@pytest.mark.usefixtures("path")
def test_numbers_of_a_large_fp16_problem_stay_finite_for_every_route() -> None:
    pixels = {"height": 640, "width": 640, "kernel": (1, 1), "padding": (0, 0)}
    large = replace(LAYER, channels_in=1, channels_out=1, dtype=torch.float16, **pixels)
    names = {"one", "two", "three", "four"}
    assert planner(*map(Renamed, names)).tune(large).seconds.keys() >= names


@pytest.mark.usefixtures("path")
def test_measuring_leaves_the_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    planner(Gemm()).choose(LAYER)
    assert torch.equal(torch.random.get_rng_state(), before)


CHOICE = asdict(Choice("native", {}, {}, "", 1))
VERDICT = asdict(SelfTestResult("native", True, "", 1.0))


def written(**parts: object) -> str:
    """A plan file of this card and these kernels."""
    return json.dumps(
        {"version": planfile.version(), "card": CARD.written(), "problems": {}, "self_tests": {}, **parts}
    )


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"version": 2}',
        json.dumps({"version": planfile.version(), "card": CARD.written(), "problems": 3}),
        written(problems={str(LAYER): {**CHOICE, "extra_bytes": {"native": math.inf}}}),
        written(problems={str(LAYER): {**CHOICE, "seconds": {"native": 10**400}}}),
        written(problems={str(LAYER): {**CHOICE, "pixels": 0}}),
        written(problems={str(LAYER): {**CHOICE, "pixels": 10**400}}),
        written(self_tests={"native float32": {**VERDICT, "passed": "false"}}),
        "[" * 200_000,
        "\x00\xff",
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(path: Path, content: str) -> None:
    path.parent.mkdir()
    path.write_text(content)
    notes: list[str] = []
    chooser = planner(Timed("fast"), notes=notes)
    assert "is damaged" in notes[0]
    assert str(path) in notes[0]
    chooser.choose(LAYER)
    assert len([note for note in notes if "is damaged" in note]) == 1
    assert json.loads(path.read_text())["problems"][str(LAYER)]["route"] == "fast"


def test_a_file_without_a_version_is_of_other_kernels(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"card": CARD.written()}))
    notes: list[str] = []
    planner(notes=notes)
    assert notes == [f"the convolution plan {path} is of other kernels: all is measured anew"]


def test_kernels_that_have_changed_are_tested_and_measured_anew(
    path: Path, measured: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    planner(Timed("fast")).choose(LAYER)
    measured.clear()
    monkeypatch.setattr(planfile, "version", lambda: "another")
    notes: list[str] = []
    examiner = Examiner()
    assert planner(Timed("fast"), examine=examiner, notes=notes).choose(LAYER).name == "fast"
    assert measured == ["native", "fast"]
    assert examiner.asked == ["native float32", "fast float32"]
    assert notes[0] == f"the convolution plan {path} is of other kernels: all is measured anew"
    assert json.loads(path.read_text())["version"] == "another"


def test_the_plan_of_another_card_is_neither_used_nor_written(path: Path, measured: list[str]) -> None:
    planner(Timed("fast")).choose(LAYER)
    before = path.read_bytes()
    measured.clear()
    notes: list[str] = []
    other = planner(Timed("fast"), card=replace(CARD, driver="amdgpu 6.2"), notes=notes)
    assert other.file.choices == {}
    assert other.choose(LAYER).name == other.choose(LAYER).name == "fast"
    assert measured == ["native", "fast"]
    assert path.read_bytes() == before
    (told,) = [note for note in notes if "of another card" in note]
    assert told.startswith(f"the convolution plan {path} is of another card")


def test_of_two_cards_that_are_given_one_new_file_the_second_does_not_write(path: Path) -> None:
    notes: list[str] = []
    first, second = (planner(card=replace(CARD, driver=name), notes=notes) for name in ("one", "two"))
    first.choose(LAYER)
    before = path.read_bytes()
    second.choose(LAYER)
    assert path.read_bytes() == before
    assert len([note for note in notes if "of another card" in note]) == 1


def test_every_card_driver_and_version_has_a_file_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TOOLKIT_CONV_PLAN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    cards = [CARD, *(replace(CARD, **{name: "x"}) for name in ("architecture", "driver", "torch"))]
    cards.append(replace(CARD, packages={"triton": "x"}))
    paths = {card.path() for card in cards}
    monkeypatch.setattr(planfile, "version", lambda: "another")
    assert len(paths | {CARD.path()}) == 6
    assert CARD.path().is_relative_to("/cache/convroutes")


def test_a_package_stands_in_the_file_by_its_name_and_one_that_is_missing_is_empty() -> None:
    without = replace(CARD, packages={})
    assert CARD.written() == {
        "architecture": "Radeon RX 5600 XT gfx1010",
        "driver": "amdgpu 6.1",
        "torch": "2.11.0",
        "triton": "3.5.0",
    }
    assert without.written()["triton"] == ""
    assert [Card.read(each.written()) for each in (CARD, without)] == [CARD, without]


def test_this_machine_has_a_card() -> None:
    card = Card.here("cpu")
    assert card.torch == torch.__version__
    assert card.architecture
    assert card.driver


def write_many(path: Path, number: int) -> None:
    file = PlanFile(path, CARD, lambda note: None)
    for index in range(20):
        file.remember({f"{number}-{index}": Choice("gemm", {"gemm": 1.0}, {"gemm": 0}, "", 1)}, {})


def test_processes_that_write_at_the_same_time_lose_nothing(path: Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=write_many, args=(path, number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    notes: list[str] = []
    assert len(PlanFile(path, CARD, notes.append).choices) == 80
    assert notes == []
    assert sorted(each.name for each in path.parent.iterdir()) == ["plan.json", "plan.lock"]


def test_what_another_process_measured_meanwhile_is_used(path: Path, measured: list[str]) -> None:
    early = planner(Timed("fast"))
    planner(Timed("fast")).choose(LAYER)
    measured.clear()
    assert early.choose(LAYER).name == "fast"
    assert measured == []


def test_a_folder_that_cannot_be_written_costs_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TOOLKIT_CONV_PLAN", str(tmp_path / "file" / "plan.json"))
    notes: list[str] = []
    assert planner(Timed("fast"), notes=notes).choose(LAYER).name == "fast"
    assert any("cannot write the convolution plan" in note for note in notes)


@pytest.mark.parametrize("name", [".", ".."])
def test_a_folder_that_is_named_gets_a_file_a_card(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("TOOLKIT_CONV_PLAN", name)
    notes: list[str] = []
    for card in (CARD, replace(CARD, driver="amdgpu 6.2")):
        assert planner(Timed("fast"), card=card, notes=notes).choose(LAYER).name == "fast"
        assert card.path().is_file()
    assert not any("the convolution plan" in note for note in notes)
    assert len(list((tmp_path / "here" / name).glob("*.json"))) == 2


@pytest.fixture
def current_card(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of the current GPU, to be changed by a test."""
    current = [0]
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    return current


@pytest.mark.usefixtures("path", "current_card")
def test_auto_on_a_gpu_asks_the_plan() -> None:
    session = dispatch.Session("cuda", "auto", 2**28)
    session._planners[0] = planner(Timed("fast"))
    assert session._choose(LAYER).name == "fast"


@pytest.mark.usefixtures("path", "current_card")
def test_while_a_step_is_surveyed_nothing_is_tested_and_nothing_is_computed() -> None:
    session, examiner = dispatch.Session("cuda", "auto", 2**28), Examiner()
    session._planners[0] = planner(Timed("fast"), examine=examiner)
    session.installed = True
    session.way = settling.SURVEY
    assert session._choose(LAYER).name == "blank"
    assert not session._trusts("fused batch norm", torch.float32)
    assert not examiner.asked
    session.way = PLAN
    assert session._trusts("fused batch norm", torch.float32)


def test_a_card_of_another_kind_is_tested_and_measured_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, current_card: list[int]
) -> None:
    monkeypatch.delenv("TOOLKIT_CONV_PLAN", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    examiners = Examiner(), Examiner("gemm")

    def of_current_card(device: str, routes: dict[str, Route], note: Callable[[str], None]) -> Planner:
        number = current_card[0]
        card = replace(CARD, architecture=f"card {number}")
        named = {name: routes[name] for name in ("native", "gemm")}
        return Planner("cpu", named, note, card, examiners[number])

    monkeypatch.setattr(dispatch, "Planner", of_current_card)
    session = dispatch.Session("cuda", "auto", 2**28)
    for number, served in ((0, "gemm"), (1, "native"), (0, "gemm")):
        current_card[0] = number
        assert session._choose(LAYER).name == served
    assert [len(each.asked) for each in examiners] == [2, 2]


@pytest.mark.usefixtures("path", "current_card")
@pytest.mark.parametrize(("failing", "served"), [((), "gemm"), (("gemm",), "native")])
def test_a_forced_route_on_a_gpu_must_pass_its_self_test_too(failing: tuple[str, ...], served: str) -> None:
    session = dispatch.Session("cuda", "gemm", 2**28)
    session._planners[0] = planner(Gemm(), examine=Examiner(*failing))
    assert session._choose(LAYER).name == served
