"""What is said of a plan that leaves a run without learning or without choice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import plan

from toolkit.training.cautions import cautions


@pytest.mark.parametrize(
    ("images", "arguments", "said"),
    [
        (44, {"epochs": 30}, []),
        (400, {"epochs": 10, "close_mosaic": 10}, ["close_mosaic=10 leaves all 10 epochs without mosaic"]),
        (44, {"epochs": 10, "close_mosaic": 10, "mosaic": 0.0, "warmup_epochs": 0.0}, []),
        (44, {"epochs": 3}, ["the warm-up of 100 batches is as long as the run of 18"]),
        (800, {"epochs": 3}, []),
        (
            800,
            {"epochs": 3, "warmup_epochs": 3.0},
            ["the warm-up of 300 batches is as long"],
        ),
        (0, {"epochs": 3, "warmup_epochs": 3.0}, []),
        (44, {"epochs": 30, "val": False}, ["val=False"]),
        (44, {"epochs": 1, "time": 1.0}, []),
    ],
)
def test_a_plan_that_is_probably_not_meant_is_said(
    tmp_path: Path, images: int, arguments: dict[str, float], said: list[str]
) -> None:
    found = cautions(plan(tmp_path, tmp_path / "run", **arguments), images)
    assert len(found) == len(said)
    assert all(sentence.startswith(words) for sentence, words in zip(found, said, strict=True))
