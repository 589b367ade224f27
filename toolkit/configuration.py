"""What is set and by whom: every key of ``toolkit.toml`` and the variables that a command reads."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from submission import competitions
from toolkit import settings
from toolkit.runs import health
from toolkit.runs.plan import TRACKERS, check_trackers
from toolkit.workspace import Workspace

VARIABLES = {
    "TOOLKIT_WORKSPACE": "the folder of runs and settings",
    "TOOLKIT_RUNS": "the folder of runs, if it is elsewhere",
    "TOOLKIT_SETTINGS": "your own toolkit.toml, if it is elsewhere",
    "TOOLKIT_DATA": "the data, before toolkit.toml's",
    "CODABENCH_TOKEN": "what Codabench knows you by",
    "CODABENCH_URL": "another server",
    "HF_TOKEN": "what the hub knows you by",
    "HF_ENDPOINT": "a mirror of the hub",
    "XDG_CONFIG_HOME": "where your own toolkit.toml is",
    "XDG_CACHE_HOME": "where tuned plans and traces are kept",
}
"""Variables that a command reads, and what each is."""

DECIDED = {"preset": settings.DEFAULT_PRESET, "codabench.competition": competitions.DEFAULT}
"""What counts where nothing is set; of other settings the preset says it, the run or the machine."""

DEFAULT, HIDDEN = "default", "(set)"


@dataclass(frozen=True)
class Value:
    """One setting.

    Attributes:
        key: as in toolkit.toml, tables with dots; or a variable's name.
        value: None where nothing is set and the command decides.
        source: a file, ``environment`` or ``default``.
    """

    key: str
    value: Any
    source: str


def values(place: Workspace, data: Path | None = None) -> list[Value]:
    """Every setting, in the order of :class:`toolkit.settings.Defaults`, then the variables.

    Args:
        place: where the command works.
        data: folder with the data; by default the one that toolkit.toml or ``TOOLKIT_DATA`` names.

    Raises:
        ToolkitError: a file is no TOML, or has a key, a type or a value that is not possible.
    """
    data = data_of(place, data)
    merged = place.defaults(data)
    set_by: dict[str, str] = {}
    for path in place.settings_files(data):
        content = settings.content(path)
        check_trackers(content.get("logging", {}), str(path))
        set_by |= dict.fromkeys((key for key, _ in _flat(content)), str(path))
    tables = {
        **msgspec.to_builtins(merged),
        "health": msgspec.to_builtins(health.of(place, data)),
        "logging": dict.fromkeys(TRACKERS, False) | merged.logging,
    }
    found = [
        Value(key, DECIDED.get(key) if value is None else value, set_by.get(key, DEFAULT))
        for key, value in _flat(tables)
    ]
    return found + [_variable(name) for name in VARIABLES]


def data_of(place: Workspace, data: Path | None = None) -> Path | None:
    """The folder whose toolkit.toml counts: the named one, else what toolkit.toml or a variable says."""
    if data is not None:
        return place.data_dir(data)  # refuses what is no folder
    named = os.environ.get("TOOLKIT_DATA") or place.defaults().data
    # A name with a zero byte is no folder.
    return place.root / named if named and (place.root / named).is_dir() else None


def _variable(name: str) -> Value:
    value = os.environ.get(name)
    shown = HIDDEN if value and name.endswith("_TOKEN") else value or None
    return Value(name, shown, "environment" if value else DEFAULT)


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Keys with dots, and their values; None for a table in which nothing is set."""
    for key, value in table.items():
        if isinstance(value, Mapping) and not value:
            yield before + key, None
        elif isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value
