"""Numbers that are not finite, frames that do not decode, workers that die: met inside the trainer."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import plan, train

from toolkit.dataset import index
from toolkit.dataset.frames import FrameError
from toolkit.dataset.skips import Skips
from toolkit.runs import checkpoints, events, heartbeat
from toolkit.runs.folder import RunFiles
from toolkit.settings import Saving
from toolkit.training.resumable import RollBackNeeded
from toolkit.training.trainer import LTDv2Trainer

Batch = dict[str, Any]


def poisoned(at: Callable[[int], bool], amp: bool = False) -> Callable[[LTDv2Trainer], None]:
    """Make the images of the batches (counted over the run) that ``at`` chooses NaN."""

    def prepare(trainer: LTDv2Trainer) -> None:
        original = trainer.preprocess_batch

        def preprocess(batch: Batch) -> Batch:
            processed = original(batch)
            if at(trainer.batches_done):
                processed["img"][:] = torch.nan
            if amp and not trainer.scaler.is_enabled():
                trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            return processed

        trainer.preprocess_batch = preprocess

    return prepare


def finite(path: Path) -> bool:
    """Whether every weight and statistic in an Ultralytics checkpoint is finite."""
    loaded = torch.load(path, weights_only=False)
    model = loaded["ema"] or loaded["model"]
    return all(bool(torch.isfinite(v).all()) for v in model.state_dict().values())


@pytest.mark.parametrize("amp", [False, True], ids=["fp32", "with a gradient scaler"])
def test_one_nan_batch_costs_one_update(data: Path, tmp_path: Path, amp: bool) -> None:
    planned = plan(data, tmp_path / "run", nbs=8)
    trace = train(planned, prepare=poisoned(lambda batch: batch == 8, amp))
    trainer = trace.trainer
    assert trainer is not None
    assert trainer.skipped_updates == 1
    assert trainer.skipped_in_a_row == 0
    assert trainer.ema.updates == 17
    assert finite(planned.run / "weights" / "last.pt")
    for step in trace.steps:
        assert (step.epoch, step.batch) == (1, 2) or torch.isfinite(torch.tensor(step.losses)).all()
    recorded = events.read(RunFiles(planned.run).events)
    assert {(event.epoch, event.batch) for event in recorded} == {(1, 2)}
    assert "images from frames/" in recorded[0].detail


def test_nan_in_every_batch_changes_no_weight_and_writes_no_checkpoint(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run", saving=Saving(batches=1), epochs=2)
    files = RunFiles(planned.run)
    trace = train(planned, stop_after=11, prepare=poisoned(lambda batch: batch >= 4))
    trainer = trace.trainer
    assert trainer is not None
    assert trainer.skipped_in_a_row >= 4
    assert all(bool(torch.isfinite(p).all()) for p in trainer.model.state_dict().values())
    assert [c.images for c in checkpoints.listed(files.checkpoints)][1:] == [32, 24]


def test_weights_that_are_not_finite_are_never_saved(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run", saving=Saving(batches=1))

    def prepare(trainer: LTDv2Trainer) -> None:
        def spoil(_: object) -> None:
            if trainer.batches_done == 3:
                next(trainer.model.parameters()).data[0] = torch.inf

        trainer.callbacks["on_train_batch_end"].insert(0, spoil)

    with pytest.raises(RollBackNeeded):
        train(planned, prepare=prepare)
    assert [c.images for c in checkpoints.listed(RunFiles(planned.run).checkpoints)] == [24, 16, 8]


def test_a_dead_worker_is_recorded_and_replaced_and_no_sample_is_lost(data: Path, tmp_path: Path) -> None:
    calm = train(plan(data, tmp_path / "calm", epochs=1, close_mosaic=0, batch=4))
    planned = plan(data, tmp_path / "run", epochs=1, close_mosaic=0, batch=4, workers=1)

    def prepare(trainer: LTDv2Trainer) -> None:
        def kill(_: object) -> None:
            if trainer.batches_done == 0:
                os.kill(trainer.train_loader._iterator._workers[0].pid, signal.SIGKILL)

        trainer.callbacks["on_train_batch_end"].insert(0, kill)

    trace = train(planned, prepare=prepare)
    assert trace.images == calm.images
    for a, b in zip(trace.steps, calm.steps, strict=True):
        assert a.losses == pytest.approx(b.losses, abs=1e-6)
    assert events.count(events.read(RunFiles(planned.run).events)) == {"worker died": 1}


def test_a_bad_frame_on_a_full_disk_is_replaced_all_the_same() -> None:
    skips = Skips(Path("/dev/full"))
    skips.note(FrameError("a.jpg", "cut short"))
    assert skips.frames == {"a.jpg": 1}


def test_frames_that_cannot_be_read_are_replaced_and_counted(data: Path, tmp_path: Path) -> None:
    """One truncated JPEG, and an archive that ends before its last frame does."""
    damaged = tmp_path / "damaged"
    shutil.copytree(data, damaged)
    split = index.load(damaged).split("train")
    offsets = sorted(split._numpy("offset", "int64").tolist())
    archive = damaged / "frames.zip"
    with archive.open("r+b") as file:
        file.seek(offsets[3] + 600)
        file.write(bytes(offsets[4] - offsets[3] - 600))
        file.truncate(offsets[-1] + 200)
    planned = plan(damaged, tmp_path / "run", epochs=1, close_mosaic=0)
    trace = train(planned)
    assert len(trace.steps) == 6
    files = RunFiles(planned.run)
    bad = {json.loads(line)["frame"] for line in files.skipped_frames.read_text().splitlines()}
    assert len(bad & {split.frames().name(row) for row in range(44)}) == 2
    beat = heartbeat.read(files)
    assert beat is not None
    assert beat.bad_frames == len(files.skipped_frames.read_text().splitlines())
    assert beat.frames == 44 * 4 + 8  # mosaic reads four frames for a sample; the validation split


def test_frames_count_as_read_before_any_worker_can_have_found_them_bad(data: Path, tmp_path: Path) -> None:
    """Workers read ahead, in training by four batches each: a share of bad frames is one of all these."""
    planned = plan(data, tmp_path / "run", epochs=1, close_mosaic=0, batch=4, workers=2)
    seen = []
    begun = []

    def prepare(trainer: LTDv2Trainer) -> None:
        trainer.add_callback("on_train_batch_end", lambda _: seen.append(heartbeat.read(trainer.files)))
        trainer.add_callback("on_val_start", lambda _: begun.append(trainer.telemetry.frames))

    train(planned, prepare=prepare)
    assert seen[0] is not None
    assert seen[0].frames == 4 * (4 + 2 * 4 * 4)
    assert begun == [4 * 44 + 8]
