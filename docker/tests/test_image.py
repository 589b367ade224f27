"""What an image holds: its labels, PyTorch and the patches at work, and room for more on top."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path

import docker
import pytest
from container_commands import GID, IMAGE, PROFILE, ROOT, UID, call, command, write_wheel


@pytest.mark.timeout(1800)  # a suite in a test, with limits of its own
def test_the_convolution_tests_pass_inside(workspace: Path) -> None:
    # What computes here; the other files of the folder examine the source, which is the same everywhere.
    files = "test_convolution_*.py test_normalization.py test_patches_*.py test_triton_cuda.py"
    # One thread, as beside it other containers compute.
    tests = f"OMP_NUM_THREADS=1 python -m pytest -q -p no:cacheprovider {files} test_triton_route.py"
    script = f"cd /opt/ltdv2/tests/patches && HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis {tests}"
    inside = ["sh", "-c", script]
    assert call(command("run", workspace, *inside), workspace).returncode == 0


def test_the_doctor_knows_where_it_is(workspace: Path) -> None:
    start = time.monotonic()
    result = call(command("doctor", workspace, "--json"), workspace, stdout=subprocess.PIPE)
    print(f"\ndoctor: {time.monotonic() - start:.1f} s with the start of the container")
    report = json.loads(result.stdout)
    assert result.returncode == report["verdict"] <= 1
    if PROFILE == "cpu":
        assert report["recommendation"]["profile"]["value"] == "cpu"


def test_extra_certificate_authorities_are_trusted(workspace: Path) -> None:
    bundle = call(
        command("run", workspace, "cat", "/etc/ssl/certs/ca-certificates.crt"),
        workspace,
        stdout=subprocess.PIPE,
    )
    added = sorted((ROOT / "docker/certs").glob("*.crt"))
    print(f"\n{len(added)} extra certificate authorities")
    for path in added:
        first = path.read_text().split("-----BEGIN CERTIFICATE-----")[1].split()[0]
        assert first in bundle.stdout, path.name


def test_the_image_says_what_it_is(client: docker.DockerClient) -> None:
    image = client.images.get(IMAGE)
    labels = image.labels
    assert labels["io.ltdv2-toolkit.profile"] == PROFILE
    assert labels["org.opencontainers.image.version"]
    assert labels["org.opencontainers.image.revision"]
    assert labels["org.opencontainers.image.licenses"] == "AGPL-3.0-or-later"
    assert labels["org.opencontainers.image.created"].endswith("Z")
    assert labels["org.opencontainers.image.base.name"]
    assert image.attrs["Config"]["Healthcheck"]["Test"] == ["CMD", "/opt/build/healthcheck"]
    assert image.attrs["Config"]["User"] == "1000:1000"


def test_something_can_be_built_on_top_and_torch_stays(workspace: Path, client: docker.DockerClient) -> None:
    wheel, derived = "extra_wish-1.0-py3-none-any.whl", "ltdv2-toolkit-test:on-top"
    write_wheel(workspace / wheel)
    (workspace / "Dockerfile").write_text(
        f"FROM {IMAGE}\nUSER root\nCOPY {wheel} /tmp/\nRUN pip install --no-index /tmp/{wheel}\n"
        "RUN ! pip install --no-index 'torch==1.0'\nUSER 1000:1000\n"
    )
    client.images.build(path=str(workspace), tag=derived, rm=True, forcerm=True)
    try:
        show = ["python", "-c", "import extra_wish, torch; print(extra_wish.VALUE)"]
        line = command("run", workspace, f"--image={derived}", *show)
        assert call(line, workspace, stdout=subprocess.PIPE).stdout == "42\n"
    finally:
        client.images.remove(derived)


def test_a_plain_docker_run_takes_a_verb(workspace: Path, client: docker.DockerClient) -> None:
    volumes = {str(workspace): {"bind": "/workspace", "mode": "rw"}}
    options = {"user": f"{UID}:{GID}", "volumes": volumes, "remove": True}
    client.containers.run(IMAGE, ["sample", "data/x", "--train=4", "--val=2", "--test=2"], **options)
    assert (workspace / "data/x/frames.zip").stat().st_uid == UID
    assert b"ltdv2-toolkit" in client.containers.run(IMAGE, ["--version"], **options)
