"""Datasets as others write them: Ultralytics' data.yaml with text files, and COCO files with their images."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import IO, Any

import yaml

from toolkit import console
from toolkit.dataset.own import coco
from toolkit.dataset.own.tree import ON_DISK, Places, Tree, inner, inside, opened
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
        meta: other keys of the image that are numbers or texts; of a table in it as ``extra_info.video_id``.
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
        lost: images that are listed and have no file that is a picture. crowds: boxes of crowds, left out.
        top: of an archive, the folder in it that the names are relative to, with a slash at its end.
    """

    root: Path
    classes: list[str]
    images: list[Image]
    lost: int = 0
    crowds: int = 0
    top: str = ""


Finder = Callable[[str, str, PurePosixPath], str | None]
"""The name of a picture in a source, of a listed path, its split and the folder of its annotation file."""


def read(source: Path) -> Dataset:
    """Read a dataset.

    Args:
        source: a data.yaml, a folder with one, a COCO file, a folder with some, or a zip archive of one.

    Raises:
        ToolkitError: it is none of these, is damaged, or none of its images is there.
    """
    if source.suffix.lower() in (".yaml", ".yml"):
        found = _read_yolo(source, ON_DISK)
    elif source.is_dir() and (described := _data_yaml(inner(source), ON_DISK)):
        found = _read_yolo(described, ON_DISK)
    elif source.is_dir() or source.suffix.lower() == ".json":
        with opened(_root_of(source)) as tree:
            found = _read_coco(tree, source)
    elif source.suffix.lower() == ".zip":
        with opened(source) as tree:
            places = inside(tree)
            described = _data_yaml(source / tree.top, places)
            found = _read_yolo(described, places) if described else _read_coco(tree, source)
            found = replace(found, root=source, top=tree.top)
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
    _refuse_repeated_split(source, found.images)
    if found.lost:
        console.warn(f"{found.lost:,} images of {source} are missing or no pictures: left out")
    if found.crowds:
        console.warn(f"{found.crowds:,} boxes of {source} mark crowds (iscrowd): left out")
    return found


def _refuse_repeated_split(source: Path, images: list[Image]) -> None:
    """Refuse a split that is another one again; single images that are in two are told by the cross-check."""
    of_split = {split: {image.name for image in images if image.split == split} for split in SPLITS}
    for split in reversed(SPLITS):
        names = of_split[split]
        others = (other for other in of_split if other != split and names and names <= of_split[other])
        if (other := next(others, None)) is not None:
            raise ToolkitError(
                f"the {split} split of {source} is in its {other} split",
                found=f"all of its {len(names):,} images there too",
                expected="images of its own: scores on those of the training say nothing",
                fix="give each image to one split"
                if split == "train"
                else f"leave {split} out of the source; without val, whole clips of train are chosen for it",
            )


def _data_yaml(folder: Path, places: Places) -> Path | None:
    named = ["data.yaml", *(name for name in places.names(folder) if name.endswith((".yaml", ".yml")))]
    files = (folder / name for name in named)
    return next((path for path in files if places.is_file(path) and "names" in _yaml(path, places)), None)


def _yaml(path: Path, places: Places) -> dict[str, Any]:
    try:
        with places.open(path) as file:
            content = yaml.safe_load(file.read().decode())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ToolkitError(f"{path} cannot be read", found=reason(error), expected="YAML") from error
    return content if isinstance(content, dict) else {}


def _read_yolo(path: Path, places: Places) -> Dataset:
    """An Ultralytics dataset; its folders as Ultralytics resolves them, from the file's folder."""
    content = _yaml(path, places)
    names = content.get("names")
    listed = list(names.values()) if isinstance(names, dict) else names
    if not isinstance(listed, list) or not listed:
        raise ToolkitError(
            f"{path} names no classes", found=f"names: {names!r}", expected="a list or a table"
        )
    classes = [str(each) for each in listed]
    _say_repeated(path.name, classes)
    root = path.parent / str(content.get("path") or "")
    root = root if places.is_dir(_there(root, places)) else path.parent
    root = root.resolve() if places.base is None else _plain(root)
    found = {split: list(_pictures_of(root, content.get(split), places)) for split in SPLITS}
    every = [picture for pictures in found.values() for picture in pictures]
    base, name_of = _common(root, every) if places.base is None else _in(places.base)
    images, lost, twice = [], 0, 0
    for split, pictures in found.items():
        once = {name_of(picture): picture for picture in pictures}
        twice += len(pictures) - len(once)
        for name, picture in once.items():
            try:
                with places.open(picture) as file:
                    width, height = _size(file)
            except OSError:
                lost += 1
                continue
            boxes = list(_yolo_boxes(picture, classes, width, height, places))
            images.append(Image(name, split, width, height, boxes=boxes))
    if twice:
        console.warn(f"{twice:,} images of {path} are listed more than once in a split: taken once")
    return Dataset(base, list(dict.fromkeys(classes)), images, lost)


