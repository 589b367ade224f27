"""What a run of ``scripts/demo`` leaves behind, and how to go on from there."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Demo:
    """What ``scripts/demo`` left behind.

    Attributes:
        workspace: the folder that it ran in.
        data: LTDv2 in small.
        run: runs/demo.
        output: what it printed.
        network: every attempt to reach the network, a line each.
        environment: variables for further commands in the same workspace.
    """

    workspace: Path
    data: Path
    run: Path
    output: str
    network: str
    environment: dict[str, str]

    def toolkit(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command of the toolkit in the workspace."""
        result = subprocess.run(
            [sys.executable, "-m", "toolkit", *arguments],
            cwd=self.workspace,
            env=self.environment,
            capture_output=True,
            text=True,
        )
        assert not check or result.returncode == 0, result.stderr
        return result
