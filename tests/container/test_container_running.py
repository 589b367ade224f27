"""A container's output is ours, our signals are its own, and nothing of it stays behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from docker.errors import APIError
from recorded_engine import Engine, arguments

from toolkit.container import create, running
from toolkit.container.images import builder
from toolkit.container.request import EngineOptions
from toolkit.errors import ToolkitError


def test_a_container_knows_its_image_and_where_that_is_served(places: create.Places) -> None:
    given: dict[str, Any] = {}

    def create(**arguments: Any) -> None:
        given.update(arguments)
        raise APIError("no more is needed")

    def gone(*_: object, **__: object) -> None:
        raise APIError("no such container")

    image = SimpleNamespace(id="sha256:1", attrs={"RepoDigests": ["one@sha256:2", "other@sha256:2"]})
    client: Any = SimpleNamespace(
        containers=SimpleNamespace(list=lambda **_: []),
        api=SimpleNamespace(create_host_config=dict, create_container=create, remove_container=gone),
    )
    with pytest.raises(ToolkitError, match="the engine refused the container"):
        running.run(client, image, "ltdv2-true", arguments("cpu", "no-card", "true", places=places))  # type: ignore[arg-type]
    assert given["environment"]["TOOLKIT_IMAGE"] == "sha256:1"
    assert given["environment"]["TOOLKIT_IMAGE_DIGESTS"] == "one@sha256:2 other@sha256:2"


@pytest.mark.parametrize("request_", ["create", "start"])
def test_a_signal_before_the_command_runs_ends_it(request_: str, places: create.Places) -> None:
    def interrupt(request: str) -> None:
        if request == request_:
            os.kill(os.getpid(), signal.SIGINT)

    engine = Engine(before=interrupt)
    assert engine.run(places) == 130
    assert engine.state == "removed"


def test_a_second_signal_ends_the_wait_for_an_engine_that_hangs(places: create.Places) -> None:
    def hang(request: str) -> None:
        if request == "create":
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    engine = Engine(before=hang)
    with pytest.raises(KeyboardInterrupt):
        engine.run(places)
    assert engine.state == "removed"


def test_an_engine_that_goes_away_leaves_the_container_alone_and_names_it(places: create.Places) -> None:
    def vanish(request: str) -> None:
        if request == "wait":
            raise requests.exceptions.ConnectionError("connection aborted")

    engine = Engine(before=vanish)
    with pytest.raises(ToolkitError, match=r"went away; found connection aborted; .*docker logs -f ltdv2-"):
        engine.run(places)
    assert engine.state == "running"


def test_the_status_waits_for_the_reader_of_the_output(
    places: create.Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[float | None] = []
    monkeypatch.setattr(threading.Thread, "join", lambda thread, timeout=None: limits.append(timeout))
    assert Engine().run(places) == 0
    assert limits == [None]


@pytest.mark.parametrize(("shell", "sent"), [(False, "SIGTERM"), (True, "SIGHUP")])
def test_a_closed_terminal_stops_the_container(shell: bool, sent: str) -> None:
    kills: list[str] = []
    api: Any = SimpleNamespace(kill=lambda name, signal: kills.append(signal))
    before = signal.getsignal(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with running.forwarding(api, running.Made(api, "name"), tty=False, shell=shell):
            os.kill(os.getpid(), signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # nohup
        with running.forwarding(api, running.Made(api, "name"), tty=False, shell=shell):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert kills == [sent]


def test_a_name_that_another_has_is_counted_on(places: create.Places) -> None:
    engine = Engine()
    engine.taken = ["ltdv2-true", "ltdv2-true-2"]
    assert engine.run(places) == 0
    assert engine.name == "ltdv2-true-3"


def test_an_ended_container_of_this_checkout_gives_its_name_up(places: create.Places) -> None:
    engine = Engine()
    engine.taken = ["ltdv2-true"]
    engine.inspected = {
        "State": {"Status": "exited"},
        "Config": {"Labels": {create.OWNER: builder()}},
    }
    assert engine.run(places) == 0
    assert engine.name == "ltdv2-true"


def test_an_ended_container_of_somebody_else_keeps_its_name(places: create.Places) -> None:
    engine = Engine()
    engine.taken = ["ltdv2-true"]
    engine.inspected = {"State": {"Status": "exited"}, "Config": {"Labels": {create.OWNER: "another"}}}
    assert engine.run(places) == 0
    assert engine.name == "ltdv2-true-2"


@pytest.mark.parametrize(
    ("state", "reason"),
    [({"Status": "exited", "OOMKilled": True}, "no memory left"), ({"Status": "exited"}, "docker kill")],
)
def test_a_killed_container_says_so(
    state: dict[str, Any], reason: str, places: create.Places, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine()
    engine.status, engine.inspected = 137, {"State": state}
    assert engine.run(places) == 137
    assert "was killed" in (printed := capsys.readouterr().err)
    assert reason in printed


def test_a_detached_container_is_left_to_itself_and_named(
    places: create.Places, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = Engine()
    assert engine.run(places, options=EngineOptions(detach=True)) == 0
    assert engine.state == "running"
    assert "toolkit container logs ltdv2-true" in capsys.readouterr().err


def test_what_a_killed_command_left_behind_goes_at_the_next(places: create.Places) -> None:
    engine, removed = Engine(), []
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=subprocess.PIPE)
    left = SimpleNamespace(
        labels={create.STANDS: ended.stdout.decode().strip()}, remove=lambda: removed.append("left")
    )
    # Another command of this checkout, which is about to read how its container ended.
    read = SimpleNamespace(
        labels={create.STANDS: str(os.getppid())}, remove=lambda: removed.append("another's")
    )

    def listed(*, all: bool, filters: dict[str, Any], ignore_removed: bool) -> list[Any]:
        assert filters["status"] == "exited"
        assert filters["label"] == [f"{create.OWNER}={builder()}", f"{create.ATTACHED}=yes"]
        return [read, left]

    engine.containers = SimpleNamespace(list=listed)
    assert engine.run(places) == 0
    assert removed == ["left"]
