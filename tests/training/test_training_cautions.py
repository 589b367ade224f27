"""What is said of a plan that leaves a run without learning or without choice."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_run import plan

from toolkit.training.cautions import READ, cautions


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
        (44, {"epochs": 1, "time": 1.0, "val": False}, ["val=False"]),
    ],
)
def test_a_plan_that_is_probably_not_meant_is_said(
    tmp_path: Path, images: int, arguments: dict[str, float], said: list[str]
) -> None:
    found = cautions(plan(tmp_path, tmp_path / "run", **arguments), images)
    assert len(found) == len(said)
    assert all(sentence.startswith(words) for sentence, words in zip(found, said, strict=True))


@pytest.mark.parametrize(
    ("installed", "newer"), [("8.4.190", False), ("8.4.99", False), ("8.4.1900", True), ("9.0", True)]
)
def test_a_newer_ultralytics_than_the_one_that_was_read_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, newer: bool
) -> None:
    monkeypatch.setattr("toolkit.training.cautions.READ", "8.4.190")
    monkeypatch.setattr("ultralytics.__version__", installed)
    found = cautions(plan(tmp_path, tmp_path / "run", epochs=100), 10_000)
    assert any(f"Ultralytics {installed} is newer than 8.4.190" in said for said in found) == newer


def test_the_version_that_was_read_is_the_pages() -> None:
    page = Path(cautions.__code__.co_filename).with_name("ultralytics.md").read_text()
    assert f"Read with ultralytics {READ}." in page
