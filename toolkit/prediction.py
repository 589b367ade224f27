"""From weights and a split to detections: the one path that evaluate and predict share."""

from __future__ import annotations

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

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

    from toolkit.dataset.index import DatasetIndex
from toolkit.errors import ToolkitError


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
        iou: boxes of one class that overlap more than this are merged into the best of them.
        max_det: boxes kept in a frame; the metric looks at 100 of each class.
        patches: whether convolutions go through the patches.
    """

    imgsz: int | None = None
    batch: int = 16
    device: str | None = None
    workers: int = 4
    conf: float = 0.001
    iou: float = 0.7
    max_det: int = 100
    patches: bool = True


def predict(weights: Path, data: Path, split: str, options: PredictionOptions | None = None) -> Detections:
    """Detect objects in every frame of a split.

    Args:
        weights: a YOLO detection checkpoint with the challenge's four classes.
        data: folder with LTDv2's files, prepared.
        split: "train", "val" or "test".
        options: see :class:`PredictionOptions`.

    Returns:
        Detections of every frame of the split, in the split's order, boxes in pixels of the original frame.

    Raises:
        ToolkitError: the weights are no checkpoint, have other classes, or the data is not prepared.
    """
    from toolkit.dataset import index

    options = options or PredictionOptions()
    device = resolve_device(options.device)
    frames = index.load(data)
    with running(device, patched=options.patches):
        return _predict(weights, frames, split, device, options)


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


@torch.inference_mode()
def _predict(
    weights: Path, frames: DatasetIndex, split: str, device: str, options: PredictionOptions
) -> Detections:
    from ultralytics.cfg import get_cfg
    from ultralytics.data import build_dataloader
    from ultralytics.utils import ops
    from ultralytics.utils.nms import non_max_suppression

    from toolkit.dataset.ultralytics import build_dataset, data_dictionary

    target = torch_device(device)
    model = load_model(weights, target)
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
    image_ids = frames.split(split).image_ids
    found: list[npt.NDArray[np.float64]] = [np.empty((0, 6))] * len(image_ids)
    with console.progress(f"predicting {split}", len(dataset), "frames") as advance:
        for batch in loader:
            images = batch["img"].to(target, non_blocking=True).float() / 255
            end2end = bool(getattr(model, "end2end", False))
            kept = non_max_suppression(
                model(images),
                options.conf,
                options.iou,
                multi_label=True,
                max_det=options.max_det,
                end2end=end2end,
                max_time_img=1.0,
            )
            for i, rows in enumerate(kept):
                ops.scale_boxes(images.shape[2:], rows[:, :4], batch["ori_shape"][i], batch["ratio_pad"][i])
                found[batch["row"][i]] = rows[:, :6].cpu().numpy().astype(np.float64)
            advance(len(kept))
    loader.close()
    rows = np.concatenate(found) if found else np.empty((0, 6))
    return Detections(
        image_ids=image_ids,
        offsets=np.concatenate(([0], np.cumsum([len(f) for f in found]))).astype(np.int64),
        boxes=rows[:, :4],
        scores=rows[:, 4],
        labels=rows[:, 5].astype(np.int64) + 1,
    )


def _name_classes(names: dict[int, str]) -> str:
    listed = [f"{number} {name}" for number, name in names.items()]
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
