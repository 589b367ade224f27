"""LTDv2 as an Ultralytics dataset: labels from the index, pixels from the archive, nothing scanned.

Frames stay grey, (height, width, 1), through every augmentation; a model with three input channels gets the
grey channel three times at the very end. For grey frames that is what colour augmentation computes too, at a
third of the work.
"""

from __future__ import annotations

import json
import os
import random
from collections import OrderedDict
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from ultralytics.data.augment import Compose, RandomHSV
from ultralytics.data.dataset import YOLODataset

from toolkit import console
from toolkit.dataset.annotations import CATEGORIES
from toolkit.dataset.frames import FrameError, Frames
from toolkit.dataset.index import DatasetIndex, Split
from toolkit.errors import ToolkitError

Array = npt.NDArray[Any]

BLANK = 114
"""Grey level that Ultralytics pads with; also shown to a model in place of a frame that does not decode."""

MAX_REPLACEMENTS = 100
"""Frames in a row that may fail before a sample gives up: by then the archive is gone, not one frame bad."""


def data_dictionary(index: DatasetIndex, channels: int) -> dict[str, Any]:
    """What Ultralytics' ``check_det_dataset`` would return; the "paths" are names of splits.

    Args:
        index: the dataset.
        channels: input channels of the model, 1 or 3.
    """
    splits = {name: name for name in ("train", "val", "test") if index.manifest.images.get(name)}
    return {
        "path": index.data,
        **splits,
        "nc": len(CATEGORIES),
        "names": {label - 1: name for label, name in CATEGORIES.items()},
        "channels": channels,
    }


def build_dataset(
    index: DatasetIndex,
    split: str,
    args: Any,
    mode: str,
    batch: int,
    data: dict[str, Any],
    stride: int = 32,
    *,
    rect: bool | None = None,
    seed: int | None = None,
    skip_log: Path | None = None,
) -> LTDv2Dataset:
    """Make the dataset that a trainer or validator asks for in its ``build_dataset``.

    Args:
        index: the opened index.
        split: "train", "val" or "test" (what :func:`data_dictionary` gives as paths).
        args: Ultralytics' configuration namespace.
        mode: "train" augments, anything else does not.
        batch: images a batch, for rectangular batches.
        data: the dictionary of :func:`data_dictionary`.
        stride: of the model, pixels.
        rect: rectangular batches; by default ``args.rect``, and always when not training.
        seed: see :class:`LTDv2Dataset`.
        skip_log: file that a line of JSON is appended to for each frame that could not be used.
    """
    train = mode == "train"
    return LTDv2Dataset(
        index.split(split),
        data=data,
        hyp=args,
        imgsz=args.imgsz,
        augment=train,
        rect=(args.rect or not train) if rect is None else rect,
        batch_size=batch,
        stride=stride,
        pad=0.0 if train else 0.5,
        single_cls=bool(args.single_cls),
        classes=args.classes,
        fraction=args.fraction if train else 1.0,
        prefix=f"{mode}: ",
        seed=seed,
        skip_log=skip_log,
    )


