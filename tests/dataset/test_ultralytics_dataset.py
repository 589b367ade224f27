from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from damaged_frames import damage
from torch.utils.data import DataLoader
from ultralytics.cfg import get_cfg
from ultralytics.data.augment import Format
from ultralytics.data.build import build_yolo_dataset
from ultralytics.utils.instance import Instances

from toolkit.dataset import at_hand
from toolkit.dataset.export import export_yolo
from toolkit.dataset.grey import GreyFormat
from toolkit.dataset.index import DatasetIndex, load
from toolkit.dataset.order import epoch_order
from toolkit.dataset.prepare import prepare
from toolkit.dataset.ultralytics import LTDv2Dataset, build_dataset, data_dictionary
from toolkit.errors import ToolkitError


def make(index: DatasetIndex, split: str, mode: str, channels: int = 1, **options: Any) -> LTDv2Dataset:
    keywords = {key: options.pop(key) for key in ("seed", "skip_log", "rect") if key in options}
    args = get_cfg(overrides={"imgsz": 160, **options})
    return build_dataset(index, split, args, mode, 4, data_dictionary(index, channels), **keywords)


@pytest.mark.parametrize("channels", [1, 3])
def test_validation_batches_equal_those_of_plain_ultralytics(
    index: DatasetIndex, tmp_path: Path, channels: int
) -> None:
    """The same images, boxes, classes and shapes as Ultralytics makes from the exported text labels."""
    export_yolo(index, tmp_path / "yolo", extract=True)
    ours = make(index, "val", "val", channels)
    args = get_cfg(overrides={"imgsz": 160})
    data = data_dictionary(index, channels)
    theirs = build_yolo_dataset(args, str(tmp_path / "yolo/images/val"), 4, data, mode="val", rect=True)
    assert len(ours) == len(theirs)
    plain = {Path(theirs.im_files[i]).name: theirs[i] for i in range(len(theirs))}
    for i in range(len(ours)):
        sample = ours[i]
        other = plain[sample["im_file"].removeprefix("frames/").replace("/", "-")]
        assert sample["img"].shape == other["img"].shape
        torch.testing.assert_close(sample["img"], other["img"], rtol=0, atol=0)
        torch.testing.assert_close(sample["bboxes"], other["bboxes"], rtol=0, atol=2e-6)
        torch.testing.assert_close(sample["cls"], other["cls"])
        assert tuple(sample["ori_shape"]) == tuple(other["ori_shape"])
        assert sample["ratio_pad"] == other["ratio_pad"]


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("boxes", [0, 3])
def test_a_sample_is_formatted_as_ultralytics_formats_it(mirrored: bool, boxes: int) -> None:
    rng = np.random.default_rng(boxes)
    image = rng.integers(0, 256, (64, 96, 1), dtype=np.uint8)
    low, high = rng.uniform(0, 30, (boxes, 2)), rng.uniform(31, 60, (boxes, 2))
    corners = np.concatenate([low, high], axis=1).astype(np.float32)

    def sample() -> dict[str, Any]:
        instances = Instances(corners.copy(), bbox_format="xyxy", normalized=False)
        pixels = image[:, ::-1] if mirrored else image
        return {"img": pixels, "cls": np.ones((boxes, 1), np.float32), "instances": instances}

    plain = Format(bbox_format="xywh", normalize=True, batch_idx=True)
    ours, theirs = GreyFormat(plain)(sample()), plain(sample())
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        torch.testing.assert_close(ours[key], value, rtol=1e-6, atol=0)


def test_a_batch_leads_back_to_the_exact_ids(index: DatasetIndex) -> None:
    dataset = make(index, "val", "val")
    split = index.split("val")
    seen = []
    for batch in DataLoader(dataset, 5, collate_fn=dataset.collate_fn):
        for row, name in zip(batch["row"], batch["im_file"], strict=True):
            assert split.file_names[row].decode() == name
            seen.append(int(split.image_ids[row]))
    wanted = {i["id"] for i in json.loads((index.data / "Valid.json").read_text())["images"]}
    assert len(seen) == len(wanted)
    assert set(seen) == wanted


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("mosaic", [0.0, 0.5, 1.0])
def test_training_batches_have_the_shape_the_model_wants(
    index: DatasetIndex, channels: int, mosaic: float
) -> None:
    dataset = make(index, "train", "train", channels, mosaic=mosaic, mixup=0.3)
    loader = DataLoader(dataset, 8, shuffle=True, collate_fn=dataset.collate_fn)
    boxes = 0
    for batch in loader:
        assert batch["img"].shape == (8, channels, 160, 160)
        assert batch["img"].dtype == torch.uint8
        assert len(batch["bboxes"]) == len(batch["cls"]) == len(batch["batch_idx"])
        assert batch["bboxes"].min() >= 0
        assert batch["bboxes"].max() <= 1
        boxes += len(batch["cls"])
        if channels == 3:
            torch.testing.assert_close(batch["img"][:, 0], batch["img"][:, 2])
    assert boxes > len(dataset)


