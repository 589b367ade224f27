"""What a clip shows when nobody is there: the median of its frames, a picture a clip, beside the index.

The camera stands still for a clip, and its sensor and its weather hardly change within two minutes: in the
median of frames spread over the clip a thing remains that stands, and one that moves is gone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import numpy.typing as npt

from toolkit import console
from toolkit.dataset.cache import folder
from toolkit.dataset.frames import FrameError, Frames
from toolkit.dataset.index import Split
from toolkit.errors import ToolkitError
from toolkit.files import replacing, turn

SAMPLES = 25
"""Frames of a clip that its median is taken of: each of them hides what is in fewer than half."""

Grey = npt.NDArray[np.uint8]


def path_of(split: Split) -> Path:
    """The file of a split's backgrounds: (clips, height, width) uint8, clips in the order of their names."""
    return folder(split.index) / f"{split.index.path.stem}-{split.name}-backgrounds.npy"


def ensure(split: Split) -> None:
    """Compute the backgrounds of a split unless they are there.

    Raises:
        ToolkitError: frames have several sizes, or the file cannot be written.
    """
    if _open(split) is not None:
        return
    with turn(folder(split.index)):
        if _open(split) is None:
            _build(split)


def numbers(split: Split) -> npt.NDArray[np.int64]:
    """(images,) which of the backgrounds each image has."""
    return np.unique(split.clips, return_inverse=True)[1]


def _open(split: Split) -> Grey | None:
    try:
        pixels: Grey = np.load(path_of(split), mmap_mode="r")
    except (OSError, ValueError, EOFError):
        return None
    return pixels if len(pixels) == len(np.unique(split.clips)) else None


def _build(split: Split) -> None:
    images = split.training.images
    sizes = np.unique(images[["height", "width"]])
    if len(sizes) != 1:
        raise ToolkitError(
            f"the frames of {split.name} have {len(sizes)} sizes",
            expected="one size, as in LTDv2: a background is of one",
        )
    size = (int(sizes["height"][0]), int(sizes["width"][0]))
    order = np.lexsort((split.image_ids, split.clips))
    ends = np.flatnonzero(split.clips[order][1:] != split.clips[order][:-1]) + 1
    clips = [rows[split.present[rows]].tolist() for rows in np.split(order, ends)]
    frames = split.frames()
    pixels = np.empty((len(clips), *size), np.uint8)
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        console.progress(f"backgrounds of {split.name}", len(clips), "clips") as advance,
    ):
        for number, picture in enumerate(pool.map(lambda rows: _median(frames, rows, size), clips)):
            pixels[number] = picture
            advance(1)
    with replacing(path_of(split)) as temporary, temporary.open("wb") as file:
        np.save(file, pixels)


def _median(frames: Frames, rows: Sequence[int], size: tuple[int, int]) -> Grey:
    """Of frames spread over a clip; of those that decode. Where none does, no frame ever asks for it."""
    wanted = [rows[i] for i in np.linspace(0, len(rows) - 1, min(SAMPLES, len(rows))).round().astype(int)]
    others = [row for row in rows if row not in set(wanted)]
    decoded: list[Grey] = []
    for row in (*wanted, *others):
        if len(decoded) == len(wanted):
            break
        try:
            picture = frames.grey(row)
        except FrameError:
            continue
        if picture.shape == size:
            decoded.append(picture)
    if not decoded:
        return np.zeros(size, np.uint8)
    middle = (len(decoded) - 1) // 2
    median: Grey = np.partition(np.stack(decoded), middle, axis=0)[middle]
    return median
