"""From a model and a split to detections: the one path of evaluate, predict and the scores in training."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from submission import Detections
from submission.validate import check_values
from toolkit import console
from toolkit.dataset.frames import BAD_FRAMES
from toolkit.errors import ToolkitError
from toolkit.machine.device import resolve_device, running, torch_device
from toolkit.machine.eager import import_torchvision
from toolkit.weights import Detector, image_size, input_channels, views_of

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from toolkit.dataset.index import DatasetIndex
    from toolkit.ltdv2 import SplitName


ALL_BOXES = 3_000
"""Boxes that suppression keeps in a frame before the best of each class are chosen: more than there are."""


@dataclass(frozen=True)
class PredictionOptions:
    """How detections are made.

    Attributes:
        imgsz: longer side of the network's input, pixels; None: what the weights were trained with.
        batch: frames in one forward pass.
        device: "cpu", "0", ...; None: the first GPU or the CPU.
        workers: loader processes; on the CPU none are used.
        conf: lowest score kept. The metric integrates precision over recall, so a box of low score can only
            add area behind the others: the default keeps nearly all.
        iou: of boxes of one class that overlap more than this the best is kept. In the ranking a second box
            on one object is a false alarm, and boxes are on one object from an overlap of about 0.5 on.
        max_det: boxes kept of each class in a frame; the metric looks at 100.
        agnostic: whether a box suppresses boxes of other classes too. A rider and a machine are two objects
            that overlap, so the default leaves them alone.
        tta: predict each frame at three sizes, one of them mirrored, and merge what is found.
        patches: whether convolutions go through the patches.
        bad_frames: part of the split's frames that may be missing or unreadable; they get no boxes.
    """

    imgsz: int | None = None
    batch: int = 16
    device: str | None = None
    workers: int = 4
    conf: float = 0.001
    iou: float = 0.6
    max_det: int = 100
    agnostic: bool = False
    tta: bool = False
    patches: bool = True
    bad_frames: float = BAD_FRAMES

    def flags(self) -> str:
        """What a command takes to find the same again; nothing for what it does by itself."""
        by_itself = PredictionOptions()
        return " ".join(
            f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
            for name in ("imgsz", "conf", "iou", "max_det", "agnostic", "tta")
            if (value := getattr(self, name)) != getattr(by_itself, name)
        )


def predict(
    weights: Path | Detector,
    data: Path | DatasetIndex,
    split: SplitName,
    options: PredictionOptions | None = None,
    *,
    may_find_nothing: bool = False,
) -> Detections:
    """Detect objects in every frame of a split with a checkpoint, rounded as in a submission: the file that
    is written, the scores that are printed and what is handed in are of the same numbers. See :func:`detect`.

    Args:
        weights: a YOLO detection checkpoint with the classes of the data, or opened already.
        data: folder with LTDv2's files, prepared; or its index.
        split: "train", "val" or "test".
        options: see :class:`PredictionOptions`.
        may_find_nothing: such weights score 0, where many are compared, and are not refused.

    Raises:
        ToolkitError: the weights are no checkpoint, are not finite, have other classes or cannot do what the
            options ask; the data is not prepared, or more of its frames than allowed cannot be read; or
            nothing was found in the whole split.
        SubmissionError: the detections are none that the challenge could score.
    """
    from toolkit.dataset import index

    options = options or PredictionOptions()
    device = resolve_device(options.device)
    frames = index.load(data) if isinstance(data, Path) else data
    classes = frames.manifest.vocabulary.classes
    detector = Detector.read(weights, classes) if isinstance(weights, Path) else weights
    detector.require(classes)
    with running(device, patched=options.patches):
        detections = detect(detector.on(torch_device(device)), frames, split, options).rounded()
    check_values(detections, f"what {detector.path} finds", classes)
    if not len(detections.boxes) and not may_find_nothing:
        raise ToolkitError(
            f"{detector.path} finds nothing in {split}",
            found=f"no box with a score of {options.conf:g} or more in {len(detections):,} frames",
            expected="some boxes: this would score 0",
            fix="train it longer, take another checkpoint, or lower --conf",
        )
    return detections


def as_saved(model: DetectionModel) -> DetectionModel:
    """A copy of a model in training as ``load_model`` would give it back after Ultralytics has saved it.

    Checkpoints are half precision: a copy that did not pass through it would detect slightly differently.
    """
    copy = deepcopy(model).half().float().to(memory_format=torch.contiguous_format)
    saved: DetectionModel = copy.fuse(verbose=False).eval()
    return saved


def detect(
    model: DetectionModel,
    frames: DatasetIndex,
    split: SplitName,
    options: PredictionOptions,
    on_batch: Callable[[], object] = lambda: None,
) -> Detections:
    """Detect objects in every frame of a split, inside :func:`toolkit.machine.device.running`.

    Args:
        model: what :func:`toolkit.weights.load_model` or :func:`as_saved` returned, on the device to use.
        frames: the prepared data.
        split: "train", "val" or "test".
        options: its ``device`` and ``patches`` were decided by whoever made the model.
        on_batch: called after each batch.

    Returns:
        Detections of every frame of the split, in the split's order, boxes in pixels of the original frame.
        A box that the frame's border leaves nothing of is no detection.

    Raises:
        ToolkitError: the model cannot do what the options ask, or more frames than they allow are missing or
            unreadable.
    """
    image_ids = frames.split(split).image_ids
    found: list[npt.NDArray[np.float64]] = [np.empty((0, 6))] * len(image_ids)
    for output in outputs(model, frames, split, options, ALL_BOXES, on_batch):
        found[output.row] = output.in_frame(output.boxes, options.max_det)
    return together(image_ids, found)


def together(image_ids: npt.NDArray[np.int64], found: Sequence[npt.NDArray[np.float64]]) -> Detections:
    """What was found in each image as columns.

    Args:
        image_ids: (images,) int64.
        found: of each image (n, 6): corners in pixels of the frame, score, class 0 to 3.
    """
    rows = np.concatenate(found) if len(found) else np.empty((0, 6))
    return Detections(
        image_ids=image_ids,
        offsets=np.concatenate(([0], np.cumsum([len(f) for f in found]))).astype(np.int64),
        boxes=rows[:, :4],
        scores=rows[:, 4],
        labels=rows[:, 5].astype(np.int64) + 1,
    )


@dataclass(frozen=True)
class Output:
    """What a network finds in a frame.

    Attributes:
        row: of the image in its split.
        boxes: (n, 6) float32: corners in pixels of the network's input, score, class 0 to 3; the best first.
        size: height and width of the network's input.
        frame: those of the frame.
        placing: how the frame lies in the input, as Ultralytics has it.
    """

    row: int
    boxes: torch.Tensor
    size: torch.Size
    frame: tuple[int, int]
    placing: Any

    def in_frame(self, boxes: torch.Tensor, max_det: int) -> npt.NDArray[np.float64]:
        """Some of the boxes in pixels of the frame, clipped to it; the best ``max_det`` of each class."""
        from ultralytics.utils import ops

        placed = boxes.clone()
        ops.scale_boxes(self.size, placed[:, :4], self.frame, self.placing)
        inside = (placed[:, 2:4] > placed[:, :2]).all(1)
        inside &= place_in_class(placed[:, 5].long()) < max_det
        return placed[inside, :6].cpu().numpy().astype(np.float64)


@torch.inference_mode()
def outputs(
    model: DetectionModel,
    frames: DatasetIndex,
    split: SplitName,
    options: PredictionOptions,
    most: int,
    on_batch: Callable[[], object] = lambda: None,
) -> Iterator[Output]:
    """What a network finds in each readable frame of a split; see :func:`detect`.

    Args:
        most: boxes kept in a frame, behind the suppression of overlaps by ``options``.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader

    from toolkit.dataset.loader import use_server
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary

    end2end = bool(getattr(model, "end2end", False))
    if options.tta:
        _check_augmentable(model, end2end)
    unread = _Unread(frames, split, options.bad_frames)
    target = next(model.parameters()).device
    channels = input_channels(model)
    config = get_cfg(overrides={"imgsz": options.imgsz or image_size(model), "mode": "val"})
    dataset = build_dataset(
        frames,
        split,
        config,
        mode="val",
        batch=options.batch,
        data=data_dictionary(frames, channels, views_of(model)),
        stride=max(int(model.stride.max()), 32),
    )
    loader = build_dataloader(
        dataset,
        batch=options.batch,
        workers=0 if target.type == "cpu" else options.workers,
        shuffle=False,
        device=target,
    )
    use_server(loader)
    stood_in = 0
    with closing(loader), console.progress(f"predicting {split}", len(dataset), "frames") as advance:
        for batch in loader:
            images = batch["img"].to(target, non_blocking=True).float() / 255
            kept = suppress(model(images, augment=options.tta), options, most, end2end=end2end)
            unread.add(batch["unreadable"])
            stood_in += sum(batch["stood_in"])
            for i, rows in enumerate(kept):
                if not batch["unreadable"][i]:  # else found in the blank frame that stands for it
                    frame, placing = batch["ori_shape"][i], batch["ratio_pad"][i]
                    yield Output(batch["row"][i], rows, images.shape[2:], frame, placing)
            advance(len(kept))
            on_batch()
    unread.tell()
    if stood_in:
        console.note(f"{stood_in:,} times a frame of {split} stood in for a neighbour that is not there")


