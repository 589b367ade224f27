"""Where and when each frame was taken: clip, hour and weather, from a COCO file of LTDv2."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from submission.detections import locate, read_bytes
from submission.errors import NO_JSON, SubmissionError
from toolkit.errors import ToolkitError


class _Image(msgspec.Struct, gc=False):
    id: int
    file_name: str
    date_captured: Any = None
    meta: dict[str, Any] | None = None
    clip: str | None = None


class _Coco(msgspec.Struct):
    images: list[_Image]


@dataclass(frozen=True, eq=False)
class Context:
    """Circumstances of images, as columns.

    Attributes:
        names: (images,) str, path of the frame.
        clips: (images,) str, folder of the frame, of other data than LTDv2 what it says: frames of one
            clip are not independent.
        hours: (images,) float64, local hour of the day in [0, 24), NaN where unknown.
        weather: name -> (images,) float64, NaN where the image does not say.
    """

    names: npt.NDArray[np.str_]
    clips: npt.NDArray[np.str_]
    hours: npt.NDArray[np.float64]
    weather: Mapping[str, npt.NDArray[np.float64]]

    @classmethod
    def read(cls, path: Path, image_ids: npt.NDArray[np.int64]) -> Context:
        """Read the circumstances of these images, in this order, from a COCO file such as Valid.json.

        Raises:
            ToolkitError: the file is no COCO file with file names, or lacks one of the images.
            SubmissionError: the file cannot be read.
        """
        try:
            images = msgspec.json.decode(read_bytes(path), type=_Coco).images
        except NO_JSON as error:
            raise ToolkitError(
                f"{path} does not say which clip a frame is of",
                found=str(error),
                expected="a COCO file with file names, such as Valid.json",
            ) from error
        place = locate(image_ids, np.array([image.id for image in images], np.int64))
        if (place < 0).any():
            raise ToolkitError(f"{path} lacks images of the truth", found=f"no id {image_ids[place < 0][0]}")
        chosen = [images[i] for i in place.tolist()]
        keys = sorted({key for image in chosen for key in image.meta or ()})
        weather = {key: np.array([_number((i.meta or {}).get(key)) for i in chosen]) for key in keys}
        return cls(
            np.array([image.file_name for image in chosen]),
            np.array([_clip(image) for image in chosen]),
            np.array([_hour(image.date_captured) for image in chosen]),
            {key: values for key, values in weather.items() if np.isfinite(values).any()},
        )


def first_context(paths: Iterable[Path | None], image_ids: npt.NDArray[np.int64]) -> Context | None:
    """The circumstances of these images, from the first of some files that tells them, if one does."""
    for path in paths:
        if path is not None:
            with suppress(ToolkitError, SubmissionError):
                return Context.read(path, image_ids)
    return None


def _clip(image: _Image) -> str:
    if image.clip is None:
        return image.file_name.rpartition("/")[0]
    return f"frames/{image.clip}".rstrip("/")


def _number(value: Any) -> float:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else math.nan


def _hour(date: Any) -> float:
    if ":" not in str(date):  # a day alone
        return math.nan
    try:
        taken = datetime.fromisoformat(str(date).strip().removesuffix("Z"))
    except ValueError:
        return math.nan
    return taken.hour + taken.minute / 60 + taken.second / 3600
