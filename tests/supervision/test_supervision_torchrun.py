"""Two ranks under torchrun, over gloo on the CPU, are one run."""

from __future__ import annotations

import copy
import itertools
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import time
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from tiny_run import HELPERS, MODEL, Trace, plan, train

from toolkit.dataset.frequency import Frequency
from toolkit.runs import checkpoints, events, reproduction, results
from toolkit.runs.folder import (
    Exit,
    Instructions,
    RunFiles,
    read_instructions,
    read_summary,
    state_of,
    write_json,
)
from toolkit.runs.plan import TrainingPlan
from toolkit.settings import Saving
from toolkit.supervision.recovery import Patience
from toolkit.supervision.supervisor import supervise
from toolkit.training.state import load_state

pytestmark = pytest.mark.slow

WORKER = HELPERS / "faulty_worker.py"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]


def command(ranks: int, run: Path, *faults: str) -> list[str]:
    return [*TORCHRUN, f"--nproc-per-node={ranks}", str(WORKER), str(run), *faults]


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
    """The run by two ranks, of which one is killed in the second batch and the other in the fifth."""
    supervise(planned, Patience(look=0.2), command(2, planned.run, "kill:0:1@1", "kill:1:1"))
    return planned.run


@pytest.fixture(scope="module")
def alone(planned: TrainingPlan) -> Trace:
    return train(replace(planned, run=planned.run.parent / "alone"))


def steps(run: Path) -> list[dict[str, Any]]:
    """What each rank did, in order."""
    return [json.loads(line) for line in (run / "trace.jsonl").read_text().splitlines()]


def batches(run: Path) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """What each rank did in each batch, the last time that it did it."""
    found: dict[tuple[int, int], dict[int, dict[str, Any]]] = {}
    for step in steps(run):
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


def loss_and_targets(model: Any, batch: dict[str, Any]) -> tuple[float, float]:
    """The loss of a batch, and the sum of the scores of its targets, which Ultralytics divides it by."""
    model.criterion = model.init_criterion()
    sums: list[float] = []
    model.criterion.assigner.register_forward_hook(lambda *call: sums.append(float(call[2][2].sum())))
    with torch.no_grad():
        parts = model(batch)[1]
    return float(sum(parts.values())), sums[0]


