"""Datasets as others write them: Ultralytics' data.yaml with text files, and COCO files with their images."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from toolkit import console
from toolkit.dataset.archive import leaves
from toolkit.errors import ToolkitError, reason

PICTURES = frozenset((".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"))

SPLITS = ("train", "val", "test")

Box = tuple[str, float, float, float, float]
"""Class, and x, y, width, height in pixels."""


@dataclass
class Image:
    """One image of a source.

    Attributes:
        name: path below the source's folder, or of the archive's member.
        split: "train", "val", "test", or empty where the source does not say.
        width, height: pixels.
        number: its id in the source; None where that has none, or text.
        date: when it was taken, as written; empty where unknown.
        meta: other keys of the image that are numbers, texts or tables of them.
        boxes: what is in it.
    """

    name: str
    split: str
    width: int
    height: int
    number: int | None = None
    date: str = ""
    meta: dict[str, Any] = field(default_factory=dict)
    boxes: list[Box] = field(default_factory=list)


@dataclass
class Dataset:
    """A source that was read.

    Attributes:
        root: the folder that the names of the images are relative to, or the archive.
        classes: names, in the source's order.
        images: those whose files are there.
        lost: images that are listed and have no file. crowds: boxes of crowds, which are left out.
    """

    root: Path
    classes: list[str]
    images: list[Image]
    lost: int = 0
    crowds: int = 0


def read(source: Path) -> Dataset:
    """Read a dataset.

    Args:
        source: a data.yaml, a folder with one, a COCO file, a folder with some, or a zip archive of one.

    Raises:
        ToolkitError: it is none of these, is damaged, or none of its images is there.
    """
    if source.suffix.lower() in (".yaml", ".yml"):
        found = _read_yolo(source)
    elif source.is_dir() and (described := _data_yaml(source)):
        found = _read_yolo(described)
    elif source.is_dir() or source.suffix.lower() in (".json", ".zip"):
        found = _read_coco(source)
    else:
        raise ToolkitError(
            f"{source} is no dataset",
            expected="LTDv2's files, a data.yaml, a COCO file, a folder with either, or a zip archive",
        )
    if not found.images:
        raise ToolkitError(
            f"{source} has no images",
            found=f"{found.lost:,} that are listed, and no file of theirs below {found.root}",
            expected="the images beside their annotations",
        )
    if found.lost:
        console.warn(f"{found.lost:,} images of {source} are listed and not there: left out")
    if found.crowds:
        console.warn(f"{found.crowds:,} boxes of {source} mark crowds (iscrowd): left out")
    return found


def _data_yaml(folder: Path) -> Path | None:
    named = [folder / "data.yaml", *sorted(folder.glob("*.y*ml"))]
    return next((path for path in named if path.is_file() and "names" in _yaml(path)), None)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ToolkitError(f"{path} cannot be read", found=reason(error), expected="YAML") from error
    return content if isinstance(content, dict) else {}


def _read_yolo(path: Path) -> Dataset:
    """An Ultralytics dataset; places as Ultralytics resolves them, from the file's folder."""
    content = _yaml(path)
    names = content.get("names")
    classes = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(classes, list) or not classes:
        raise ToolkitError(
            f"{path} names no classes", found=f"names: {names!r}", expected="a list or a table"
        )
    root = path.parent / str(content.get("path") or "")
    root = root if root.is_dir() else path.parent
    images, lost = [], 0
    for split in SPLITS:
        for picture in _pictures_of(root, content.get(split)):
            try:
                width, height = _size(picture)
            except OSError:
                lost += 1
                continue
            boxes = list(_yolo_boxes(picture, list(map(str, classes)), width, height))
            name = str(PurePosixPath(*_below(root, picture).parts))
            images.append(Image(name, split, width, height, boxes=boxes))
    return Dataset(root.resolve(), [str(each) for each in classes], images, lost)


