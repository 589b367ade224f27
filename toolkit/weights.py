"""Checkpoints and architectures of Ultralytics: what a file is, how it is opened, what its head finds."""

from __future__ import annotations

import errno
import math
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from submission.validate import LABELS
from toolkit import console
from toolkit.dataset.views import PLAIN, Views
from toolkit.errors import ToolkitError, reason

if TYPE_CHECKING:
    from ultralytics.nn.tasks import DetectionModel

VIEWS = "frames"
"""Key of a model's description under which it remembers what its channels show."""

TASKS = {
    "Segment": "segmentation",
    "Pose": "pose",
    "OBB": "oriented boxes",
    "WorldDetect": "an open vocabulary (YOLO-World)",
    "YOLOEDetect": "an open vocabulary (YOLOE)",
    "RTDETRDecoder": "RT-DETR",
    "Classify": "classification",
    "SemanticSegment": "semantic segmentation",
    "Depth": "depth",
}
"""Ultralytics' heads that find something else than boxes of given classes, or find them in another way."""

SIGNATURES = (
    (0, b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for"),
    (4, b"TFL3", "a TensorFlow Lite model"),
    (0, b"GGUF", "a GGUF model"),
    (0, b"\x89HDF\r\n", "an HDF5 file, as Keras writes"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"7z\xbc\xaf", "a 7z archive"),
    (0, b"Rar!", "a RAR archive"),
    (257, b"ustar", "a tar archive"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"%PDF", "a PDF"),
    (0, b"\x7fELF", "a program or library (ELF)"),
)
"""Where a kind of file has its signature, the signature, and the kind in words."""

HEAD_BYTES = 4096

ZEROS = "zero bytes, as a power cut or a full disk leaves"
CUT = "a zip archive that is cut off or damaged"


def read_checkpoint(weights: Path) -> nn.Module:
    """The model of an Ultralytics checkpoint on the CPU, of any task and any classes.

    A checkpoint is a pickle, and opening one can run any code. It is opened as data alone, with the types
    that PyTorch and Ultralytics know. A file that needs others is named in a warning first.

    Raises:
        ToolkitError: the file is no checkpoint, which names what it is; or its weights are not finite.
    """
    from ultralytics.nn import tasks

    if not weights.is_file():
        raise ToolkitError(f"no file {weights}", found="a folder" if weights.is_dir() else "")
    try:
        model: nn.Module = _load(weights)
    except Exception as error:  # torch.load raises whatever the bytes make it raise
        # EINVAL is its own as well: of a file that is too short it reads at a place before the first byte.
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise ToolkitError(f"cannot read {weights}", found=reason(error)) from error
        kind = kind_of(weights, error)
        raise ToolkitError(
            f"{weights} is no YOLO checkpoint",
            found=kind,
            expected="a .pt file that `toolkit train` or Ultralytics wrote",
            fix="copy or download it again" if kind in (CUT, ZEROS) else "",
        ) from error
    if isinstance(model, tasks.BaseModel):
        _require_finite(model, weights)
    return model


def _load(weights: Path) -> nn.Module:
    from ultralytics.nn import tasks

    try:
        with _as_data_alone(tasks):
            model: nn.Module = tasks.load_checkpoint(weights)[0]
        known = hasattr(torch.serialization, "get_unsafe_globals_in_checkpoint")
        if not known:
            _warn_once(f"{weights} was opened as a pickle, which can run code: this PyTorch cannot avoid it")
        return model
    except (TypeError, ModuleNotFoundError, AttributeError) as error:
        types = [] if "TorchScript" in str(error) else _foreign_types(weights)
        if not types:
            raise
        _warn_once(
            f"{weights} holds types that cannot be opened as data alone ({', '.join(types)}): "
            "opening it runs code that its author chose"
        )
    opened: nn.Module = tasks.load_checkpoint(weights)[0]
    return opened


@cache
def _warn_once(text: str) -> None:
    console.warn(text)


@contextmanager
def _as_data_alone(tasks: Any) -> Iterator[None]:
    """Inside, Ultralytics loads checkpoints with ``weights_only=True`` and the types that it knows."""
    before = tasks.SAFE_LOAD
    tasks.SAFE_LOAD = True
    try:
        yield
    finally:
        tasks.SAFE_LOAD = before


def _foreign_types(weights: Path) -> list[str]:
    """Names of what a checkpoint would call that is neither PyTorch's nor Ultralytics'; at most four.

    Empty for a file that is neither a PyTorch archive nor a pickle.
    """
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(weights)
    except Exception:  # no archive, or a damaged one
        with weights.open("rb") as file:
            is_pickle = file.read(2) == b"\x80\x02"  # as PyTorch wrote before 1.6
        return ["those of an old pickle, which cannot be listed"] * is_pickle
    foreign = sorted(name for name in names if name.partition(".")[0] not in ("torch", "ultralytics"))
    return [*foreign[:4], *(["..."] if len(foreign) > 4 else [])] or names[:4]


def kind_of(path: Path, error: Exception | None = None) -> str:
    """What a file is, in words, from its first bytes; ``error`` is what loading it raised."""
    with path.open("rb") as file:
        head = file.read(HEAD_BYTES)
    if not head:
        return "an empty file"
    if not head.strip(b"\0"):
        return ZEROS
    for at, signature, words in SIGNATURES:
        if head[at:].startswith(signature):
            return words
    if head[:2] == b"PK":
        return _kind_of_zip(path, error)
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "a web page, not the file that its link leads to"
    if head[8:10] in (b'{"', b"{ ") and int.from_bytes(head[:8], "little") < path.stat().st_size:
        return "a safetensors file"
    if head[:1] == b"\x08" and (b"onnx" in head or b"pytorch" in head or path.suffix == ".onnx"):
        return "an ONNX model"
    if head[:2] in (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"):
        return f"a pickle{_words(error)}"
    if head.isascii() and min(head) >= ord("\t"):
        return "text"
    return f"bytes of no known kind ({head[:4].hex(' ')} ...)"


def _kind_of_zip(path: Path, error: Exception | None) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return CUT
    inside = {name.partition("/")[2] for name in names}
    if "data.pkl" not in inside:
        return "a zip archive of " + (", ".join(names[:3]) or "nothing")
    if "constants.pkl" in inside:
        return "a TorchScript archive"
    if path.suffix != ".pt":
        return f"a PyTorch file whose name ends in {path.suffix or 'nothing'}"
    return f"a PyTorch file{_content(path)}{_words(error)}"


def _content(path: Path) -> str:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # whatever the bytes make it raise
        return ""
    if isinstance(content, Mapping) and "model" not in content:
        return " without a model, with " + ", ".join(map(str, list(content)[:4]))
    return ""


def _words(error: Exception | None) -> str:
    """The first sentence of an error, without the marks that Ultralytics puts before it."""
    if error is None:
        return ""
    if "YOLOv5" in str(error):
        return " of the repository yolov5, whose models Ultralytics cannot read"
    if isinstance(error, ModuleNotFoundError):
        return f" that needs the Python module {error.name}"
    return f" ({type(error).__name__} when it was opened)"


def _require_finite(model: nn.Module, weights: Path) -> None:
    """Refuse weights that are NaN or infinite, the running means of batch norm included."""
    values: dict[str, torch.Tensor] = dict(model.named_parameters())
    values |= {name: value for name, value in model.named_buffers() if "running_" in name}
    bad = [name for name, value in values.items() if not value.isfinite().all()]
    if bad:
        raise ToolkitError(
            f"{weights} cannot be used: its weights are no finite numbers",
            found=f"NaN or infinity in {len(bad):,} of {len(values):,} tensors, {bad[0]} first",
            expected="finite weights",
            fix="take another checkpoint: the run that wrote this one had diverged",
        )


def check_head(head: type[nn.Module], source: str, model: str = "") -> None:
    """Refuse a model whose last layer is no detection head of fixed classes.

    Args:
        head: the class of the last layer.
        source: names the model in the message.
        model: its class, where it was loaded.

    Raises:
        ToolkitError: a head of another task, an open-vocabulary one, RT-DETR's, or none.
    """
    from ultralytics.nn.modules import Detect

    task = next((TASKS[base.__name__] for base in head.__mro__ if base.__name__ in TASKS), "")
    if task or not issubclass(head, Detect):
        raise ToolkitError(
            f"{source} is no detector",
            found=f"a head {head.__name__}"
            + (f", for {task}" if task else "")
            + (f", in a {model}" * bool(model)),
            expected="a YOLO detection head of fixed classes, as in yolov8n, yolov10n, yolo11n or yolo26n",
        )


def check_architecture(description: Mapping[str, Any], source: str) -> None:
    """:func:`check_head` for an architecture as Ultralytics' YAML files describe it.

    Raises:
        ToolkitError: see :func:`check_head`; or the last layer is none that Ultralytics has.
    """
    from ultralytics.nn import tasks

    name = str([*description["backbone"], *description["head"]][-1][2])
    head = getattr(nn, name[3:], None) if name.startswith("nn.") else getattr(tasks, name, None)
    if not isinstance(head, type):
        raise ToolkitError(
            f"{source} cannot be built",
            found=f"KeyError: no layer {name} in Ultralytics",
            expected="a model such as yolo11n",
        )
    check_head(head, source)


def check_detector(model: nn.Module, source: str) -> None:
    """:func:`check_head` for a model that was loaded.

    Raises:
        ToolkitError: see :func:`check_head`.
    """
    layers = getattr(model, "model", None)
    head = type(layers[-1]) if isinstance(layers, nn.Sequential) else type(model)
    check_head(head, source, type(model).__name__)


@dataclass(frozen=True)
class Detector:
    """A checkpoint that has been opened.

    Attributes:
        path: the file.
        model: on the CPU; :meth:`on` changes it.
    """

    path: Path
    model: nn.Module

    @staticmethod
    def read(weights: Path, classes: Mapping[int, str] | None = LABELS) -> Detector:
        """Open a checkpoint, before anything else is looked for.

        Args:
            weights: the file.
            classes: label, from 1, -> name, as they have to be; None: any.

        Raises:
            ToolkitError: see :func:`read_checkpoint`, :func:`check_detector` and :func:`require_classes`.
        """
        detector = Detector(weights, read_checkpoint(weights))
        if classes is None:
            check_detector(detector.model, str(weights))
        else:
            detector.require(classes)
        return detector

    def require(self, classes: Mapping[int, str]) -> None:
        """Raises ToolkitError: see :func:`require_classes`."""
        require_classes(self.model, self.path, classes)

    def on(self, device: torch.device) -> DetectionModel:
        """The model for inference, batch norm folded into the convolutions."""
        model: Any = self.model
        fused: DetectionModel = model.fuse(verbose=False).eval().to(device)
        return fused


def load_model(weights: Path, device: torch.device) -> DetectionModel:
    """:class:`Detector`, read and on a device."""
    return Detector.read(weights).on(device)


def class_names(model: nn.Module) -> dict[int, str]:
    """Names of a model's classes by their numbers, from 0; older versions kept a list."""
    names: Any = getattr(model, "names", {})
    return {int(k): str(v) for k, v in (names.items() if isinstance(names, Mapping) else enumerate(names))}


def require_classes(model: nn.Module, weights: Path, classes: Mapping[int, str] = LABELS) -> None:
    """Refuse a model that does not find these classes, the challenge's four by default.

    Raises:
        ToolkitError: it is no detector, or one of other classes.
    """
    check_detector(model, str(weights))
    wanted = {label - 1: name for label, name in classes.items()}
    found = class_names(model)
    count = int(model.model[-1].nc)  # type: ignore[index, union-attr]
    if found != wanted or count != len(wanted):
        raise ToolkitError(
            f"{weights} has other classes",
            found=_name_classes(found) if found != wanted else f"a head for {count} classes",
            expected=_name_classes(wanted),
            fix="train on the data first: toolkit train --model " + str(weights),
        )


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes, asked of its first convolution.

    Raises:
        ToolkitError: it has no convolution.
    """
    return _first_convolution(model).in_channels


def _first_convolution(model: nn.Module) -> nn.Conv2d:
    """Raises ToolkitError: there is none."""
    first = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    if first is None:
        raise ToolkitError(
            "this model has no convolution", expected="one that says how many channels it takes"
        )
    return first


def views_of(model: nn.Module) -> Views:
    """What the channels of the images show that a model takes; a model of another program takes the frame."""
    described: Any = getattr(model, "yaml", None)
    words = described.get(VIEWS) if isinstance(described, Mapping) else None
    return Views(tuple(words)) if words else PLAIN


def remember_views(model: nn.Module, views: Views) -> None:
    """Write into a model what its channels show; its checkpoints keep it, and stay Ultralytics' own."""
    model.yaml[VIEWS] = list(views.words)  # type: ignore[index, operator, assignment]


def carry_first_layer(model: nn.Module, source: nn.Module, views: Views) -> None:
    """Begin a model of several views with the first convolution of another that was loaded into it.

    Views that both have keep their kernels. A source of the frame alone gives its kernel, summed over
    colours, to the channel ``now``. Other channels begin at 0: the new model finds at first what the old one
    found.

    Args:
        model: of ``views``, its other layers loaded.
        source: what it starts from.
        views: its channels.
    """
    kernel, old = _first_convolution(model).weight, _first_convolution(source).weight.float()
    known = views_of(source)
    if known == views or old.shape[0] != kernel.shape[0] or old.shape[2:] != kernel.shape[2:]:
        return
    parts = {"now": old.sum(1)} if known.is_plain else dict(zip(known.words, old.unbind(1), strict=True))
    with torch.no_grad():
        for channel, word in enumerate(views.words):
            kernel[:, channel] = parts.get(word, torch.zeros_like(old[:, 0]))


def image_size(model: nn.Module) -> int:
    """Longer side of the images that a model was trained with, pixels; older versions kept both sides."""
    given: Any = model.args["imgsz"]  # type: ignore[index]
    sides = given if isinstance(given, (list, tuple)) else [given]
    return math.ceil(max(map(float, sides)))


def _name_classes(names: Mapping[int, str]) -> str:
    listed = [f"{number} {name}" for number, name in names.items()]
    return ", ".join(listed[:6]) + (f" and {len(listed) - 6} more" if len(listed) > 6 else "")
