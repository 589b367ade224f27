"""What the image does around a command: environment, words, checks, health."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import time
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import ModuleType

import msgspec
import pytest
import typer.main

from toolkit import cli
from toolkit.container import profiles
from toolkit.runs import health, heartbeat
from toolkit.runs.folder import RunFiles


def test_the_caller_overrules_the_profile_and_the_profile_the_defaults(tmp_path: Path) -> None:
    given = tmp_path / "environment"
    given.write_text("AMDGCN_USE_BUFFER_OPS=0\nTRITON_CACHE_DIR=/cache/own\nTRITON_CACHE_DIR=/cache/triton\n")
    script = (profiles.ROOT / "docker/entrypoint").read_text().replace("/opt/toolkit/environment", str(given))
    show = "echo $AMDGCN_USE_BUFFER_OPS $TRITON_CACHE_DIR $USER"
    result = subprocess.run(
        ["sh", "-c", script, "entrypoint", "sh", "-c", show],
        env={"PATH": os.environ["PATH"], "AMDGCN_USE_BUFFER_OPS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "1 /cache/own toolkit\n"


@pytest.fixture
def check_image(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(profiles.ROOT / "docker"))
    for name in ("find_torch", "check_image"):
        sys.modules.pop(name, None)
    spec = importlib.util.spec_from_file_location("check_image", profiles.ROOT / "docker/check_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_build_fails_when_torch_was_replaced_or_a_pin_is_off(
    check_image: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import torch

    record = tmp_path / "torch.pth"
    monkeypatch.setattr(check_image, "TORCH_BEFORE", record)
    monkeypatch.setenv("PYTHON", ".".join(str(part) for part in sys.version_info[:2]))
    monkeypatch.setenv("TORCH", str(torch.__version__).partition("+")[0])
    for variable in ("TORCHVISION", "TRITON", "NUMPY", "ULTRALYTICS"):
        monkeypatch.setenv(variable, "")
    folder = Path(torch.__file__).parents[1]
    record.write_text(f"{folder}\n# {check_image.fingerprint()}\n")
    assert check_image.problems() == []

    record.write_text(f"{folder}\n# torch 1.13.1 0000\n")
    assert "PyTorch was replaced" in check_image.problems()[0]
    record.write_text(f"/elsewhere\n# {check_image.fingerprint()}\n")
    assert "PyTorch was replaced" in check_image.problems()[0]

    record.write_text(f"{folder}\n# {check_image.fingerprint()}\n")
    monkeypatch.setenv("NUMPY", "1.0.0")
    monkeypatch.setenv("PYTHON", "2.7")
    assert [line.partition(":")[0] for line in check_image.problems()] == ["numpy", "Python"]


def test_a_pin_may_say_that_a_package_is_absent(check_image: ModuleType) -> None:
    assert check_image.installed("no-such-package") == "none"
    assert check_image.installed("numpy") != "none"


def entrypoint(tmp_path: Path, *line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What the entrypoint makes of a command line; ``toolkit`` prints how it was called."""
    (tmp_path / "bin").mkdir(exist_ok=True)
    (tmp_path / "bin/toolkit").write_text('#!/bin/sh\necho toolkit "$@"\n')
    (tmp_path / "bin/toolkit").chmod(0o755)
    (tmp_path / "environment").touch()
    script = (profiles.ROOT / "docker/entrypoint").read_text()
    script = script.replace("/opt/toolkit/environment", str(tmp_path / "environment"))
    return subprocess.run(
        ["sh", "-c", script, "entrypoint", *line],
        env={
            "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
            "TOOLKIT_WORKSPACE": str(tmp_path),
            **environment,
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("line", "inside"),
    [
        (["train", "--preset", "a b"], "toolkit train --preset a b"),
        (["sample", "/data"], "toolkit dataset sample /data"),
        (["--version"], "toolkit --version"),
        (["toolkit", "runs"], "toolkit runs"),
        (["echo", "train"], "train"),
    ],
)
def test_a_plain_docker_run_takes_a_verb(line: list[str], inside: str, tmp_path: Path) -> None:
    assert entrypoint(tmp_path, *line).stdout == f"{inside}\n"


def test_every_command_of_the_toolkit_is_one_of_a_plain_docker_run(tmp_path: Path) -> None:
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    for name in commands.keys() - {"container"}:  # which drives an engine from outside
        assert entrypoint(tmp_path, name).stdout == f"toolkit {name}\n"
    for name in commands["dataset"].commands:
        assert entrypoint(tmp_path, name).stdout == f"toolkit dataset {name}\n"


@pytest.mark.parametrize("verb", ["train", "evaluate", "predict", "submit"])
def test_runs_that_cannot_be_written_are_one_clear_line_before_the_work(verb: str, tmp_path: Path) -> None:
    (tmp_path / "runs").touch()  # whoever asks, root too, cannot write into it
    script_says = entrypoint(tmp_path, verb, TOOLKIT_MUST_WRITE="/proc/runs")
    assert script_says.returncode == 1
    assert script_says.stderr.startswith("error: user ")
    assert "cannot write to /proc/runs" in script_says.stderr
    assert len(script_says.stderr.splitlines()) == 1
    assert script_says.stdout == ""


def test_a_folder_for_runs_that_is_missing_is_made(tmp_path: Path) -> None:
    assert entrypoint(tmp_path, "train").returncode == 0
    assert (tmp_path / "runs").is_dir()


@pytest.fixture
def healthcheck() -> ModuleType:
    path = str(profiles.ROOT / "docker/healthcheck")
    loader = SourceFileLoader("healthcheck", path)
    module = ModuleType(loader.name)
    exec(compile(loader.get_data(path), path, "exec"), module.__dict__)
    return module


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run that is being trained, in its first epoch since a second."""
    folder = tmp_path / "runs/first"
    folder.mkdir(parents=True)
    rules = msgspec.to_builtins(health.Rules())
    (folder / "plan.json").write_text(json.dumps({"rules": rules}))
    (folder / ".lock").touch()
    beat = heartbeat.Beat(1, 1, "training", step_seconds=(0.1, 0.2, 0.3))
    heartbeat.write(RunFiles(folder), beat)
    return folder


@pytest.mark.parametrize(
    ("phase", "step", "silent", "wrong"),
    [
        ("training", 0.2, 100, False),
        ("training", 0.2, 130, True),
        ("training", 30.0, 130, False),  # twenty usual batches take longer
        ("validating", 0.2, 130, False),
        ("validating", 0.2, 310, True),
        ("starting", 0.0, 310, False),
        ("starting", 0.0, 910, True),
    ],
)
def test_a_training_is_unhealthy_when_its_own_rules_call_it_hanging(
    phase: heartbeat.Phase, step: float, silent: float, wrong: bool, healthcheck: ModuleType, run: Path
) -> None:
    heartbeat.write(RunFiles(run), heartbeat.Beat(1, 1, phase, step_seconds=(step, step, step)))
    said = healthcheck.silent_too_long(run, time.time() + silent)
    assert (said is not None) == wrong


def test_the_heartbeat_of_an_earlier_start_says_nothing(healthcheck: ModuleType, run: Path) -> None:
    os.utime(run / "heartbeat.json", (1, 1))
    assert healthcheck.silent_too_long(run, time.time() + 310) is None
    assert "starting" in healthcheck.silent_too_long(run, time.time() + 910)


def test_only_a_run_that_is_held_here_is_looked_at(healthcheck: ModuleType, run: Path) -> None:
    assert run not in healthcheck.trained()
    with RunFiles(run).locked():
        assert run in healthcheck.trained()
    with (run / ".lock").open():  # as `toolkit runs` looks at it
        assert run not in healthcheck.trained()
