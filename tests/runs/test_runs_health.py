"""Red flags: each rule on a history that a fake clock makes."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import shutil
import statistics
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.errors import ToolkitError
from toolkit.machine import sensors
from toolkit.machine.sensors import Sensors, reader
from toolkit.runs import health, heartbeat
from toolkit.runs.folder import RunFiles
from toolkit.runs.health import Action, History, Rule, Rules
from toolkit.runs.heartbeat import Beat, MemoryGauge
from toolkit.training.telemetry import WINDOW

GIB = 2**30


def beat(count: int, **values: Any) -> Beat:
    usual = {
        "phase": "training",
        "epoch": 2,
        "epochs": 10,
        "batches": 100,
        "loss": {"box": 1.0, "cls": 1.0},
        "median_loss": 2.0,
        "images_per_second": 40.0,
        "step_seconds": (0.4, 0.5, 0.6),
        "memory": 2 * GIB,
    }
    return Beat(pid=1, count=count, **{**usual, **values})


def history(
    seconds: int,
    make: Callable[[int], Beat | None] = beat,
    sensors: Sensors | None = None,
    free: int = 100 * GIB,
    then: History | None = None,
) -> History:
    """Looks once a second, with a heartbeat that moves each time unless ``make`` says otherwise."""
    made = then or History()
    start = int(made.now) + 1 if then else 0
    for second in range(start, start + seconds):
        made.add(float(second), make(second), sensors, free)
    return made


def flags(seen: History) -> dict[str, Action]:
    return {verdict.rule: verdict.action for verdict in health.check(seen, Rules())}


def test_a_healthy_run_raises_no_flag() -> None:
    fine = Sensors(busy=97.0, temperature=71.0, memory_used=4 * GIB, memory_total=6 * GIB)
    assert flags(history(1200, sensors=fine)) == {}


@pytest.mark.parametrize(("seconds", "hung"), [(119, False), (122, True)])
def test_no_batch_for_two_minutes_is_a_hang(seconds: int, hung: bool) -> None:
    seen = history(seconds, lambda _: beat(7), then=history(30))
    assert flags(seen) == ({"hang": Action.RESTART} if hung else {})


def test_a_run_with_slow_batches_has_longer() -> None:
    slow = history(300, lambda _: beat(7, step_seconds=(20.0, 30.0, 40.0)), then=history(30))
    assert flags(slow) == {}
    hung = history(603, lambda _: beat(7, step_seconds=(20.0, 30.0, 40.0)), then=history(30))
    assert flags(hung) == {"hang": Action.RESTART}


def test_validation_and_the_first_batch_have_limits_of_their_own() -> None:
    assert flags(history(250, lambda _: beat(7, phase="validating"))) == {}
    assert flags(history(302, lambda _: beat(7, phase="validating"))) == {"hang_validating": Action.RESTART}
    assert flags(history(800, lambda _: None)) == {}
    assert flags(history(902, lambda _: None)) == {"hang_starting": Action.RESTART}


@pytest.mark.parametrize("jump", [-7200.0, 3600.0, 1e9])
def test_a_clock_that_jumps_is_no_hang(jump: float) -> None:
    """Set forward or back, or a machine that slept: nobody watched in that time."""
    seen = history(30)
    stuck = beat(29)
    for second in range(60):
        seen.add(30.0 + second + (jump if second > 20 else 0.0), stuck, None, 100 * GIB)
        assert flags(seen) == {}
    for second in range(60, 140):
        seen.add(30.0 + second + jump, stuck, None, 100 * GIB)
    assert flags(seen) == {"hang": Action.RESTART}


@given(st.lists(st.floats(-1e9, 1e9, allow_nan=False), min_size=2, max_size=50))
def test_watched_time_never_runs_backwards_or_leaps(clock: list[float]) -> None:
    seen = History()
    before = 0.0
    for reading in clock:
        seen.add(reading, None, None, 0)
        assert -1e-6 <= seen.now - before <= History.MAX_GAP + 1e-6
        before = seen.now


def test_ten_updates_in_a_row_that_are_not_finite_roll_back() -> None:
    assert flags(history(30, lambda n: beat(n, skipped_in_a_row=9))) == {}
    rolled = history(30, lambda n: beat(n, skipped_in_a_row=10, loss={"box": None, "cls": 1.0}))
    assert flags(rolled) == {"not_finite": Action.ROLL_BACK}


def test_one_update_in_five_that_is_not_finite_rolls_back_however_good_the_others_are() -> None:
    def every(second: int, nth: int) -> Beat:
        return beat(second, updates=4 * second, skipped_updates=100 + 4 * second // nth)

    assert flags(history(1200, lambda n: every(n, 6))) == {}
    assert flags(history(1200, lambda n: every(n, 2))) == {"often_not_finite": Action.ROLL_BACK}
    at_first = history(1200, lambda n: beat(n, updates=4 * n, skipped_updates=min(n, 19)))
    assert flags(at_first) == {}


@settings(max_examples=30)
@given(
    rate=st.floats(0.5, 500.0),
    healthy=st.integers(40, 900),
    factor=st.floats(15.0, 1e6),
)
def test_a_loss_that_stays_far_above_its_median_rolls_back_at_any_speed(
    rate: float, healthy: int, factor: float
) -> None:
    """Beats as the trainer writes them: every two seconds, with the median of its last 200 batches."""
    seen, losses, written = History(), deque([2.0] * WINDOW, maxlen=WINDOW), beat(0)
    for second in range(healthy + 30):
        loss = 2.0 if second < healthy else 2.0 * factor
        losses.extend([loss] * (int(rate * (second + 1)) - int(rate * second)))
        if second % 2 == 0:
            newest = losses[-1]
            written = beat(second, loss={"box": newest}, median_loss=statistics.median(losses))
        seen.add(float(second), written, None, 100 * GIB)
        if second == healthy + 15:
            assert flags(seen) == {}
    assert flags(seen) == {"loss_jump": Action.ROLL_BACK}


def test_a_loss_that_rises_while_an_untrained_model_finds_its_first_objects_is_no_jump() -> None:
    """As two batches a second: 0.6 for the first fifty, then about 10, which is what it stays near."""
    seen, losses = History(), deque[float](maxlen=WINDOW)
    for second in range(600):
        batch = 2 * second
        losses.extend([0.6, 0.6] if batch < 50 else [10.0, 10.0])
        written = beat(
            second,
            epoch=batch // 100,
            batch=batch % 100,
            loss={"box": losses[-1]},
            median_loss=statistics.median(losses),
        )
        seen.add(float(second), written, None, 100 * GIB)
        assert flags(seen) == {}
    diverged = history(30, lambda n: beat(n, epoch=12, loss={"box": 150.0}, median_loss=10.0), then=seen)
    assert flags(diverged) == {"loss_jump": Action.ROLL_BACK}


def test_heat_is_noted_after_a_minute_and_stops_the_run_within_seconds_when_it_is_too_much() -> None:
    warm = Sensors(busy=99.0, temperature=84.0)
    assert flags(history(50, sensors=warm)) == {}
    assert flags(history(65, sensors=warm)) == {"hot": Action.NOTE}
    glowing = Sensors(busy=99.0, temperature=96.0)
    assert flags(history(4, sensors=glowing)) == {}
    assert flags(history(7, sensors=glowing)) == {"too_hot": Action.GIVE_UP}


def test_an_idle_gpu_is_noted_in_training_only() -> None:
    idle = Sensors(busy=0.0)
    assert flags(history(65, sensors=idle)) == {"gpu_idle": Action.NOTE}
    assert flags(history(65, lambda n: beat(n, phase="validating"), sensors=idle)) == {}


def test_five_of_six_gigabytes_are_the_budget() -> None:
    assert flags(history(3, sensors=Sensors(memory_used=5 * GIB, memory_total=6 * GIB))) == {}
    over = Sensors(memory_used=5 * GIB + 1, memory_total=6 * GIB)
    assert flags(history(3, sensors=over)) == {"gpu_memory": Action.NOTE}


def test_memory_that_grows_for_hours_is_given_back_by_a_restart() -> None:
    def leaking(second: int) -> Beat:
        return beat(second, memory=2 * GIB + second * GIB // 3600)

    assert flags(history(3 * 3600, leaking)) == {}
    assert flags(history(4 * 3600 + 120, leaking)) == {"memory_growth": Action.RESTART}


@pytest.mark.parametrize("step", [240, 60])
def test_memory_that_the_gpu_takes_once_or_twice_is_no_leak(step: int) -> None:
    """PyTorch keeps what the first validation and the most crowded batch took."""

    def at(second: int) -> Beat:
        taken = 20 + 5 * (second > step) + 3 * (second > 2 * step)
        return beat(second, gpu_memory=taken * GIB)

    seen = History()
    for second in range(900):
        seen.add(float(second), at(second), None, 100 * GIB)
        assert flags(seen) == {}


def test_a_leak_that_begins_after_hours_or_grows_by_the_epoch_is_one() -> None:
    def late(second: int) -> Beat:
        return beat(second, gpu_memory=20 * GIB + max(second - 4 * 3600, 0) * GIB // 200)

    assert flags(history(4 * 3600 + 700, late)) == {}
    assert flags(history(4 * 3600 + 900, late)) == {"memory_growth": Action.RESTART}

    def stairs(second: int) -> Beat:
        return beat(second, gpu_memory=20 * GIB + second // 300 * GIB // 2)

    assert "memory_growth" in flags(history(300 * 9 + 100, stairs))


def test_memory_of_a_process_is_what_the_kernel_calls_anonymous() -> None:
    kept = bytearray(b"x") * (32 * 2**20)
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            assert MemoryGauge().read() == pytest.approx(int(line.split()[1]) * 1024, abs=4 * 2**20)
    assert MemoryGauge().read() > len(kept)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # about forking, from Python 3.12 on
def test_memory_counts_what_workers_add_and_no_page_of_a_file(tmp_path: Path) -> None:
    gauge, context = MemoryGauge(), multiprocessing.get_context("fork")
    stop, grow = context.Event(), context.Event()

    def work() -> None:
        grow.wait(60)
        kept = bytearray(b"x") * (64 * 2**20)
        stop.wait(60)
        del kept

    worker = context.Process(target=work)
    worker.start()
    try:
        before = gauge.read()
        (tmp_path / "frames").write_bytes(bytes(64 * 2**20))
        with (
            (tmp_path / "frames").open("rb") as file,
            mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as pages,
        ):
            assert sum(pages[:: mmap.PAGESIZE]) == 0
            assert gauge.read() - before < 32 * 2**20
        grow.set()
        deadline = time.monotonic() + 30
        while gauge.read() - before < 48 * 2**20:
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        stop.set()
        grow.set()
        worker.join()


def test_half_the_usual_speed_is_noted() -> None:
    def at(second: int) -> Beat:
        return beat(second, images_per_second=19.0 if second > 600 else 40.0)

    assert flags(history(640, at)) == {}
    assert flags(history(665, at)) == {"slow": Action.NOTE}


def test_waiting_for_the_loader_half_of_the_time_is_noted() -> None:
    assert flags(history(65, lambda n: beat(n, loader_wait=0.6))) == {"starving": Action.NOTE}


def test_a_disk_that_is_nearly_full_is_noted() -> None:
    assert flags(history(3, free=GIB)) == {"disk": Action.NOTE}


def test_more_than_one_bad_frame_in_a_hundred_ends_the_run_and_says_why() -> None:
    assert flags(history(3, lambda n: beat(n, frames=5000, bad_frames=92))) == {}
    assert flags(history(3, lambda n: beat(n, frames=20, bad_frames=10))) == {}
    seen = history(3, lambda n: beat(n, frames=5000, bad_frames=93))
    (verdict,) = health.check(seen, Rules())
    assert verdict.action is Action.GIVE_UP
    assert "93 of 5,000 frames" in verdict.detail
    assert "toolkit dataset verify --deep" in verdict.detail


@pytest.mark.parametrize(
    ("images", "share", "given_up"), [(640, 0.0078, False), (20_000, 0.0078, False), (20_000, 0.03, True)]
)
def test_bad_frames_that_mosaics_draw_again_and_again_are_judged_by_their_share(
    images: int, share: float, given_up: bool
) -> None:
    """Each sample takes its own frame and three of the 128 before it, as the dataset draws them."""
    draw = np.random.default_rng(0)
    for _ in range(50):
        bad = draw.permutation(images) < round(share * images)
        others = np.arange(images)[:, None] - draw.integers(1, 129, (images, 3))
        met = np.cumsum(bad + bad[others].sum(axis=1))
        beats = [beat(0, frames=4 * n, bad_frames=int(met[n - 1])) for n in range(64, images, 64)]
        found = [bool(flags(history(1, lambda _, now=now: now))) for now in beats]
        assert any(found) is given_up


def test_the_most_drastic_verdict_comes_first() -> None:
    glowing = Sensors(busy=0.0, temperature=99.0)
    seen = history(130, lambda _: beat(1), sensors=glowing)
    assert health.check(seen, Rules())[0].action is Action.GIVE_UP


def test_a_week_of_history_stays_small() -> None:
    seen = History()
    for second in range(0, 7 * 24 * 3600, 8):
        seen.add(float(second), beat(second), None, 0)
    assert len(seen.observations) < 12_000
    gaps = [b.at - a.at for a, b in zip(seen.observations, seen.observations[1:], strict=False)]
    assert max(gaps) < 130


def test_thresholds_come_from_the_configuration() -> None:
    rules = health.load({"hang": {"limit": 30}, "hot": {"action": "give up"}})
    assert rules.hang == Rule(30.0, Action.RESTART)
    assert rules.hot == Rule(80.0, Action.GIVE_UP, 60.0)
    assert rules.too_hot == Rules().too_hot


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ({"hangs": {"limit": 30}}, "no health rule hangs"),
        ({"hang": {"limits": 30}}, "limits"),
        ({"hang": {"action": "explode"}}, "explode"),
        ({"hang": 30}, "no health rule hang"),
    ],
)
def test_a_rule_that_is_not_known_is_refused(table: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ToolkitError, match=complaint):
        health.load(table)


def test_time_left_comes_with_its_spread() -> None:
    low, middle, high = beat(1, epoch=8, batch=40, validation_seconds=10.0).seconds_left() or (0, 0, 0)
    assert (low, middle, high) == pytest.approx((160 * 0.4 + 20, 160 * 0.5 + 20, 160 * 0.6 + 20))
    assert beat(1, step_seconds=(0.0, 0.0, 0.0)).seconds_left() is None


def amd_card(sysfs: Path, number: int, busy: int, degrees: int, used: int) -> None:
    node = sysfs / f"class/kfd/kfd/topology/nodes/{number + 1}"
    card = sysfs / f"class/drm/renderD{128 + number}/device"
    for folder in (node, card / "hwmon/hwmon3"):
        folder.mkdir(parents=True)
    (node / "properties").write_text(
        f"simd_count 72\nsimd_per_cu 2\ngfx_target_version 100100\ndrm_render_minor {128 + number}\n"
    )
    (sysfs / "recorded.json").write_text("{}")
    for name, value in {
        "mem_info_vram_total": 6 * GIB,
        "mem_info_vram_used": used,
        "gpu_busy_percent": busy,
        "hwmon/hwmon3/temp1_input": degrees * 1000,
    }.items():
        (card / name).write_text(f"{value}\n")


@pytest.fixture
def two_cards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(sensors, "built_for_nvidia", lambda: False)
    amd_card(tmp_path, 0, busy=93, degrees=71, used=GIB)
    amd_card(tmp_path, 1, busy=12, degrees=96, used=5 * GIB)
    return tmp_path


def test_the_sensors_of_an_amd_card_are_read_from_sysfs(two_cards: Path) -> None:
    assert reader("0", two_cards)() == Sensors(93, 71.0, GIB, 6 * GIB)
    assert reader("1", two_cards)() == Sensors(12, 96.0, 5 * GIB, 6 * GIB)
    assert reader("cpu", two_cards)() is None


def test_of_several_cards_the_worst_counts(two_cards: Path) -> None:
    assert reader("0,1", two_cards)() == Sensors(12, 96.0, 5 * GIB, 6 * GIB)


def test_with_a_pytorch_for_nvidia_the_graphics_of_an_amd_processor_are_not_asked(
    two_cards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "built_for_nvidia", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert reader("0", two_cards)() is None


def test_the_nvidia_cards_that_the_environment_leaves_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(sensors, "built_for_nvidia", lambda: True)
    monkeypatch.setattr(shutil, "which", lambda _: "nvidia-smi")
    monkeypatch.setattr(sensors, "_read_nvidia", asked.append)
    for visible in (None, "3,GPU-8f2a"):
        if visible:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        else:
            monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        assert reader("0,1")() is None
    assert asked == ["0", "1", "3", "GPU-8f2a"]


def test_a_driver_that_hangs_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    answered, asked = threading.Event(), []

    def read() -> Sensors:
        asked.append(1)
        if len(asked) > 1:
            answered.wait(60)
        return Sensors(busy=50.0)

    monkeypatch.setattr(sensors, "reader", lambda _: read)
    monkeypatch.setattr(sensors, "STALE", 1.5)
    look = sensors.in_background("0")
    try:
        for expected in (Sensors(busy=50.0), None):
            deadline = time.monotonic() + 30
            while look() != expected:
                assert time.monotonic() < deadline
                time.sleep(0.05)
    finally:
        answered.set()


def told(phases: str, rules: Rules) -> list[int]:
    """When starving is told: ``s`` starves, ``f`` is fed, ``v`` validates, a letter a second."""
    noted, seen, found = health.Noted(), History(), []
    for second, phase in enumerate(phases):
        wait = 0.9 if phase == "s" else 0.1
        looked = beat(second, loader_wait=wait, phase="validating" if phase == "v" else "training")
        seen.add(float(second), looked, None, 100 * GIB)
        new = noted.news(seen, health.check(seen, rules), rules)
        found += [second for verdict in new if verdict.rule == "starving"]
    return found


def test_what_lasts_over_validations_is_told_once() -> None:
    rules = Rules(starving=Rule(0.5, Action.NOTE, seconds=10.0))
    (once,) = told("s" * 30 + "v" * 60 + "s" * 30 + "v" * 5 + "s" * 30, rules)
    assert told("s" * 30 + "v" * 60 + "f" * 5 + "s" * 30, rules) == [once]
    first, again = told("s" * 30 + "f" * 60 + "s" * 30, rules)
    assert first == once
    assert again >= 100


def test_what_needs_no_time_is_told_each_time() -> None:
    rules = Rules(starving=Rule(0.5, Action.NOTE, seconds=0.0))
    assert len(told("sfsfs", rules)) == 3


def test_nobody_is_asked_when_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(threading.enumerate())
    monkeypatch.setattr(sensors, "reader", lambda _: lambda: Sensors(busy=50.0))
    look = sensors.in_background("0")
    (watcher,) = set(threading.enumerate()) - before
    del look
    watcher.join(60)
    assert not watcher.is_alive()


def test_a_loss_that_is_not_finite_has_no_total() -> None:
    assert beat(1, loss={"box": 1.0, "cls": None}).total_loss is None
    assert beat(1).total_loss == 2.0
    assert not math.isnan(beat(1).total_loss or math.nan)


@pytest.mark.parametrize("answer", ["", "No devices were found\n", "1, 2, 3, 4\n5, 6, 7, 8\n"])
def test_an_odd_answer_of_nvidia_smi_is_no_reading(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answered = subprocess.CompletedProcess([], 0, stdout=answer)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: answered)
    assert sensors._read_nvidia("0") is None


def test_the_sensors_are_read_again_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def read() -> Sensors:
        asked.append(1)
        if len(asked) == 1:
            raise RuntimeError("the driver is being replaced")
        return Sensors(busy=50.0)

    monkeypatch.setattr(sensors, "reader", lambda _: read)
    look = sensors.in_background("0")
    deadline = time.monotonic() + 10
    while look() is None:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_heartbeat_that_is_being_written_over_is_read_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, where there is no room for a second file."""
    written = beat(7)
    whole = msgspec.json.encode(written)
    contents = iter([b"", whole[:20], whole])
    monkeypatch.setattr(Path, "read_bytes", lambda _: next(contents))
    assert heartbeat.read(RunFiles(tmp_path)) == written


class OneMore(Rules, frozen=True):
    """A red flag is added by one declaration."""

    too_many_epochs: Annotated[
        Rule, health.Flag(lambda seen, rule: f"epoch {seen.beat.epoch}" if seen.beat else None, "epochs")
    ] = Rule(3.0, Action.NOTE)


def test_a_flag_that_is_declared_is_checked() -> None:
    seen = history(1, lambda second: beat(second, epoch=7))
    assert ("too_many_epochs", "epoch 7") in {(v.rule, v.detail) for v in health.check(seen, OneMore())}


def test_a_flag_cannot_be_declared_without_its_check() -> None:
    class Unchecked(Rules, frozen=True):
        forgotten: Rule = Rule(1.0, Action.NOTE)

    with pytest.raises(TypeError, match="forgotten is declared without a Flag"):
        health.check(history(1, lambda second: beat(second)), Unchecked())


def test_the_documentation_has_a_row_a_flag() -> None:
    document = (Path(__file__).parents[2] / "docs/reliability.md").read_text()
    assert health.table() in document, f"docs/reliability.md lacks this table:\n{health.table()}"
