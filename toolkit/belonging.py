"""Which data a file of predictions is of: a flag, a run or a setting says it, else its images do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from submission import templates
from toolkit import console, vocabulary
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import ANNOTATIONS, SplitName
from toolkit.workspace import Workspace

PREDICTED: tuple[SplitName, ...] = ("val", "test")
"""The splits that predictions are usually of; reading the ids of all training images takes seconds."""


def data_of(
    place: Workspace,
    predictions: Path,
    image_ids: Callable[[], npt.NDArray[np.int64]],
    data: Path | None = None,
    splits: Sequence[SplitName] = PREDICTED,
) -> Path:
    """:meth:`Workspace.data_of`; of several possible ones, that with the images of predictions of no run.

    Args:
        place: finds runs and data.
        predictions: a file.
        image_ids: (images,) int64 of the file, asked for where nothing else tells.
        data: the folder that was named.
        splits: that it may be of.

    Raises:
        ToolkitError: nothing tells.
        SubmissionError: it depends on a file that is no predictions, or on annotations that are damaged.
    """
    try:
        return place.data_of(predictions, data)
    except ToolkitError:
        if data is not None or place.run_of(predictions) is not None:
            raise
        found = _with_images(place, image_ids(), splits)
        if found is None:
            raise
        return found


def classes_of(
    place: Workspace, predictions: Path, image_ids: Callable[[], npt.NDArray[np.int64]]
) -> dict[int, str]:
    """Names of the classes by label of :func:`data_of`; LTDv2's where no data is known."""
    try:
        return vocabulary.of_data(data_of(place, predictions, image_ids)).classes
    except ToolkitError:
        return vocabulary.LTDV2.classes


def _with_images(
    place: Workspace, image_ids: npt.NDArray[np.int64], splits: Sequence[SplitName]
) -> Path | None:
    """Of several data folders the only one that has exactly these images in a split, else has them all.

    None: there is none, or more than one, or a setting names one.
    """
    if os.environ.get("TOOLKIT_DATA") or place.defaults().data:
        return None
    files = [(folder, split) for folder in place.datasets() for split in splits]
    held = {
        (folder, split): templates.read(folder / ANNOTATIONS[split])
        for folder, split in files
        if (folder / ANNOTATIONS[split]).is_file()
    }
    whole = [each for each, ids in held.items() if np.isin(image_ids, ids).all()]
    exact = [each for each in whole if len(held[each]) == len(image_ids)]
    for found in (exact, whole):
        if len({folder for folder, _ in found}) == 1:
            folder, split = found[0]
            console.note(f"the data is {folder}, whose split {split} has these images")
            return folder
    return None
