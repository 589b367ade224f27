"""The drawn dataset as files: annotation files, frames.zip, and a receipt of what was drawn."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import msgspec

from submission.errors import NO_JSON
from submission.validate import LABELS
from toolkit import console
from toolkit.dataset.sample import harbour, street
from toolkit.dataset.sample.layout import HEIGHT, WIDTH, Box, Frame, Scene
from toolkit.errors import CallError, ToolkitError
from toolkit.files import replacing
from toolkit.ltdv2 import ANNOTATIONS, ARCHIVE, FILES

SceneName = Literal["harbour", "street"]

SCENES: Mapping[SceneName, Scene] = {"harbour": harbour, "street": street}

VERSIONS: Mapping[SceneName, int] = {"harbour": 1, "street": 3}
"""Of the drawings: to be raised with every change of the bytes."""


class _Parameters(msgspec.Struct, frozen=True):
    """What a sample is made from (``sample.json`` beside it, written first)."""

    train: int
    val: int
    test: int
    seed: int
    version: int
    scene: SceneName = "street"

    def __str__(self) -> str:
        counts = f"{self.train} + {self.val} + {self.test} images"
        return f"{counts}, seed {self.seed}, scene {self.scene}, drawing {self.version}"


def write_sample(
    folder: Path, train: int = 320, val: int = 96, test: int = 64, seed: int = 0, scene: SceneName = "harbour"
) -> bool:
    """Draw a dataset in LTDv2's own layout. The same arguments give the same bytes.

    Args:
        folder: where Train.json, Valid.json, TestNoLabels.json and frames.zip go.
        train, val, test: images of each split, spread evenly over the months; a split of none has no file.
        seed: of everything random.
        scene: what is drawn.

    Returns:
        False if ``folder`` already held exactly this sample, and nothing was done.

    Raises:
        ToolkitError: a count or the seed is out of range, all counts are 0, the folder holds another
            dataset or sample, or it cannot be written.
    """
    folder = Path(folder)
    parameters = _Parameters(train, val, test, seed, VERSIONS[scene], scene)
    existing = [name for name in FILES if (folder / name).exists()]
    receipt = folder / "sample.json"
    if existing and (found := _read_parameters(receipt)) != parameters:
        raise ToolkitError(
            f"{folder} already holds {'another sample' if found else 'a dataset'}",
            found=str(found or existing[0]),
            expected=f"an empty folder or this sample: {parameters}",
            fix="name another folder, or delete this one",
        )
    counts = {"train": train, "val": val, "test": test}
    if seed < 0:
        raise CallError(f"no seed {seed}", expected="a number from 0 on")
    if not any(counts.values()):
        raise CallError("a sample of no images", expected="images in one split at least")
    wanted = [name for split, name in ANNOTATIONS.items() if counts[split]]
    if set(existing) == {*wanted, ARCHIVE}:
        return False
    drawing = SCENES[scene]
    frames = sorted(drawing.choose_frames(counts, seed), key=lambda frame: frame.name)
    with replacing(receipt) as temporary:
        temporary.write_bytes(msgspec.json.encode(parameters))

    records: dict[str, tuple[list[Any], list[Any]]] = {split: ([], []) for split in ANNOTATIONS}
    with replacing(folder / ARCHIVE) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        drawn = console.track(drawing.draw(frames, seed), "drawing frames", total=len(frames))
        for frame, image, boxes in drawn:
            archive.writestr(zipfile.ZipInfo(frame.name, (2021, 6, 1, 0, 0, 0)), image)
            images, annotations = records[frame.split]
            images.append(_image_record(frame, drawing.meta(frame, seed)))
            annotations += [_box_record(frame, box) for box in boxes]
    for split, name in ANNOTATIONS.items():
        if name in wanted:
            with replacing(folder / name) as temporary:
                temporary.write_bytes(msgspec.json.encode(_content(split, seed, scene, *records[split])))
    return True


def _read_parameters(receipt: Path) -> _Parameters | None:
    with suppress(OSError, *NO_JSON):
        return msgspec.json.decode(receipt.read_bytes(), type=_Parameters)
    return None


def _content(
    split: str, seed: int, scene: SceneName, images: list[Any], annotations: list[Any]
) -> dict[str, Any]:
    names = {0: "background", **LABELS}
    content: dict[str, Any] = {
        "info": {
            "description": f"a drawn {scene} in the layout of LTDv2, no camera's, {split} split, seed {seed}"
        },
        "images": images,
        "categories": [{"id": i, "name": category} for i, category in names.items()],
    }
    if split != "test":
        content["annotations"] = [{"id": i, **a} for i, a in enumerate(annotations, 1)]
    return content


def _image_record(frame: Frame, meta: dict[str, float]) -> dict[str, Any]:
    return {
        "id": frame.id,
        "file_name": frame.name,
        "width": WIDTH,
        "height": HEIGHT,
        "date_captured": frame.date,
        "meta": meta,
    }


def _box_record(frame: Frame, box: Box) -> dict[str, Any]:
    label, (x, y, w, h) = box
    return {
        "image_id": frame.id,
        "category_id": label,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
    }
