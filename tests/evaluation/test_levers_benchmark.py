"""The table of levers: what is trained, what is shared, and what its numbers are."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from synthetic import synthetic
from ultralytics.utils import DEFAULT_CFG_DICT

from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.evaluation.scoring import score
from toolkit.prediction import PredictionOptions
from toolkit.runs.plan import TrainingPlan
from toolkit.sweep import NAMES
from toolkit.training.options import Options
from toolkit.training.preset import presets


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = Path(__file__).parents[2] / "scripts" / "bench_levers.py"
    spec = importlib.util.spec_from_file_location("bench_levers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["bench_levers"] = module
    spec.loader.exec_module(module)
    return module


def test_every_lever_names_what_exists(bench: ModuleType) -> None:
    for name, lever in bench.LEVERS.items():
        assert set(lever.arguments) <= set(DEFAULT_CFG_DICT), name
        assert set(lever.options) <= set(Options.__struct_fields__), name
        assert set(lever.predicting) <= {f.name for f in fields(PredictionOptions)}, name
        assert set(lever.swept) <= set(NAMES), name
        assert lever.options.get("preset", "thermal") in presets(), name
        assert name == "thermal" or lever != bench.LEVERS["thermal"]


def test_levers_after_training_share_it_and_what_is_done_is_not_done_again(bench: ModuleType) -> None:
    options = argparse.Namespace(
        data=[Path("a")], seeds=2, levers=["thermal", "640 px", "linked", "suppression at 0.7"], moving=False
    )
    done = [{"data": "a", "lever": "640 px", "seed": 1}]
    assert bench.missing(options, done) == [
        (Path("a"), 0, ["thermal", "linked", "suppression at 0.7"]),
        (Path("a"), 0, ["640 px"]),
        (Path("a"), 1, ["thermal", "linked", "suppression at 0.7"]),
    ]
    options.moving = True
    assert bench.missing(options, done)[0] == (Path("a"), 0, ["thermal", "suppression at 0.7"])


def test_numbers_are_the_scores_and_gains_are_against_the_same_seed(bench: ModuleType) -> None:
    truth, found, _ = synthetic()
    told, scores = bench.numbers(truth, found), score(truth, found)
    assert told["bal"] == scores.balanced
    assert told["motorcycle"] == (scores.overall.map_50_per_class or {})[3]
    rows = [
        {"data": "a", "lever": lever, "seed": seed, "epochs": 9, **told, "bal": bal}
        for lever, seed, bal in (
            ("thermal", 0, 0.2),
            ("thermal", 1, 0.4),
            ("linked", 0, 0.25),
            ("linked", 1, 0.47),
        )
    ]
    lines = bench.table(rows, Path("data/a")).splitlines()
    assert lines[2].startswith("| thermal | 9/9 | +0.000 ± 0.000 | 0.300 ± 0.141 |")
    assert lines[3].startswith("| linked | 9/9 | +0.060 ± 0.014 | 0.360 ± ")
    assert len(lines) == 4
    for row, batch in zip(rows, (16, 16, 16, 8), strict=True):
        row["batch"] = batch
    assert bench.table(rows, Path("data/a")).splitlines()[-1] == "smaller batches: linked 1: 8"


def test_a_lever_that_fails_costs_the_others_of_its_training_nothing(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    truth, found, _ = synthetic()
    asked: list[tuple[object, ...]] = []

    def train(_options: object, _data: Path, _seed: int, _lever: object, name: str, soup: bool) -> Path:
        asked.append((name, soup))
        weights = tmp_path / "run" / "weights"
        weights.mkdir(parents=True)
        (weights.parent / "results.csv").write_text("epoch,time\n1,3\n2,6\n")
        return weights / "best.pt"

    def detections(_options: object, _data: Path, _truth: object, _weights: Path, lever: object) -> object:
        if lever == bench.LEVERS["linked"]:
            raise ToolkitError("no clips")
        if lever == bench.LEVERS["three sizes (TTA)"]:
            raise RuntimeError("out of memory")
        return found

    monkeypatch.setattr(bench, "train", train)
    monkeypatch.setattr(bench, "load_checkpoint", lambda _: (None, {"train_args": {"batch": 4}}))
    monkeypatch.setattr(bench, "detections", detections)
    monkeypatch.setattr(bench.GroundTruth, "read", lambda _path: truth)
    options = argparse.Namespace(out=tmp_path, minutes=1.0, device="cpu")
    names = ["linked", "thermal", "three sizes (TTA)", "soup of its checkpoints"]
    assert bench.one(options, tmp_path / "a", 0, names) == 1
    rows = bench.read(tmp_path / "results.jsonl")
    assert [row["lever"] for row in rows] == ["thermal", "soup of its checkpoints"]
    assert [row["epochs"] for row in rows] == [2, 2]
    assert [row["batch"] for row in rows] == [4, 4]
    assert asked == [("a-linked-0", True)]
    told = capsys.readouterr().err
    assert "no clips" in told
    assert "out of memory" in told


def test_every_lever_can_be_planned_beside_a_shorter_validation(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What chooses by scores needs all months."""
    data = tmp_path / "data"
    write_sample(data, train=160, val=160, test=9, scene="harbour")
    prepare(data)
    planned: list[TrainingPlan] = []
    monkeypatch.setattr(bench.supervisor, "train", planned.append)
    options = argparse.Namespace(
        out=tmp_path, model="yolov8n.yaml", imgsz=64, batch=2, workers=0, device="cpu", minutes=1.0
    )
    options.val_months, options.no_patches = "jun", True
    levers = {lever.recipe: (name, lever) for name, lever in bench.LEVERS.items()}
    for name, lever in levers.values():
        bench.train(options, data, 0, lever, "one", soup=False)
        assert ("val" in planned[-1].subsets) == ("best by" not in name), name
    assert len(planned) == len(levers)


