"""LTDv2 as an Ultralytics dataset: labels from the index, pixels from the archive, nothing scanned.

Frames stay grey, (height, width, 1), through every augmentation; a model with three input channels gets the
grey channel three times at the very end. For grey frames that is what colour augmentation computes too, at a
third of the work. With other views than the frame (:mod:`toolkit.dataset.views`) a sample has a channel for
each, and one geometry moves them all.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from copy import copy
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from ultralytics.data.augment import Compose, Format, LetterBox, RandomHSV
from ultralytics.data.dataset import YOLODataset

from toolkit.dataset.at_hand import AtHand, Loaded
from toolkit.dataset.batches import BatchMemory
from toolkit.dataset.cache import choose, open_frames
from toolkit.dataset.frames import FrameError, Frames
from toolkit.dataset.frequency import EVERY_FRAME, NOTHING, Frequency, Paste
from toolkit.dataset.grey import Brightness, GreyFormat, GreyLetterBox, channels_that_differ
from toolkit.dataset.index import DatasetIndex, Split, TrainingTables
from toolkit.dataset.joined import JoinedSplit, open_split
from toolkit.dataset.mosaic import PADDING, fuse
from toolkit.dataset.paste import Donors
from toolkit.dataset.planes import Grey, channels_of, new_canvas
from toolkit.dataset.recent import RecentFrames
from toolkit.dataset.skips import Skips
from toolkit.dataset.views import PLAIN, Sources, Views
from toolkit.errors import ToolkitError

Array = npt.NDArray[Any]

MAX_REPLACEMENTS = 100
"""Frames in a row that may fail before a sample gives up: by then the archive is gone, not one frame bad."""


def data_dictionary(index: DatasetIndex, channels: int, views: Views = PLAIN) -> dict[str, Any]:
    """What Ultralytics' ``check_det_dataset`` would return; the "paths" are names of splits.

    Args:
        index: the dataset.
        channels: input channels of the model, 1 or 3, or those of other views than the frame.
        views: what the channels show.

    Raises:
        ToolkitError: another number of channels.
    """
    if channels not in ((1, 3) if views.is_plain else (views.channels,)):
        raise ToolkitError(
            f"no images with {channels} channels", expected="1 or 3" if views.is_plain else str(views)
        )
    classes = index.manifest.vocabulary.classes
    splits = {name: name for name in ("train", "val", "test") if index.manifest.images.get(name)}
    return {
        "path": index.data,
        **splits,
        "nc": len(classes),
        "names": {label - 1: name for label, name in classes.items()},
        "channels": channels,
        "views": views,
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
    rows: Array | None = None,
    frequency: Frequency = EVERY_FRAME,
    paste: Paste = NOTHING,
    seed: int = 0,
    skip_log: Path | None = None,
) -> LTDv2Dataset:
    """Make the dataset that a trainer or validator asks for in its ``build_dataset``.

    Args:
        index: the opened index.
        split: "train", "val" or "test" (what :func:`data_dictionary` gives as paths), or several with commas.
        args: Ultralytics' configuration namespace.
        mode: "train" augments, anything else does not.
        batch: images a batch, for rectangular batches.
        data: the dictionary of :func:`data_dictionary`.
        stride: of the model, pixels.
        rect: rectangular batches; by default ``args.rect``, and always when not training.
        rows: images of the split to use, all by default; see ``toolkit.dataset.subset``.
        frequency: how often they come in training.
        paste: objects that are put into them then.
        seed: see :class:`LTDv2Dataset`.
        skip_log: file that a line of JSON is appended to for each frame that could not be used.
    """
    train = mode == "train"
    return LTDv2Dataset(
        open_split(index, split),
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
        rows=rows,
        frequency=frequency if train else EVERY_FRAME,
        paste=paste if train else NOTHING,
        seed=seed,
        skip_log=skip_log,
    )


class LTDv2Dataset(YOLODataset):
    """A split of LTDv2 for Ultralytics' trainers and validators.

    A frame that cannot be decoded is replaced by the next one when training, and by a blank frame otherwise,
    so that every other image keeps its place. ``skips`` counts them.

    ``source`` says in words where the frames come from, archive or cache, and why.

    Samples that are not augmented carry ``row``, the image's row in the split: ``split.image_ids[row]`` is
    its id, exactly; ``unreadable``, why the frame is a blank one, empty where it is not; and ``stood_in``,
    how many channels the frame itself stands in for.

    Args:
        split: labels and frames.
        data: the dictionary of :func:`data_dictionary`.
        hyp: Ultralytics' configuration namespace.
        imgsz: length of the longer side, pixels.
        augment, rect, batch_size, stride, pad, single_cls, classes, prefix: as in Ultralytics.
        fraction: use this part of the images, spread evenly over the split (a number above 1 is a count).
        rows: (n,) images of the split to use; all by default.
        frequency: how often they come; see ``order``.
        paste: objects that are put into them.
        seed: an augmented sample depends on the seed and its index alone, not on which worker made it or what
            that worker made before. Indices count on over the epochs: ``epoch * order.span + sample``, and
            come soonest in the order of ``order.samples(epoch)``, in batches of ``batch_size``.

    Attributes:
        order: the samples of each epoch (:class:`toolkit.dataset.order.EpochOrder`).
        skips: the frames that could not be used.
        batches: where the samples of a batch are rendered; a loader may exchange it.
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
        rows: Array | None = None,
        frequency: Frequency = EVERY_FRAME,
        paste: Paste = NOTHING,
        seed: int = 0,
        skip_log: Path | None = None,
    ) -> None:
        # The constructors of the base classes scan files and build a Path for every image; what they would
        # set is set here instead.
        self.data, self.channels = data, int(data.get("channels", 3))
        self.img_path, self.imgsz, self.augment, self.prefix = split.name, imgsz, augment, prefix
        self.rect, self.batch_size, self.stride, self.pad = rect, batch_size, stride, pad
        self.single_cls, self.fraction = single_cls, fraction
        self.use_segments = self.use_keypoints = self.use_obb = False
        self.seed, self.skips = seed, Skips(skip_log)

        self.split = split
        self._parts = split.parts if isinstance(split, JoinedSplit) else [split]
        chosen = [choose(part) for part in self._parts]
        self.cached = [cached for cached, _ in chosen]
        self.source = "; ".join(dict.fromkeys(words for _, words in chosen))
        self.views: Views = data.get("views", PLAIN)
        self.frames = self._open_frames()
        self.sources = Sources(self.views, self._parts, split)
        self._stood_in = 0
        self.classes = classes
        rows = np.arange(len(split)) if rows is None else np.sort(rows)
        self._rows: Array = _choose(rows[split.present[rows]], fraction)
        if not len(self._rows):
            raise ToolkitError(f"the {split.name} split has no frame", fix="toolkit dataset verify DIR")
        self.ni = len(self._rows)
        # Ultralytics expects lists; these make the label or the path of a sample when asked for it.
        self.labels: Any = _Lazy(self.ni, self._label)
        self.im_files: Any = _Lazy(self.ni, self._name)
        if rect:
            self.set_rectangle()
        self.order = frequency.order(split, self._rows, seed)
        self._donors = Donors(split, self._rows, paste) if paste.chances else None

        self.batches = BatchMemory()
        self.cache = None  # so that mosaic takes its other frames from `buffer`
        self.buffer: list[int] = []
        self.transforms = self.build_transforms(hyp=copy(hyp))

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.order.size

    def class_counts(self) -> Array:
        """(classes,) int64, boxes of each class in the chosen images, without a walk over ``labels``."""
        kinds = _labels(self.split.training, self._rows) - 1
        if self.classes is not None:
            kinds = kinds[np.isin(kinds, self.classes)]
        return np.bincount(kinds * (not self.single_cls), minlength=len(self.data["names"]))

    def update_labels(self, include_class: list[int] | None) -> None:
        """Keep the boxes of these classes only."""
        self.classes = include_class

    def set_rectangle(self) -> None:
        """Order the images by aspect ratio and give each batch the smallest shape that holds it."""
        images = self.split.training.images[self._rows]
        order, self.batch, self.batch_shapes = _rectangles(
            images["height"] / images["width"], self.batch_size, self.imgsz, self.stride, self.pad
        )
        self._rows = self._rows[order]

    def __getitem__(self, index: int) -> dict[str, Any]:
        epoch, drawn = divmod(int(index), self.order.span)
        copies, i = divmod(drawn, self.ni)
        if self.augment:
            random.seed(f"{self.seed} {epoch} {i}" + (f" {copies}" if copies else ""))
            np.random.seed(random.getrandbits(32))  # noqa: NPY002 (Ultralytics' augmentation draws from it)
            self.buffer = self.at_hand.turn(epoch, drawn)
        sample: dict[str, Any] = self.transforms(self.get_image_and_label(i))
        if self.views.is_plain and self.channels == 3:
            sample["img"] = sample["img"].expand(3, -1, -1)
        return sample

    def __getitems__(self, indices: list[int]) -> list[dict[str, Any]]:
        """The samples of a batch, as PyTorch's loader asks for them."""
        return self.batches.samples(self.__getitem__, indices)

    def _canvas(self, shape: tuple[int, ...]) -> Grey:
        return self.batches.canvas(shape)

    def get_image_and_label(self, index: int) -> dict[str, Any]:
        """Image and label of a sample before augmentation; of the next one if this frame is bad."""
        for i in range(index, index + min(self.ni, MAX_REPLACEMENTS)):
            i %= self.ni
            unreadable = ""
            try:
                image, original, resized = self.load_image(i)
            except FrameError as error:
                if i == index:  # those behind it count when it is their turn: else a bad clip counts squared
                    self.skips.note(error)
                if self.augment:
                    continue
                original, unreadable, self._stood_in = self._size(i), error.line(), 0
                image = self._resize(np.full((*original, self.views.channels), PADDING, np.uint8))
                resized = image.shape[:2]
            label = self._label(i)
            del label["shape"]
            if self._donors is not None:
                into = label, image, int(self._rows[i]), self._size(i)
                image = self._donors.add_to(*into, self._stacked, self.classes, self.single_cls)
            if not self.augment:
                label["row"], label["unreadable"] = int(self._rows[i]), unreadable
                label["stood_in"] = self._stood_in
            label["img"], label["ori_shape"], label["resized_shape"] = image, original, resized
            label["ratio_pad"] = (resized[0] / original[0], resized[1] / original[1])
            if self.rect:
                label["rect_shape"] = self.batch_shapes[self.batch[i]]
            filled: dict[str, Any] = self.update_labels_info(label)
            return filled
        raise ToolkitError(
            f"{MAX_REPLACEMENTS} frames in a row cannot be decoded",
            found=", ".join(list(self.skips.frames)[:3]),
            fix="toolkit dataset verify DIR names all bad frames",
        )

    @staticmethod
    def collate_fn(batch: list[dict[str, Any]], out: torch.Tensor | None = None) -> dict[str, Any]:
        """Ultralytics' collation; three equal channels stay one in memory, and on the way from a worker.

        Args:
            batch: the samples.
            out: (samples, channels that differ, height, width) uint8, where the images are to be, and where
                some may lie already; new memory by default.
        """
        differing = channels_that_differ(batch[0]["img"])
        if out is None:
            images = torch.stack([sample["img"][:differing] for sample in batch])
        else:
            images = out
            for sample, place in zip(batch, images, strict=True):
                if sample["img"].data_ptr() != place.data_ptr():
                    place.copy_(sample["img"][:differing])
        collated: dict[str, Any] = YOLODataset.collate_fn(
            [{key: value for key, value in sample.items() if key != "img"} for sample in batch]
        )
        collated["img"] = images.expand(-1, batch[0]["img"].shape[0], -1, -1)
        return collated

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Loaded:
        """Channels of image ``i``, (h, w, c) uint8, their size as recorded and as enlarged to ``imgsz``.

        The frame has the latter size, unless the fused mosaic is at work, which wants it as recorded.

        Raises:
            FrameError: the frame does not decode or has another size than its annotations say.
        """
        if (held := self.at_hand.recent.get(i)) is not None:
            return held
        row = int(self._rows[i])
        grey = self.frames.grey(row)
        original = (int(grey.shape[0]), int(grey.shape[1]))
        if original != self._size(i):
            found, expected = ("{1} x {0}".format(*size) for size in (original, self._size(i)))
            raise FrameError(self._name(i), "has another size", found, f"{expected} pixels")
        memory = self.at_hand.memory((*original, self.views.channels)) if self.fused else None
        image, self._stood_in = self.sources.stack(self.frames, row, grey, out=memory)
        if not self.fused:
            image = self._resize(image)
        loaded = image, original, self._resized(original)
        if self.augment:
            self.at_hand.recent[i] = loaded
        return loaded

    def _stacked(self, row: int) -> Array:
        return self.sources.stack(self.frames, row, self.frames.grey(row))[0]

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        height, width = (-(-side * self.imgsz // max(size)) for side in size)
        return height, width

    def _resize(self, channels: Array) -> Array:
        height, width = self._resized((channels.shape[0], channels.shape[1]))
        if channels.shape[:2] == (height, width):
            return channels
        if self.augment:  # Ultralytics' steps are faster where the channels of a pixel lie together
            return cv2.resize(channels, (width, height)).reshape(height, width, self.views.channels)
        resized = new_canvas((height, width, self.views.channels))
        for channel, place in zip(channels_of(channels), channels_of(resized), strict=True):
            cv2.resize(channel, (width, height), dst=place)
        return resized

    def _size(self, i: int) -> tuple[int, int]:
        image = self.split.training.images[self._rows[i]]
        return int(image["height"]), int(image["width"])

    def _name(self, i: int) -> str:
        return self.frames.name(int(self._rows[i]))

    def _label(self, i: int) -> dict[str, Any]:
        row = int(self._rows[i])
        kinds, boxes = _boxes(self.split.training, row, self.classes, self.single_cls)
        return {
            "im_file": self._name(i),
            "shape": self._size(i),
            "cls": kinds,
            "bboxes": boxes,
            "segments": [],
            "normalized": True,
            "bbox_format": "xywh",
        }

    def build_transforms(self, hyp: Any) -> Compose:
        """Ultralytics' pipeline; mosaic, colour jitter (which skips grey images) and format made for grey."""
        transforms = super().build_transforms(hyp)
        self.fused = self.augment and not self.rect and fuse(transforms, self._canvas)
        # As recorded for the fused mosaic, enlarged for the others.
        self.at_hand = AtHand(self.order, self.ni, self.batch_size, recycles=self.fused)
        for i, step in enumerate(transforms.transforms):
            if isinstance(step, RandomHSV):
                transforms.transforms[i] = Brightness(hyp.hsv_v, in_place=self.fused)
            elif isinstance(step, LetterBox) and not self.augment:
                transforms.transforms[i] = GreyLetterBox(step)
            elif isinstance(step, Format):
                transforms.transforms[i] = GreyFormat(step, in_place=self.fused)
        return transforms

    def _open_frames(self) -> Frames:
        frames = open_frames(self._parts, self.cached)
        if self.augment or self.views.is_plain:
            return frames
        images = self.split.training.images  # in the order of time, mostly: neighbours come soon again
        return RecentFrames(frames, int((images["height"].astype(int) * images["width"]).max()))

    def __getstate__(self) -> dict[str, Any]:
        # A worker opens the frames itself and has none at hand at first.
        return {**self.__dict__, "frames": None, "at_hand": self.at_hand.emptied()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.frames = self._open_frames()


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


def _choose(rows: Array, fraction: float) -> Array:
    """A part of ``rows``, evenly spread; a number above 1 is a count, as in Ultralytics."""
    count = int(fraction) if fraction > 1 else max(1, round(len(rows) * fraction))
    if count >= len(rows):
        return rows
    places = np.linspace(0, len(rows) - 1, count).round().astype(int)
    return np.asarray(rows[places])


def _boxes(tables: TrainingTables, row: int, classes: list[int] | None, single: bool) -> tuple[Array, Array]:
    """Classes (n, 1) and boxes (n, 4) of an image: centre and size as parts of the frame, both float32."""
    image = tables.images[row]
    start = int(image["box"])
    boxes = tables.boxes[start : start + int(image["boxes"])]
    if classes is not None:
        boxes = boxes[np.isin(boxes["label"] - 1, classes)]
    kinds = (boxes["label"] - 1).astype(np.float32)[:, None]
    return np.zeros_like(kinds) if single else kinds, np.array(boxes["xywh"])


def _labels(tables: TrainingTables, rows: Array) -> Array:
    """Labels, from 1, of the boxes of some images."""
    chosen = np.zeros(len(tables.images), bool)
    chosen[rows] = True
    return np.asarray(tables.boxes["label"][np.repeat(chosen, tables.images["boxes"])])


def _rectangles(
    ratio: Array, batch_size: int, longer: int, stride: int, pad: float
) -> tuple[Array, Array, Array]:
    """The order of images by aspect ratio, the batch of each, and (batches, 2) heights and widths, pixels."""
    order = np.argsort(ratio, kind="stable")
    ratio = ratio[order]
    starts = np.arange(0, len(ratio), batch_size)
    low, high = np.minimum.reduceat(ratio, starts), np.maximum.reduceat(ratio, starts)
    shapes = np.ones((len(starts), 2))
    shapes[high < 1, 0] = high[high < 1]
    shapes[low > 1, 1] = 1 / low[low > 1]
    cells = np.ceil(shapes * longer / stride + pad).astype(int)
    return order, np.arange(len(ratio)) // batch_size, cells * stride
