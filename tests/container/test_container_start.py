"""The card and the data are looked at before the image, and the image is the one of this code."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException
from recorded_engine import COMMIT, TREES, FakeClient, FakeImage
from typer.testing import CliRunner

from toolkit import console, workspace
from toolkit.cli import app
from toolkit.container import images, profiles, running, start
from toolkit.container.request import Request
from toolkit.container.verbs import VERBS
from toolkit.errors import ToolkitError
from toolkit.machine import kernel


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeClient:
    """An engine without images, a workspace, a machine without cards and a checkout that is clean."""
    fake, recorded = FakeClient(), kernel.read(TREES / "no-card")

    @contextmanager
    def engine() -> Iterator[FakeClient]:
        yield fake

    monkeypatch.setattr(start, "engine", engine)
    monkeypatch.setattr(kernel, "read", lambda: recorded)
    monkeypatch.setattr(images, "commit", lambda: COMMIT)
    monkeypatch.setattr(images, "additions", lambda base: "")
    monkeypatch.setattr(images, "published", lambda wanted: None)
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    monkeypatch.delenv("TOOLKIT_CALLER", raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What :func:`toolkit.container.running.run` was called with."""
    calls: list[dict[str, Any]] = []

    def run(client: Any, image: Any, name: str, arguments: dict[str, Any]) -> int:
        calls.append({"image": images.name_of(image), "name": name, **arguments})
        return 0

    monkeypatch.setattr(running, "run", run)
    return calls


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch, client: FakeClient) -> list[str]:
    """Names of the images that were built."""
    made: list[str] = []

    def build(_: Any, wanted: images.Source) -> str:
        made.append(wanted.tag)
        client.image(wanted.tag, **{images.REVISION: wanted.commit})
        return "sha256:1"

    monkeypatch.setattr(start.build, "build", build)
    return made


def call(*line: str) -> Any:
    return CliRunner().invoke(app, ["container", *line])


TAG = "ltdv2-toolkit:cpu-0123456789ab"


