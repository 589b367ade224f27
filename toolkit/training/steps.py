"""Training steps of whole models on random images, for the benchmark and for the probe before a run.

Importing this needs torch alone; what is in it needs Ultralytics, but the functions about precision.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from toolkit.training.precision import half_name


def run_steps(step: Callable[[], Tensor], count: int, device: str) -> Iterator[tuple[float, bool, int]]:
    """Run ``step`` many times: yield its seconds, whether its answer was finite, and the bytes held then."""
    for _ in range(count):
        start = time.perf_counter()
        finite = bool(torch.isfinite(step()).all())
        yield time.perf_counter() - start, finite, _held_bytes(device)


def _held_bytes(device: str) -> int:
    if device == "cuda":
        return torch.cuda.memory_allocated()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


CLASSES = 4
"""Of the challenge."""


def half_precision(amp: object) -> torch.dtype:
    """What mixed precision computes in besides fp32, by Ultralytics' argument ``amp``."""
    found: torch.dtype = getattr(torch, half_name(amp))
    return found


@contextmanager
def determinism(wanted: bool) -> Iterator[None]:
    """Inside, PyTorch computes as Ultralytics has it train, by its argument ``deterministic``.

    With it PyTorch takes deterministic algorithms where it has them, cuDNN among its own, and
    ``CUBLAS_WORKSPACE_CONFIG`` is set, which cuBLAS reads once a process, before its first product: the host
    takes longer for each. The random generators are seeded with 0. In PyTorch 1 Ultralytics leaves all that.
    """
    from ultralytics.utils.torch_utils import TORCH_2_0, init_seeds, unset_deterministic

    names = ("CUBLAS_WORKSPACE_CONFIG", "PYTHONHASHSEED")
    variables = {name: os.environ[name] for name in names if name in os.environ}
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    library = torch.backends.cudnn.deterministic
    try:
        init_seeds(0, deterministic=wanted and TORCH_2_0)
        yield
    finally:
        unset_deterministic()
        os.environ.update(variables)
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.backends.cudnn.deterministic = library


def random_batch(images: tuple[int, int, int], device: torch.device | str) -> dict[str, Tensor]:
    """A batch as a loader makes it: images, channels, and side of the square images in pixels."""
    from toolkit.training.graphed import with_boxes

    count, channels, size = images
    return with_boxes(torch.rand(count, channels, size, size, device=device))


class DetectorStep:
    """Forward and backward of an Ultralytics detector.

    Args:
        model: in training mode, on its device.
        batch: what its loss is computed of (:func:`random_batch`).
        autocast: what the loss is computed under.
    """

    def __init__(self, model: Any, batch: dict[str, Tensor], autocast: torch.autocast) -> None:
        self.model, self.batch, self.autocast = model, batch, autocast

    def __call__(self) -> Tensor:
        """One step; the loss."""
        return self._run(self.model)

    def recorded(self) -> Callable[[], Tensor]:
        """The same step of the same model, replayed from CUDA graphs, recorded now."""
        from toolkit.training.graphed import Recorder

        with self.autocast:
            graphed = Recorder(judge=False)(self.model, self.batch)
        return partial(self._run, graphed.loss)

    def _run(self, loss_of: Callable[[dict[str, Tensor]], Any]) -> Tensor:
        with self.autocast:
            loss: Tensor = loss_of(self.batch)[0].sum()
        torch.autograd.backward(loss)
        self._finish()
        return loss.detach()

    def _finish(self) -> None:
        """Leave no gradient."""
        self.model.zero_grad()


class TrainingStep(DetectorStep):
    """A real training step of an Ultralytics detector on random images: loss, backward, clipping, SGD.

    The detector is new.

    Args:
        model: name of a configuration ("yolov8n.yaml"), or a checkpoint, whose architecture it is then.
        batch: images a step.
        image_size: side of the square images, pixels.
        device: "cuda" or "cpu".
        channels: of the images.
        amp: compute the loss under autocast.
        channels_last: keep the network so on a GPU, as Ultralytics does unless told otherwise.
        classes: their number.
    """

    def __init__(
        self,
        model: str,
        batch: int,
        image_size: int,
        device: str,
        channels: int = 3,
        amp: bool = False,
        channels_last: bool = False,
        classes: int = CLASSES,
    ) -> None:
        from ultralytics import YOLO
        from ultralytics.cfg import get_cfg
        from ultralytics.nn.tasks import DetectionModel, yaml_model_load

        torch.manual_seed(0)
        architecture = YOLO(model).model.yaml if model.endswith(".pt") else yaml_model_load(model)
        described = {**architecture, "nc": classes}  # else Ultralytics says that it overrides it
        detector: Any = DetectionModel(described, channels, verbose=False).to(device).train()
        if channels_last and device == "cuda":
            detector.to(memory_format=torch.channels_last)
        detector.args = get_cfg()
        for parameter in detector.parameters():
            parameter.requires_grad_(parameter.dtype.is_floating_point)
        self.optimizer = torch.optim.SGD(detector.parameters(), lr=1e-4, momentum=0.9, nesterov=True)
        autocast = torch.autocast(device, enabled=amp)
        super().__init__(detector, random_batch((batch, channels, image_size), device), autocast)

    def _run(self, loss_of: Callable[[dict[str, Tensor]], Any]) -> Tensor:
        self.optimizer.zero_grad()
        return super()._run(loss_of)

    def _finish(self) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 10.0)
        self.optimizer.step()
