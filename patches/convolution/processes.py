"""The processes in which self-tests run; those with kernels to compile can begin before they are wanted.

Such a process imports torch and compiles beside the program that imports its own, and touches nothing of the
card but its name until the program has found that the test is wanted. Importing this imports no torch.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress

from .. import children, startup

BEGUN = "CONVROUTES_SELFTEST_BEGUN"
"""Variable in which the child finds when it was started, by the monotonic clock of the system."""

EARLY = "--early"
"""Flag of a process that is to wait for a line of its standard input before the test."""


class Process:
    """A self-test in a process of its own; :func:`patches.convolution.selftest.run` says what it answers.

    Attributes:
        begun: when, by ``time.monotonic``.

    Args:
        route, device, dtype: as there.
        early: whether the test is not wanted yet.

    Raises:
        OSError: no process could be started.
    """

    def __init__(self, route: str, device: str, dtype: str, early: bool = False) -> None:
        self.begun = time.monotonic()
        # The problems are small: threads cost more than they give, and several children may run at once.
        # Only the route under test may be switched on in them.
        environment = {"OMP_NUM_THREADS": "1", **children.environment(), startup.VARIABLE: "off"}
        environment.update(_handed_down(device), **{BEGUN: str(self.begun)})
        self._output = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed by the end
        try:
            self._child = subprocess.Popen(
                children.command(f"{__package__}.selftest", route, device, dtype, *[EARLY] * early),
                stdin=subprocess.PIPE if early else subprocess.DEVNULL,
                stdout=self._output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )
        except OSError:
            self._output.close()
            raise

    def finish(self, timeout: float) -> tuple[int | None, list[str]]:
        """Let the test begin, if it has not, and wait for its end.

        Args:
            timeout: seconds after which the child is killed.

        Returns:
            Its status, None where it was killed so, and the lines of its output.
        """
        try:
            with suppress(BrokenPipeError):
                if self._child.stdin is not None:
                    self._child.stdin.write(b"\n")
                    self._child.stdin.flush()
            code: int | None = self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            self._kill()
        with self._output:
            self._output.seek(0)
            return code, self._output.read().splitlines()

    def drop(self) -> None:
        """End the child, whose test is not wanted."""
        self._kill()
        self._output.close()

    def _kill(self) -> None:
        """End the child and what it started; one that hangs inside the driver cannot be waited for."""
        if sys.platform == "win32":
            self._child.kill()
        else:
            with suppress(ProcessLookupError):
                os.killpg(self._child.pid, signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        if self._child.stdin is not None:
            with suppress(BrokenPipeError):
                self._child.stdin.close()


def _handed_down(device: str) -> dict[str, str]:
    if "torch" not in sys.modules:
        return {}
    from .. import compiling

    return compiling.handed_down(device)


_early: dict[tuple[str, str, str], Process] = {}


def begin(route: str, device: str, dtype: str) -> None:
    """Begin a test that may be wanted; who calls this calls :func:`drop` when all that are wanted have run.

    Args:
        route, dtype: of the test.
        device: with its number, as the test will be asked for: "cuda:0".
    """
    if (route, device, dtype) not in _early:
        with suppress(OSError):
            _early[route, device, dtype] = Process(route, device, dtype, early=True)


def taken(route: str, device: str, dtype: str) -> Process | None:
    """The process that was begun for a test, for the caller to finish."""
    return _early.pop((route, device, dtype), None)


def drop() -> None:
    """End what was begun and not taken."""
    while _early:
        with suppress(KeyError):
            _early.popitem()[1].drop()
