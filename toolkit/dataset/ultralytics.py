"""LTDv2 as an Ultralytics dataset: labels from the index, pixels from the archive, nothing scanned.

Which images are used, with their boxes, is in :mod:`toolkit.dataset.chosen`; how a frame becomes channels of
the network's size, in :mod:`toolkit.dataset.pixels`. Here is what Ultralytics asks of the two.

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

import numpy as np
import numpy.typing as npt
import torch
from ultralytics.data.augment import Compose
from ultralytics.data.dataset import YOLODataset

from toolkit.dataset.at_hand import AtHand, Loaded
from toolkit.dataset.batches import BatchMemory
from toolkit.dataset.chosen import ChosenImages
from toolkit.dataset.frames import FrameError
from toolkit.dataset.frequency import EVERY_FRAME, NOTHING, Frequency, Paste
from toolkit.dataset.grey import channels_that_differ, for_grey
from toolkit.dataset.index import DatasetIndex, Split
from toolkit.dataset.joined import open_split
from toolkit.dataset.mosaic import fuse
from toolkit.dataset.paste import Donors
from toolkit.dataset.pixels import Pixels
from toolkit.dataset.planes import Grey, Layers
from toolkit.dataset.skips import Skips
from toolkit.dataset.views import PLAIN, Views
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
        images: which are used, and their boxes.
        pixels: where their channels come from.
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
        self.views: Views = data.get("views", PLAIN)
        self.images = ChosenImages(split, rows, fraction, classes, single_cls)
        self.pixels = Pixels(split, self.views, imgsz, augment, len(self.images))
        self._stood_in = 0
        self.ni = len(self.images)
        # Ultralytics expects lists; these make the label or the path of a sample when asked for it.
        self.labels: Any = _Lazy(self.ni, self._label)
        self.im_files: Any = _Lazy(self.ni, self._name)
        if rect:
            self.set_rectangle()
        self.order = frequency.order(split, self.images.rows, seed)
        self._donors = Donors(split, self.images.rows, paste) if paste.chances else None

        self.batches = BatchMemory()
        self.cache = None  # so that mosaic takes its other frames from `buffer`
        self.buffer: list[int] = []
        self.transforms = self.build_transforms(hyp=copy(hyp))

    def __len__(self) -> int:
        """Samples of an epoch."""
        return self.order.size

    def class_counts(self) -> Array:
        """(classes,) int64, boxes of each class in the chosen images, without a walk over ``labels``."""
        return self.images.class_counts(len(self.data["names"]))

    def update_labels(self, include_class: list[int] | None) -> None:
        """Keep the boxes of these classes only."""
        self.images.classes = include_class

    def set_rectangle(self) -> None:
        """Order the images by aspect ratio and give each batch the smallest shape that holds it."""
        self.batch, self.batch_shapes = self.images.order_by_shape(
            self.batch_size, self.imgsz, self.stride, self.pad
        )

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
                original, unreadable, self._stood_in = self.images.size(i), error.line(), 0
                image, resized = self.pixels.blank(original), self.pixels.enlarged_size(original)
            label = self._label(i)
            del label["shape"]
            row = int(self.images.rows[i])
            if self._donors is not None:
                into, kept = (label, image, row, original), (self.images.classes, self.images.single_cls)
                image = self._donors.add_to(*into, self.pixels.recorded, *kept)
            if not self.augment:
                label["row"], label["unreadable"] = row, unreadable
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
        size = self.images.size(i)
        kept = self.at_hand.kept if self.fused else None
        image, self._stood_in = self.pixels.read(int(self.images.rows[i]), size, kept)
        if not isinstance(image, Layers):
            image = self.pixels.enlarged(image)
        loaded = image, size, self.pixels.enlarged_size(size)
        if self.augment:
            self.at_hand.recent[i] = loaded
        return loaded

    def _name(self, i: int) -> str:
        return self.pixels.frames.name(int(self.images.rows[i]))

    def _label(self, i: int) -> dict[str, Any]:
        kinds, boxes = self.images.boxes(i)
        return {
            "im_file": self._name(i),
            "shape": self.images.size(i),
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
        for_grey(transforms, hyp.hsv_v, letterbox=not self.augment, in_place=self.fused)
        return transforms

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "at_hand": self.at_hand.emptied()}  # a worker has none at hand at first


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