def _pictures_of(root: Path, places: Any) -> Iterator[Path]:
    for place in places if isinstance(places, list) else [places] if places else []:
        path = root / str(place)
        if not path.exists():
            path = root / str(place).removeprefix("../")  # as Roboflow writes it
        if path.is_file() and path.suffix == ".txt":
            for line in path.read_text(encoding="utf-8").splitlines():
                if line.strip():
                    yield (path.parent if line.startswith("./") else root) / line.strip()
        elif path.is_dir():
            yield from sorted(each for each in path.rglob("*") if each.suffix.lower() in PICTURES)
        else:
            raise ToolkitError(
                f"no images {place}", found=f"nothing at {path}", expected="a folder or a list"
            )


def _below(root: Path, picture: Path) -> Path:
    whole, base = picture.resolve(), root.resolve()
    return whole.relative_to(base) if whole.is_relative_to(base) else Path(*whole.parts[1:])


def _yolo_boxes(picture: Path, classes: list[str], width: int, height: int) -> Iterator[Box]:
    """Boxes of an image's text file: class, centre and size as parts of it, or the corners of an outline."""
    before, _, after = str(picture).rpartition("/images/")
    text = Path(f"{before}/labels/{after}" if before else str(picture)).with_suffix(".txt")
    if not text.is_file():
        return
    for number, line in enumerate(text.read_text(encoding="utf-8").splitlines(), 1):
        words = line.split()
        if not words:
            continue
        try:
            kind, values = classes[int(float(words[0]))], [float(word) for word in words[1:]]
            if len(values) < 4 or (len(values) > 4 and len(values) % 2) or min(map(float, words)) < 0:
                raise ValueError
        except (ValueError, IndexError) as error:
            raise ToolkitError(
                f"{text} has a line that is no box (line {number})",
                found=repr(line[:60]),
                expected=f"a class below {len(classes)}, centre x, centre y, width and height as parts",
            ) from error
        if len(values) == 4:
            x, y, w, h = values
            yield kind, (x - w / 2) * width, (y - h / 2) * height, w * width, h * height
        else:
            xs, ys = values[::2], values[1::2]
            low, high = (min(xs), min(ys)), (max(xs), max(ys))
            size = (high[0] - low[0]) * width, (high[1] - low[1]) * height
            yield kind, low[0] * width, low[1] * height, *size


def _read_coco(source: Path) -> Dataset:
    files, names, size = _coco_zip(source) if source.suffix.lower() == ".zip" else _coco_folder(source)
    root = source if source.is_file() and source.suffix.lower() == ".zip" else _root_of(source)
    find = _finder(names)
    images: list[Image] = []
    classes: dict[str, None] = {}
    lost = crowds = 0
    for name, content in files:
        split = _split_of(name) if len(files) > 1 or _split_of(name) == "val" else ""
        kinds = {each["id"]: str(each["name"]) for each in _list(content, "categories", name)}
        classes |= dict.fromkeys(kinds[key] for key in sorted(kinds))
        by_id: dict[Any, Image] = {}
        for each in _list(content, "images", name):
            listed = str(each.get("file_name") or each.get("filename") or "")
            where = find(listed, split)
            if where is None:
                lost += 1
                continue
            known = each.get("width"), each.get("height")
            width, height = (int(side) for side in known if side) if all(known) else size(where)
            number = each["id"] if type(each["id"]) is int and 0 <= each["id"] < 2**63 else None
            by_id[each["id"]] = Image(where, split, width, height, number, *_circumstances(each))
        for each in _list(content, "annotations", name):
            image = by_id.get(each["image_id"])
            if each.get("iscrowd"):
                crowds += 1
            elif image is not None and each["category_id"] in kinds:
                x, y, w, h = map(float, each["bbox"])
                image.boxes.append((kinds[each["category_id"]], x, y, w, h))
        images += by_id.values()
    return Dataset(root, list(classes), images, lost, crowds)


def _list(content: Mapping[str, Any], key: str, name: str) -> list[dict[str, Any]]:
    """A list of a COCO file; some name it in the singular."""
    found = content.get(key, content.get(key.removesuffix("s")))
    needs = {
        "images": {"id"},
        "categories": {"id", "name"},
        "annotations": {"image_id", "category_id", "bbox"},
    }
    if not isinstance(found, list) or not all(
        isinstance(each, dict) and needs[key] <= each.keys() for each in found
    ):
        raise ToolkitError(
            f"{name} is no COCO file",
            found=f"no list of {key} with {', '.join(sorted(needs[key]))}",
            expected="images, annotations and categories",
        )
    return found


