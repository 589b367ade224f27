"""What make hands over, and what is refused before anything is fetched."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from toolkit.container import profiles
from toolkit.container.verbs import VERBS


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    """What make would run."""
    return subprocess.run(
        ["make", "--dry-run", "--no-print-directory", *arguments],
        cwd=profiles.ROOT,
        capture_output=True,
        text=True,
        check=True,
    )


def test_make_hands_over_a_folder_with_a_space() -> None:
    assert (
        '--profile "cpu" --data "my data/ltdv2"'
        in make("docker-shell", "PROFILE=cpu", "DATA=my data/ltdv2").stdout
    )


def test_making_the_small_environment_leaves_the_systems_python_alone(tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text(
        "#!/bin/sh\n"
        '[ "$2" = venv ] || { echo "$2" >> calls; exit; }\n'
        'mkdir -p "$3/bin"; ln -s "$0" "$3/bin/python"\n'
    )
    python.chmod(0o755)
    os.utime(python, (1, 1))  # older than anything, as the system's is
    (tmp_path / "docker").mkdir()
    for name in ("Makefile", "docker/docker.mk", "docker/constraints.txt"):
        shutil.copy(profiles.ROOT / name, tmp_path / name)
    for _ in range(2):
        subprocess.run(["make", "docker-build", f"PYTHON={python}"], cwd=tmp_path, check=True)
    assert python.stat().st_mtime == 1
    assert (tmp_path / "calls").read_text().split() == ["pip", "toolkit", "toolkit"]


def test_an_environment_of_another_python_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    (tmp_path / "lib/python3.12/site-packages/torch").mkdir(parents=True)
    (tmp_path / "docker").symlink_to("/bin/false")  # no such image
    result = subprocess.run(
        [sys.executable, profiles.ROOT / "scripts/make-cpu-base", "--torch-from", tmp_path],
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.stderr == f"make-cpu-base: {tmp_path} has no PyTorch for Python 3.11\n"


def test_a_profile_that_does_not_exist_is_refused_before_anything_is_installed() -> None:
    result = subprocess.run(
        [profiles.ROOT / "scripts/container-test", "nope"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stderr == (
        "container-test: no profile nope; expected cpu, nvidia, rdna1, rdna2, rdna3, rdna4, rocm52\n"
    )


def test_a_small_environment_is_enough_to_drive_an_engine(tmp_path: Path) -> None:
    given = (profiles.ROOT / "docker/docker.mk").read_text()
    assert "docker msgspec numpy rich typer\n" in given  # what .venv-docker holds
    program = (
        "import sys\n"
        "for name in 'torch torchvision ultralytics polars cv2 yaml pycocotools psutil'.split():\n"
        "    sys.modules[name] = None\n"
        "sys.argv = ['toolkit', 'container', 'run', '--profile', 'none', 'true']\n"
        "from toolkit.cli import main\n"
        "main()\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(profiles.ROOT), "TOOLKIT_WORKSPACE": str(tmp_path)}
    result = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False
    )
    assert (
        result.stderr == "error: no profile none; expected cpu, nvidia, rdna1, rdna2, rdna3, rdna4, rocm52\n"
    )


def test_every_verb_has_a_target_and_every_target_of_a_verb_says_what_it_does() -> None:
    listed = subprocess.run(
        ["make", "help"], cwd=profiles.ROOT, capture_output=True, text=True, check=True
    ).stdout
    for name in (*VERBS, "build", "test", "run", "shell", "doctor", "ps", "logs", "attach", "stop", "prune"):
        assert f"docker-{name} " in listed


def test_a_quote_in_args_reaches_the_verb() -> None:
    given = """--out "it's here.json\""""
    for verb in ("train", "predict", "submit"):
        line = make(f"docker-{verb}", f"ARGS={given}").stdout
        assert f"container {verb} " in line
        assert line.rstrip().endswith(given)


def test_a_machine_that_works_with_limits_is_no_failure_of_make(tmp_path: Path) -> None:
    for status, code in ((0, 0), (1, 0), (2, 2)):
        python = tmp_path / "bin/python"
        python.parent.mkdir(exist_ok=True)
        python.write_text(f"#!/bin/sh\nexit {status}\n")
        python.chmod(0o755)
        (tmp_path / ".installed").touch()
        os.utime(tmp_path / ".installed", (2**33, 2**33))
        done = subprocess.run(
            ["make", "docker-doctor", f"VENV={tmp_path}", f"ENGINE_VENV={tmp_path}"],
            cwd=profiles.ROOT,
            capture_output=True,
            check=False,
        )
        assert done.returncode == code