@pytest.mark.parametrize("epochs", [1, 6, 20])
def test_a_soup_is_made_of_the_best_weights_and_of_others_evenly_spread(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, epochs: int
) -> None:
    truth, found, _ = synthetic()
    kept = [tmp_path / "weights" / f"{name}.pt" for name in ("best", *range(epochs))]
    used: list[Path] = []
    monkeypatch.setattr(bench.soup, "checkpoints_of", lambda _: kept)
    monkeypatch.setattr(bench.soup, "make", lambda paths, *_: used.extend(paths))
    monkeypatch.setattr(bench, "predict", lambda *_: found)
    options = argparse.Namespace(device="cpu", batch=4)
    bench.detections(options, tmp_path, truth, kept[0], bench.Lever(soup=True))
    assert used[0] == kept[0]
    places = [kept.index(path) for path in used[1:]]
    assert places[0] == epochs
    assert len(places) == min(epochs, 5 if epochs == 20 else 6)
    assert len({a - b for a, b in itertools.pairwise(places)}) <= 1


def test_a_table_may_take_several_calls(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A call begins nothing that would not end in it, and the next one does what is left."""
    clock = [0.0]

    def one(command: list[str], **_: object) -> argparse.Namespace:
        seed, names = json.loads(command[command.index("--one") + 1])
        clock[0] += 6 * 60
        told = {"data": "a", "seed": seed, "epochs": 3, "minutes": 4.0, "bal": 0.2, "took": 6.0, "CoV": 0.1}
        with (tmp_path / "results.jsonl").open("a") as file:
            rows = [{**told, "lever": name, "trained": name == names[0]} for name in names]
            file.writelines(
                json.dumps({**row, "took": 6.0 if row["trained"] else 1.0}) + "\n" for row in rows
            )
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(bench.subprocess, "run", one)
    words = [
        "bench",
        "a",
        "--seeds",
        "2",
        "--out",
        str(tmp_path),
        "--call",
        "20",
        "--levers",
        "thermal",
        "linked",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "AdamW", "640 px", "--plan"])
    bench.main()
    plan = capsys.readouterr().out
    assert "6 trainings are missing\ncall 1\n  a, seed 0, 7 minutes: thermal; linked\n" in plan
    assert plan.splitlines()[-2:] == [
        "  a, seed 1, 6 minutes: 640 px",
        "2 calls of 1 at once; the last one takes 19 minutes",
    ]
    monkeypatch.setattr(sys, "argv", [*words, "AdamW", "640 px"])
    for left in ("3 of 6", ""):
        with pytest.raises(SystemExit) as ended:
            bench.main()
        told = capsys.readouterr().err
        assert (ended.value.code, f"{left} trainings are left" in told) == (0, bool(left))
    monkeypatch.setattr(sys, "argv", [*words, "--call", "5", "--seeds", "3"])
    with pytest.raises(SystemExit):
        bench.main()
    assert "takes 7 minutes, --call has 5: name fewer" in capsys.readouterr().err
    rows = bench.read(tmp_path / "results.jsonl", 4.0)
    assert len({(row["lever"], row["seed"]) for row in rows}) == len(rows) == 8
    assert bench.read(tmp_path / "results.jsonl", 30.0) == []


def test_a_run_that_found_nothing_costs_the_table_nothing(bench: ModuleType) -> None:
    """Where every month has 0 there is no CoV."""
    truth, found, _ = synthetic()
    empty = found.select(found.image_ids)
    empty = type(found)(
        empty.image_ids, empty.offsets * 0, empty.boxes[:0], empty.scores[:0], empty.labels[:0]
    )
    row = {"data": "a", "lever": "thermal", "epochs": 1}
    rows = [
        {**row, "seed": seed, **bench.numbers(truth, each)} for seed, each in enumerate((empty, found, found))
    ]
    heads, _, line = (text.split(" | ") for text in bench.table(rows, Path("a")).splitlines())
    cov = line[heads.index("CoV")]
    assert cov == f"{rows[1]['CoV']:.3f} ± 0.000"
    assert bench.table(rows[:1], Path("a")).splitlines()[2].split(" | ")[heads.index("CoV")] == "-"


def test_a_call_learns_from_what_ended_in_it(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """4 minutes are expected to take 6; the first took 9, so nothing else fits into 14."""
    clock, begun = [0.0], []

    def one(command: list[str], **_: object) -> argparse.Namespace:
        seed, names = json.loads(command[command.index("--one") + 1])
        begun.append(names)
        clock[0] += 9 * 60
        row = {"data": "a", "seed": seed, "lever": names[0], "minutes": 4.0, "took": 9.0, "trained": True}
        (tmp_path / "results.jsonl").write_text(json.dumps(row) + "\n")
        return argparse.Namespace(returncode=0)

    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(bench.subprocess, "run", one)
    options = argparse.Namespace(
        out=tmp_path,
        minutes=4.0,
        model="m",
        imgsz=None,
        batch=1,
        workers=0,
        device=None,
        val_months=None,
        no_patches=False,
    )
    how = [bench.run(options, 14 * 60, Path("a"), 0, [name])[1] for name in ("thermal", "AdamW")]
    assert (how, begun) == (["done", "left"], [["thermal"]])


def test_what_a_call_began_does_not_outlive_it(bench: ModuleType, tmp_path: Path) -> None:
    """A killed call leaves nothing that shares the card with the next one."""
    if shutil.which("setpriv") is None:
        pytest.skip("this system has no setpriv")
    said = tmp_path / "pid"
    program = (
        "import os, sys, subprocess; sys.path.insert(0, sys.argv[1]); from bench_levers import tied; "
        "subprocess.run(tied(['sh', '-c', 'echo $$ > ' + sys.argv[2] + '; exec sleep 60']))"
    )
    folder = str(Path(bench.__file__ or "").parent)
    with subprocess.Popen([sys.executable, "-c", program, folder, str(said)]) as parent:
        while not (said.exists() and said.read_text().strip()):
            assert parent.poll() is None
            time.sleep(0.05)
        child = psutil.Process(int(said.read_text()))
        parent.kill()
    with suppress(psutil.NoSuchProcess):
        child.wait(timeout=30)


def test_an_interval_is_students(bench: ModuleType) -> None:
    assert bench.interval([0.1, 0.2, 0.3]) == "-0.048 to +0.448"  # 0.2 and 4.303 x 0.1 / sqrt(3)
    assert bench.interval([0.1]) == "-"
