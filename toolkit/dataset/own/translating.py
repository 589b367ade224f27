"""A COCO file from elsewhere about data of one's own, in the ids, labels and parts of its data folder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from submission.errors import NO_JSON
from toolkit import console, vocabulary
from toolkit.dataset.own import coco, origin
from toolkit.errors import ToolkitError, reason
from toolkit.ltdv2 import ANNOTATIONS
from toolkit.vocabulary import Vocabulary


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    part: str = ""


class _File(msgspec.Struct):
    images: list[_Image]


def translate(data: bytes, path: Path, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """The images and boxes of a COCO file as ``toolkit dataset prepare`` would write them.

    An image is the prepared one of its id, if that has its file name, else of its file name, where that is
    another than all others'. Classes are told by their names, and renamed as the data was prepared with.

    Args:
        data: the file's content.
        path: names it in messages.
        folder: the data folder.

    Returns:
        ``images`` with ``id`` and ``part``, ``annotations`` with ``image_id``, ``category_id`` and ``bbox``.

    Raises:
        ToolkitError: it is no COCO file, or has none of the data's images or classes.
    """
    content, words = coco.parse(data, str(path)), vocabulary.of_data(folder)
    kinds, listed = coco.classes_of(content, str(path)), coco.lists(content, "images", str(path))
    label_of, found = _labels(kinds, words, folder), _prepared(listed, list(_known(folder)))
    if not found or not label_of:
        raise ToolkitError(
            f"{path} is not about the data in {folder}",
            found=f"{len(found):,} of {len(listed):,} images there, classes {', '.join(kinds.values())}",
            expected=f"images of its file names, and classes {', '.join(words.classes.values())}",
        )
    if lost := len(listed) - len(found):
        console.warn(f"{lost:,} images of {path} are not in {folder}: left out")
    return {
        "images": [{"id": each.id, "part": each.part} for each in found.values()],
        "annotations": [
            {
                "image_id": found[box.image].id,
                "category_id": label_of[box.category],
                "bbox": box.xywh,
            }
            for box in coco.boxes_of(content, str(path))
            if box is not None and box.image in found and box.category in label_of
        ],
    }


def _labels(kinds: Mapping[Any, str], words: Vocabulary, folder: Path) -> dict[Any, int]:
    """Id of a category -> the data's label, of those that it has."""
    made_of = origin.read(folder)
    becomes = made_of.renamed() if made_of else None
    labels = {name: label for label, name in words.classes.items()}
    targets = {key: name if becomes is None else becomes.get(name.lower(), "") for key, name in kinds.items()}
    return {key: labels[target] for key, target in targets.items() if target in labels}


def _prepared(listed: list[dict[str, Any]], known: list[_Image]) -> dict[Any, _Image]:
    """Id of a listed image -> the prepared one, of those that there are."""
    by_id = {each.id: each for each in known}
    by_name: dict[str, list[_Image]] = {}
    for each in known:
        by_name.setdefault(_base(each.file_name), []).append(each)
    found: dict[Any, _Image] = {}
    for image in listed:
        base, same = _base(coco.file_of(image)), by_id.get(image["id"])
        named = by_name.get(base, [])
        if same is not None and _base(same.file_name) == base:
            found[image["id"]] = same
        elif len(named) == 1:
            found[image["id"]] = named[0]
    return found


def _base(name: str) -> str:
    return PurePosixPath(name.replace("\\", "/")).name


def _known(folder: Path) -> Iterator[_Image]:
    """The prepared images of all splits."""
    for path in (folder / name for name in ANNOTATIONS.values()):
        if path.is_file():
            try:
                yield from msgspec.json.decode(path.read_bytes(), type=_File).images
            except (OSError, *NO_JSON) as error:
                raise ToolkitError(f"{path} cannot be read", found=reason(error)) from error
