"""The Python surface: what its document shows runs, and importing it does nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from submission.validate import LABELS
from toolkit import api
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.supervision import supervisor
from toolkit.training import deciding
from toolkit.training.options import Options

ROOT = Path(__file__).parents[2]
TINY = ROOT / "tests" / "helpers" / "tiny.yaml"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a prepared data/demo and a run."""
    folder = tmp_path_factory.mktemp("api")
    write_sample(folder / "data" / "demo", train=4, val=6, test=4, seed=0, scene="street")
    prepare(folder / "data" / "demo")
    torch.manual_seed(0)
    model = DetectionModel(str(TINY), ch=1, nc=4, verbose=False)
    model.names = {label - 1: name for label, name in LABELS.items()}
    (folder / "runs" / "first" / "weights").mkdir(parents=True)
    best = folder / "runs" / "first" / "weights" / "best.pt"
    torch.save({"model": model, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 64}}, best)
    return folder


def test_the_documents_example_runs(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(place)
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    exec(compile(code, "docs/python.md", "exec"), {})
    printed = capsys.readouterr().out
    assert re.search(r"global_map_bal \S+, [\d,]+ objects missed of [\d,]+", printed)


def test_tables_have_a_row_a_frame_a_box_and_a_clip(place: Path) -> None:
    dataset = api.load(place / "data" / "demo")
    frames, boxes, clips = (make(dataset, "val") for make in (api.frames, api.boxes, api.clips))
    true = api.truth(dataset)
    assert len(frames) == 6
    assert frames["boxes"].sum() == len(boxes) == len(true.boxes) == clips["boxes"].sum()
    assert clips["frames"].sum() == 6
    assert frames["image_id"].to_list() == dataset.split("val").image_ids.tolist()
    assert any(name.startswith("meta.") for name in frames.columns)
    assert np.array_equal(np.sort(boxes["x1"].to_numpy()), np.sort(true.boxes[:, 0]))
    assert set(boxes["class"].unique().to_list()) <= set(LABELS.values())


def test_predictions_compare_with_themselves(place: Path) -> None:
    dataset = api.load(place / "data" / "demo")
    found = api.predict(
        place / "runs" / "first" / "weights" / "best.pt", dataset, "val", device="cpu", patches=False
    )
    true = api.truth(place / "data" / "demo" / "Valid.json")
    if len(api.clips(dataset, "val")) > 1:
        same = api.compare(true, found, found, place / "data" / "demo" / "Valid.json", resamples=10)
        assert same.differences["global_map_50"].change == 0
    assert len(api.match(true, found)) >= len(found.boxes)
    table = api.match(true, found, place / "data" / "demo" / "Valid.json")
    assert len(table) > 0
    for made in (api.frames, api.clips):
        keys = [key for key in ("image_id", "clip", "part") if key in made(dataset, "val").columns]
        assert len(table.join(made(dataset, "val"), on=keys, how="inner")) == len(table)


def test_every_name_takes_paths_as_text_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (data,) = map(str, (place / "data").iterdir())
    answers = f"{data}/Valid.json"
    found = api.predict("best.pt", data, "val", device="cpu", patches=False)
    found.write(place / "found.json")
    for make in (api.frames, api.boxes, api.clips):
        assert make(data, "val").equals(make(api.load(data), "val"))
    assert api.score(data, "found.json") == api.score(api.truth(data), found)
    assert api.match(answers, "found.json", answers).equals(api.match(api.truth(answers), found, answers))
    if len(api.clips(data, "val")) > 1:
        same = api.compare(answers, "found.json", Path("found.json"), answers, resamples=10)
        assert same.differences["global_map_50"].change == 0


def test_train_takes_its_options_as_a_notebook_writes_them(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned: list[Options] = []
    monkeypatch.setattr(deciding, "plan", lambda place, options: planned.append(options))
    monkeypatch.setattr(supervisor, "train", lambda plan, *, numbered: place / "best.pt")
    api.train(place, data="data/demo", preset="smoke", months="feb", device=0)
    api.train(str(place), data=Path("data/demo"), name="x")
    assert [each.data for each in planned] == [Path("data/demo")] * 2
    assert planned[0].device == "0"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"epoch": 3}, "no option named epoch; expected .*epochs"),
        ({"epochs": "many"}, "train cannot use this option; found epochs = many"),
        ({"data": 3}, "train cannot use this option; found data = 3"),
        ({"every": 0}, "every = 0"),
    ],
)
def test_options_that_there_are_not_are_refused(place: Path, options: dict[str, object], said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        api.train(place, **options)
    with pytest.raises(ToolkitError, match="no option named image_size"):
        api.predict(place / "best.pt", place, "val", image_size=64)


def test_importing_it_loads_nothing_heavy_and_changes_nothing() -> None:
    check = (
        "import os, sys; before = dict(os.environ); import toolkit.api as api\n"
        "heavy = {'torch', 'ultralytics', 'polars', 'numpy', 'matplotlib', 'cv2'} & set(sys.modules)\n"
        "assert not heavy, heavy\nassert dict(os.environ) == before\n"
        "assert all(callable(getattr(api, name)) for name in api.__all__)"
    )
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT)
