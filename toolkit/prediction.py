"""From a model and a split to detections: the one path of evaluate, predict and the scores in training."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from submission import Detections
from toolkit import console
from toolkit.device import resolve_device, running, torch_device
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from toolkit.dataset.index import DatasetIndex, SplitName


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
        max_det: boxes kept in a frame; the metric looks at 100 of each class.
        tta: predict each frame at three sizes, one of them mirrored, and merge what is found.
        patches: whether convolutions go through the patches.
    """

    imgsz: int | None = None
    batch: int = 16
    device: str | None = None
    workers: int = 4
    conf: float = 0.001
    iou: float = 0.6
    max_det: int = 100
    tta: bool = False
    patches: bool = True


def predict(
    weights: Path, data: Path, split: SplitName, options: PredictionOptions | None = None
) -> Detections:
    """Detect objects in every frame of a split with a checkpoint, rounded as in a submission: the file that
    is written, the scores that are printed and what is handed in are of the same numbers. See :func:`detect`.

    Args:
        weights: a YOLO detection checkpoint with the challenge's four classes.
        data: folder with LTDv2's files, prepared.
        split: "train", "val" or "test".
        options: see :class:`PredictionOptions`.

    Raises:
        ToolkitError: the weights are no checkpoint, have other classes or cannot do what the options ask, or
            the data is not prepared.
    """
    from toolkit.dataset import index

    options = options or PredictionOptions()
    device = resolve_device(options.device)
    frames = index.load(data)
    with running(device, patched=options.patches):
        return detect(load_model(weights, torch_device(device)), frames, split, options).rounded()


def read_checkpoint(weights: Path, device: torch.device | None = None, *, fuse: bool = False) -> nn.Module:
    """The model of an Ultralytics checkpoint, of any task and any classes.

    Args:
        weights: the file.
        device: where the model goes; None leaves it on the CPU.
        fuse: fold batch norm into the convolutions.

    Raises:
        ToolkitError: the file is no checkpoint.
    """
    from ultralytics.nn import tasks

    try:
        model: nn.Module = tasks.load_checkpoint(weights, device=device, fuse=fuse)[0]
    except Exception as error:  # torch.load raises whatever the bytes make it raise
        raise ToolkitError(
            f"{weights} is no YOLO checkpoint",
            found=f"{type(error).__name__} when it was loaded",
            expected="a .pt file that `toolkit train` or Ultralytics wrote",
        ) from error
    return model


def load_model(weights: Path, device: torch.device) -> DetectionModel:
    """Load a checkpoint for inference, batch norm folded into the convolutions.

    Raises:
        ToolkitError: the file is no detection checkpoint, or its classes are not the challenge's.
    """
    from ultralytics.nn import tasks

    from toolkit.dataset.annotations import CATEGORIES

    wanted = {label - 1: name for label, name in CATEGORIES.items()}
    model = read_checkpoint(weights, device, fuse=True)
    if not isinstance(model, tasks.DetectionModel):
        raise ToolkitError(f"{weights} is no detector", found=type(model).__name__, expected="DetectionModel")
    if dict(model.names) != wanted:
        raise ToolkitError(
            f"{weights} has other classes",
            found=_name_classes(model.names),
            expected=_name_classes(wanted),
            fix="train on LTDv2 first: toolkit train --model " + str(weights),
        )
    model.eval()
    return model


def as_saved(model: DetectionModel) -> DetectionModel:
    """A copy of a model in training as :func:`load_model` would give it back after Ultralytics has saved it.

    Checkpoints are half precision: a copy that did not pass through it would detect slightly differently.
    """
    copy = deepcopy(model).half().float().to(memory_format=torch.contiguous_format)
    saved: DetectionModel = copy.fuse(verbose=False).eval()
    return saved


@torch.inference_mode()
def detect(
    model: DetectionModel,
    frames: DatasetIndex,
    split: SplitName,
    options: PredictionOptions,
    on_batch: Callable[[], object] = lambda: None,
) -> Detections:
    """Detect objects in every frame of a split, inside :func:`toolkit.device.running`.

    Args:
        model: what :func:`load_model` or :func:`as_saved` returned, on the device to use.
        frames: the prepared data.
        split: "train", "val" or "test".
        options: its ``device`` and ``patches`` were decided by whoever made the model.
        on_batch: called after each batch.

    Returns:
        Detections of every frame of the split, in the split's order, boxes in pixels of the original frame.
        A box that the frame's border leaves nothing of is no detection.

    Raises:
        ToolkitError: the model cannot do what the options ask.
    """
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader
    from ultralytics.utils import ops
    from ultralytics.utils.nms import non_max_suppression

    from toolkit.dataset.loader import use_server
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary

    end2end = bool(getattr(model, "end2end", False))
    if options.tta:
        _check_augmentable(model, end2end)
    target = next(model.parameters()).device
    channels = int(model.yaml["channels"])
    config = get_cfg(overrides={"imgsz": options.imgsz or int(model.args["imgsz"]), "mode": "val"})
    dataset = build_dataset(
        frames,
        split,
        config,
        mode="val",
        batch=options.batch,
        data=data_dictionary(frames, channels),
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
    image_ids = frames.split(split).image_ids
    found: list[npt.NDArray[np.float64]] = [np.empty((0, 6))] * len(image_ids)
    with closing(loader), console.progress(f"predicting {split}", len(dataset), "frames") as advance:
        for batch in loader:
            images = batch["img"].to(target, non_blocking=True).float() / 255
            kept = non_max_suppression(
                model(images, augment=options.tta),
                options.conf,
                options.iou,
                multi_label=True,
                max_det=options.max_det,
                end2end=end2end,
                max_time_img=1.0,
            )
            for i, rows in enumerate(kept):
                ops.scale_boxes(images.shape[2:], rows[:, :4], batch["ori_shape"][i], batch["ratio_pad"][i])
                inside = (rows[:, 2:4] > rows[:, :2]).all(1)
                found[batch["row"][i]] = rows[inside, :6].cpu().numpy().astype(np.float64)
            advance(len(kept))
            on_batch()
    rows = np.concatenate(found) if found else np.empty((0, 6))
    return Detections(
        image_ids=image_ids,
        offsets=np.concatenate(([0], np.cumsum([len(f) for f in found]))).astype(np.int64),
        boxes=rows[:, :4],
        scores=rows[:, 4],
        labels=rows[:, 5].astype(np.int64) + 1,
    )


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


def _name_classes(names: dict[int, str]) -> str:
    listed = [f"{number} {name}" for number, name in names.items()]
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
