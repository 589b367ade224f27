"""A dataset in the layouts that others read: Ultralytics' data.yaml, and COCO; with links for images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import msgspec
import yaml

from submission.errors import remedy
from toolkit import console
from toolkit.dataset.frames import FolderFrames, FrameError
from toolkit.dataset.index import DatasetIndex, Split
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.ltdv2 import ANNOTATIONS


def export_yolo(index: DatasetIndex, folder: Path, *, extract: bool = False, channels: int = 1) -> Path:
    """Write ``images/<split>/``, ``labels/<split>/`` and ``data.yaml`` below ``folder``.

    LTDv2's base names repeat between clips, so a frame's whole path goes into its name:
    ``frames/20200514/clip_22_2307/image_0015.jpg`` becomes ``20200514-clip_22_2307-image_0015.jpg``. Of other
    data whose base names are all different the frames keep these.
    Images are symbolic links to ``frames/``. A member of an archive has no path to link to;
    ``extract`` writes those that the splits use as files instead.

    Args:
        index: the dataset.
        folder: where it goes.
        extract: write files instead of links.
        channels: of the images that Ultralytics makes of the frames: 1, as every preset trains, or 3 for a
            model of colour images. A model of the other kind cannot read them.

    Returns:
        The path of data.yaml.

    Raises:
        ToolkitError: the frames are in an archive and ``extract`` is false, the folder already holds an
            export of something else, or it cannot be written.
    """
    folder = Path(folder)
    listed = folder / "data.yaml"
    splits = _begin(index, folder, listed, extract=extract)
    names = _names(index)
    for name in splits:
        split, labels = index.split(name), folder / "labels" / name
        labels.mkdir(parents=True, exist_ok=True)
        for row, flat in _export_images(split, folder, names[name]):
            (labels / flat).with_suffix(".txt").write_text(_label_text(split, row))
    content: dict[str, object] = {
        "path": str(folder.resolve()),
        **{name: f"images/{name}" for name in splits},
        "channels": channels,
        "names": {label - 1: name for label, name in index.manifest.vocabulary.classes.items()},
    }
    with replacing(listed) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    return listed


def export_coco(index: DatasetIndex, folder: Path, *, extract: bool = False) -> Path:
    """Write ``images/<split>/`` and ``annotations/instances_<split>.json`` below ``folder``.

    Ids and boxes are those of the dataset's own files, and so are ``date_captured`` and ``meta``. An image
    also says its ``clip`` and its ``month``, or what stands for it. FiftyOne, CVAT and pycocotools read it.

    Args:
        index: the dataset.
        folder: where it goes.
        extract: write files instead of links.

    Returns:
        The folder of the annotations.

    Raises:
        ToolkitError: see :func:`export_yolo`.
    """
    folder = Path(folder)
    annotations, names = folder / "annotations", _names(index)
    for name in _begin(index, folder, annotations, extract=extract):
        split = index.split(name)
        named = dict(_export_images(split, folder, names[name]))
        content = _coco(split, list(named.items()))
        with replacing(annotations / f"instances_{name}.json") as temporary:
            temporary.write_bytes(msgspec.json.encode(content) + b"\n")
    return annotations


def _coco(split: Split, named: list[tuple[int, str]]) -> dict[str, object]:
    """A COCO dataset of these rows of a split, each with the name of its image."""
    table = split.table("image_id", "width", "height", "date", "clip", "meta").rows()
    images: list[dict[str, object]] = []
    annotations: list[dict[str, object]] = []
    for row, file_name in named:
        number, width, height, date, clip, meta = table[row]
        images.append(
            {
                "id": number,
                "file_name": file_name,
                "width": width,
                "height": height,
                "date_captured": date,
                "clip": clip,
                split.vocabulary.by: str(split.part_names[row]),
                "meta": msgspec.Raw(meta.encode()),
            }
        )
        boxes = slice(int(split.box_offsets[row]), int(split.box_offsets[row + 1]))
        columns = split.boxes[boxes].tolist(), split.labels[boxes].tolist()
        for (x1, y1, x2, y2), label in zip(*columns, strict=True):
            w, h = x2 - x1, y2 - y1
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": label,
                    "bbox": [x1, y1, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                }
            )
    categories = [{"id": label, "name": name} for label, name in split.vocabulary.classes.items()]
    return {"info": {}, "images": images, "annotations": annotations, "categories": categories}


def _begin(index: DatasetIndex, folder: Path, mark: Path, *, extract: bool) -> list[str]:
    """The splits to write. Raises ToolkitError: links cannot do, or ``folder`` is full, without ``mark``."""
    zipped = index.manifest.frames != "frames"
    if zipped and not extract:
        raise ToolkitError(
            f"the frames are in {index.data / index.manifest.frames}, which a link cannot point into",
            expected="a folder frames/ to link to",
            fix="add --extract to write the frames as files (LTDv2: about 19 GB), "
            "or train from the archive: toolkit train",
        )
    if folder.exists() and any(folder.iterdir()) and not mark.exists():
        raise ToolkitError(f"{folder} is not empty", expected="a new folder, or an earlier export")
    return [name for name in ANNOTATIONS if index.manifest.images.get(name)]


def stems(index: DatasetIndex) -> dict[str, int]:
    """Image id of each file stem of an export: what Ultralytics writes as ``image_id`` of its predictions."""
    return {
        Path(name).stem: image_id
        for split, names in _names(index).items()
        for name, image_id in zip(names, index.split(split).image_ids.tolist(), strict=True)
    }


def _names(index: DatasetIndex) -> dict[str, list[str]]:
    """The file name of each image of each split in an export."""
    splits = [name for name in ANNOTATIONS if index.manifest.images.get(name)]
    paths = {name: [path.decode() for path in index.split(name).file_names.tolist()] for name in splits}
    stems = [Path(path).stem for listed in paths.values() for path in listed]
    plain = index.manifest.vocabulary.is_own and len(set(stems)) == len(stems)
    return {
        name: [Path(path).name if plain else _flat(path) for path in listed] for name, listed in paths.items()
    }


def _flat(name: str) -> str:
    """A frame's path as a file name; base names alone repeat between clips."""
    return name.removeprefix("frames/").replace("/", "-")


