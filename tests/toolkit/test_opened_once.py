"""What a command opens, counted: each file once, by whatever way it is needed."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command import Command
from tiny_run import HELPERS, plan
from ultralytics.nn import tasks
from ultralytics.utils import DEFAULT_CFG_DICT

from submission.validate import LABELS
from toolkit import settings, workspace
from toolkit.dataset import index
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.runs.folder import Instructions, RunFiles
from toolkit.supervision import supervisor
from toolkit.training import worker

TINY = HELPERS / "tiny.yaml"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sample with true boxes in every month of its validation split."""
    folder = tmp_path_factory.mktemp("opened") / "sample"
    write_sample(folder, train=8, val=24, test=2, seed=0, scene="street")
    prepare(folder)
    return folder


@pytest.fixture
def data(prepared: Path, workspace: Path) -> Path:
    """The sample in a workspace."""
    return Path(shutil.copytree(prepared, workspace / "data" / "sample"))


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, str], list[Any]]:
    """Begins to count: ``opened(module, "function")`` is the list of what it is called with from now on."""

    def count(home: Any, name: str) -> list[Any]:
        calls: list[Any] = []
        function = getattr(home, name)

        def counted(*arguments: Any) -> Any:
            calls.append(arguments)
            return function(*arguments)

        monkeypatch.setattr(home, name, counted)
        return calls

    return count


def test_a_training_opens_the_index_once_before_its_trainer_starts(
    data: Path,
    toolkit: Command,
    opened: Callable[[Any, str], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The scores that choose, the counts and the hashes are all of one index; at a resume as well."""
    run = workspace.current().runs / "one"
    run.mkdir(parents=True)
    (run / "script.jsonl").write_text(json.dumps({"exit": 1, "error": "cannot train"}))
    fake = [sys.executable, str(HELPERS / "fake_trainer.py"), str(run)]
    monkeypatch.setattr(supervisor, "trainer_command", lambda _: fake)
    begin = ("train", "--name", "one", "--model", TINY, "--preset", "smoke", "--device", "cpu")
    loads = opened(index, "read_manifest")
    assert toolkit(*begin, "--select-by", "global_map_bal").status == 1
    assert len(loads) == 1
    assert toolkit("train", "--resume", "one").status == 1
    assert len(loads) == 2
    assert toolkit("train", "--resume", "one", "--dry-run").status == 0
    assert len(loads) == 3


@pytest.mark.parametrize("words", [("train", "--device", "cpu"), ("config",)], ids=lambda words: words[0])
def test_a_command_reads_each_toolkit_toml_once(
    data: Path,
    toolkit: Command,
    opened: Callable[[Any, str], list[Any]],
    monkeypatch: pytest.MonkeyPatch,
    words: tuple[str, ...],
) -> None:
    """The one that says where the data is, and the one beside the data, which may overrule it."""
    place = workspace.current()
    (place.root / "toolkit.toml").write_text(f'data = "data/sample"\nmodel = "{TINY}"\n')
    (data / "toolkit.toml").write_text('preset = "smoke"\nname = "one"\n')
    monkeypatch.setattr(supervisor, "train", lambda plan, **_: RunFiles(plan.run).best)
    reads = opened(settings, "_parse")
    assert toolkit(*words).status == 0
    assert sorted(reads) == sorted([(data / "toolkit.toml",), (place.root / "toolkit.toml",)])


def test_a_trainer_opens_the_index_once(
    data: Path, tmp_path: Path, opened: Callable[[Any, str], list[Any]]
) -> None:
    loads = opened(index, "read_manifest")
    arguments = {"epochs": 1, "close_mosaic": 0}
    worker.run(plan(data, tmp_path / "run", **arguments), Instructions(), lambda: False)
    assert len(loads) == 1


@pytest.mark.parametrize(
    "words", [("predict", "one", "--split", "val"), ("evaluate", "one", "--report")], ids=lambda w: w[0]
)
def test_a_prediction_opens_weights_index_and_the_record_of_its_run_once(
    data: Path, toolkit: Command, opened: Callable[[Any, str], list[Any]], words: tuple[str, ...]
) -> None:
    run = workspace.current().runs / "one"
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "environment.json").write_text(json.dumps({"plan": {"data": str(data)}}))
    torch.manual_seed(0)
    model = tasks.DetectionModel(str(TINY), ch=1, nc=4, verbose=False)
    model.names = {label - 1: name for label, name in LABELS.items()}
    torch.save({"model": model, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 64}}, run / "weights" / "best.pt")
    loads = opened(index, "read_manifest")
    checkpoints = opened(tasks, "load_checkpoint")
    records = opened(workspace.RunRecord, "read")
    assert toolkit(*words, "--device", "cpu", "--conf", "0", "--no-patches").status == 0
    assert (len(checkpoints), len(loads), len(records)) == (1, 1, 1)
