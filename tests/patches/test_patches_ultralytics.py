"""Ultralytics under the patches: no other model for the AMP check, spawned workers, and the way back."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
import torch
from torch import nn

import patches.ultralytics as patch

pytest.importorskip(
    "ultralytics", reason="the patches are for people who have it; everything else runs without"
)


@pytest.fixture
def applied() -> Iterator[None]:
    patch.apply()
    yield
    patch.restore()


def test_importing_the_module_imports_no_ultralytics() -> None:
    code = "import sys, patches.ultralytics; sys.exit('ultralytics' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_modules_that_hold_check_amp_by_name_get_ours_and_give_it_back() -> None:
    trainer = importlib.import_module("ultralytics.engine.trainer")
    checks = importlib.import_module("ultralytics.utils.checks")
    original = checks.check_amp
    assert trainer.check_amp is original
    patch.apply()
    patch.apply()
    assert trainer.check_amp is checks.check_amp is patch.check_amp
    patch.restore()
    patch.restore()
    assert trainer.check_amp is checks.check_amp is original


def detector() -> nn.Module:
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    return DetectionModel("yolov8n.yaml", ch=1, nc=4, verbose=False).train()


@pytest.mark.usefixtures("applied")
def test_the_check_on_a_cpu_says_no_and_loads_no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    import ultralytics
    from ultralytics.utils.checks import check_amp

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("another model was loaded")

    monkeypatch.setattr(ultralytics, "YOLO", forbidden)
    assert check_amp(detector()) is False


def test_a_healthy_model_agrees_with_itself_under_autocast_and_stays_as_it_was() -> None:
    model = detector()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.model[0].eval()
    assert patch.agrees_under_autocast(model, torch.device("cpu"))
    assert model.training
    assert not model.model[0].training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Fragile(nn.Module):
    """Right in fp32, not in half precision."""

    def __init__(self, wrong: float) -> None:
        super().__init__()
        self.conv, self.wrong = nn.Conv2d(3, 4, 3), wrong

    def forward(self, x: torch.Tensor) -> dict[str, list[torch.Tensor]]:
        y = self.conv(x)
        return {"boxes": [y.float() if y.dtype == torch.float32 else y.float() * self.wrong]}


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 2.0])
def test_a_model_that_breaks_under_autocast_is_found(wrong: float) -> None:
    assert not patch.agrees_under_autocast(Fragile(wrong), torch.device("cpu"))
    assert patch.agrees_under_autocast(Fragile(1.0), torch.device("cpu"))


class Numbers(torch.utils.data.Dataset[int]):
    """Eight numbers, each with the way its worker was started."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> int:
        return index


def loader_of(workers: int) -> object:
    from ultralytics.data.build import InfiniteDataLoader

    return InfiniteDataLoader(Numbers(), batch_size=4, num_workers=workers)


def test_loader_workers_are_spawned_while_the_patch_is_on() -> None:
    patch.apply()
    try:
        assert loader_of(2).multiprocessing_context.get_start_method() == "spawn"  # type: ignore[attr-defined]
        assert loader_of(0).multiprocessing_context is None  # type: ignore[attr-defined]
    finally:
        patch.restore()
    assert loader_of(2).multiprocessing_context is None  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.usefixtures("applied")
def test_a_spawned_worker_delivers_every_epoch() -> None:
    loader = loader_of(1)
    for _ in range(2):
        assert torch.cat(list(loader)).tolist() == list(range(8))  # type: ignore[call-overload]
    loader.close()  # type: ignore[attr-defined]


def share_for_ever() -> None:
    """What the thread does that hands batches over, without an end."""
    while True:
        torch.ones(1000).untyped_storage()._share_fd_cpu_()


def work_beside_a_sharing_thread(status: int) -> None:
    threading.Thread(target=share_for_ever, daemon=True).start()
    time.sleep(0.2)
    raise SystemExit(status)


@pytest.mark.parametrize("status", [0, 3])
def test_a_worker_that_still_hands_tensors_over_ends_with_its_own_status(status: int) -> None:
    worker = patch.WorkerContext().Process(target=work_beside_a_sharing_thread, args=(status,))
    worker.start()
    worker.join()
    assert worker.exitcode == status