class LTDv2Dataset(YOLODataset):
    """A split of LTDv2 for Ultralytics' trainers and validators.

    A frame that cannot be decoded is replaced by the next one when training, and by a blank frame otherwise,
    so that every other image keeps its place. Each is counted in ``skipped`` (of this process), warned about
    once, and appended to ``skip_log``, which all worker processes share.

    Samples that are not augmented carry ``row``, the image's row in the split: ``split.image_ids[row]`` is
    its id, exactly.

    Args:
        split: labels and frames.
        data: the dictionary of :func:`data_dictionary`.
        hyp: Ultralytics' configuration namespace.
        imgsz: length of the longer side, pixels.
        augment, rect, batch_size, stride, pad, single_cls, classes, prefix: as in Ultralytics.
        fraction: use this part of the images, spread evenly over the split (a number above 1 is a count).
        seed: if given, a sample depends on the seed and its index alone, not on which worker made it or what
            that worker made before. Indices then count on over the epochs: ``epoch * len(dataset) + i``.
        skip_log: file for frames that could not be used.
    """

    def __init__(
        self,
        split: Split,
        *,
        data: dict[str, Any],
        hyp: Any,
        imgsz: int = 640,
        augment: bool = True,
        rect: bool = False,
        batch_size: int = 16,
        stride: int = 32,
        pad: float = 0.5,
        single_cls: bool = False,
        classes: list[int] | None = None,
        fraction: float = 1.0,
        prefix: str = "",
        seed: int | None = None,
        skip_log: Path | None = None,
    ) -> None:
        # The constructors of the base classes scan files and build a Path for every image; what they would
        # set is set here instead.
        self.data, self.channels = data, int(data.get("channels", 3))
        self.img_path, self.imgsz, self.augment, self.prefix = split.name, imgsz, augment, prefix
        self.rect, self.batch_size, self.stride, self.pad = rect, batch_size, stride, pad
        self.single_cls, self.fraction = single_cls, fraction
        self.use_segments = self.use_keypoints = self.use_obb = False
        self.seed, self.skip_log = seed, skip_log
        self.skipped: dict[str, int] = {}

        self.frames: Frames = split.frames()
        self._sizes: Array = np.stack([split.heights, split.widths], axis=1)
        self._offsets, self._boxes, self._classes = _training_boxes(split, self._sizes, classes, single_cls)
        self._rows: Array = _choose(np.flatnonzero(split.present), fraction)
        if not len(self._rows):
            raise ToolkitError(f"the {split.name} split has no frame", fix="toolkit dataset verify DIR")
        self.ni = len(self._rows)
        # Ultralytics expects lists; these make the label or the path of a sample when asked for it.
        self.labels: Any = _Lazy(self.ni, self._label)
        self.im_files: Any = _Lazy(self.ni, self._name)
        if rect:
            self.set_rectangle()

        # Mosaic takes its other frames from the recent ones in `buffer`, unless the cache is "ram".
        self.cache = None if seed is None else "ram"
        self.buffer: list[int] = []
        self.max_buffer_length = min(self.ni, batch_size * 8, 1000) if augment and seed is None else 0
        self._recent: OrderedDict[int, tuple[Array, tuple[int, int], tuple[int, int]]] = OrderedDict()
        self.transforms = self.build_transforms(hyp=copy(hyp))

    def __len__(self) -> int:
        return self.ni

    def class_counts(self) -> Array:
        """(4,) int64, boxes of each class in the chosen images, without walking over :attr:`labels`."""
        counts = np.diff(self._offsets)
        chosen = np.zeros(len(counts), bool)
        chosen[self._rows] = True
        return np.bincount(self._classes[np.repeat(chosen, counts)], minlength=len(self.data["names"]))

    def update_labels(self, include_class: list[int] | None) -> None:
        """Keep the boxes of these classes only."""
        if include_class is None:
            return
        keep = np.isin(self._classes, include_class)
        self._offsets = np.concatenate(([0], np.cumsum(keep)))[self._offsets]
        self._boxes, self._classes = self._boxes[keep], self._classes[keep]

    def set_rectangle(self) -> None:
        """Order the images by aspect ratio and give each batch the smallest shape that holds it."""
        height, width = self._sizes[self._rows].T
        ratio = height / width
        order = np.argsort(ratio, kind="stable")
        self._rows, ratio = self._rows[order], ratio[order]
        self.batch = np.arange(self.ni) // self.batch_size
        starts = np.arange(0, self.ni, self.batch_size)
        low, high = np.minimum.reduceat(ratio, starts), np.maximum.reduceat(ratio, starts)
        shapes = np.ones((len(starts), 2))
        shapes[high < 1, 0] = high[high < 1]
        shapes[low > 1, 1] = 1 / low[low > 1]
        cells = np.ceil(shapes * self.imgsz / self.stride + self.pad).astype(int)
        self.batch_shapes = cells * self.stride

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, i = divmod(int(index), self.ni)
        if self.seed is not None:
            random.seed(f"{self.seed} {epoch} {i}")
            np.random.seed(random.getrandbits(32))  # noqa: NPY002 (Ultralytics' augmentation draws from it)
        sample: dict[str, Any] = self.transforms(self.get_image_and_label(i))
        if self.channels == 3:
            sample["img"] = sample["img"].expand(3, -1, -1)
        return sample

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Image and label of a sample before augmentation; of the next one if this frame is bad."""
        for i in range(index, index + min(self.ni, MAX_REPLACEMENTS)):
            i %= self.ni
            try:
                image, original, resized = self.load_image(i)
            except FrameError as error:
                self._skip(error)
                if self.augment:
                    continue
                height, width = self._sizes[self._rows[i]].tolist()
                image = self._resize(np.full((height, width), BLANK, np.uint8))
                original, resized = (height, width), image.shape[:2]
            label = self._label(i)
            del label["shape"]
            if not self.augment:
                label["row"] = int(self._rows[i])
            label["img"], label["ori_shape"], label["resized_shape"] = image, original, resized
            label["ratio_pad"] = (resized[0] / original[0], resized[1] / original[1])
            if self.rect:
                label["rect_shape"] = self.batch_shapes[self.batch[i]]
            filled: dict[str, Any] = self.update_labels_info(label)
            return filled
        raise ToolkitError(
            f"{MAX_REPLACEMENTS} frames in a row cannot be decoded",
            found=", ".join(list(self.skipped)[:3]),
            fix="toolkit dataset verify DIR names all bad frames",
        )

    def load_image(
        self, i: int, rect_mode: bool = True, resize_short: bool = False
    ) -> tuple[Array, tuple[int, int], tuple[int, int]]:
        """Grey frame of sample ``i``, longer side ``imgsz``: (h, w, 1) uint8, original and new (h, w).

        Raises:
            FrameError: the frame does not decode or has another size than its annotations say.
        """
        if i in self._recent:
            return self._recent[i]
        row = int(self._rows[i])
        grey = self.frames.grey(row)
        original = (int(grey.shape[0]), int(grey.shape[1]))
        if original != tuple(self._sizes[row]):
            expected = "{1} x {0} pixels".format(*self._sizes[row])
            found = "{1} x {0}".format(*original)
            raise FrameError(self.frames.name(row), "has another size", found, expected)
        image = self._resize(grey)
        loaded = image, original, image.shape[:2]
        if self.max_buffer_length:
            self._recent[i] = loaded
            self.buffer.append(i)
            if len(self.buffer) > self.max_buffer_length:
                del self._recent[self.buffer.pop(0)]
        return loaded

    def _resize(self, grey: Array) -> Array:
        height, width = grey.shape
        longest = max(height, width)
        if longest != self.imgsz:
            size = [-(-side * self.imgsz // longest) for side in (width, height)]
            grey = cv2.resize(grey, size, interpolation=cv2.INTER_LINEAR)
        return grey[..., None]

    def _name(self, i: int) -> str:
        return self.frames.name(int(self._rows[i]))

    def _label(self, i: int) -> dict[str, Any]:
        row = int(self._rows[i])
        boxes = slice(int(self._offsets[row]), int(self._offsets[row + 1]))
        return {
            "im_file": self._name(i),
            "shape": tuple(self._sizes[row].tolist()),
            "cls": self._classes[boxes].astype(np.float32)[:, None],
            "bboxes": self._boxes[boxes].copy(),
            "segments": [],
            "normalized": True,
            "bbox_format": "xywh",
        }

    def build_transforms(self, hyp: Any) -> Compose:
        """Ultralytics' pipeline with its colour jitter, which skips grey images, exchanged for a grey one."""
        transforms = super().build_transforms(hyp)
        transforms.transforms = [
            _Brightness(hyp.hsv_v) if isinstance(t, RandomHSV) else t for t in transforms.transforms
        ]
        return transforms

    def _skip(self, error: FrameError) -> None:
        if error.name not in self.skipped:
            console.warn(f"{error.line()}; skipped")
        self.skipped[error.name] = self.skipped.get(error.name, 0) + 1
        if self.skip_log is not None:
            line = json.dumps({"frame": error.name, "reason": error.line()}) + "\n"
            # One write of a short line at the end of the file: lines of several workers do not mix.
            fd = os.open(self.skip_log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
            try:
                os.write(fd, line.encode())
            finally:
                os.close(fd)

    def __getstate__(self) -> dict[str, Any]:
        # A worker starts with an empty buffer.
        return {**self.__dict__, "buffer": [], "_recent": OrderedDict(), "skipped": {}}


class _Brightness:
    """Multiply the grey values by a factor from 1 - gain to 1 + gain: the V of Ultralytics' HSV jitter."""

    def __init__(self, gain: float) -> None:
        self.gain = gain

    def __call__(self, labels: dict[str, Any]) -> dict[str, Any]:
        if self.gain:
            factor = 1 + self.gain * random.uniform(-1, 1)
            levels = np.clip(np.arange(256) * factor, 0, 255).astype(np.uint8)
            labels["img"] = cv2.LUT(labels["img"], levels).reshape(labels["img"].shape)
        return labels


class _Lazy(Sequence[Any]):
    """A sequence whose items are made when asked for."""

    def __init__(self, length: int, make: Any) -> None:
        self.length, self.make = length, make

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: Any) -> Any:
        if isinstance(i, slice):
            return [self.make(j) for j in range(*i.indices(self.length))]
        if not -self.length <= i < self.length:
            raise IndexError(i)
        return self.make(i % self.length)