def suppress(
    output: Any,
    options: PredictionOptions,
    most: int = ALL_BOXES,
    *,
    end2end: bool,
    multi_label: bool = True,
) -> list[torch.Tensor]:
    """What is kept of a model's output where boxes overlap: (n, 6) a frame, corners in pixels of the input,
    score and class, the best first.

    Args:
        output: of the model, for a batch.
        options: ``conf``, ``iou`` and ``agnostic`` count here.
        most: boxes kept in a frame.
        end2end: whether the head needs no suppression.
        multi_label: a place may have a box of each class, as the metric counts; else of the likeliest alone.
    """
    from ultralytics.utils.nms import non_max_suppression

    import_torchvision()  # without it Ultralytics suppresses box by box in Python, a second a frame
    kept: list[torch.Tensor] = non_max_suppression(
        output,
        options.conf,
        options.iou,
        multi_label=multi_label,
        agnostic=options.agnostic,
        max_det=most,
        end2end=end2end,
        max_time_img=math.inf,  # a slow machine must not cost frames their boxes
    )
    return kept


def place_in_class(classes: torch.Tensor) -> torch.Tensor:
    """How many of the same class come before each of ``classes``, (n,) int64, from 0; int64."""
    highest = int(classes.max()) + 1 if len(classes) else 0
    of_class: torch.Tensor = classes[:, None] == torch.arange(highest, device=classes.device)
    return (of_class.cumsum(0) * of_class).sum(1) - 1