def _export_images(split: Split, folder: Path, names: list[str]) -> Iterator[tuple[int, str]]:
    """Links, or files, of a split's frames below ``images/``; row and file name of each that is there."""
    images = folder / "images" / split.name
    try:
        images.mkdir(parents=True, exist_ok=True)
        frames = split.frames()
        for row in console.track(range(len(split)), f"exporting {split.name}"):
            flat = names[row]
            image = images / flat
            if not isinstance(frames, FolderFrames):
                try:
                    image.write_bytes(frames.read(row))
                except FrameError as error:
                    console.warn(f"{error.line()}; left out")
                    continue
            else:
                image.unlink(missing_ok=True)
                image.symlink_to(os.path.relpath(frames.path(row).absolute(), images.resolve()))
            yield row, flat
    except OSError as error:
        raise ToolkitError(
            f"cannot write {folder}",
            found=error.strerror or str(error),
            fix=remedy(error),
        ) from error


def _label_text(split: Split, row: int) -> str:
    """Lines of class, centre x, centre y, width, height, as parts of the frame; boxes clipped to it."""
    size = (float(split.widths[row]), float(split.heights[row]))
    lines = []
    for i in range(int(split.box_offsets[row]), int(split.box_offsets[row + 1])):
        corners = zip(split.boxes[i].tolist(), size * 2, strict=True)
        x1, y1, x2, y2 = (min(max(v / s, 0.0), 1.0) for v, s in corners)
        if x2 > x1 and y2 > y1:
            numbers = (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1
            lines.append(f"{split.labels[i] - 1} " + " ".join(f"{v:.6f}" for v in numbers) + "\n")
    return "".join(lines)