def test_spawned_workers_give_what_one_process_gives(index: DatasetIndex) -> None:
    """With a seed a sample is a function of its index, whatever worker makes it."""
    alone = make(index, "train", "train", seed=3)
    shared = make(index, "train", "train", seed=3)
    expected = [batch["img"] for batch in DataLoader(alone, 16, collate_fn=alone.collate_fn)]
    context = torch.multiprocessing.get_context("spawn")
    loader = DataLoader(
        shared, 16, num_workers=2, multiprocessing_context=context, collate_fn=shared.collate_fn
    )
    for batch, image in zip(loader, expected, strict=True):
        torch.testing.assert_close(batch["img"], image, rtol=0, atol=0)


@pytest.mark.parametrize("workers", [1, 2, 4, 8])
def test_a_mosaic_takes_frames_that_its_worker_has_at_hand(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    """Each is decoded once, but for those that the first samples of a lane take from the epoch's end."""
    monkeypatch.setattr(at_hand, "NEIGHBOURS", 2)
    args = get_cfg(overrides={"imgsz": 160, "mosaic": 1.0})
    dataset = build_dataset(index, "train", args, "train", 2, data_dictionary(index, 1), seed=3)
    read: list[int] = []
    grey = dataset.pixels.frames.grey
    monkeypatch.setattr(dataset.pixels.frames, "grey", lambda row: [read.append(row), grey(row)][1])
    order = epoch_order(len(dataset), seed=3, epoch=1).reshape(-1, 2)
    for worker in range(workers):
        dataset.at_hand.lanes.clear()
        for i in order[worker::workers].ravel().tolist():
            _ = dataset[len(dataset) + i]
    assert set(read) == set(dataset.images.rows.tolist())
    assert len(read) <= len(dataset) + 2 * at_hand.LANES


@pytest.mark.parametrize("degrees", [0.0, 10.0], ids=["fused", "turned"])
def test_frames_at_hand_stay_few(
    index: DatasetIndex, monkeypatch: pytest.MonkeyPatch, degrees: float
) -> None:
    monkeypatch.setattr(at_hand, "NEIGHBOURS", 2)
    dataset = make(index, "train", "train", degrees=degrees)
    for i in range(3 * len(dataset)):
        _ = dataset[i]
    assert len(dataset.at_hand.spare) + sum(map(len, dataset.at_hand.lanes.values())) <= at_hand.LANES * 3 + 3


def test_other_transforms_get_frames_of_the_size_that_they_want(index: DatasetIndex) -> None:
    used, fresh = make(index, "train", "train", seed=3), make(index, "train", "train", seed=3, degrees=10.0)
    _ = used[5]
    used.transforms = used.build_transforms(get_cfg(overrides={"imgsz": 160, "degrees": 10.0}))
    assert torch.equal(used[5]["img"], fresh[5]["img"])


def test_another_epoch_or_seed_augments_differently(index: DatasetIndex) -> None:
    dataset = make(index, "train", "train", seed=3)
    n = len(dataset)
    first, again, next_epoch = (dataset[i]["img"] for i in (5, 5, n + 5))
    other_seed = make(index, "train", "train", seed=4)[5]["img"]
    assert torch.equal(first, again)
    assert not torch.equal(first, next_epoch)
    assert not torch.equal(first, other_seed)


def test_it_writes_no_label_or_cache_files(index: DatasetIndex) -> None:
    before = sorted(p for p in index.data.rglob("*"))
    dataset = make(index, "train", "train")
    _ = dataset[0], dataset.labels[0], dataset.im_files[0], len(pickle.dumps(dataset))
    assert sorted(p for p in index.data.rglob("*")) == before


def test_boxes_are_clipped_for_training_and_empty_ones_dropped(copy: Path) -> None:
    content = json.loads((copy / "Train.json").read_text())
    image = content["images"][0]["id"]
    boxes = [[-10, 5, 30, 20], [370, 270, 50, 50], [-30, 5, 20, 20], [5, 5, 0, 9]]
    content["annotations"] = [
        {"id": i, "image_id": image, "category_id": 1 + i, "bbox": box} for i, box in enumerate(boxes)
    ]
    (copy / "Train.json").write_text(json.dumps(content))
    prepare(copy)
    dataset = make(load(copy), "train", "train")
    labels = [label for label in dataset.labels if len(label["cls"])]
    assert len(labels) == 1
    assert labels[0]["cls"].tolist() == [[0.0], [1.0]]
    size = np.array([384, 288, 384, 288])
    np.testing.assert_allclose(labels[0]["bboxes"] * size, [[10, 15, 20, 20], [377, 279, 14, 18]], rtol=1e-6)
    assert dataset.class_counts().tolist() == [1, 1, 0, 0]


def test_a_frame_that_does_not_decode_is_replaced_named_and_counted_in_training(
    copy: Path, tmp_path: Path
) -> None:
    prepare(copy)
    bad = load(copy).split("train").file_names[5].decode()
    damage(copy, bad)
    log = tmp_path / "skipped.jsonl"
    dataset = make(load(copy), "train", "train", mosaic=0.0, skip_log=log)
    names = [dataset[i]["im_file"] for i in range(len(dataset))]
    assert bad not in names
    assert dataset.skips.frames == {bad: 1}
    assert json.loads(log.read_text())["frame"] == bad


def test_each_frame_of_a_bad_clip_counts_once_an_epoch(copy: Path) -> None:
    prepare(copy)
    split = load(copy).split("train")
    clip = [name.decode() for name in split.file_names[5:9]]
    for name in clip:
        damage(copy, name)
    dataset = make(load(copy), "train", "train", mosaic=0.0)
    assert all(dataset[i]["im_file"] not in clip for i in range(len(dataset)))
    assert dataset.skips.frames == dict.fromkeys(clip, 1)


def test_a_frame_that_does_not_decode_in_validation_keeps_its_place(copy: Path) -> None:
    prepare(copy)
    split = load(copy).split("val")
    damage(copy, split.file_names[2].decode())
    dataset = make(load(copy), "val", "val")
    samples = {sample["row"]: sample for sample in (dataset[i] for i in range(len(dataset)))}
    assert sorted(samples) == list(range(len(split)))
    assert samples[2]["img"].unique().tolist() == [114]
    assert len(samples[2]["cls"]) == split.box_offsets[3] - split.box_offsets[2]


def test_a_frame_of_another_size_than_its_annotations_say_is_bad(copy: Path) -> None:
    content = json.loads((copy / "Train.json").read_text())
    content["images"][0]["width"] = 640
    (copy / "Train.json").write_text(json.dumps(content))
    prepare(copy)
    dataset = make(load(copy), "train", "train", mosaic=0.0)
    assert [dataset[i]["img"].shape for i in range(len(dataset))]
    assert list(dataset.skips.frames) == [content["images"][0]["file_name"]]


def test_an_archive_that_is_gone_ends_training_with_a_clear_error(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(copy)
    dataset = make(load(copy), "train", "train")
    (copy / "frames.zip").unlink()
    with pytest.raises(ToolkitError, match="in a row cannot be decoded"):
        dataset[0]


def test_fraction_and_classes_choose_evenly(index: DatasetIndex) -> None:
    assert len(make(index, "train", "train", fraction=0.25)) == 12
    some = make(index, "train", "train", fraction=0.5)
    assert len({name.split("/")[1][:6] for name in some.im_files}) == 8
    only = make(index, "train", "train", classes=[3])
    assert set(np.concatenate([label["cls"] for label in only.labels]).ravel()) == {3.0}
    single = make(index, "train", "train", single_cls=True)
    assert single.class_counts()[0] == index.manifest.boxes["train"]


def test_rectangular_batches_hold_mixed_shapes(copy: Path, tmp_path: Path) -> None:
    """Images of three shapes: each batch is the smallest stride multiple that holds its images."""
    content = json.loads((copy / "Valid.json").read_text())
    shutil.rmtree(copy / "frames", ignore_errors=True)
    sizes = [(288, 384), (384, 288), (200, 200)]
    for i, image in enumerate(content["images"]):
        height, width = sizes[i % 3]
        image.update(height=height, width=width)
        path = copy / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((height, width), 90, np.uint8))
    (copy / "frames.zip").unlink()
    (copy / "Train.json").unlink()
    (copy / "TestNoLabels.json").unlink()
    (copy / "Valid.json").write_text(json.dumps(content))
    prepare(copy)
    dataset = make(load(copy), "val", "val")
    shapes = [dataset[i]["img"].shape[1:] for i in range(len(dataset))]
    assert shapes[0] == (144 + 16, 160 + 32)
    assert shapes[-1] == (160 + 32, 144 + 16)
    loader = DataLoader(dataset, 4, collate_fn=dataset.collate_fn)
    assert sum(len(batch["row"]) for batch in loader) == len(dataset)
