"""What a person may get wrong with a lever on the command line: one clear line, and nothing begun."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from codabench_server import Server
from command import Command
from tiny_run import MODEL
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from submission import Detections, templates
from submission.validate import LABELS
from toolkit import soup
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared harbour in which no frame of training has a motorcycle."""
    folder = tmp_path_factory.mktemp("bad") / "harbour"
    write_sample(folder, train=8, val=8, test=9)
    train = json.loads((folder / "Train.json").read_text())
    train["annotations"] = [box for box in train["annotations"] if box["category_id"] != 3]
    (folder / "Train.json").write_text(json.dumps(train))
    prepare(folder)
    return folder


def checkpoint(path: Path, channels: int = 1) -> Path:
    """Weights of random values that look like those of a training."""
    model = DetectionModel(str(MODEL), ch=channels, nc=4, verbose=False)
    model.names = {label - 1: name for label, name in LABELS.items()}
    torch.save({"model": model, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 64}}, path)
    return path


TRAIN = ("train", "--device", "cpu", "--preset", "smoke", "--model", str(MODEL), "--imgsz", "64")


@pytest.mark.parametrize("dry", [True, False])
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("mosiac=0.5",), "no training argument mosiac; .*did you mean mosaic?"),
        (("--set", "lr=0.1"), "no training argument lr; .*lr0"),
        (("mosaic=high",), "mosaic cannot be 'high'"),
        (("classes=[4]",), "classes cannot be .4.*2 motorcycle"),
        (("classes=[-1]",), "classes cannot be .-1.*numbers of classes"),
        (("data=x.yaml",), "data in what was typed is decided by the toolkit; use --data"),
        (("--every", "0"), "'--every'.*greater than or equal to 1"),
        (("--repeat", "motorbike=3"), "'motorbike=3' repeats no class"),
        (("--repeat", "motorcycle=8"), "no motorcycle to repeat; found none in the 8 frames of train"),
        (("--paste", "motorcycle=0.3"), "no motorcycle to paste; found none in the 8 frames of train"),
        (("--frames", "now,befor"), "'befor' is no channel of a sample"),
        (("--train-on", "train,test"), "no training on train,test"),
    ],
)
def test_a_lever_that_cannot_be_begins_no_run(
    drawn: Path, workspace: Path, toolkit: Command, words: tuple[str, ...], message: str, dry: bool
) -> None:
    refused = toolkit(*TRAIN, "--data", drawn, *words, *(["--dry-run"] if dry else []))
    assert refused.status in (1, 2)
    errors = [line for line in refused.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert re.search(message, errors[0]), errors[0]
    assert not (workspace / "runs").exists()


def test_nothing_of_two_splits_is_linked(workspace: Path, toolkit: Command) -> None:
    both = np.array([templates.template("development")[0], templates.template("testing")[0]])
    empty = np.zeros((0, 4))
    Detections(both, np.zeros(3, np.int64), empty, empty[:, 0], empty[:, 0].astype(np.int64)).write(
        workspace / "both.json"
    )
    refused = toolkit("link", "both.json")
    assert (refused.status, refused.err.count("\n"), "two splits" in refused.err) == (1, 1, True)
    assert not (workspace / "both-linked.json").exists()


@pytest.mark.parametrize("words", [("link",), ("ensemble", "none.json"), ("submit", "--phase", "testing")])
def test_predictions_without_an_image_are_named(
    workspace: Path, toolkit: Command, words: tuple[str, ...]
) -> None:
    (workspace / "none.json").write_text("{}")
    refused = toolkit(*words, "none.json")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "none.json has no images; expected predictions of at least one" in refused.err
    assert [path.name for path in workspace.glob("*.json")] == ["none.json"]


@pytest.mark.parametrize("verb", ["link", "ensemble", "soup"])
def test_what_is_made_replaces_nothing_that_it_is_made_from(
    workspace: Path, toolkit: Command, drawn: Path, verb: str
) -> None:
    if verb == "soup":
        given = [checkpoint(workspace / name) for name in ("a.pt", "b.pt")]
    else:
        given = [workspace / name for name in ("a.json", "b.json")]
        for path in given:
            path.write_text('{"20210100112100000": {"boxes": [], "scores": [], "labels": []}}')
    before = given[0].read_bytes()
    given = given[:1] if verb == "link" else given
    refused = toolkit(verb, *given, "--out", workspace / "." / given[0].name)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "found one of the files that it is made from" in refused.err
    assert given[0].read_bytes() == before


def test_no_soup_of_different_architectures(drawn: Path, workspace: Path, toolkit: Command) -> None:
    one, other = checkpoint(workspace / "a.pt"), checkpoint(workspace / "b.pt", channels=3)
    refused = toolkit("soup", one, other, "--data", drawn, "--device", "cpu")
    assert (refused.status, refused.err.count("\n")) == (1, 1)
    assert "different architectures" in refused.err
    assert not (workspace / "soup.pt").exists()


def test_a_soup_of_a_run_opens_each_checkpoint_once_and_says_which_are_the_same(
    drawn: Path, workspace: Path, toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = workspace / "runs" / "first" / "weights"
    weights.mkdir(parents=True)
    best = checkpoint(weights / "best.pt")
    (weights / "last.pt").write_bytes(best.read_bytes())
    opened: list[str] = []
    read = soup.read_checkpoint
    monkeypatch.setattr(soup, "read_checkpoint", lambda path: [opened.append(path.name), read(path)][1])
    refused = toolkit("soup", "first", "--data", drawn, "--device", "cpu")
    assert refused.status == 1
    assert "last.pt: the weights of" in refused.err
    assert "found 2 checkpoints of the same weights" in refused.err
    assert opened == ["best.pt", "last.pt"]


@pytest.mark.parametrize(
    ("environment", "number", "message"),
    [({}, "99", "404"), ({"CODABENCH_TOKEN": "another"}, "10954", "refuses the token")],
)
def test_a_competition_that_the_token_may_not_see(
    workspace: Path,
    toolkit: Command,
    codabench_server: Server,
    monkeypatch: pytest.MonkeyPatch,
    environment: Mapping[str, str],
    number: str,
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    refused = toolkit("submissions", "--competition", number)
    assert (refused.status, refused.err.count("\n"), message in refused.err) == (1, 1, True)
