"""A COCO file as others write it: some name its lists in the singular, or the picture's file ``filename``."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from toolkit.errors import ToolkitError, reason

_NEEDS = {
    "images": ("id",),
    "categories": ("id", "name"),
    "annotations": ("bbox", "category_id", "image_id"),
}


@dataclass(frozen=True)
class CocoBox:
    """A box as its file has it: ids of its image and category, of any type, and x, y, width, height."""

    image: Any
    category: Any
    xywh: tuple[float, float, float, float]


def parse(data: bytes, name: str) -> Any:
    """The content of a JSON file. Raises ToolkitError: it is none."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ToolkitError(f"{name} is cut off or no JSON", found=reason(error)) from error


def lists(content: Any, key: str, name: str) -> list[dict[str, Any]]:
    """The list ``images``, ``categories`` or ``annotations``.

    Raises:
        ToolkitError: there is none, or something in it lacks what it needs.
    """
    found = content.get(key, content.get(key.removesuffix("s"))) if isinstance(content, dict) else None
    sound = isinstance(found, list) and all(
        isinstance(each, dict)
        and all(
            isinstance(each.get(need), list if need == "bbox" else int | float | str) for need in _NEEDS[key]
        )
        for each in found
    )
    if not isinstance(found, list) or not sound:
        raise ToolkitError(
            f"{name} is no COCO file",
            found=f"no list of {key} with {', '.join(_NEEDS[key])}",
            expected="images, annotations and categories",
        )
    return found


def file_of(image: Mapping[str, Any]) -> str:
    """The file that an image names."""
    return str(image.get("file_name") or image.get("filename") or "")


def classes_of(content: Any, name: str) -> dict[Any, str]:
    """Id of a category -> its name."""
    return {each["id"]: str(each["name"]) for each in lists(content, "categories", name)}


def boxes_of(content: Any, name: str) -> Iterator[CocoBox | None]:
    """The boxes; None for one of a crowd, which is not counted as an object.

    Raises:
        ToolkitError: a box is not four numbers.
    """
    for each in lists(content, "annotations", name):
        if each.get("iscrowd"):
            yield None
            continue
        try:
            x, y, w, h = map(float, each["bbox"])
            if not all(map(math.isfinite, (x, y, w, h))):
                raise ValueError
        except (TypeError, ValueError) as error:
            raise ToolkitError(
                f"{name} has a box that is no box",
                found=f"{each['bbox']!r} in image {each['image_id']}",
                expected="x, y, width and height",
            ) from error
        yield CocoBox(each["image_id"], each["category_id"], (x, y, w, h))
