"""What CONTRIBUTING.md says of adding a thing: one is added, and comes up wherever it should.

A red flag is added in tests/runs/test_runs_health.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from patches.convolution import registry, routes
from submission import competitions
from toolkit import doctor, settings
from toolkit.cli import bench
from toolkit.cli.train import train
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.training import deciding, preset
from toolkit.training.deciding import Options
from toolkit.workspace import Workspace


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with prepared data."""
    folder = tmp_path_factory.mktemp("workspace")
    write_sample(folder / "data", train=4, val=2, test=2, seed=0)
    prepare(folder / "data")
    return folder


def flags(verb: Callable[..., None]) -> dict[str, Any]:
    """What is declared of each option of a verb, by name."""
    hints = get_type_hints(verb, include_extras=True)
    return {name: kind.__metadata__[0] for name, kind in hints.items() if name != "return"}


def test_a_preset_is_a_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = "model: yolo11n.yaml\nchannels: 1\narguments:\n  epochs: 3\n  lr0: 0.004\n"
    (tmp_path / "brisk.yaml").write_text(recipe)
    monkeypatch.setattr(preset, "PRESETS", tmp_path)
    plan = deciding.plan(Workspace(root), Options(preset="brisk", device="cpu"))
    assert (plan.preset, plan.model, plan.arguments["epochs"], plan.arguments["lr0"]) == (
        "brisk",
        "yolo11n.yaml",
        3,
        0.004,
    )
    with pytest.raises(ToolkitError, match=r"no preset brisker.*brisk"):
        deciding.plan(Workspace(root), Options(preset="brisker", device="cpu"))


def test_every_preset_that_ships_is_named_by_the_flag() -> None:
    assert not [name for name in preset.presets() if name not in flags(train)["preset"].help]


@pytest.mark.parametrize("name", [n for n in settings.Numbers.__struct_fields__ if n != "channels"])
def test_a_number_of_a_training_is_a_flag_and_a_key_within_its_bounds(
    root: Path, tmp_path: Path, name: str
) -> None:
    low, high = settings.bounds(name)
    value = min(low + 64, high)
    flag = flags(train)[name]
    assert (flag.min, flag.max) == (low, high)
    by_flag = deciding.plan(Workspace(root), Options(device="cpu", **{name: value}))  # type: ignore[arg-type]
    (tmp_path / "data").symlink_to(root / "data")
    (tmp_path / "toolkit.toml").write_text(f"{name} = {value}\n")
    by_key = deciding.plan(Workspace(tmp_path), Options(device="cpu"))
    assert by_flag.arguments[name] == by_key.arguments[name] == value


def test_what_the_command_line_says_of_a_training_are_its_flags() -> None:
    about_the_call = {"run", "words", "settings", "arguments", "resume", "dry_run", "no_patches", "patches"}
    assert get_type_hints(Options).keys() - about_the_call == flags(train).keys() - about_the_call


def test_a_competition_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = competitions.Known(20000, "next-season", "Next Season", date(2027, 1, 1), None, "a test")
    monkeypatch.setattr(competitions, "KNOWN", (*competitions.KNOWN, new))
    assert competitions.number_of("next-season") == 20000
    assert "20000 'Next Season'" in competitions.others_open(10954, date(2027, 6, 1))
    assert "20000" not in competitions.others_open(10954, date(2026, 6, 1))


@pytest.mark.parametrize("kind", registry.ROUTES, ids=lambda kind: kind.name)
def test_a_route_that_is_declared_can_be_made_and_is_named_wherever_one_chooses(
    kind: registry.RouteKind,
) -> None:
    if kind.name == "triton" and importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed")
    assert callable(routes.make(kind.name).supports)
    assert kind.name in doctor.ROUTES
    assert kind.name in flags(bench.train)["route"].help