def _training_boxes(
    split: Split, sizes: Array, classes: list[int] | None, single_cls: bool
) -> tuple[Array, Array, Array]:
    """Offsets, boxes and classes for training: clipped to the frame, empty ones dropped.

    Returns:
        (images + 1,) int64; (boxes, 4) float32, x and y of the centre, width, height, as parts of the frame;
        (boxes,) uint8, label - 1.
    """
    counts = np.diff(split.box_offsets)
    limits = np.repeat(sizes[:, ::-1], counts, axis=0).astype(np.float64)
    corners = split.boxes / np.tile(limits, 2)
    low, high = corners[:, :2].clip(0, 1), corners[:, 2:].clip(0, 1)
    kinds = (split.labels - 1).astype(np.uint8)
    keep = (high > low).all(axis=1)
    if classes is not None:
        keep &= np.isin(kinds, classes)
    if single_cls:
        kinds[:] = 0
    offsets = np.concatenate(([0], np.cumsum(keep)))[split.box_offsets]
    boxes = np.concatenate([(low + high) / 2, high - low], axis=1)[keep].astype(np.float32)
    return offsets, boxes, kinds[keep]


def _choose(rows: Array, fraction: float) -> Array:
    """A part of ``rows``, evenly spread; a number above 1 is a count, as in Ultralytics."""
    count = int(fraction) if fraction > 1 else max(1, round(len(rows) * fraction))
    if count >= len(rows):
        return rows
    places = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return np.asarray(rows[places])
