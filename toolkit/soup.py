"""One set of weights from several of one architecture: a greedy soup.

Wortsman and others, "Model soups" (ICML 2022): the checkpoints are sorted by their score; the best one is the
soup, and each further one stays in the average if the average scores at least as well with it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from submission.validate import LABELS
from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.weights import read_checkpoint, require_classes, views_of

Judge = Callable[[Path], float]
"""The score of a checkpoint; larger is better, NaN is worst."""


@dataclass(frozen=True)
class Soup:
    """What came of it.

    Attributes:
        members: the checkpoints that are in the average, in the order in which they were added.
        score: of the average.
        alone: the score of each checkpoint alone, the best first.
    """

    members: list[Path]
    score: float
    alone: dict[Path, float]


def files_of(run: Path) -> list[Path]:
    """The checkpoints of a run, best.pt first, none of them opened; :func:`make` takes the same weights once.

    Raises:
        ToolkitError: there are none.
    """
    found = sorted(  # epoch9.pt before epoch10.pt
        (run / "weights").glob("*.pt"),
        key=lambda path: (path.name != "best.pt", len(path.name), path.name),
    )
    if not found:
        raise ToolkitError(
            f"no checkpoints in {run / 'weights'}", expected="best.pt, last.pt, epoch10.pt, ..."
        )
    return found


def checkpoints_of(run: Path) -> list[Path]:
    """:func:`files_of`, the same weights once: last.pt and epoch50.pt may be best.pt.

    Raises:
        ToolkitError: there are none, or one cannot be read.
    """
    once: dict[str, Path] = {}
    for path in files_of(run):
        once.setdefault(fingerprint(read_checkpoint(path)), path)
    return list(once.values())


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the weights and running statistics, whatever else their file holds."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.float().numpy().tobytes())
    return digest.hexdigest()


def make(paths: Sequence[Path], judge: Judge, out: Path, classes: Mapping[int, str] = LABELS) -> Soup:
    """Average checkpoints greedily and write the result, a checkpoint like its members.

    Args:
        paths: at least two checkpoints of one architecture; the same weights count once.
        judge: scores a checkpoint; called once for each and once for each average that is tried.
        out: where the average goes; a file that is there is replaced, which is said first.
        classes: label, from 1, -> name, as they have to be.

    Raises:
        ToolkitError: fewer than two checkpoints, one that cannot be used, different architectures, or none
            that finds anything.
    """
    paths = list(dict.fromkeys(paths))
    if len(paths) < 2:
        raise ToolkitError("nothing to average", found=f"{len(paths)} checkpoint", expected="at least two")
    models = {path: _read(path, classes) for path in paths}
    for path in paths[1:]:
        _require_alike(models[paths[0]], models[path], paths[0], path)
    paths = _once(models)
    if out.exists():
        console.warn(f"{out} is there already and will be replaced")
    alone = {}
    for path in paths:
        alone[path] = _number(judge(path))
        console.note(f"{path}: {_words(alone[path])}")
    ranked = sorted(paths, key=lambda path: -alone[path])
    members, score = [ranked[0]], alone[ranked[0]]
    if all(map(_says_nothing, alone.values())):
        raise ToolkitError(
            "there is nothing to choose by",
            found=f"a score of {' or '.join(sorted(set(map(_words, alone.values()))))} of each of "
            f"{len(paths)} checkpoints",
            expected="one or more that find something",
            fix="train longer, take other checkpoints, or choose by another number (--select-by)",
        )
    with TemporaryDirectory(prefix="soup-") as folder:
        for path in ranked[1:]:
            if _says_nothing(alone[path]) and not _says_nothing(score):
                console.note(f"with {path}: not tried, for it finds nothing; left out")
                continue
            tried = [*members, path]
            candidate = Path(folder) / "candidate.pt"
            _write(candidate, average([models[member] for member in tried]))
            reached = _number(judge(candidate))
            kept = reached >= score
            console.note(f"with {path}: {_words(reached)}, {'kept' if kept else 'left out'}")
            if kept:
                members, score = tried, reached
    _write(out, average([models[member] for member in members]))
    return Soup(members, score, {path: alone[path] for path in ranked})


def average(models: Sequence[nn.Module]) -> nn.Module:
    """A copy of the first model with the mean of all weights and running statistics, and its own counters."""
    mean = deepcopy(models[0])
    states = [model.state_dict() for model in models]
    mean.load_state_dict(
        {
            name: torch.stack([state[name].double() for state in states]).mean(0).to(value.dtype)
            if value.is_floating_point()
            else value
            for name, value in states[0].items()
        }
    )
    return mean


def _read(path: Path, classes: Mapping[int, str]) -> nn.Module:
    model = read_checkpoint(path)
    require_classes(model, path, classes)
    return model.float()


def _once(models: Mapping[Path, nn.Module]) -> list[Path]:
    """The checkpoints of different weights: the same ones twice would only count twice in the average."""
    first: dict[str, Path] = {}
    for path, model in models.items():
        same = first.setdefault(fingerprint(model), path)
        if same != path:
            console.note(f"{path}: the weights of {same}; left out")
    if len(first) < 2:
        raise ToolkitError(
            "nothing to average",
            found=f"{len(models)} checkpoints of the same weights",
            expected="at least two that differ",
        )
    return list(first.values())


def _require_alike(one: nn.Module, other: nn.Module, first: Path, second: Path) -> None:
    a, b = ({name: tuple(value.shape) for name, value in m.state_dict().items()} for m in (one, other))
    if (views := views_of(one)) != (others := views_of(other)):
        raise ToolkitError(
            f"{first} and {second} see different frames",
            found=f"--frames {views} and {others}",
            expected="checkpoints of one model, with the same channels",
            fix="fuse their predictions instead: toolkit ensemble",
        )
    different = sorted(name for name in a.keys() | b.keys() if a.get(name) != b.get(name))
    if different:
        name = different[0]
        raise ToolkitError(
            f"{first} and {second} have different architectures",
            found=f"{name} is {_shape(a.get(name))} and {_shape(b.get(name))}, "
            f"and {len(different) - 1:,} more differ",
            expected="checkpoints of one model, with the same channels",
            fix="fuse their predictions instead: toolkit ensemble",
        )


def _shape(shape: tuple[int, ...] | None) -> str:
    return "missing" if shape is None else " x ".join(map(str, shape)) or "a number"


def _number(value: float) -> float:
    return value if value == value else float("-inf")


def _says_nothing(score: float) -> bool:
    """Of what finds nothing: 0, and no number where all months have 0."""
    return score in (0.0, float("-inf"))


def _words(score: float) -> str:
    return "NaN" if score == float("-inf") else f"{score:.4f}" if score else "0"


def _write(path: Path, model: nn.Module) -> None:
    from ultralytics import __version__

    content = {
        "epoch": -1,
        "model": deepcopy(model).half(),
        "ema": None,
        "optimizer": None,
        "updates": None,
        "train_args": dict(model.args),  # type: ignore[arg-type]
        "version": __version__,
    }
    with replacing(path) as temporary:
        torch.save(content, temporary)
