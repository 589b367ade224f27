"""PyTorch's own samples of every convolution, in a process of their own: see pytorch_samples.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def test_pytorchs_own_samples_are_computed_as_without_the_overrides() -> None:
    pytest.importorskip("expecttest", reason="PyTorch's samples of its operators need expecttest")
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent.parent), "OMP_NUM_THREADS": "1"}
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        str(HERE / "pytorch_samples.py"),
    ]
    done = subprocess.run(command, env=environment, cwd=HERE.parent.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert "22 passed" in done.stdout
