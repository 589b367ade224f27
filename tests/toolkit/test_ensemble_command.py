"""``toolkit ensemble`` writes what the organisers accept, or nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from command import Command

from submission import Detections
from toolkit.evaluation import ensemble

HIT = {"20210100000000001": {"boxes": [[10, 10, 30, 40]], "scores": [0.5], "labels": [1]}}


@pytest.fixture
def files(workspace: Path) -> list[str]:
    names = ["a.json", "b.json"]
    for name in names:
        (workspace / name).write_text(json.dumps(HIT))
    return names


@pytest.mark.parametrize("weights", ["0,0", "nan,1", "-1,1"])
def test_weights_that_cannot_be_leave_no_file(files: list[str], toolkit: Command, weights: str) -> None:
    result = toolkit("ensemble", *files, "--weights", weights)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "weights cannot be used" in result.err
    assert not Path("ensemble.json").exists()


def test_what_came_of_fusing_is_checked_before_it_is_written(
    files: list[str], toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(sets: list[Detections], _: ensemble.FusionOptions) -> Detections:
        return replace(sets[0], boxes=sets[0].boxes * float("nan"))

    monkeypatch.setattr(ensemble, "fuse", broken)
    result = toolkit("ensemble", *files)
    assert (result.status, result.out, result.err.count("\n")) == (1, "", 1)
    assert "finite coordinates" in result.err
    assert not Path("ensemble.json").exists()
