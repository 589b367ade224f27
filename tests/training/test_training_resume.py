"""A run that is cut off and resumed is the run that was not: same samples, same losses, same weights."""

from __future__ import annotations

import csv
import resource
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import MethodType

import pytest
import torch
from tiny_run import Step, Trace, plan, train
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.runs import checkpoints, events, heartbeat
from toolkit.runs.folder import RunFiles
from toolkit.runs.plan import TrainingPlan
from toolkit.settings import Saving
from toolkit.training.state import load_state, save_state
from toolkit.training.trainer import LTDv2Trainer


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Trace:
    """The run that nothing disturbs."""
    return train(plan(data, tmp_path_factory.mktemp("runs") / "whole"))


def weights(run: Path, name: str = "last.pt") -> dict[str, torch.Tensor]:
    """The weights in a checkpoint of Ultralytics."""
    loaded = torch.load(run / "weights" / name, weights_only=False)
    state: dict[str, torch.Tensor] = (loaded["ema"] or loaded["model"]).state_dict()
    return state


def rows(run: Path) -> list[list[str]]:
    """results.csv without the column of times."""
    with (run / "results.csv").open() as file:
        return [[row[0], *row[2:]] for row in csv.reader(file)]


def assert_same(first: list[Step], second: list[Step]) -> None:
    assert [step.images for step in first] == [step.images for step in second]
    assert [step.rate for step in first] == pytest.approx([step.rate for step in second], rel=1e-9)
    for a, b in zip(first, second, strict=True):
        assert a.losses == pytest.approx(b.losses, abs=1e-6), (a.epoch, a.batch)


@pytest.mark.parametrize("cut", [1, 4, 6, 10, 13])
def test_cut_at_any_batch_it_goes_on_exactly(whole: Trace, data: Path, tmp_path: Path, cut: int) -> None:
    """In warm-up, with gradients waiting for their update, at the end of an epoch, with mosaic closed."""
    planned = plan(data, tmp_path / "run")
    first = train(planned, stop_after=cut)
    assert first.stopped
    second = train(planned)
    assert_same(first.steps + second.steps, whole.steps)
    assert whole.trainer is not None
    for name, value in weights(whole.trainer.plan.run).items():
        assert torch.equal(value, weights(planned.run)[name]), name
    assert rows(planned.run) == rows(whole.trainer.plan.run)