class _Unread:
    """Frames of a split that are missing or unreadable, and the limit on them.

    Args:
        frames: the prepared data.
        split: "train", "val" or "test".
        limit: part of the split.

    Raises:
        ToolkitError: more are missing.
    """

    def __init__(self, frames: DatasetIndex, split: SplitName, limit: float) -> None:
        self.where, self.limit = frames.data, limit
        images = frames.split(split)
        missing = np.flatnonzero(~images.present)
        self.total, self.count, self.name = len(images), len(missing), split
        self.named = [f"frame {images.file_names[row].decode()} is not there" for row in missing[:3].tolist()]
        self._require()

    def add(self, reasons: Sequence[str]) -> None:
        """Count the frames of a batch that have a reason. Raises ToolkitError over the limit."""
        bad = [reason for reason in reasons if reason]
        self.count += len(bad)
        self.named += bad[: 3 - len(self.named)]
        if bad:
            self._require()

    def tell(self) -> None:
        """Warn of frames that have no boxes because nobody could look at them."""
        if self.count:
            console.warn(
                f"{self.count:,} of {self.total:,} frames of {self.name} get no boxes: {self._list()}"
            )

    def _require(self) -> None:
        if self.count > self.limit * self.total:
            raise ToolkitError(
                f"at least {self.count:,} of {self.total:,} frames of {self.name} cannot be read",
                found=self._list(),
                expected=f"at most {self.limit:.3g} of them ([health.bad_frames] limit in toolkit.toml)",
                fix=f"name them all: toolkit dataset verify {self.where} --deep",
            )

    def _list(self) -> str:
        more = self.count - len(self.named)
        return ", ".join(self.named) + (f" and {more:,} more" if more else "")


def _check_augmentable(model: DetectionModel, end2end: bool) -> None:
    """Ultralytics would fall back to one plain prediction, with a warning among its own output."""
    from ultralytics.nn.modules import Detect

    head = type(model.model[-1])
    if end2end or head is not Detect:
        raise ToolkitError(
            "this model has no test-time augmentation",
            found="a head that needs no suppression of overlaps" if end2end else f"head {head.__name__}",
            expected="a plain detection head (YOLOv8, YOLO11)",
            fix="leave --tta out",
        )
