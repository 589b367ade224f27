"""LTDv2 in the layout that plain Ultralytics reads: images/, labels/ and data.yaml, with links for images."""

from __future__ import annotations

import os
from pathlib import Path

import yaml

from submission.validate import LABELS
from toolkit import console
from toolkit.dataset.frames import FolderFrames, FrameError
from toolkit.dataset.index import DatasetIndex, Split
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.ltdv2 import ANNOTATIONS


def export_yolo(index: DatasetIndex, folder: Path, *, extract: bool = False, channels: int = 1) -> Path:
    """Write ``images/<split>/``, ``labels/<split>/`` and ``data.yaml`` below ``folder``.

    Base names repeat between clips, so a frame's whole path goes into its name:
    ``frames/20200514/clip_22_2307/image_0015.jpg`` becomes ``20200514-clip_22_2307-image_0015.jpg``.
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
    zipped = index.manifest.frames != "frames"
    if zipped and not extract:
        raise ToolkitError(
            f"the frames are in {index.data / index.manifest.frames}, which a link cannot point into",
            expected="a folder frames/ to link to",
            fix="add --extract to write the frames as files (LTDv2: about 19 GB), "
            "or train from the archive: toolkit train",
        )
    folder = Path(folder)
    listed = folder / "data.yaml"
    if folder.exists() and any(folder.iterdir()) and not listed.is_file():
        raise ToolkitError(f"{folder} is not empty", expected="a new folder, or an earlier export")
    splits = [name for name in ANNOTATIONS if index.manifest.images.get(name)]
    for name in splits:
        _export_split(index.split(name), folder)
    content: dict[str, object] = {
        "path": str(folder.resolve()),
        **{name: f"images/{name}" for name in splits},
        "channels": channels,
        "names": {label - 1: name for label, name in LABELS.items()},
    }
    with replacing(listed) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False))
    return listed


def stems(index: DatasetIndex) -> dict[str, int]:
    """Image id of each file stem of an export: what Ultralytics writes as ``image_id`` of its predictions."""
    return {
        Path(_flat(name.decode())).stem: image_id
        for split in ANNOTATIONS
        if index.manifest.images.get(split)
        for name, image_id in zip(
            index.split(split).file_names.tolist(), index.split(split).image_ids.tolist(), strict=True
        )
    }


def _flat(name: str) -> str:
    """A frame's path as a file name; base names alone repeat between clips."""
    return name.removeprefix("frames/").replace("/", "-")


def _export_split(split: Split, folder: Path) -> None:
    images, labels = folder / "images" / split.name, folder / "labels" / split.name
    try:
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        frames = split.frames()
        for row in console.track(range(len(split)), f"exporting {split.name}"):
            name = frames.name(row)
            flat = _flat(name)
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
            (labels / flat).with_suffix(".txt").write_text(_label_text(split, row))
    except OSError as error:
        raise ToolkitError(
            f"cannot write {folder}",
            found=error.strerror or str(error),
            fix="free some space or choose another disk",
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
