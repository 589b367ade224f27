"""Presets: recipes in Ultralytics' own words, and what Ultralytics makes of a plan's arguments."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal, cast

import msgspec
import yaml

from toolkit import settings
from toolkit.errors import ToolkitError, reason
from toolkit.runs.plan import TrainingPlan
from toolkit.settings import Argument, TrainingOptions, hints, lever_names, levers, presets
from toolkit.training.arguments import check


class _Loader(yaml.SafeLoader):
    """Takes ``1e-3`` for a number, as YAML 1.2 does; PyYAML follows YAML 1.1, which wants ``1.0e-3``."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


class Preset(msgspec.Struct, frozen=True):
    """A recipe, complete.

    Attributes:
        model: a YAML of Ultralytics (architecture, random weights) or a checkpoint.
        channels: 1 trains on grey frames, 3 on the same frame three times (for pretrained colour weights).
        arguments: Ultralytics' own training arguments, those of the presets that it builds on included.
        levers: what an epoch shows and what chooses.
        sources: of model, channels, each lever and each argument that a preset below it names, which one
            that is.
    """

    model: str
    channels: int
    arguments: dict[str, Argument]
    levers: dict[str, Any] = {}
    sources: dict[str, str] = {}


class _Base(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file of a recipe may say; what it leaves out is its base's, or else Ultralytics'."""

    base: str | None = None
    model: str | None = None
    channels: Literal[1, 3] | None = None
    arguments: dict[str, Argument] = {}


_File = msgspec.defstruct(
    "_File",
    [(name, hints(TrainingOptions)[name], None) for name in lever_names()],
    bases=(_Base,),
    frozen=True,
    kw_only=True,
    forbid_unknown_fields=True,
)


def preset_name(name: str, below: Path | None = None) -> str:
    """A recipe by its name, or its file by an absolute path, whose name ends in .yaml or .yml.

    Args:
        name: as a person wrote it.
        below: folder that a relative path starts from; the current one by default.
    """
    if Path(name).suffix in (".yaml", ".yml"):
        return str(((below or Path.cwd()) / Path(name).expanduser()).absolute())
    return name


def load_preset(name: str) -> Preset:
    """Read a recipe that ships with the toolkit, or a file ``NAME.yaml``, with what it builds on.

    Raises:
        ToolkitError: there is no recipe of that name; the file is none, or builds on itself; an argument is
            none that a preset may set.
    """
    return _load(preset_name(name), ())


def _load(name: str, above: tuple[str, ...]) -> Preset:
    if name in above:
        raise ToolkitError(f"preset {name} builds on itself", found=" -> ".join((*above, name)))
    path = Path(name) if Path(name).is_absolute() else settings.PRESETS / f"{name}.yaml"
    file = _read(name, path)
    check(file.arguments, f"preset {name}", None)
    if file.base is None:
        if file.model is None:
            raise ToolkitError(
                f"preset {name} names no model", expected="model: such as yolo11n.yaml, or base: a preset"
            )
        return Preset(file.model, file.channels or 1, file.arguments, levers(file))
    base = _load(preset_name(file.base, path.parent), (*above, name))
    below = {"model": base.model, "channels": base.channels, **base.levers, **base.arguments}
    sources = {key: base.sources.get(key, f"preset {Path(file.base).stem}") for key in below}
    own = {key for key in ("model", "channels") if getattr(file, key) is not None}
    own |= levers(file).keys() | file.arguments.keys()
    return Preset(
        file.model or base.model,
        file.channels or base.channels,
        {**base.arguments, **file.arguments},
        {**base.levers, **levers(file)},
        {key: source for key, source in sources.items() if key not in own},
    )


def _read(name: str, path: Path) -> _Base:
    """Raises ToolkitError for what is no recipe."""
    if path.parent == settings.PRESETS and name not in presets():
        raise ToolkitError(
            f"no preset {name}", expected="one of " + ", ".join(presets()) + ", or a file NAME.yaml"
        )
    names = ", ".join(("base", "model", "channels", *lever_names()))
    expected = f"YAML with {names}, and Ultralytics' own below arguments:"
    try:
        found: Any = msgspec.convert(yaml.load(path.read_bytes(), _Loader), _File)
    except (OSError, yaml.YAMLError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ToolkitError(
            f"preset {name} cannot be used", " ".join(reason(error).split()), expected
        ) from error
    return cast(_Base, found)


def configuration(plan: TrainingPlan) -> Any:
    """Ultralytics' training arguments, at their defaults where the plan does not name them."""
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides=dict(plan.arguments))
