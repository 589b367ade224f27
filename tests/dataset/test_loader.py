"""Workers come from a server that was started afresh, and go when the process that loads is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader

from toolkit.dataset import loader
from toolkit.dataset.index import DatasetIndex
from toolkit.dataset.loader import use_server
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.runs import reproduction
from toolkit.runs.plan import TrainingPlan
from toolkit.training.sampling import EpochSampler, ResumableLoader

LOAD = """
import sys
from pathlib import Path

if __name__ == "__main__":
    from toolkit.dataset.loader import start_server
    start_server()
    assert "torch" not in sys.modules
    from ultralytics.cfg import get_cfg
    from toolkit.dataset import index
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary
    from toolkit.training.sampling import EpochSampler, ResumableLoader
    frames = index.load(Path(sys.argv[1]))
    args = get_cfg(overrides={"imgsz": 96})
    dataset = build_dataset(frames, "train", args, "train", 8, data_dictionary(frames, 1), seed=1)
    order = EpochSampler(len(dataset), 8, 0)
    loader = ResumableLoader(dataset, order, workers=2, pin_memory=False, on_worker_death=print)
    batches = iter(loader)
    next(batches)
    print(*(worker.pid for worker in loader._iterator._workers), flush=True)
    sys.stdin.read()
"""


def test_a_server_that_was_started_early_serves_and_all_end_with_a_loader_that_is_killed(
    sample: Path, tmp_path: Path
) -> None:
    script = tmp_path / "load.py"
    script.write_text(LOAD)
    command = [sys.executable, script, sample]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    started = [psutil.Process(int(pid)) for pid in process.stdout.readline().split()]
    started.append(psutil.Process(started[0].ppid()))
    assert started[-1].ppid() == process.pid
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = started
    for _ in range(300):
        left = [p for p in left if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not left:
            break
        time.sleep(0.1)
    assert len(started) == 3
    assert not left


FIRST = """
import sys
from pathlib import Path

from toolkit.dataset import loader
from toolkit.training import worker

loader.start_server = lambda: sys.exit("torch" in sys.modules)
worker.main(Path(sys.argv[1]))
sys.exit("training never started the server")
"""


def test_training_starts_the_server_before_it_imports_pytorch_itself(sample: Path, tmp_path: Path) -> None:
    run, arguments = tmp_path / "run", {"workers": 2}
    reproduction.record(TrainingPlan(sample, run, "smoke", "yolo11n.yaml", 1, "cpu", False, arguments))
    subprocess.run([sys.executable, "-c", FIRST, run], check=True)


def test_no_worker_sees_a_gpu_or_imports_pytorch_again(index: DatasetIndex) -> None:
    data = data_dictionary(index, 1)
    args = get_cfg(overrides={"imgsz": 96})
    training = ResumableLoader(
        build_dataset(index, "train", args, "train", 8, data, seed=1),
        EpochSampler(48, 8, 0),
        workers=2,
        pin_memory=False,
        on_worker_death=print,
    )
    validation = build_dataloader(build_dataset(index, "val", args, "val", 8, data), 8, 2, device="cpu")
    use_server(validation)
    try:
        for loader, attribute in ((training, "_iterator"), (validation, "iterator")):
            next(iter(loader))
            for worker in getattr(loader, attribute)._workers:
                process = psutil.Process(worker.pid)
                assert process.environ()["CUDA_VISIBLE_DEVICES"] == "-1"
                assert "multiprocessing.forkserver" in " ".join(process.cmdline())
    finally:
        training.close()
        validation.close()


def test_the_gpus_are_hidden_from_this_process_while_its_server_starts_and_never_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loader.start_server()
    seen: list[str] = []
    monkeypatch.setattr(os, "environ", Watched(os.environ, seen))
    loader.start_server()
    assert not seen, "another thread may be opening a GPU by now"


class Watched(dict[str, str]):
    """An environment that remembers which names were written."""

    def __init__(self, environment: Mapping[str, str], seen: list[str]) -> None:
        super().__init__(environment)
        self._seen = seen

    def __setitem__(self, name: str, value: str) -> None:
        self._seen.append(name)
        super().__setitem__(name, value)

    def update(self, *others: Any, **more: Any) -> None:
        """Name by name."""
        for name, value in dict(*others, **more).items():
            self[name] = value