def test_gradients_that_wait_for_their_update_are_kept(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run")
    train(planned, stop_after=10)
    checkpoint, _ = checkpoints.newest(RunFiles(planned.run).checkpoints)
    assert checkpoint is not None
    state = load_state(checkpoint)
    assert state["since_update"] == 1
    assert len(state["gradients"]) > 50


def test_workers_make_the_samples_that_the_trainer_itself_makes(
    whole: Trace, data: Path, tmp_path: Path
) -> None:
    with_worker = train(plan(data, tmp_path / "run", workers=1, epochs=1, close_mosaic=0))
    # The warm-up of a run of one epoch is another one: the first batch comes before any update.
    assert [step.images for step in with_worker.steps] == [step.images for step in whole.steps[:6]]
    assert with_worker.steps[0].losses == pytest.approx(whole.steps[0].losses, abs=1e-6)


def test_a_truncated_newest_checkpoint_falls_back_to_the_one_before(
    whole: Trace, data: Path, tmp_path: Path
) -> None:
    planned = plan(data, tmp_path / "run", saving=Saving(batches=2))
    files = RunFiles(planned.run)
    first = train(planned, stop_after=7)
    damaged = checkpoints.listed(files.checkpoints)[0]
    assert damaged.images == 44 + 8
    damaged.path.write_bytes(damaged.path.read_bytes()[:-100])
    second = train(planned)
    assert [event.kind for event in events.read(files.events)] == ["checkpoint damaged"]
    assert_same(first.steps[:6] + second.steps, whole.steps)


def test_a_checkpoint_that_cannot_be_read_for_a_moment_is_passed_over_but_not_deleted(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = plan(data, tmp_path / "run", epochs=2, saving=Saving(batches=2))
    folder = RunFiles(planned.run).checkpoints
    train(planned, stop_after=7)
    unreadable, content = checkpoints.listed(folder)[0], checkpoints.listed(folder)[0].path.read_bytes()
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path == unreadable.path:
            raise OSError(5, "Input/output error")
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", fail)
    train(planned, stop_after=1)
    monkeypatch.undo()
    assert unreadable.path.with_suffix(".damaged").read_bytes() == content


def test_with_larger_batches_the_newest_checkpoint_is_still_the_last_one_written(
    data: Path, tmp_path: Path
) -> None:
    """Forty images in batches of eight, then batches of sixteen: a third run goes on after the second."""
    planned = plan(data, tmp_path / "run", saving=Saving(batches=1))
    larger = replace(planned, arguments={**planned.arguments, "batch": 16})
    first, second, third = train(planned, stop_after=5), train(larger, stop_after=3), train(larger)
    assert len(set(first.images + list(second.steps[0].images))) == 44
    assert [(step.epoch, step.batch) for step in second.steps] == [(0, 2), (1, 0), (1, 1)]
    assert (third.steps[0].epoch, third.steps[0].batch) == (1, 2)


def test_a_run_cut_before_its_first_checkpoint_starts_over(whole: Trace, data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run")

    class Cut(Exception):
        pass

    def cut(trainer: LTDv2Trainer) -> None:
        def raise_after_first_epoch(_: object) -> None:
            raise Cut

        trainer.add_callback("on_fit_epoch_end", raise_after_first_epoch)

    with pytest.raises(Cut):
        train(planned, prepare=cut)
    assert (planned.run / "weights" / "last.pt").is_file()
    assert_same(train(planned).steps, whole.steps)
    assert len(rows(planned.run)) == 4


def test_a_worse_epoch_after_a_resume_does_not_replace_best_pt(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run")
    best = planned.run / "weights" / "best.pt"
    train(planned, stop_after=8)
    content = torch.load(best, weights_only=False)
    content["best_fitness"] = 0.9  # as if a later epoch had been better before the run was cut off
    torch.save(content, best)
    before = best.read_bytes()
    train(planned, stop_after=6)
    assert best.read_bytes() == before


@pytest.mark.parametrize("room", [10_000, 100], ids=["for small files", "for nothing"])
def test_a_full_disk_costs_checkpoints_but_not_the_run(
    whole: Trace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """A limit on the size of files stands for the disk, from the third to the ninth batch."""
    for name in ("stdout", "stderr"):  # put back at the end
        monkeypatch.setattr(sys, name, getattr(sys, name))
    console.outlive_readers()
    planned = plan(data, tmp_path / "run", saving=Saving(batches=1))
    files = RunFiles(planned.run)
    kept: list[int] = []

    def fill(trainer: LTDv2Trainer) -> None:
        def on_batch(_: object) -> None:
            done = trainer.batches_done + 1
            soft = room if 3 <= done < 9 else resource.RLIM_INFINITY
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, resource.RLIM_INFINITY))
            if done == 8:
                kept.extend(c.images for c in checkpoints.listed(files.checkpoints) if c.intact())

        trainer.callbacks["on_train_batch_end"].insert(0, on_batch)

    try:
        trace = train(planned, prepare=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert_same(trace.steps, whole.steps)
    assert whole.trainer is not None
    assert kept == [16, 8]
    if room > 100:  # else the events did not fit either
        counts = events.count(events.read(files.events))
        assert counts["weights not written"] == 1
        assert counts["checkpoint not written"] >= 6
    assert rows(planned.run)[-1] == rows(whole.trainer.plan.run)[-1]
    assert not list(planned.run.rglob("*.tmp"))
    assert weights(planned.run).keys() == weights(planned.run, "best.pt").keys()


def test_ultralytics_own_loop_sees_the_same_warm_up_and_updates(data: Path, tmp_path: Path) -> None:
    """Nothing of this trainer but its loader is left: losses and rates agree batch by batch."""
    planned = plan(data, tmp_path / "run")
    ours = train(planned)

    def undo(trainer: LTDv2Trainer) -> None:
        for event, handlers in trainer.callbacks.items():
            if event != "on_train_epoch_start":  # tells the sampler the epoch
                trainer.callbacks[event] = [h for h in handlers if "ResumableTrainer" not in h.__qualname__]
        trainer.preprocess_batch = MethodType(DetectionTrainer.preprocess_batch, trainer)
        trainer.optimizer_step = MethodType(DetectionTrainer.optimizer_step, trainer)
        trainer._do_train = MethodType(BaseTrainer._do_train, trainer)
        trainer._images = []

    theirs = train(plan(data, tmp_path / "theirs"), prepare=undo)
    for a, b in zip(ours.steps, theirs.steps, strict=True):
        assert a.losses == pytest.approx(b.losses, abs=1e-6), (a.epoch, a.batch)
        assert a.rate == pytest.approx(b.rate, rel=1e-9)


def test_a_stop_that_cannot_save_says_how_much_is_lost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise ToolkitError("No space left on device")

    planned = plan(data, tmp_path / "run")
    train(planned, stop_after=2)
    monkeypatch.setattr(checkpoints, "write", full)
    assert train(planned, stop_after=5).stopped
    last = events.read(RunFiles(planned.run).events)[-1]
    assert (last.kind, last.detail) == ("not saved", "36 images are to be trained again")


@pytest.fixture
def interrupted(data: Path, tmp_path: Path) -> TrainingPlan:
    """A run that was stopped in its second epoch."""
    planned = plan(data, tmp_path / "run", epochs=2, saving=Saving(batches=4))
    train(planned, stop_after=8)
    return planned


def test_a_log_that_a_power_cut_spoiled_does_not_stop_the_training(interrupted: TrainingPlan) -> None:
    with (interrupted.run / "results.csv").open("ab") as file:
        file.write(b"\xff\xfe\0\0,1,2\n")
    train(interrupted)
    assert [row[0] for row in rows(interrupted.run)[1:]] == ["1", "2"]


def test_a_run_without_an_intact_checkpoint_is_not_begun_anew_in_silence(interrupted: TrainingPlan) -> None:
    files = RunFiles(interrupted.run)
    kept = checkpoints.listed(files.checkpoints)
    for one in kept:
        one.path.write_bytes(b"")
    with pytest.raises(ToolkitError, match="checkpoints can be read"):
        train(interrupted)
    assert checkpoints.listed(files.checkpoints) == kept
    assert len(rows(interrupted.run)) == 2


@pytest.mark.parametrize(("scores", "kept"), [((0.1, 0.9, 0.5), 0.5), ((0.5, 0.9, 0.3), 0.5)])
def test_a_full_disk_at_the_best_epoch_neither_freezes_best_pt_nor_lets_a_worse_one_in(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scores: tuple[float, ...], kept: float
) -> None:
    fitness = iter(scores)

    def validate(trainer: LTDv2Trainer) -> tuple[dict[str, float], float]:
        value = next(fitness)
        trainer.best_fitness = max(trainer.best_fitness or 0.0, value)
        return {"fitness": value}, value

    def save(trainer: LTDv2Trainer) -> bool:
        if trainer.epoch == 1:
            raise OSError(28, "No space left on device")
        return saved(trainer)

    saved = BaseTrainer.save_model
    monkeypatch.setattr(BaseTrainer, "save_model", save)
    monkeypatch.setattr(LTDv2Trainer, "validate", validate)
    planned = plan(data, tmp_path / "run", epochs=3)
    train(planned)
    best = torch.load(planned.run / "weights" / "best.pt", weights_only=False)
    assert best["best_fitness"] == kept


@pytest.mark.parametrize("stopped", [False, True], ids=["until there is room", "until it is stopped"])
def test_a_disk_that_is_full_after_the_last_epoch_is_waited_for(
    whole: Trace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stopped: bool
) -> None:
    tries: list[int] = []

    def save(trainer: LTDv2Trainer) -> bool:
        if trainer.epoch == 2:
            tries.append(trainer.telemetry.beats)
            if stopped and len(tries) == 2:
                trainer.stop_wanted = lambda: True
            if len(tries) < 4:
                raise OSError(28, "No space left on device")
        return saved(trainer)

    saved = BaseTrainer.save_model
    monkeypatch.setattr(BaseTrainer, "save_model", save)
    monkeypatch.setattr(heartbeat, "INTERVAL", 0.01)
    planned = plan(data, tmp_path / "run")
    assert train(planned).stopped is stopped
    if stopped:
        assert len(tries) == 2
        tries.extend(tries)
        assert train(planned).steps == []
    else:
        assert tries == sorted(set(tries)), "no beat between two tries"
    assert [event.action for event in events.read(RunFiles(planned.run).events)] == ["waiting for room"]
    assert whole.trainer is not None
    for name, value in weights(whole.trainer.plan.run).items():
        assert torch.equal(value, weights(planned.run)[name]), name
    assert rows(planned.run) == rows(whole.trainer.plan.run)


def test_a_run_finishes_where_there_is_no_room_to_take_the_optimiser_out(
    whole: Trace, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    monkeypatch.setattr("toolkit.training.weights.strip_optimizer", full)
    planned = plan(data, tmp_path / "run")
    assert_same(train(planned).steps, whole.steps)
    assert events.count(events.read(RunFiles(planned.run).events)) == {"optimiser kept": 2}
    assert whole.trainer is not None
    assert weights(planned.run).keys() == weights(whole.trainer.plan.run).keys()


@pytest.mark.parametrize("kept", [True, False])
def test_start_weights_are_not_needed_after_the_first_checkpoint(
    data: Path, tmp_path: Path, kept: bool
) -> None:
    """The checkpoint holds the architecture; one by an older version has last.pt beside it."""
    begun = train(plan(data, tmp_path / "first", epochs=1))
    assert begun.trainer is not None
    start = tmp_path / "start.pt"
    shutil.copyfile(begun.trainer.last, start)
    runs = {}
    for name in ("whole", "cut"):
        planned = replace(plan(data, tmp_path / name, epochs=2), model=str(start))
        runs[name] = train(planned, stop_after=8 if name == "cut" else None)
    start.unlink()
    if not kept:
        folder = RunFiles(planned.run).checkpoints
        newest = checkpoints.listed(folder)[0]
        state = load_state(newest)
        del state["architecture"]
        newest.path.unlink()
        save_state(folder, newest.images, state)
    rest = train(planned)
    assert_same(runs["cut"].steps + rest.steps, runs["whole"].steps)
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(value, weights(planned.run)[name]), name
