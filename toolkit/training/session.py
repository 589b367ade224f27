"""One training run: what it will use, decided before anything starts, and the run itself."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import yaml

import patches
from toolkit import __version__, console, workspace
from toolkit.errors import ToolkitError
from toolkit.files import replacing

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "thermal"

Argument = bool | int | float | str


class Preset(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A named recipe, ``presets/<name>.yaml``.

    Attributes:
        model: a YAML of Ultralytics (architecture, random weights) or a checkpoint.
        channels: 1 trains on grey frames, 3 on the same frame three times (for pretrained colour weights).
        arguments: Ultralytics' own training arguments.
    """

    model: str
    channels: int
    arguments: dict[str, Argument]


@dataclass(frozen=True)
class Options:
    """What the command line said; None where it said nothing."""

    data: Path | None = None
    model: str | None = None
    preset: str | None = None
    epochs: int | None = None
    batch: int | None = None
    imgsz: int | None = None
    device: str | None = None
    workers: int | None = None
    name: str | None = None
    channels: int | None = None
    seed: int | None = None
    patches: bool = True


@dataclass(frozen=True)
class TrainingPlan:
    """Everything a run will use.

    Attributes:
        data: folder with LTDv2's files.
        run: folder of the run, made by :func:`train`.
        preset: name of the recipe that the rest started from.
        model: architecture or checkpoint.
        channels: of the images, 1 or 3.
        device: what :func:`toolkit.device.resolve_device` returned.
        patches: whether convolutions go through the patches.
        arguments: Ultralytics' training arguments.
        resume: checkpoint to continue from.
    """

    data: Path
    run: Path
    preset: str
    model: str
    channels: int
    device: str
    patches: bool
    arguments: Mapping[str, Argument] = field(default_factory=dict)
    resume: Path | None = None


def presets() -> list[str]:
    """Names of the recipes that ship with the toolkit."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


def load_preset(name: str) -> Preset:
    """Read a recipe.

    Raises:
        ToolkitError: there is no recipe of that name.
    """
    path = PRESETS / f"{name}.yaml"
    if name not in presets():
        raise ToolkitError(f"no preset {name}", expected="one of " + ", ".join(presets()))
    return msgspec.convert(yaml.safe_load(path.read_text()), Preset)


def plan(place: workspace.Workspace, options: Options) -> TrainingPlan:
    """Decide what a new run will use: flags before toolkit.toml before the preset.

    Raises:
        ToolkitError: the data, the model, the preset or the device is not there; the name is taken.
    """
    from toolkit.device import resolve_device

    data = place.data_dir(options.data)
    defaults = place.defaults(data)
    preset_name = options.preset or defaults.preset or DEFAULT_PRESET
    preset = load_preset(preset_name)
    arguments = dict(preset.arguments)
    for key in ("epochs", "batch", "imgsz", "workers", "seed"):
        value = getattr(options, key)
        if value is None:
            value = getattr(defaults, key, None)
        if value is not None:
            arguments[key] = value
    channels = options.channels or preset.channels
    if channels not in (1, 3):
        raise ToolkitError(f"no training with {channels} channels", expected="1 or 3")
    model = _check_model(options.model or defaults.model or preset.model)
    return TrainingPlan(
        data=data.absolute(),
        run=_new_run(place, options.name),
        preset=preset_name,
        model=model,
        channels=channels,
        device=resolve_device(options.device or defaults.device),
        patches=options.patches,
        arguments=arguments,
    )


def plan_resume(place: workspace.Workspace, options: Options) -> TrainingPlan:
    """Decide how to continue the newest run, or the one that ``options.name`` names, from its last.pt.

    Raises:
        ToolkitError: there is no such run, or it has no last.pt.
    """
    from toolkit.device import resolve_device

    if options.name is not None:
        last = place.runs / options.name / "weights" / "last.pt"
        if not last.is_file():
            raise ToolkitError(
                f"run {options.name} cannot go on", found="no weights/last.pt", expected=str(last)
            )
    else:
        last = place.weights("last.pt")
    run = last.parent.parent
    record = place.record(run)
    changeable = {
        key: value for key in ("batch", "imgsz", "workers") if (value := getattr(options, key)) is not None
    }
    return TrainingPlan(
        data=place.data_of(last, options.data).absolute(),
        run=run,
        preset=record.preset,
        model=record.model,
        channels=record.channels,
        device=resolve_device(options.device),
        patches=options.patches,
        arguments=changeable,
        resume=last,
    )


def train(plan: TrainingPlan) -> Path:
    """Run the training to its end.

    Returns:
        The best weights.

    Raises:
        ToolkitError: the data is not prepared, or the run could not produce weights.
    """
    from toolkit.dataset import index
    from toolkit.device import running

    frames = index.load(plan.data)
    plan.run.mkdir(parents=True, exist_ok=True)
    if plan.resume is None:
        record = workspace.RunRecord(
            data=str(plan.data),
            model=plan.model,
            preset=plan.preset,
            channels=plan.channels,
            patches=plan.patches,
            command=sys.argv[1:],
            version=__version__,
        )
        with replacing(plan.run / "run.json") as path:
            path.write_text(json.dumps(msgspec.to_builtins(record), indent=2) + "\n")
    with running(plan.device, patched=plan.patches):
        from toolkit.training.trainer import LTDv2Trainer

        trainer = LTDv2Trainer(plan, frames)
        trainer.train()
        if plan.patches:
            shares = [f"{route} {calls:,}" for route, calls in patches.report().by_route().items()]
            console.note("convolution calls by route: " + ", ".join(shares))
    best: Path = trainer.best
    if not best.is_file():
        raise ToolkitError("training ended without weights", expected=str(best))
    return best


def _check_model(model: str) -> str:
    """A checkpoint must be a file: nothing is fetched. A YAML is a file or one of Ultralytics' own."""
    from ultralytics.nn.tasks import yaml_model_load

    path = Path(model)
    if path.suffix == ".pt":
        if not path.is_file():
            raise ToolkitError(
                f"no checkpoint {model}",
                found="no such file (weights are never downloaded on their own)",
                expected="a YOLO checkpoint (.pt) or an architecture (.yaml)",
                fix=f"train from scratch with --model {path.stem}.yaml, or put the file there",
            )
        return str(path.absolute())
    if path.suffix in (".yaml", ".yml"):
        with suppress(FileNotFoundError):
            yaml_model_load(model)
            return str(path.absolute()) if path.is_file() else model
    raise ToolkitError(
        f"no model {model}", expected="a checkpoint (.pt), a file .yaml, or one such as yolo11n.yaml"
    )


def _new_run(place: workspace.Workspace, name: str | None) -> Path:
    if name is None:
        number = 1
        while (place.runs / f"train-{number}").exists():
            number += 1
        return place.runs / f"train-{number}"
    if Path(name).name != name:
        raise ToolkitError(f"{name} is no name for a run", expected="a name without a slash")
    run = place.runs / name
    if (run / "run.json").exists():
        raise ToolkitError(
            f"run {name} exists already",
            fix=f"choose another --name, or continue it: toolkit train --resume --name {name}",
        )
    return run
