"""Finding this checkout's containers again, and removing what is only ours."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from recorded_engine import FakeClient

from toolkit.container import create, images, manage
from toolkit.errors import ToolkitError


class FakeContainer(SimpleNamespace):
    """A container in a state; what is done to it is noted."""

    def __init__(self, name: str, status: str, **more: Any) -> None:
        attrs = {
            "State": {"ExitCode": 75, "StartedAt": "2026-01-02T03:04:05Z", **more.pop("state", {})},
            "Config": {"Image": "ltdv2-toolkit:cpu-1", "Tty": False},
            "Image": more.pop("image", "sha256:none"),
        }
        super().__init__(
            name=name, status=status, labels={create.COMMAND: "toolkit train"}, attrs=attrs, id=name
        )
        self.did: list[str] = []

    def stop(self, timeout: int) -> None:
        self.did.append(f"stop {timeout}")
        self.status = "exited"

    def reload(self) -> None:
        self.did.append("reload")

    def remove(self) -> None:
        self.did.append("remove")


@pytest.fixture
def client() -> FakeClient:
    return FakeClient()


def test_ps_says_state_health_and_status(client: FakeClient) -> None:
    client.running = [
        FakeContainer("ltdv2-train", "running", state={"Health": {"Status": "unhealthy"}}),
        FakeContainer("ltdv2-runs", "exited"),
    ]
    lines = manage.rows(client)  # type: ignore[arg-type]
    assert [line["state"] for line in lines] == ["running (unhealthy)", "exited (75)"]
    assert lines[0]["command"] == "toolkit train"


def test_ps_is_a_line_a_container_whatever_runs_in_it(client: FakeClient) -> None:
    client.running = [FakeContainer("ltdv2-sh", "running")]
    client.running[0].labels[create.COMMAND] = "sh -c 'cd runs &&\n\tls'"
    (line,) = manage.rows(client)  # type: ignore[arg-type]
    assert line["command"] == "sh -c 'cd runs && ls'"


def test_without_a_name_the_one_that_runs_is_meant(client: FakeClient) -> None:
    client.running = [FakeContainer("new", "exited"), FakeContainer("old", "running")]
    assert manage.find(client, None).name == "old"  # type: ignore[arg-type]
    assert manage.find(client, "new").name == "new"  # type: ignore[arg-type]
    client.running.append(FakeContainer("third", "running"))
    with pytest.raises(ToolkitError, match=r"which container\?; found new, old, third"):
        manage.find(client, None)  # type: ignore[arg-type]
    with pytest.raises(ToolkitError, match="no running container new"):
        manage.find(client, "new", alive=True)  # type: ignore[arg-type]
    client.running = []
    with pytest.raises(ToolkitError, match="no container; found no container of this checkout"):
        manage.find(client, None)  # type: ignore[arg-type]


def test_stop_gives_a_training_its_time_and_says_how_it_ended(
    client: FakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    one = FakeContainer("ltdv2-train", "running")
    client.running = [one]
    manage.stop(client, None)  # type: ignore[arg-type]
    assert one.did == [f"stop {create.STOP_SECONDS}", "reload"]
    assert "ltdv2-train ended with status 75" in capsys.readouterr().err


def test_prune_removes_only_what_nothing_here_needs(client: FakeClient, tmp_path: Path) -> None:
    ours, theirs = {images.BUILDER: images.builder()}, {images.BUILDER: "another"}
    client.image("ltdv2-toolkit:cpu-old", **ours)
    named = client.image("ltdv2-toolkit:cpu-of-a-run", **ours)
    used = client.image("ltdv2-toolkit:cpu-used", **ours)
    client.image("ltdv2-toolkit:cpu-now-on-another-base", **ours, **{images.REVISION: "now"})
    client.image("ltdv2-wheels-cpu:1", **ours)
    client.image("ltdv2-toolkit:cpu-theirs", **theirs)
    client.image("postgres:17")
    client.image("derived:1", **ours)
    weights = tmp_path / "first/weights"
    weights.mkdir(parents=True)
    (weights / "environment.json").write_text(json.dumps({"image": named.id}))
    ended, alive = FakeContainer("ended", "exited"), FakeContainer("alive", "running", image=used.id)
    client.running = [ended, alive]
    expected = ["container ended", "image ltdv2-toolkit:cpu-old"]
    needed = ("now", ["ltdv2-wheels-cpu:1"], tmp_path)
    assert manage.prune(client, *needed, dry_run=True) == expected  # type: ignore[arg-type]
    assert ended.did == []
    assert manage.prune(client, *needed, dry_run=False) == expected  # type: ignore[arg-type]
    assert (ended.did, alive.did) == (["remove"], [])
    assert "ltdv2-toolkit:cpu-old" not in [tag for image in client.known for tag in image.tags]
    assert len(client.known) == 7
