"""Two ranks under torchrun, over gloo on the CPU, are one run."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import MODEL, Trace, plan, train

from toolkit.training import events
from toolkit.training.rundir import RunFiles, Saving, read_summary
from toolkit.training.session import TrainingPlan
from toolkit.training.supervisor import Policy, supervise

pytestmark = pytest.mark.slow

WORKER = Path(__file__).parent / "faulty_worker.py"


def two_ranks(run: Path, *faults: str) -> list[str]:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*torchrun, str(WORKER), str(run), *faults]


@pytest.fixture(scope="module")
def planned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainingPlan:
    """Two epochs of three batches from weights that find something: a loss divides by what they find."""
    before = plan(
        data, tmp_path_factory.mktemp("runs") / "before", epochs=12, nbs=8, optimizer="AdamW", lr0=0.005
    )
    train(before)
    run = tmp_path_factory.mktemp("runs") / "together"
    going_on = plan(data, run, saving=Saving(batches=1), epochs=2, batch=16, warmup_epochs=0.0, lr0=0.001)
    return replace(going_on, model=str(before.run / "weights" / "last.pt"))


@pytest.fixture(scope="module")
def together(planned: TrainingPlan) -> Path:
    """The run by two ranks, the first of which is killed in the fifth batch."""
    supervise(planned, Policy(look=0.2), two_ranks(planned.run, "kill:1:1"))
    return planned.run


@pytest.fixture(scope="module")
def alone(planned: TrainingPlan) -> Trace:
    return train(replace(planned, run=planned.run.parent / "alone"))


def batches(run: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What each rank did in each batch, the last time that it did it."""
    found: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for line in (run / "trace.jsonl").read_text().splitlines():
        step = json.loads(line)
        found.setdefault((step["epoch"], step["batch"]), {})[step["rank"]] = step
    return {place: [ranks[rank] for rank in sorted(ranks)] for place, ranks in found.items()}


def test_the_ranks_share_the_images_of_each_batch(together: Path, alone: Trace) -> None:
    shared = batches(together)
    assert len(shared) == len(alone.steps)
    for step in alone.steps:
        first, second = shared[step.epoch, step.batch]
        assert not set(first["images"]) & set(second["images"])
        assert {*first["images"], *second["images"]} == set(step.images)


def test_their_losses_are_those_of_one_rank_within_a_percent(together: Path, alone: Trace) -> None:
    """Each rank divides by the targets of its own images, so that single batches differ by a little more."""
    shared = batches(together)
    pairs = [
        (statistics.mean(sum(part["losses"]) for part in shared[step.epoch, step.batch]), sum(step.losses))
        for step in alone.steps
    ]
    for two, one in pairs:
        assert two == pytest.approx(one, rel=0.05)
    assert sum(two for two, _ in pairs) == pytest.approx(sum(one for _, one in pairs), rel=0.01)


def test_the_whole_group_is_started_again_and_finishes(together: Path) -> None:
    files = RunFiles(together)
    assert [(e.kind, e.action) for e in events.read(files.events)] == [("trainer died", "restarted")]
    summary = read_summary(files)
    assert summary is not None
    assert (summary.state, summary.epochs) == ("finished", 2)
    assert files.best.is_file()


def test_the_users_own_torchrun_trains(data: Path, tmp_path: Path) -> None:
    """`torchrun -m toolkit train`: the first rank plans and scores, the other follows."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    words = ["-m", "toolkit", "train", "--data", str(data), "--model", str(MODEL), "--preset", "smoke"]
    words += ["--imgsz", "64", "--epochs", "1", "--device", "cpu", "--name", "mine", "--no-patches"]
    words += ["--score-every", "1"]
    environment = {**os.environ, "TOOLKIT_WORKSPACE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    first = subprocess.run([*torchrun, *words], env=environment, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    run = tmp_path / "runs" / "mine"
    header, _ = (run / "results.csv").read_text().splitlines()
    assert "global_map_bal" in header
    assert first.stderr.count("predicting val: 8/8") == 1
    assert (run / "weights" / "best.pt").is_file()
    assert not RunFiles(run).is_locked()
