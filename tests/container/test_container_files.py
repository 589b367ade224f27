"""What compose and Kubernetes are told is what ``toolkit container`` tells the engine."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from toolkit.container import create
from toolkit.container.profiles import ROOT


@pytest.fixture
def service() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker/compose.yaml").read_text())
    (only,) = content["services"].values()
    return {**only, "volumes_of_all": content["volumes"]}


@pytest.fixture
def pod() -> dict[str, Any]:
    job = yaml.safe_load((ROOT / "docker/kubernetes.yaml").read_text())
    template: dict[str, Any] = job["spec"]["template"]["spec"]
    return template


def test_compose_gives_no_right_and_no_variable_that_the_command_line_does_not(
    service: dict[str, Any],
) -> None:
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges"]
    assert set(service["environment"]) <= set(create.PASSED_ON)
    assert not {"privileged", "cap_add", "ipc", "pid", "userns_mode"} & service.keys()


def test_compose_leaves_nothing_that_another_project_could_take_for_its_own(service: dict[str, Any]) -> None:
    """Its project is named for this folder, "docker", by default, as many others' are."""
    assert all("ltdv2" in (volume or {}).get("name", "") for volume in service["volumes_of_all"].values())
    assert service["network_mode"] == "bridge"  # the engine's own: no network is made


def test_a_training_has_its_time_to_save_however_it_is_started(
    service: dict[str, Any], pod: dict[str, Any]
) -> None:
    assert service["stop_grace_period"] == f"{create.STOP_SECONDS}s"
    assert pod["terminationGracePeriodSeconds"] == create.STOP_SECONDS


def test_a_pod_has_no_right_and_is_asked_for_its_health_as_the_image_is(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod["securityContext"]["runAsNonRoot"]
    dockerfile = (ROOT / "docker/Dockerfile").read_text()
    found = re.search(
        r'HEALTHCHECK --interval=(\d+)s --timeout=(\d+)s .*--retries=(\d+) CMD \["(.*)"\]', dockerfile
    )
    assert found is not None
    probe = container["livenessProbe"]
    assert probe["exec"]["command"] == [found[4]]
    named = ("periodSeconds", "timeoutSeconds", "failureThreshold")
    assert [probe[name] for name in named] == [int(text) for text in found.groups()[:3]]