def _circumstances(image: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    known = ("id", "file_name", "filename", "width", "height", "license", "coco_url", "flickr_url", "meta")
    date = image.get("date_captured")
    meta = {key: value for key, value in image.items() if key not in (*known, "date_captured")}
    if isinstance(image.get("meta"), dict):
        meta |= image["meta"]
    kept = {key: value for key, value in meta.items() if isinstance(value, (int, float, str))}
    return "" if date is None else str(date), kept


Files = tuple[list[tuple[str, Any]], list[str], Callable[[str], tuple[int, int]]]
"""COCO files with their names, names of all pictures, and what tells a picture's width and height."""


def _coco_folder(source: Path) -> Files:
    root = _root_of(source)
    paths = [source] if source.is_file() else [*root.glob("*.json"), *root.glob("*/*.json")]
    files = []
    for path in sorted(paths):
        content = _json(path.read_bytes(), str(path))
        if source.is_file() or (isinstance(content, dict) and "images" in content):
            files.append((path.name, content))
    if not files:
        raise ToolkitError(f"{source} has no annotations", expected="a data.yaml, or COCO files (.json)")
    pictures = sorted(each for each in root.rglob("*") if each.suffix.lower() in PICTURES)
    return files, [each.relative_to(root).as_posix() for each in pictures], lambda name: _size(root / name)


def _coco_zip(source: Path) -> Files:
    try:
        with zipfile.ZipFile(source) as archive:
            members = [name for name in archive.namelist() if not name.endswith("/")]
            read = [(name, archive.read(name)) for name in members if name.endswith(".json")]
    except (OSError, zipfile.BadZipFile) as error:
        raise ToolkitError(
            f"{source} cannot be read", found=reason(error), expected="a zip archive"
        ) from error
    parsed = [(PurePosixPath(name).name, _json(data, f"{source}/{name}")) for name, data in read]
    files = [(name, content) for name, content in parsed if isinstance(content, dict) and "images" in content]
    if not files:
        raise ToolkitError(f"{source} has no annotations", expected="COCO files (.json) in it")

    def size(name: str) -> tuple[int, int]:
        with zipfile.ZipFile(source) as archive:
            return _size(BytesIO(archive.read(name)))

    return files, [name for name in members if Path(name).suffix.lower() in PICTURES], size


def _root_of(source: Path) -> Path:
    """The folder of a COCO file and its images; annotations/ lies beside them."""
    folder = source if source.is_dir() else source.absolute().parent
    return folder.parent if folder.name == "annotations" else folder


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ToolkitError(f"{name} is cut off or no JSON", found=reason(error)) from error


def _split_of(name: str) -> str:
    lowered = name.lower()
    return next((split for split in ("test", "val", "train") if split in lowered), "")


def _finder(names: list[str]) -> Callable[[str, str], str | None]:
    """Finds a listed picture: by its path, else by the end of one path alone, the split's folder first."""
    whole, ends = set(names), dict[str, list[str]]()
    for name in names:
        ends.setdefault(PurePosixPath(name).name, []).append(name)

    def find(listed: str, split: str) -> str | None:
        if not listed or leaves(listed.encode()):
            return None
        if listed in whole:
            return listed
        near = [name for name in ends.get(PurePosixPath(listed).name, []) if name.endswith(f"/{listed}")]
        near = near or ends.get(PurePosixPath(listed).name, [])
        of_split = [name for name in near if split and split in name.lower().rpartition("/")[0]]
        chosen = of_split if len(near) > 1 else near
        return chosen[0] if len(chosen) == 1 else None

    return find


def _size(picture: Path | BytesIO) -> tuple[int, int]:
    """Width and height, from the file's header. Raises OSError."""
    from PIL import Image as Pillow

    with Pillow.open(picture) as opened:
        return opened.size
