"""From weights and a source to boxes, suppressed and rounded as those of a submission are."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import numpy.typing as npt
import torch

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.machine.device import resolve_device, running, torch_device
from toolkit.prediction import Output, PredictionOptions, suppress
from toolkit.sources.depth import DEFAULT, Range, ToBytes
from toolkit.sources.outputs import Found
from toolkit.sources.reading import Frame, Pixels, Source, ahead
from toolkit.weights import Detector, class_names, image_size, input_channels, views_of

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

Seen = Callable[[Found, Pixels], object]
"""Called with what was found so far and the 8-bit pixels of its last frame."""


@dataclass(frozen=True)
class Result:
    """What :func:`predict_source` found.

    Attributes:
        found: boxes and frames.
        side: longer side of the network's input, pixels.
        range: what became 0 and 255 in frames of more than 8 bits; None where there were none.
        stopped: whether Ctrl-C ended it.
    """

    found: Found
    side: int
    range: Range | None
    stopped: bool


def predict_source(
    weights: Path,
    source: Source,
    options: PredictionOptions,
    values: str = DEFAULT,
    on_frame: Seen | None = None,
    *,
    as_split: bool = False,
) -> Result:
    """Detect objects in every frame of a source. Ctrl-C ends it; what was found until then is returned.

    Args:
        weights: a YOLO detection checkpoint, of any classes.
        source: the frames, of any sizes.
        options: see :class:`PredictionOptions`; ``tta`` is for splits.
        values: see :class:`toolkit.sources.depth.ToBytes`.
        on_frame: see :data:`Seen`; not called for frames that cannot be read.
        as_split: put frames into the input as a split's are, see :class:`Fit`.

    Raises:
        ToolkitError: the weights are no detector's or look at several frames at a time, or more frames than
            ``options.bad_frames`` allows cannot be read.
    """
    to_bytes = ToBytes(values, source)
    device = resolve_device(options.device)
    with running(device, patched=options.patches):
        model = Detector.read(weights, None).on(torch_device(device))
        _require_single_frames(model, weights)
        side = options.imgsz or image_size(model)
        options = replace(options, imgsz=side)
        found = Found({number + 1: name for number, name in class_names(model).items()})
        stopped = False
        with console.progress(f"predicting {source.title}", source.count(), "frames") as advance:
            try:
                with closing(detect_frames(model, source, options, to_bytes, as_split)) as frames:
                    for frame, rows in frames:
                        size = (0, 0) if frame.pixels is None else frame.pixels.shape[:2]
                        found.add(frame.name, (size[0], size[1]), rows, frame.fault)
                        if frame.pixels is not None and on_frame is not None:
                            on_frame(found, frame.pixels)
                        advance(1)
            except KeyboardInterrupt:
                if not found.names:  # nothing to keep: it ends as any command does
                    raise
                stopped = True
    _require(found, options.bad_frames, source)
    return Result(found.rounded(), side, to_bytes.range if to_bytes.used else None, stopped)


@torch.inference_mode()
def detect_frames(
    model: DetectionModel,
    source: Source,
    options: PredictionOptions,
    to_bytes: ToBytes,
    as_split: bool = False,
) -> Generator[tuple[Frame, npt.NDArray[np.float64]], None, None]:
    """Each frame, in 8 bits, and its boxes, (n, 6) float64: corners in pixels, score, label from 1.

    Args:
        model: what :meth:`toolkit.weights.Detector.on` returned.
        source: the frames. Those of one size that follow each other are a batch; a camera's come one by one.
        options: see :class:`PredictionOptions`.
        to_bytes: for frames of more than 8 bits.
        as_split: see :class:`Fit`.
    """
    target = next(model.parameters()).device
    channels, end2end = input_channels(model), bool(getattr(model, "end2end", False))
    fit = Fit(options.imgsz or image_size(model), max(int(model.stride.max()), 32), as_split)
    most = 1 if source.endless else options.batch

    def flush(frames: list[Frame]) -> Iterator[tuple[Frame, npt.NDArray[np.float64]]]:
        placed = [fit(frame.pixels) for frame in frames if frame.pixels is not None]
        kept: Iterator[torch.Tensor] = iter(())
        if placed:
            images = torch.from_numpy(np.stack([_planes(image, channels) for image, _ in placed]))
            images = images.to(target).expand(-1, channels, -1, -1).float() / 255
            kept = iter(suppress(model(images), options, end2end=end2end, multi_label=as_split))
        where = iter(placed)
        for frame in frames:
            rows = np.empty((0, 6))
            if frame.pixels is not None:
                image, ratio_pad = next(where)
                shape = frame.pixels.shape[:2]
                found = next(kept)
                seen = Output(0, found, torch.Size(image.shape[:2]), (shape[0], shape[1]), ratio_pad)
                rows = seen.in_frame(found, options.max_det)
                rows[:, 5] += 1
            yield frame, rows

    waiting: list[Frame] = []
    with closing(ahead(source, 2 * most)) as frames:
        for frame in frames:
            if frame.pixels is not None:
                frame = replace(frame, pixels=to_bytes(frame.pixels))
            if waiting and (len(waiting) == most or not _alike(waiting, frame)):
                yield from flush(waiting)
                waiting = []
            waiting.append(frame)
        yield from flush(waiting)


class Fit:
    """Puts a frame into a model's input, enlarged to the longer side and centred on grey.

    Args:
        side: longer side, pixels.
        stride: of the model, pixels.
        as_split: with as much grey around it as validation and submissions have, half a cell at least, so
            that boxes are those of a split bit for bit; else with as little as Ultralytics' ``predict``.
    """

    def __init__(self, side: int, stride: int, as_split: bool = False) -> None:
        from ultralytics.data.augment import LetterBox

        self.side, self.stride, self.as_split = side, stride, as_split
        self.letterbox = LetterBox((side, side), auto=not as_split, scaleup=not as_split, stride=stride)

    def __call__(self, pixels: Pixels) -> tuple[Pixels, Any]:
        """(height, width, channels) uint8, and what Ultralytics' ``scale_boxes`` takes to go back."""
        shape = pixels.shape[:2]
        labels: dict[str, Any] = {"img": pixels}
        if self.as_split:
            size = tuple(-(-each * self.side // max(shape)) for each in shape)
            if shape != size:
                labels["img"] = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
            cells = (math.ceil(each / max(shape) * self.side / self.stride + 0.5) for each in shape)
            labels["rect_shape"] = tuple(each * self.stride for each in cells)
        where = self.letterbox.get_params(labels)
        image: Pixels = self.letterbox.apply_image(labels, where)["img"]
        if not self.as_split:
            return image, None
        return image, ((size[0] / shape[0], size[1] / shape[1]), (where["left"], where["top"]))


def _planes(image: Pixels, channels: int) -> Pixels:
    """(1 or 3, height, width): one plane for grey, else red, green, blue."""
    if image.shape[2] == 3 and channels == 1:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)[..., None]
    return np.ascontiguousarray(image[..., ::-1].transpose(2, 0, 1))


def _alike(waiting: list[Frame], frame: Frame) -> bool:
    shapes = {each.pixels.shape for each in (*waiting, frame) if each.pixels is not None}
    return len(shapes) <= 1


def _require_single_frames(model: DetectionModel, weights: Path) -> None:
    if not views_of(model).is_plain or input_channels(model) not in (1, 3):
        raise ToolkitError(
            f"{weights} looks at more than a frame at a time",
            found=f"{input_channels(model)} channels: {views_of(model)}",
            expected="weights for single frames: pictures and videos are no clips of a prepared dataset",
            fix="predict a split: toolkit predict best.pt --split val",
        )


def _require(found: Found, limit: float, source: Source) -> None:
    if not found.names:
        raise ToolkitError(f"{source.title} has no frames", found="an end before the first one")
    bad = list(found.faults.values())
    if len(bad) > limit * len(found.names):
        part = math.ceil(100 * len(bad) / len(found.names)) / 100
        raise ToolkitError(
            f"{len(bad):,} of {len(found.names):,} frames of {source.title} cannot be read",
            found="; ".join(bad[:3]) + (f" and {len(bad) - 3:,} more" if len(bad) > 3 else ""),
            expected=f"at most {limit:.3g} of them ([health.bad_frames] limit in toolkit.toml)",
            fix=f"go on without them this once: --bad-frames {part:g}",
        )
    if bad:
        console.warn(f"{len(bad):,} of {len(found.names):,} frames get no boxes: {'; '.join(bad[:3])}")
