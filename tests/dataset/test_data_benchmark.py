from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner
from ultralytics.cfg import get_cfg
from ultralytics.data.build import build_dataloader

from toolkit.benchmark import data
from toolkit.cli import app
from toolkit.dataset import at_hand
from toolkit.dataset.cache import build
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.loader import use_server
from toolkit.dataset.prepare import prepare
from toolkit.dataset.ultralytics import build_dataset, data_dictionary
from toolkit.errors import ToolkitError


def test_bench_data_shows_every_stage_and_loader(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data, "SAMPLES", 32)
    monkeypatch.setattr(data, "BATCHES", 3)
    monkeypatch.setattr(at_hand, "NEIGHBOURS", 8)  # fewer than the images here
    words = ["bench", "data", str(index.data), "--imgsz", "96", "--batch", "8", "--workers", "0", "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert set(result["stages"]) == {"read", "decode", "augment", "collate", "to device"}
    assert all(rate > 0 for rate in result["stages"].values())
    assert result["workers"]["0"] > 0
    assert 1 <= result["frames_per_sample"] < 4


def test_bench_data_times_the_cache_where_training_takes_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(copy)
    build(load(copy), ["train"])
    monkeypatch.setattr(data, "SAMPLES", 32)
    monkeypatch.setattr(at_hand, "NEIGHBOURS", 8)
    monkeypatch.setattr(data, "decode_grey", lambda *_: pytest.fail("decoded"))
    done = CliRunner().invoke(app, ["bench", "data", str(copy), "--imgsz", "96", "--workers", "0", "--json"])
    assert done.exit_code == 0, done.output
    assert set(json.loads(done.stdout)["stages"]) == {"read", "augment", "collate", "to device"}
    assert "train frames: from the cache in memory" in done.stderr


def test_the_loader_serves_epoch_after_epoch_from_workers_that_cannot_see_a_gpu(index: DatasetIndex) -> None:
    dataset = build_dataset(
        index, "train", get_cfg(overrides={"imgsz": 96}), "train", 8, data_dictionary(index, 3), seed=1
    )
    loader = build_dataloader(dataset, 8, 2, device="cpu")
    use_server(loader)
    try:
        for _ in range(2):
            names = [name for batch in loader for name in batch["im_file"]]
            assert len(names) == len(dataset)
        environments = [Path(f"/proc/{w.pid}/environ").read_text() for w in loader.iterator._workers]
        assert all("CUDA_VISIBLE_DEVICES=-1" in text for text in environments)
        assert all(torch.equal(batch["img"][:, 0], batch["img"][:, 1]) for batch in loader)
    finally:
        loader.close()


def test_bench_data_refuses_two_channels(sample: Path) -> None:
    done = CliRunner().invoke(app, ["bench", "data", str(sample), "--channels", "2"])
    assert isinstance(done.exception, ToolkitError)
    assert done.exception.line() == "no images with 2 channels; expected 1 or 3"