@pytest.mark.usefixtures("client")
def test_every_verb_builds_the_image_of_this_code_once(
    built: list[str], started: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/Train.json").touch()
    for name in (*VERBS, "run", "doctor"):
        assert call(name, "--profile=cpu").exit_code == 0
    assert built == [TAG]
    assert {one["image"] for one in started} == {TAG}


@pytest.mark.usefixtures("client", "built")
def test_another_commit_or_change_is_another_image(
    monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
) -> None:
    for commit in (COMMIT, f"{COMMIT}-dirty-abcdefabcdef", COMMIT[::-1]):
        monkeypatch.setattr(images, "commit", lambda commit=commit: commit)
        assert call("runs", "--profile=cpu").exit_code == 0
    assert [one["image"] for one in started] == [
        TAG,
        f"{TAG}-dirty-abcdefabcdef",
        f"{TAG[:-12]}{COMMIT[:-13:-1]}",
    ]


def test_a_named_image_says_when_its_code_is_another(
    client: FakeClient, started: list[dict[str, Any]], built: list[str]
) -> None:
    client.image("mine:1", **{images.REVISION: "feed"})
    result = call("runs", "--profile=cpu", "--image=mine:1")
    assert result.exit_code == 0
    assert f"the image mine:1 is of commit feed, this checkout is {COMMIT}" in result.stderr
    assert (started[0]["image"], built) == ("mine:1", [])


def test_a_named_image_is_pulled_and_one_that_is_nowhere_is_one_clear_line(
    client: FakeClient, started: list[dict[str, Any]]
) -> None:
    client.served["far:1"] = FakeImage(client, ["far:1"], {images.REVISION: COMMIT}, "9")
    assert call("runs", "--profile=cpu", "--image=far:1").exit_code == 0
    assert started[0]["image"] == "far:1"
    result = call("runs", "--profile=cpu", "--image=nowhere:1")
    assert isinstance(result.exception, ToolkitError)
    assert result.exception.what == "no image nowhere:1"


def test_a_release_is_pulled_under_the_name_that_a_build_here_would_give_it(
    client: FakeClient, started: list[dict[str, Any]], built: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "published", lambda wanted: "far:cpu-1")
    monkeypatch.setattr("toolkit.container.engine.engine", start.engine)
    client.served["far:cpu-1"] = FakeImage(client, ["far:cpu-1"], {images.REVISION: COMMIT}, "9")
    result = call("build", "--profile=cpu")
    assert (result.exit_code, result.stdout) == (0, f"{TAG}\n")
    assert call("runs", "--profile=cpu").exit_code == 0
    assert ([one["image"] for one in started], built) == ([TAG], [])


def test_without_a_network_the_newest_image_runs_and_the_difference_is_said(
    client: FakeClient, started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: object) -> str:
        raise images.Unreachable("cannot fetch the wheels of cpu.txt")

    monkeypatch.setattr(start.build, "build", unreachable)
    result = call("runs", "--profile=cpu")
    assert isinstance(result.exception, images.Unreachable)  # nothing to run instead
    labels = {images.PROFILE: "cpu", images.BUILDER: images.builder()}
    client.image("ltdv2-toolkit:cpu-aaaa", **labels, **{images.REVISION: "aaaa"})
    client.image("ltdv2-toolkit:cpu-bbbb", **labels, **{images.REVISION: "bbbb"})
    others = {images.PROFILE: "cpu", images.BUILDER: "another checkout"}
    client.image("ltdv2-toolkit:cpu-cccc", **others, **{images.REVISION: "cccc"})
    result = call("runs", "--profile=cpu")
    assert result.exit_code == 0
    assert "ltdv2-toolkit:cpu-bbbb is of commit bbbb" in result.stderr
    assert started[0]["image"] == "ltdv2-toolkit:cpu-bbbb"


@pytest.mark.usefixtures("client")
def test_data_and_card_are_looked_at_before_anything_is_built(built: list[str], tmp_path: Path) -> None:
    for line in (["--profile=cpu", "--data=nowhere"], ["--profile=rdna1"], ["--profile=cpu"]):
        result = call("train", *line)
        assert isinstance(result.exception, ToolkitError)
    assert built == []


@pytest.mark.usefixtures("client", "built")
def test_paths_are_the_hosts_inside(started: list[dict[str, Any]], tmp_path: Path) -> None:
    call("sample", "--profile=cpu", "--data=data/small")
    (tmp_path / "data/small/Train.json").touch()
    (tmp_path / "model.pt").touch()
    call("train", "--profile=cpu", "--data=data/small", "--model=model.pt", "--name", "first")
    call("predict", "--profile=cpu", "--out", "found/test.json")
    sample, train, predict = started
    data = str(tmp_path / "data/small")
    assert sample["command"] == ["toolkit", "dataset", "sample", data]
    assert modes(sample)[data] == "rw"
    assert train["command"][-2:] == ["--data", data]
    assert (modes(train)[data], modes(train)[str(tmp_path / "model.pt")]) == ("ro", "ro")
    assert (train["working_dir"], train["name"]) == (str(tmp_path), "ltdv2-train-first")
    assert predict["command"] == [
        *["toolkit", "predict", "best.pt", "--out", "found/test.json", "--split", "test"]
    ]
    assert modes(predict)[str(tmp_path)] == "rw"  # a new folder is made in it


@pytest.mark.usefixtures("client", "built")
def test_receipts_of_uploads_are_kept(started: list[dict[str, Any]], tmp_path: Path) -> None:
    receipts = str(tmp_path / "submissions")
    call("submit", "--profile=cpu", "runs/first/predictions-test.json")
    call("submit", "--profile=cpu", "runs/first/predictions-test.json", "--upload")
    call("run", "--profile=cpu", "toolkit", "submissions")
    assert [modes(one).get(receipts) for one in started] == [None, "rw", "rw"]


@pytest.mark.usefixtures("client", "built")
def test_what_is_predicted_with_weights_of_no_run_is_kept_where_it_would_be_outside(
    started: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/model.pt").touch()
    (tmp_path / "one.jpg").touch()
    (tmp_path / "runs/first/weights").mkdir(parents=True)
    (tmp_path / "runs/first/run.json").write_text("{}")
    (tmp_path / "runs/first/weights/best.pt").touch()
    call("predict", "--profile=cpu", "elsewhere/model.pt", "one.jpg")
    call("run", "--profile=cpu", "toolkit", "predict", "elsewhere/model.pt", "one.jpg")
    call("predict", "--profile=cpu", "runs/first/weights/best.pt", "one.jpg")
    call("predict", "--profile=cpu", "elsewhere/model.pt", "--split=test")
    assert [modes(one).get(str(tmp_path)) for one in started] == ["rw", "rw", None, None]


@pytest.mark.usefixtures("client", "built")
def test_a_shell_without_a_terminal_is_told_what_to_type_instead(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "_reword", console._reword)  # put back afterwards
    monkeypatch.setenv("TOOLKIT_CALLER", "make")
    result = call("shell", "--profile=cpu")
    assert isinstance(result.exception, ToolkitError)
    console.fail(result.exception)
    assert capsys.readouterr().err == (
        "error: a shell needs a terminal; found none; `make docker-run PROFILE=cpu ARGS=COMMAND` needs none\n"
    )


@pytest.mark.usefixtures("client", "built")
def test_the_callers_own_settings_hold_inside(
    started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    call("runs", "--profile=cpu")
    own = tmp_path / "config/ltdv2-toolkit/toolkit.toml"
    own.parent.mkdir(parents=True)
    own.touch()
    call("runs", "--profile=cpu")
    without, with_own = started
    assert "TOOLKIT_SETTINGS" not in without["environment"]
    assert with_own["environment"]["TOOLKIT_SETTINGS"] == str(own)
    assert modes(with_own)[str(own)] == "ro"
    monkeypatch.setenv("TOOLKIT_SETTINGS", with_own["environment"]["TOOLKIT_SETTINGS"])
    monkeypatch.delenv("XDG_CONFIG_HOME")  # as inside, whose home is another
    assert workspace.user_settings() == own


@pytest.mark.usefixtures("client", "built")
@pytest.mark.parametrize("given", [["--runs=disk/my runs"], []])
def test_runs_elsewhere_have_the_hosts_path_inside(
    given: list[str], started: list[dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = str(tmp_path / "disk/my runs")
    if not given:
        monkeypatch.setenv("TOOLKIT_RUNS", elsewhere)
    call("demo", "--profile=cpu", *given)
    call("runs", "--profile=cpu", *given)
    for one in started:
        assert modes(one)[elsewhere] == "rw"
        assert one["environment"]["TOOLKIT_RUNS"] == elsewhere
    assert started[0]["command"][-1] == f"{elsewhere}/demo"
    assert started[0]["environment"][start.CHECK].split(":")[0] == elsewhere


@pytest.mark.usefixtures("client", "built")
@pytest.mark.parametrize("given", [[], ["--runs=runs"], ["--runs=x/../runs"]])
def test_runs_of_the_workspace_need_no_variable(given: list[str], started: list[dict[str, Any]]) -> None:
    call("runs", "--profile=cpu", *given)
    assert "TOOLKIT_RUNS" not in started[0]["environment"]


@pytest.mark.usefixtures("client", "built")
def test_what_toolkit_toml_names_is_shown(started: list[dict[str, Any]], tmp_path: Path) -> None:
    for folder in ("disk/ltdv2", "weights", "home"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "disk/ltdv2/Train.json").touch()
    (tmp_path / "weights/model.pt").touch()
    (tmp_path / "home/toolkit.toml").write_text(
        f'data = "{tmp_path}/disk/ltdv2"\nmodel = "{tmp_path}/weights/model.pt"\n'
    )
    place = {"TOOLKIT_WORKSPACE": str(tmp_path / "home")}
    assert CliRunner().invoke(app, ["container", "train", "--profile=cpu"], env=place).exit_code == 0
    shown = modes(started[0])
    assert [
        shown[f"{tmp_path}/{path}"] for path in ("home/toolkit.toml", "disk/ltdv2", "weights/model.pt")
    ] == [*["ro", "ro", "ro"]]


def modes(call: dict[str, Any]) -> dict[str, str]:
    """Whether the container may write, by path."""
    return {mount["Target"]: "ro" if mount["ReadOnly"] else "rw" for mount in call["host_config"]["mounts"]}


@pytest.mark.usefixtures("client", "built")
def test_a_run_finds_the_data_that_it_was_started_with(started: list[dict[str, Any]], tmp_path: Path) -> None:
    for name in ("one", "other"):  # nothing says which, but the run does
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "Train.json").touch()
    (tmp_path / "runs/first").mkdir(parents=True)
    (tmp_path / "runs/first/run.json").write_text(json.dumps({"data": str(tmp_path / "data/other")}))
    assert call("evaluate", "--profile=cpu", "first").exit_code == 0
    assert call("train", "--profile=cpu", "--resume").exit_code == 0
    assert [modes(one)[str(tmp_path / "data/other")] for one in started] == ["ro", "ro"]
    assert str(tmp_path / "data/one") not in modes(started[0])


@pytest.mark.parametrize(
    ("info", "user", "mode"),
    [
        ({"SecurityOptions": []}, "1000:100", None),
        ({"SecurityOptions": ["name=seccomp,profile=default", "name=rootless"]}, "0:0", None),
        ({"SecurityOptions": ["name=seccomp,profile=default"], "Rootless": True}, "0:0", None),  # Podman
        ({"SecurityOptions": ["name=userns"]}, "1000:100", "host"),
    ],
)
def test_files_are_the_users_on_every_engine(info: dict[str, Any], user: str, mode: str | None) -> None:
    given = {"user": "1000:100", "host_config": {}}
    made = start._for_engine(info, given, Request(), profiles.load_profile("cpu"))
    assert (made["user"], made["host_config"].get("userns_mode")) == (user, mode)


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (["toolkit", "train", "--name", "first"], "ltdv2-train-first"),
        (["toolkit", "train", "--name=a b/c"], "ltdv2-train-a-b-c"),
        (["toolkit", "dataset", "sample", "/data"], "ltdv2-sample"),
        (["/opt/ltdv2/scripts/demo", "data", "run"], "ltdv2-demo"),
        (["bash"], "ltdv2-bash"),
        (["toolkit", "--help"], "ltdv2-toolkit"),
    ],
)
def test_a_container_is_named_for_what_runs_in_it(line: list[str], name: str) -> None:
    assert start.name_for(line) == name


def test_training_without_data_ends_before_a_container_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("one", "other"):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "Train.json").touch()
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    result = CliRunner().invoke(app, ["container", "train", "--profile", "cpu"])
    assert isinstance(result.exception, ToolkitError)
    assert "cannot tell where the data is; found " in result.exception.line()


def test_an_examination_that_fails_is_no_verdict(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(**_: object) -> None:
        raise DockerException("FileNotFoundError(2)")

    monkeypatch.setattr(docker, "from_env", refuse)
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(tmp_path))
    result = CliRunner().invoke(app, ["container", "doctor", "--profile", "cpu"])
    assert isinstance(result.exception, ToolkitError)
    assert result.exception.exit_code == 2
