"""Presets: recipes in Ultralytics' own words, and what Ultralytics makes of a plan's arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import yaml

from toolkit.errors import ToolkitError
from toolkit.runs.plan import Argument, TrainingPlan

PRESETS = Path(__file__).parent / "presets"
DEFAULT_PRESET = "thermal"


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


def configuration(plan: TrainingPlan) -> Any:
    """Ultralytics' training arguments, at their defaults where the plan does not name them."""
    from ultralytics.cfg import get_cfg

    return get_cfg(overrides=dict(plan.arguments))