def _say_repeated(name: str, classes: Sequence[str]) -> None:
    if repeated := [each for each, count in Counter(classes).items() if count > 1]:
        console.warn(f"{name} has several classes called {', '.join(repeated)}: they become one")


def _pictures_of(root: Path, listed: Any, places: Places) -> Iterator[Path]:
    """The pictures of a split, from folders, and from lists of files; absolute, without ``..``."""
    for place in listed if isinstance(listed, list) else [listed] if listed else []:
        path = _there(root / str(place), places)
        if not (places.is_file(path) or places.is_dir(path)):
            path = _there(root / str(place).removeprefix("../"), places)  # as Roboflow writes it
        if places.is_file(path) and path.suffix == ".txt":
            for line in _text(path, places).splitlines():
                if line.strip():
                    yield _listed(line.strip(), root, path.parent, places)
        elif places.is_dir(path):
            below = places.below(path)
            yield from (_plain(path / each) for each in below if Path(each).suffix.lower() in PICTURES)
        else:
            raise ToolkitError(
                f"no images {place}", found=f"nothing at {path}", expected="a folder or a list"
            )


def _listed(line: str, root: Path, folder: Path, places: Places) -> Path:
    """The file of a line: ``./x`` is relative to the list's folder, ``x`` to the dataset's or the list's."""
    order = [folder, root] if line.startswith("./") else [root, folder]
    paths = [_there(each / text, places) for text in (line, line.replace("\\", "/")) for each in order]
    return _plain(next((path for path in paths if places.is_file(path)), paths[0]))


def _there(path: Path, places: Places) -> Path:
    """The path as it is asked for: an archive knows no ``..``, and on a disk a link may stand before it."""
    return path if places.base is None else _plain(path)


def _plain(path: Path) -> Path:
    return Path(os.path.normpath(path))


def _text(path: Path, places: Places) -> str:
    """The content of a text file, without the mark that Windows puts at its beginning."""
    try:
        with places.open(path) as file:
            return file.read().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ToolkitError(f"{path} cannot be read", found=reason(error), expected="a text file") from error


def _in(base: Path) -> tuple[Path, Callable[[Path], str]]:
    """``base``, and what names a picture below it."""
    return base, lambda picture: Path(os.path.relpath(picture, base)).as_posix()


def _common(root: Path, pictures: list[Path]) -> tuple[Path, Callable[[Path], str]]:
    """A folder that all pictures are in, ``root`` where it serves, and what names a picture below it.

    Folders that are links keep their own names. A picture that is in ``root`` only by where its folder's
    links end is named by that.
    """
    real = cache(Path.resolve)

    def below(picture: Path) -> Path | None:
        ways = picture, real(picture.parent) / picture.name
        return next((way.relative_to(root) for way in ways if way.is_relative_to(root)), None)

    if all(below(picture) for picture in pictures):
        return root, lambda picture: (below(picture) or picture).as_posix()
    base = Path(os.path.commonpath([picture.parent for picture in pictures]))
    return base, lambda picture: picture.relative_to(base).as_posix()


def _yolo_boxes(picture: Path, classes: list[str], width: int, height: int, places: Places) -> Iterator[Box]:
    """Boxes of an image's text file: class, centre and size as parts of it, or the corners of an outline."""
    before, _, after = str(picture).rpartition("/images/")
    text = Path(f"{before}/labels/{after}" if before else str(picture)).with_suffix(".txt")
    if not places.is_file(text):
        return
    for number, line in enumerate(_text(text, places).splitlines(), 1):
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


def _read_coco(tree: Tree, source: Path) -> Dataset:
    pictures = [name for name in tree.names if Path(name).suffix.lower() in PICTURES]
    found, find = Dataset(tree.root / tree.top, [], []), _finder(pictures)
    files = _annotations_of(tree, source)
    for name, content in files:
        split = _split_of(name) if len(files) > 1 or _split_of(name) == "val" else ""
        _add_coco(found, tree, find, name, content, split)
    if unlisted := len(set(pictures) - {image.name for image in found.images}):
        console.note(f"{unlisted:,} pictures of {source} are in no annotation file (left out)")
    return found


def _add_coco(found: Dataset, tree: Tree, find: Finder, name: str, content: Any, split: str) -> None:
    """Add the images of one COCO file, and their boxes."""
    kinds = coco.classes_of(content, name)
    _say_repeated(name, list(kinds.values()))
    names = (kinds[key] for key in sorted(kinds, key=lambda key: (isinstance(key, str), key)))
    found.classes.extend(each for each in dict.fromkeys(names) if each not in found.classes)
    by_id: dict[Any, Image | None] = {}
    for each in coco.lists(content, "images", name):
        if each["id"] in by_id:
            raise ToolkitError(f"{name} lists an image id twice", found=str(each["id"]), expected="each once")
        where = find(coco.file_of(each), split, PurePosixPath(name).parent)
        size = None if where is None else _size_of(each, tree, where)
        number = each["id"] if type(each["id"]) is int and 0 <= each["id"] < 2**63 else None
        by_id[each["id"]] = (
            Image(where, split, *size, number, *_circumstances(each)) if where and size else None
        )
    strange = 0
    for box in coco.boxes_of(content, name):
        if box is None:
            found.crowds += 1
        elif box.image not in by_id or box.category not in kinds:
            strange += 1
        elif image := by_id[box.image]:
            image.boxes.append((kinds[box.category], *box.xywh))
    if strange:
        console.warn(f"{strange:,} boxes of {name} are of no listed image or category: left out")
    images = [image for image in by_id.values() if image is not None]
    found.images.extend(images)
    found.lost += len(by_id) - len(images)


