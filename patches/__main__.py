"""``python -m NAME run -- PROGRAM ...`` serves the convolutions of a program that nobody edited."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from . import startup
from .convolution.registry import NAMES

_NAME = str(__package__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run. The status is the program's own; 2: a wrong call; 127: no such program."""
    parser = argparse.ArgumentParser(prog=f"python -m {_NAME}", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    run = verbs.add_parser("run", help="run a program, and what it starts, through a route")
    run.add_argument("--route", default="auto", choices=("auto", *NAMES), help="default: auto")
    run.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU where there is one")
    run.add_argument("--report", action="store_true", help="print at the end which route served what")
    run.add_argument("program", nargs=argparse.REMAINDER, help="a command, a .py file, or -m MODULE")
    given = parser.parse_args(arguments)
    program = given.program[1:] if given.program[:1] == ["--"] else given.program
    if not program:
        run.error("no program was given: run -- yolo train ..., run -- script.py ..., run -- -m module ...")
    command = _command(program)
    if command is None:
        return _fail(127, f"{program[0]}: found no such command, .py file or -m MODULE")
    if not _is_hooked():
        return _fail(
            2,
            "nothing would be switched on: found this package outside an installed wheel, which brings the "
            "hook that PyTorch calls; install the wheel, or call enable() in the program",
        )
    environment = {**os.environ, startup.VARIABLE: given.route}
    if given.device:
        environment[startup.DEVICE_VARIABLE] = given.device
    if given.report:
        environment[startup.REPORT_VARIABLE] = "1"
    sys.stdout.flush()
    if os.name == "posix":
        os.execve(command[0], command, environment)
    return subprocess.call(command, env=environment)  # exec on Windows returns before the program has ended


def _fail(status: int, message: str) -> int:
    sys.stderr.write(f"{_NAME}: {message}\n")
    return status


def _command(program: Sequence[str]) -> list[str] | None:
    """The words to execute; None where there is no such program."""
    first = program[0]
    if first == "-m":
        return [sys.executable, *program] if len(program) > 1 else None
    if first.endswith(".py"):
        return [sys.executable, *program] if Path(first).is_file() else None
    beside = str(Path(sys.executable).parent)
    found = shutil.which(first, path=os.pathsep.join([beside, os.environ.get("PATH", os.defpath)]))
    return [found, *program[1:]] if found else None


def _is_hooked() -> bool:
    """Whether a Python like this one will call :func:`startup.autoload`: the wheel's metadata are found."""
    try:
        return any(file.name == f"{_NAME}.pth" for file in metadata.files(_NAME) or [])
    except metadata.PackageNotFoundError:
        return False


if __name__ == "__main__":
    sys.exit(main())
