"""A run says what it was made with; the same again gives the same weights, or says what differs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
import torch
from tiny_run import MODEL

from patches import runtime
from toolkit import provenance
from toolkit.errors import ToolkitError
from toolkit.runs import reproduction
from toolkit.training import deciding
from toolkit.training.options import Options
from toolkit.workspace import Workspace

ROOT = Path(__file__).parents[2]
TINY = [
    "--model",
    str(MODEL),
    "--epochs",
    "1",
    "--batch",
    "8",
    "--imgsz",
    "64",
]


def toolkit(workspace: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "TOOLKIT_WORKSPACE": str(workspace),
        "TOOLKIT_CONV_ROUTE": "gemm",
        "OMP_NUM_THREADS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", "toolkit", *arguments],
        cwd=workspace,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def weights(workspace: Path, run: str) -> list[torch.Tensor]:
    loaded = torch.load(workspace / "runs" / run / "weights/best.pt", map_location="cpu", weights_only=False)
    return list(loaded["model"].state_dict().values())


@pytest.mark.slow
def test_the_same_run_twice_gives_the_same_weights_and_a_change_is_named(data: Path, tmp_path: Path) -> None:
    first = toolkit(
        tmp_path,
        "train",
        "--data",
        str(data),
        "--preset",
        "smoke",
        "--device",
        "cpu",
        "--name",
        "first",
        *TINY,
    )
    assert first.returncode == 0, first.stderr[-2000:]
    (tmp_path / "runs/first/plan.json").unlink()  # what is beside the weights is enough
    again = toolkit(tmp_path, "reproduce", "runs/first/weights", "--name", "again")
    assert again.returncode == 0, again.stdout + again.stderr[-2000:]
    pairs = list(zip(weights(tmp_path, "first"), weights(tmp_path, "again"), strict=True))
    assert pairs
    assert all(torch.equal(one, other) for one, other in pairs)

    file = tmp_path / "runs/first/weights/environment.json"
    written = json.loads(file.read_text())
    assert written["variables"]["TOOLKIT_CONV_ROUTE"] == "gemm"
    written["versions"]["torch"] = "1.13.1+rocm5.2"
    written["resumed"] = ["continued with another batch: then 8, now 4"]
    file.write_text(json.dumps(written))
    other = toolkit(tmp_path, "reproduce", "first", "--name", "other")
    assert other.returncode == 1
    assert other.stdout.splitlines() == [
        "continued with another batch: then 8, now 4",
        f"torch: then 1.13.1+rocm5.2, now {torch.__version__.partition('+')[0]}",
    ]
    assert not (tmp_path / "runs/other").exists()


def some_environment() -> reproduction.Environment:
    return reproduction.Environment(
        plan={"device": "cpu", "patches": True, "arguments": {"batch": 8}},
        image="sha256:1",
        profile="rdna1",
        commit="abc",
        versions={"python": "3.12.1", "torch": "2.11.0"},
        cards=("gfx1010",),
        driver="6.12",
        cpu="one avx2",
        data="d1",
        model="",
        seed=0,
        command=("train",),
    )


@pytest.mark.parametrize("name", ["TOOLKIT_CONV_ROUTE", "HSA_OVERRIDE_GFX_VERSION", "AMDGCN_USE_BUFFER_OPS"])
def test_a_variable_that_changes_the_computation_is_a_difference(name: str) -> None:
    then = msgspec.structs.replace(some_environment(), variables={name: "1"})
    assert reproduction.differences(then, some_environment()) == [f"{name}: then 1, now none"]


def test_a_run_begins_again_as_it_was_begun_and_says_how_it_was_continued(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Workspace(tmp_path)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    options = Options(data=data, device="cpu", preset="smoke", name="one", batch=8)
    begun = deciding.plan(place, options)
    reproduction.record(begun)
    reproduction.record(begun)
    assert reproduction.read(begun.run / "weights").resumed == ()
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    for _ in range(2):
        reproduction.record(deciding.plan_resume(place, Options(name="one", batch=4)))
    then = reproduction.read(begun.run / "weights")
    assert then.resumed == (
        "continued with another threads: then 1, now 2",
        "continued with another batch: then 8, now 4",
    )
    again = deciding.plan_again(place, then.plan, Options(name="two"))
    assert again == replace(begun, run=tmp_path / "runs/two")


def test_a_run_of_an_older_version_can_go_on_though_not_begin_again(data: Path, tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    begun = deciding.plan(place, Options(data=data, device="cpu", preset="smoke", name="one"))
    reproduction.record(begun)
    (begun.run / "weights/environment.json").write_text('{"seed": 0}')
    reproduction.record(begun)
    with pytest.raises(ToolkitError, match=r"environment\.json.*plan"):
        reproduction.read(begun.run / "weights")


def test_where_an_image_is_served_is_no_difference() -> None:
    now = msgspec.structs.replace(some_environment(), digests=("ghcr.io/someone/image@sha256:2",))
    assert reproduction.differences(some_environment(), now) == []


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with one commit, in the place of this one."""
    (tmp_path / "module.py").write_text("one\n")
    (tmp_path / ".gitignore").write_text("/runs/\n")
    someone = ["-c", "user.name=someone", "-c", "user.email=someone@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run(["git", *someone, *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    return tmp_path


def test_two_different_dirty_trees_have_different_names(checkout: Path) -> None:
    clean = reproduction.commit()
    assert len(clean) == 40
    (checkout / "runs").mkdir()
    (checkout / "runs/result").touch()
    assert reproduction.commit() == clean
    names = {clean}
    for content in ("two\n", "three\n"):
        (checkout / "module.py").write_text(content)
        names.add(reproduction.commit())
        assert reproduction.commit() in names
    for content in ("new", "newer"):
        (checkout / "a file.py").write_text(content)
        names.add(reproduction.commit())
    subprocess.run(["git", "add", "a file.py"], cwd=checkout, check=True)
    names.add(reproduction.commit())
    assert len(names) == 6
    assert all(name.startswith(f"{clean}-dirty-") for name in names - {clean})


def test_triton_has_a_version_under_the_name_that_rocm_gives_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "pytorch-triton-rocm":
            raise runtime.PackageNotFoundError
        return "3.2.0"

    monkeypatch.setattr(runtime, "version", version)
    assert runtime.installed(*runtime.TRITON) == "3.2.0"
    assert runtime.installed("triton") == ""


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    reproduction.write(some_environment(), tmp_path / "weights")
    assert reproduction.read(tmp_path / "weights") == some_environment()


def test_every_difference_is_a_line_but_what_was_typed() -> None:
    then = some_environment()
    now = msgspec.structs.replace(
        then, image="", cards=("gfx1031",), versions={"python": "3.12.1"}, command=("reproduce", "first")
    )
    assert reproduction.differences(then, then) == []
    assert reproduction.differences(then, now) == [
        "image: then sha256:1, now none",
        "cards: then gfx1010, now gfx1031",
        "torch: then 2.11.0, now none",
    ]


def test_a_missing_or_damaged_record_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"cannot read .*environment\.json"):
        reproduction.read(tmp_path)
    for content in (b'{"image": 1}', b'{"image": "\xff"}', b"[]"):
        (tmp_path / "environment.json").write_bytes(content)
        with pytest.raises(ToolkitError, match=r"cannot read .*environment\.json"):
            reproduction.read(tmp_path)