def _size_of(listed: Mapping[str, Any], tree: Tree, name: str) -> tuple[int, int] | None:
    """Width and height of a listed picture, as said or as its file has it; None where that is no picture."""
    known = listed.get("width"), listed.get("height")
    if all(isinstance(side, (int, float)) and side > 0 for side in known):
        return int(known[0]), int(known[1])  # type: ignore[arg-type]
    with suppress(OSError), tree.open(name) as file:
        return _size(file)
    return None


def _circumstances(image: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    known = ("id", "file_name", "filename", "width", "height", "license", "coco_url", "flickr_url", "meta")
    date = image.get("date_captured")
    meta = {key: value for key, value in image.items() if key not in (*known, "date_captured")}
    if isinstance(image.get("meta"), dict):
        meta |= image["meta"]
    return "" if date is None else str(date), dict(_flat(meta))


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, int | float | str]]:
    """The numbers and texts of a table; those of a table in it as ``KEY.ITS_KEY``."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        elif isinstance(value, (int, float, str)):
            yield before + key, value


def _annotations_of(tree: Tree, source: Path) -> list[tuple[str, Any]]:
    """The COCO files of a source: the one that is named, else those at its top and a folder below."""
    if source.suffix.lower() == ".json":
        name = Path(os.path.relpath(source.absolute(), (tree.root / tree.top).absolute())).as_posix()
        return [(name, coco.parse(_bytes(source), str(source)))]
    every = [name for name in tree.names if name.lower().endswith(".json")]
    files = []
    for name in every:
        if name.count("/") < 2:
            try:
                with tree.open(name) as file:
                    content = coco.parse(file.read(), f"{source}/{tree.top}{name}")
            except OSError as error:
                raise ToolkitError(
                    f"{source}/{tree.top}{name} cannot be read", found=reason(error)
                ) from error
            if isinstance(content, dict) and "images" in content:
                files.append((name, content))
    if not files:
        deeper = next((name for name in every if name.count("/") > 1), "")
        described = next((name for name in tree.names if name.endswith(("data.yaml", "data.yml"))), "")
        raise ToolkitError(
            f"{source} has no annotations",
            found=", ".join(tree.top + name for name in (described, deeper) if name),
            expected="COCO files (.json) at its top or in a folder there, or a data.yaml at its top",
        )
    return files


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ToolkitError(f"{path} cannot be read", found=reason(error), expected="a COCO file") from error


def _root_of(source: Path) -> Path:
    """The folder of a COCO file and its images; annotations/ lies beside them."""
    folder = source if source.is_dir() else source.absolute().parent
    return folder.parent if folder.name == "annotations" else folder


def _split_of(name: str) -> str:
    """The split that the name of an annotation file says, or else its folder's."""
    path = PurePosixPath(name.lower())
    own = next((split for split in ("test", "val", "train") if split in path.name), "")
    of_folder = re.findall(r"(?<![a-z])(test|val|train)", path.parent.as_posix())
    return own or (of_folder[-1] if of_folder else "")


def _finder(names: list[str]) -> Finder:
    """Finds a listed picture: beside its annotation file, by its path, else by as much of its end as occurs
    once in the source, or once in the split's folder."""
    whole, ends = set(names), dict[str, list[str]]()
    for name in names:
        ends.setdefault(PurePosixPath(name).name, []).append(name)

    def find(listed: str, split: str, beside: PurePosixPath) -> str | None:
        parts = [part for part in re.split(r"[\\/]+", listed) if part not in ("", ".", "..")]
        named = "/".join(parts)
        for exact in ((beside / named).as_posix(), named):
            if exact in whole:
                return exact
        for at in range(len(parts)):
            tail = "/" + "/".join(parts[at:])
            near = [name for name in ends.get(parts[-1], []) if f"/{name}".endswith(tail)]
            if near:
                of_split = [name for name in near if split and split in name.lower().rpartition("/")[0]]
                chosen = of_split if len(near) > 1 else near
                return chosen[0] if len(chosen) == 1 else None
        return None

    return find


def _size(picture: IO[bytes]) -> tuple[int, int]:
    """Width and height, from the file's header. Raises OSError."""
    from PIL import Image as Pillow

    with Pillow.open(picture) as opened:
        return opened.size
