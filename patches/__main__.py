"""Serves the convolutions of programs that nobody edited, and says what works on this card."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import site
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import NoReturn

from . import __version__, startup
from .convolution.registry import NAMES
from .convolution.selftest import DTYPES, TIMEOUT

_NAME = str(__package__)
_WITHOUT_VERB = (
    "Without a verb the doctor speaks; --json, --share FILE, --dtype and --timeout are its options."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse and run; without a verb the doctor speaks.

    Returns:
        Of ``run`` the program's own status, 2 for a wrong call, 127 where there is no such program; of
        ``doctor`` 0 fine, 1 works with limits, 2 will not work; of ``env`` 0.
    """
    parser = _Parser(prog=f"python -m {_NAME}", description=__doc__, epilog=_WITHOUT_VERB)
    parser.add_argument("--version", action="version", version=f"{_NAME} {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="{doctor,env,run}")
    doctor = verbs.add_parser("doctor", help="what works on this card, by self-test (the default)")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    doctor.add_argument("--share", metavar="FILE", help="write it without names and paths")
    doctor.add_argument(
        "--dtype", action="append", choices=DTYPES, help="try this one alone; may be given several times"
    )
    doctor.add_argument("--timeout", type=_seconds, default=TIMEOUT, help="seconds that a self-test may take")
    verbs.add_parser("env", help='exports for any Triton program on this card: eval "$(... env)"')
    run = verbs.add_parser("run", help="run a program, and what it starts, through a route")
    run.add_argument("--route", default="auto", choices=("auto", *NAMES), help="default: auto")
    run.add_argument("--device", choices=("cuda", "cpu"), help="default: the GPU where there is one")
    run.add_argument("--report", action="store_true", help="print at the end which route served what")
    run.add_argument("program", nargs=argparse.REMAINDER, help="a command, a .py file, or -m MODULE")
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help", "--version")):
        words.insert(0, "doctor")
    given, unknown = parser.parse_known_args(words)
    if unknown:
        verbs.choices[given.verb].error(f"unrecognized arguments: {' '.join(unknown)}")
    if given.verb == "run":
        return _run(run, given)
    return _env() if given.verb == "env" else _doctor(given)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """End with status 2 and one line: what is wrong, and where the usage is."""
        self.exit(2, f"{_NAME}: {message} ({self.prog} --help)\n")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 1 <= value <= 86_400:
            return value
    raise argparse.ArgumentTypeError(f"{text} seconds: expected 1 to 86400")


def _doctor(given: argparse.Namespace) -> int:
    from .doctor import examine, shareable

    found = examine(given.dtype or DTYPES, given.timeout)
    if given.share:
        try:
            Path(given.share).write_text(shareable(found) + "\n", encoding="utf-8")
        except OSError as error:
            return _fail(2, f"cannot write {given.share}: {error.strerror or error}")
    sys.stdout.write(f"{found.as_json() if given.json else found}\n")
    if given.share:
        _say(f"wrote {given.share}, without names and paths: read it before you attach it to a report")
    return int(found.verdict)


def _env() -> int:
    from .environment import exports

    wanted = exports()
    for name, value in wanted.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    if not wanted:
        sys.stdout.write("# no card of AMD's is in this machine: nothing is needed\n")
    return 0


def _run(parser: argparse.ArgumentParser, given: argparse.Namespace) -> int:
    program = given.program[1:] if given.program[:1] == ["--"] else given.program
    if not program:
        parser.error(
            "no program was given: run -- yolo train ..., run -- script.py ..., run -- -m module ..."
        )
    command = _command(program)
    if command is None:
        return _fail(127, f"{shlex.join(program)}: found no such command, .py file or -m MODULE")
    hindrance = _hindrance()
    if hindrance:
        return _fail(2, f"nothing would be switched on: {hindrance}, or call enable() in the program")
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
    _say(message)
    return status


def _say(message: str) -> None:
    sys.stderr.write(f"{_NAME}: {message}\n")


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


def _hindrance() -> str:
    """Why no Python like this one would call :func:`startup.autoload`, and what to do; "" where it does."""
    hooks: list[Path] = []
    with suppress(metadata.PackageNotFoundError):
        files = metadata.files(_NAME) or []
        hooks = [Path(str(file.locate())).parent.resolve() for file in files if file.name == f"{_NAME}.pth"]
    if not hooks:
        return (
            "found this package outside an installed wheel, which brings the hook that PyTorch calls; "
            "install the wheel"
        )
    with suppress(metadata.PackageNotFoundError):
        version = metadata.version("torch")
        folders = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
        read = {Path(each).resolve() for each in folders}
        if not startup.loads_backends(version) and read.isdisjoint(hooks):
            return (
                f"PyTorch {version} needs the wheel's .pth file, which Python reads in site-packages and not "
                f"in {hooks[0]}; install the wheel into the environment"
            )
    return ""


if __name__ == "__main__":
    sys.exit(main())
