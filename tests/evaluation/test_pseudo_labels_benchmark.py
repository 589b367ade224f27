"""The experiment with pseudo-labels: what is dealt, what two models agree on, and what is printed."""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from submission import Detections
from toolkit.dataset.sample import write_sample

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(SCRIPTS))
    spec = importlib.util.spec_from_file_location("bench_pseudo_labels", SCRIPTS / "bench_pseudo_labels.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_pseudo_labels", module)
    spec.loader.exec_module(module)
    return module


def made(ids: list[int], boxes: list[list[float]], scores: list[float], labels: list[int]) -> Detections:
    """All boxes in the first image."""
    offsets = np.array([0] + [len(boxes)] * len(ids), np.int64)
    return Detections(
        np.array(ids, np.int64), offsets, np.array(boxes, float), np.array(scores), np.array(labels, np.int64)
    )


def test_boxes_are_kept_that_both_found_of_one_class_and_sure_enough(bench: ModuleType) -> None:
    boxes = [[0.0, 0, 10, 10], [50, 50, 60, 60], [100, 100, 110, 110], [150, 150, 160, 160]]
    one = made([1], boxes, [0.6, 0.6, 0.6, 0.3], [1, 1, 1, 1])
    moved = [[1.0, 0, 11, 10], [50, 50, 60, 60], [107, 100, 117, 110], [150, 150, 160, 160]]
    two = made([1], moved, [0.4, 0.9, 0.9, 0.4], [1, 4, 1, 1])
    # The second is of another class, the third overlaps by less than half, the fourth has a mean of 0.35.
    assert bench.agreed(one, two, 0, 0.4).tolist() == [0]
    assert bench.agreed(one, two, 0, 0.3).tolist() == [0, 3]


def test_a_clip_is_in_one_half_and_no_true_box_of_the_other_is_seen(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "data"
    write_sample(data, train=64, val=8, test=9, scene="harbour")
    monkeypatch.setattr(bench, "toolkit", lambda *_: None)
    options = argparse.Namespace(data=data, out=tmp_path / "out", score=0.5)
    bench.deal(options, 0)
    train = json.loads((data / "Train.json").read_text())
    half = tmp_path / "out" / "data" / "half-0"
    first, second = (json.loads((half / name).read_text()) for name in ("Train.json", "TestNoLabels.json"))
    clips = [{bench.clip_of(image) for image in each["images"]} for each in (first, second)]
    assert clips[0]
    assert clips[1]
    assert not clips[0] & clips[1]
    assert len(first["images"]) + len(second["images"]) == len(train["images"])
    ids = {image["id"] for image in first["images"]}
    assert {box["image_id"] for box in first["annotations"]} <= ids
    # Both models find the true boxes of the first image of the second half, and nothing else.
    image = next(
        i["id"] for i in second["images"] if any(b["image_id"] == i["id"] for b in train["annotations"])
    )
    true = [box for box in train["annotations"] if box["image_id"] == image]
    corners = [[x, y, x + w, y + h] for x, y, w, h in (box["bbox"] for box in true)]
    others = [i["id"] for i in second["images"] if i["id"] != image]
    found = made([image, *others], corners, [0.9] * len(true), [box["category_id"] for box in true])
    for name, _ in bench.TEACHERS:
        place = tmp_path / "out" / "runs" / f"{name}-0"
        place.mkdir(parents=True)
        found.write(place / "predictions-test.json")
    assert bench.label(options, 0).startswith(f"{len(true)} pseudo-labels; ")
    written = json.loads((tmp_path / "out" / "data" / "pseudo-0" / "Train.json").read_text())
    assert len(written["images"]) == len(train["images"])
    assert len(written["annotations"]) == len(first["annotations"]) + len(true)
    pseudo = [box["bbox"] for box in written["annotations"] if box["image_id"] == image]
    assert pseudo == [pytest.approx(box["bbox"]) for box in true]
    assert len({box["id"] for box in written["annotations"]}) == len(written["annotations"])


def test_gains_are_over_the_half_of_the_same_seed(bench: ModuleType, tmp_path: Path) -> None:
    scores = {"half": (0.2, 0.3, 0.4), "pseudo": (0.3, 0.5, 0.7), "whole": (0.4, float("nan"), 0.6)}
    for kind, values in scores.items():
        for seed, value in enumerate(values):
            place = tmp_path / "runs" / f"{kind}-{seed}" / "evaluation"
            place.mkdir(parents=True)
            (place / "scores.json").write_text(json.dumps({"global_map_bal": value}))
    lines = bench.table(argparse.Namespace(out=tmp_path), range(3)).splitlines()
    assert lines[3] == "| half and pseudo-labels | 0.300 | 0.500 | 0.700 | +0.200 | -0.048 to +0.448 |"
    assert "| 0.000 |" in lines[4]


def test_a_call_begins_what_ends_in_it_and_the_next_goes_on(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """3 minutes take 4.7 with what is beside them; what a killed call trained is not trained again."""
    clock, said = [0.0], []

    def toolkit(options: argparse.Namespace, name: str, verb: str, *_: object) -> None:
        said.append((name, verb))
        run = options.out / "runs" / name
        if verb == "train":
            clock[0] += 4 * 60
            run.mkdir(parents=True)
            (run / "summary.json").write_text(json.dumps({"state": "finished"}))
        elif verb == "predict":
            (run / "predictions-test.json").write_text("{}")
        elif killed:
            raise KeyboardInterrupt
        else:
            (run / "evaluation").mkdir()
            (run / "evaluation" / "scores.json").write_text("{}")

    monkeypatch.setattr(bench, "toolkit", toolkit)
    monkeypatch.setattr(bench.time, "monotonic", lambda: clock[0])
    options = argparse.Namespace(out=tmp_path, minutes=3.0, jobs=1, arguments=[], ends=9 * 60)
    jobs = [("half-0", "half-0", 0), ("half-0", "other-0", 1000), ("whole-0", "whole-0", 0)]
    killed = True
    with pytest.raises(KeyboardInterrupt):
        bench.run_all(options, jobs[:1])
    killed = False
    said.clear()
    with pytest.raises(SystemExit) as ended:
        bench.run_all(options, jobs)
    assert ended.value.code == 0
    assert "1 of 3 trainings of this round are left" in capsys.readouterr().err
    assert said == [("half-0", "evaluate"), *[("other-0", verb) for verb in ("train", "predict", "evaluate")]]
    said.clear()
    options.ends += 9 * 60
    bench.run_all(options, jobs)
    assert said == [("whole-0", "train"), ("whole-0", "evaluate")]


def test_a_verb_that_fails_is_named_and_the_others_go_on(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    done = []

    def train_one(_options: argparse.Namespace, _data: str, name: str, _seed: int) -> bool:
        if name == "half-0":
            raise subprocess.CalledProcessError(1, ["toolkit", "train"])
        done.append(name)
        return True

    monkeypatch.setattr(bench, "train_one", train_one)
    options = argparse.Namespace(out=tmp_path, jobs=1)
    with pytest.raises(SystemExit) as ended:
        bench.run_all(options, [("half-0", name, 0) for name in ("half-0", "other-0", "whole-0")])
    assert (ended.value.code, done) == (1, ["other-0", "whole-0"])
    assert f"failed: half-0; see {tmp_path / 'half-0'}.log" in capsys.readouterr().err
