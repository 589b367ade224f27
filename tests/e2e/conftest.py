"""One run of the demo, shared by the tests that look at what it left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from demo_run import Demo

ROOT = Path(__file__).parents[2]

WATCH_NETWORK = """
import os, sys

def _hook(event, args):
    if event in ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname"):
        address = args[1] if event == "socket.connect" else args[0]
        if isinstance(address, (str, bytes)) and event == "socket.connect":
            return  # a Unix socket
        with open(os.environ["NETWORK_LOG"], "a") as log:
            print(event, address, sys.argv, file=log)
        raise OSError("the network is cut off")

sys.addaudithook(_hook)
"""


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Demo:
    """``scripts/demo`` in an empty workspace with an empty home, every attempt at the network refused."""
    base = tmp_path_factory.mktemp("demo")
    workspace, home, site = base / "workspace", base / "home", base / "site"
    for folder in (workspace, home, site):
        folder.mkdir()
    (site / "sitecustomize.py").write_text(WATCH_NETWORK)
    log = base / "network.log"
    log.touch()
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(home),
        "PYTHONPATH": f"{site}:{ROOT}",
        "NETWORK_LOG": str(log),
        "TOOLKIT_WORKSPACE": str(workspace),
        "COLUMNS": "200",
        "OMP_NUM_THREADS": "1",  # beside other tests a second thread mostly waits
    }
    data, run = workspace / "data" / "demo", workspace / "runs" / "demo"
    result = subprocess.run(
        [ROOT / "scripts" / "demo", data, run],
        cwd=workspace,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert result.returncode == 0, result.stdout[-4000:]
    return Demo(workspace, data, run, result.stdout, log.read_text(), environment)