def part_of(batch: dict[str, Any], rank: int) -> dict[str, Any]:
    """What one of two ranks gets of a batch."""
    mine = batch["batch_idx"] % 2 == rank
    boxes = {key: batch[key][mine] for key in ("cls", "bboxes")}
    return {**batch, **boxes, "img": batch["img"][rank::2], "batch_idx": batch["batch_idx"][mine] // 2}


def test_own_targets_and_own_statistics_are_all_that_makes_ranks_differ(planned: TrainingPlan) -> None:
    """Two halves of a batch that share both have the loss of the whole."""
    differences: dict[str, list[float]] = defaultdict(list)

    def prepare(trainer: Any) -> None:
        original = trainer.preprocess_batch

        def preprocess(batch: dict[str, Any]) -> dict[str, Any]:
            processed: dict[str, Any] = original(batch)
            model = copy.deepcopy(trainer.model)
            for normalised in ("own", "shared"):
                for module in model.modules():
                    if normalised == "shared" and isinstance(module, torch.nn.BatchNorm2d):
                        module.eval()
                whole, targets = loss_and_targets(model, processed)
                (one, its), (two, others) = (loss_and_targets(model, part_of(processed, r)) for r in range(2))
                plain, weighed = (one + two) / 2, (one * its + two * others) / targets
                differences[f"own targets, {normalised} statistics"].append(plain / whole - 1)
                differences[f"shared targets, {normalised} statistics"].append(weighed / whole - 1)
            return processed

        trainer.preprocess_batch = preprocess

    train(replace(planned, run=planned.run.parent / "halved"), prepare=prepare)
    largest = {name: max(map(abs, values)) for name, values in differences.items()}
    for name, difference in largest.items():
        print(f"{name}: a batch in two halves differs by at most {difference:.1e}")
    assert largest.pop("shared targets, shared statistics") < 1e-5
    assert min(largest.values()) > 1e-3


def test_the_whole_group_is_started_again_and_finishes(together: Path) -> None:
    files = RunFiles(together)
    assert [(e.kind, e.action) for e in events.read(files.events)] == [("trainer died", "restarted")] * 2
    summary = read_summary(files)
    assert summary is not None
    assert (summary.state, summary.epochs) == ("finished", 2)
    assert files.best.is_file()


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_a_run_goes_on_with_another_number_of_ranks(
    planned: TrainingPlan, alone: Trace, before: int, after: int
) -> None:
    """Stopped in the middle of the second epoch: every image once, losses within one percent on the mean."""
    run = planned.run.parent / f"{before}-{after}"
    reproduction.record(replace(planned, run=run))
    stopped = subprocess.run(command(before, run, "stop:1:1"), stderr=subprocess.PIPE)
    assert stopped.returncode, "torchrun says nothing of a rank that was stopped"
    assert RunFiles(run).exit_status.read_text() == str(int(Exit.STOPPED))
    subprocess.run(command(after, run), check=True)
    places = [(step["epoch"], step["batch"]) for step in steps(run) if step["rank"] == 0]
    assert places == [(step.epoch, step.batch) for step in alone.steps], "no batch twice, none missed"
    done = batches(run)
    assert [len(done[place]) for place in places] == [before] * 5 + [after]
    losses = []
    for step in alone.steps:
        ranks = done[step.epoch, step.batch]
        assert sorted(name for part in ranks for name in part["images"]) == sorted(step.images)
        losses.append(statistics.mean(sum(part["losses"]) for part in ranks))
    assert sum(losses) == pytest.approx(sum(sum(step.losses) for step in alone.steps), rel=0.01)


def test_ranks_agree_on_the_epochs_that_are_validated(planned: TrainingPlan) -> None:
    """A rank that validated alone would wait for the other for ever."""
    thinned = replace(
        planned,
        run=planned.run.parent / "thinned",
        frequency=Frequency(every=2),
        arguments={**planned.arguments, "epochs": 3, "patience": 1},
    )
    reproduction.record(thinned)
    subprocess.run(command(2, thinned.run), check=True, timeout=120)
    told = [epoch.validated for epoch in results.read(RunFiles(thinned.run).results)]
    assert told == [False, True, True]


def test_a_batch_that_the_ranks_cannot_share_is_refused(planned: TrainingPlan) -> None:
    run = planned.run.parent / "odd"
    reproduction.record(replace(planned, run=run, arguments={**planned.arguments, "batch": 7}))
    refused = subprocess.run(command(2, run), stderr=subprocess.PIPE, text=True)
    assert refused.returncode
    assert "a batch of 7 cannot be shared by 2 ranks; expected a --batch that is a multiple" in refused.stderr


def own_torchrun(
    place: Path, data: Path, *more: str, rules: str = "", restarts: int = 0, faults: str = "", epochs: int = 2
) -> subprocess.CompletedProcess[str]:
    """``torchrun -m toolkit train`` with two ranks in the workspace ``place``, for the run "mine"."""
    (place / "toolkit.toml").write_text(f"[saving]\nbatches = 1\n{rules}")
    words = ["train", "--data", str(data), "--model", str(MODEL), "--preset", "smoke", "--imgsz", "64"]
    words += ["--epochs", str(epochs), "--batch", "8", "--device", "cpu", "--name", "mine", "--no-patches"]
    environment = {**ENVIRONMENT, "TOOLKIT_WORKSPACE": str(place), "FAULTS": faults}
    return subprocess.run(
        [*TORCHRUN, "--nproc-per-node=2", f"--max-restarts={restarts}", str(WORKER), *words, *more],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        timeout=180,
    )


def happened(files: RunFiles) -> list[tuple[str, str]]:
    return [(event.kind, event.action) for event in events.read(files.events)]


def test_the_users_own_torchrun_trains_restarts_and_resumes(data: Path, tmp_path: Path) -> None:
    """One rank is killed, then one hangs; the restart that torchrun was allowed is used up by then."""
    run = tmp_path / "runs" / "mine"
    files = RunFiles(run)
    rules = "[health.hang]\nlimit = 8\n"
    more = ["--score-every", "1"]
    first = own_torchrun(tmp_path, data, *more, rules=rules, restarts=1, faults="kill:0:3@1 stuck:1:2@1")
    assert first.returncode
    assert state_of(files) == "interrupted"
    assert happened(files) == [
        ("trainer died", "to be restarted"),
        ("group restarted", "resumed"),
        ("hang", "to be restarted"),
    ]
    gone = 99_999_999  # or of another machine
    write_json(files.instructions, Instructions(supervisor=gone))
    own_torchrun(tmp_path, data, *more, "--resume", rules=rules).check_returncode()
    assert state_of(files) == "finished"
    assert [path.name for path in run.parent.iterdir()] == ["mine"]
    assert len((run / "results.csv").read_text().splitlines()) == 3
    places = [(step["epoch"], step["batch"]) for step in steps(run) if step["rank"] == 0]
    assert places == [(epoch, batch) for epoch in range(2) for batch in range(6)], "none twice, none missed"
    assert files.best.is_file()
    assert not files.is_locked()


def test_a_run_that_is_given_up_ends_torchrun_too_and_goes_on_when_it_is_resumed(
    data: Path, tmp_path: Path
) -> None:
    """A tenth of the frames cannot be read; torchrun would start the group five times more."""
    broken = tmp_path / "ltdv2"
    shutil.copytree(data, broken)
    with zipfile.ZipFile(broken / "frames.zip") as archive, (broken / "frames.zip").open("r+b") as file:
        for entry in [entry for entry in archive.infolist() if not entry.is_dir()][:8]:
            file.seek(entry.header_offset + 40 + len(entry.filename))
            file.write(bytes(200))
    files = RunFiles(tmp_path / "runs" / "mine")
    rules = "[health.disk]\nlimit = 1e9\n"
    ended = own_torchrun(tmp_path, broken, rules=rules, restarts=5, faults="slow:*! slow:*@1!", epochs=12)
    assert ended.returncode
    assert happened(files)[0] == ("disk", "noted")
    assert happened(files)[-1] == ("bad_frames", "given up")
    assert "group restarted" not in dict(happened(files))
    summary = read_summary(files)
    assert summary is not None
    assert (summary.state, summary.reason.split(":")[0]) == ("failed", "bad_frames")
    assert "frames did not decode and were replaced" in ended.stderr
    saved, _ = checkpoints.newest(files.checkpoints)
    assert saved is not None
    done = len([step for step in steps(files.run) if step["rank"] == 0])
    assert load_state(saved)["epoch"] * 6 + -(-load_state(saved)["samples"] // 8) == done
    again = {"TORCHELASTIC_RUN_ID": "none", "TORCHELASTIC_RESTART_COUNT": "1", "LOCAL_RANK": "0", "RANK": "0"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        again |= {"WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    again |= {"TOOLKIT_WORKSPACE": str(tmp_path), "TORCHELASTIC_MAX_RESTARTS": "1"}
    train_again = [sys.executable, "-m", "toolkit", "train", "--name", "mine", "--resume"]
    refused = subprocess.run(train_again, env=os.environ | again, stderr=subprocess.PIPE, text=True)
    assert refused.returncode == Exit.FAILED
    assert [line[:26] for line in refused.stderr.splitlines()] == ["error: run mine was given "]
    shutil.copy(data / "frames.zip", broken / "frames.zip")
    own_torchrun(tmp_path, broken, "--resume", epochs=12).check_returncode()
    assert state_of(files) == "finished"


def test_nan_in_every_batch_goes_back_with_half_the_rate_then_is_given_up_under_torchrun(
    data: Path, tmp_path: Path
) -> None:
    files = RunFiles(tmp_path / "runs" / "mine")
    faults = "nan:*! nan:*@1! slow:*! slow:*@1!"
    ended = own_torchrun(
        tmp_path, data, rules="[health.not_finite]\nlimit = 3\n", restarts=20, faults=faults, epochs=20
    )
    assert ended.returncode
    actions = [action for kind, action in happened(files) if kind == "not_finite"]
    scales = [f"rolled back to the start, learning rate x {scale}" for scale in (0.5, 0.25, 0.125)]
    assert actions == [*scales, "given up"]
    assert read_instructions(files).lr_scale == 0.125
    assert state_of(files) == "failed"


def test_a_batch_that_always_fails_is_left_out_under_torchrun(data: Path, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "runs" / "mine")
    own_torchrun(tmp_path, data, restarts=5, faults="raise:0:3@1!").check_returncode()
    assert [action for kind, action in happened(files) if kind == "trainer died"] == [
        "to be restarted",
        "to be restarted without this batch",
    ]
    places = {(step["epoch"], step["batch"]) for step in steps(files.run)}
    assert places == {(epoch, batch) for epoch in range(2) for batch in range(6)} - {(0, 3)}
    summary = read_summary(files)
    assert summary is not None
    assert (summary.state, summary.restarts, summary.skipped_batches) == ("finished", 2, 1)


@contextmanager
def node(address: str, endpoint: str, words: list[str], environment: dict[str, str]) -> Iterator[Any]:
    """A machine of its own, as far as torchrun can tell; the first one, 127.0.0.1, keeps the rendezvous."""
    host = int(address == "127.0.0.1")
    torchrun = [*TORCHRUN[:3], "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3"]
    torchrun += [
        "--rdzv-backend=c10d",
        f"--rdzv-endpoint={endpoint}",
        "--rdzv-id=week",
        "--local-addr",
        address,
    ]
    torchrun += [f"--rdzv-conf=is_host={host},last_call_timeout=3", str(WORKER)]
    agent = subprocess.Popen([*torchrun, *words], env=environment)
    try:
        yield agent
    finally:
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(agent.pid).children(recursive=True):
                process.kill()
        agent.kill()
        agent.wait()


def test_a_run_outlives_the_loss_of_a_machine_and_takes_it_back(data: Path, tmp_path: Path) -> None:
    """Two machines; one is killed in mid-epoch and comes back later. Every image once in each epoch."""
    run = tmp_path / "runs" / "mine"
    (tmp_path / "toolkit.toml").write_text("[saving]\nbatches = 1\n")
    words = ["train", "--data", str(data), "--model", str(MODEL), "--preset", "smoke", "--imgsz", "64"]
    words += ["--epochs", "4", "--batch", "8", "--device", "cpu", "--name", "mine", "--no-patches"]
    environment = {
        **ENVIRONMENT,
        "TOOLKIT_WORKSPACE": str(tmp_path),
        "FAULTS": "lose_node:0:3@1 slow:*! wait:*!",
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        endpoint = f"127.0.0.1:{free.getsockname()[1]}"

    def ranks() -> list[int]:
        """How many shared each batch, in order."""
        return [step["ranks"] for step in steps(run) if step["rank"] == 0]

    with node("127.0.0.1", endpoint, words, environment) as first:
        with node("127.0.0.2", endpoint, words, environment) as lost:
            assert lost.wait(120) == -9
        end = time.monotonic() + 120
        while first.poll() is None and ranks()[-1:] != [1] and time.monotonic() < end:
            time.sleep(0.2)
        with node("127.0.0.2", endpoint, words, environment) as returned:
            assert first.wait(180) == returned.wait(180) == 0
    files = RunFiles(run)
    assert state_of(files) == "finished"
    restarted = [e.detail for e in events.read(files.events) if e.kind == "group restarted"]
    assert restarted == ["1 rank", "2 ranks"]
    assert [count for count, _ in itertools.groupby(ranks())] == [2, 1, 2]
    places = [(step["epoch"], step["batch"]) for step in steps(run) if step["rank"] == 0]
    assert places == [(epoch, batch) for epoch in range(4) for batch in range(6)], "none twice, none missed"
    for epoch in range(4):
        seen = Counter(name for step in steps(run) if step["epoch"] == epoch for name in step["images"])
        assert len(seen) == 44
        assert set(seen.values()) == {1}
