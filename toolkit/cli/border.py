"""The command's border: whatever ends a command becomes a line and a status, a fault of ours three lines.

Input that cannot be used raises :class:`ToolkitError` where it is met. What the machine refuses (a full disk,
a folder without permission) is an OSError that names a path. Everything else is a fault of the toolkit: its
trace goes into a file, because a page on the terminal hides what happened.
"""

from __future__ import annotations

import errno
import itertools
import os
import platform
import re
import select
import shlex
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

import typer

from patches.cache import cache_folder
from toolkit import NAME, __version__, console
from toolkit.errors import ToolkitError, reason

UsageError: Any = typer.BadParameter.__base__
"""Typer's newer versions carry a click of their own; this class is what both ways have in common."""

KEPT_TRACES = 20

INTERRUPTED = "interrupted; nothing half-written was left behind"

OF_A_PATH = frozenset(
    {
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENOTEMPTY,
        errno.EBUSY,
        errno.ETXTBSY,
        errno.ENXIO,
        errno.ENODEV,
        errno.ESTALE,
    }
)
"""What the system says of a path that a person named."""

OF_THE_MACHINE = frozenset(
    {
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EFBIG,
        errno.EROFS,
        errno.EIO,
        errno.EMFILE,
        errno.ENFILE,
        errno.ENOMEM,
    }
)
"""What it says of itself, with a path or without: full, read-only, broken, or out of handles."""


def run(command: Callable[[], Any]) -> NoReturn:
    """Run a command to its end and leave the process with its status.

    Raises:
        SystemExit: always; 0 done, 1 an error, 2 a call that does not parse, 130 Ctrl-C, or what
            :class:`ToolkitError` says.
    """
    _open_streams()
    try:
        status = command()
        sys.stdout.flush()
    except Exception as error:
        sys.exit(_end(error))
    except KeyboardInterrupt:
        status = 130
    if status == 130:  # newer versions of typer return it for Ctrl-C, and say nothing
        console.note(INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _open_streams() -> None:
    """Make both outputs take any text: a file's name need not be text, nor a terminal be able to show it."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started the command
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115 - for as long as the process
        reconfigure = getattr(getattr(sys, name), "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def _end(error: Exception) -> int:
    """Say what ended the command; the status to leave with."""
    if isinstance(error, UsageError):
        return _usage(error)
    if isinstance(error, ToolkitError):
        console.fail(error)
        return error.exit_code
    if isinstance(error, typer.Abort):
        console.note(INTERRUPTED)
        return 130
    if isinstance(error, OSError) and _output_is_gone(error):
        return 1
    if debugging():
        console.note(_trace(error))
    if known := _translated(error):
        console.fail(known)
        return known.exit_code
    _report(error)
    return 1


def _usage(error: Any) -> int:
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
    else:
        message = " ".join(error.format_message().split()).rstrip(".")  # choices come a line each
        console.fail(ToolkitError(message.replace("Value error, ", ""), fix=_advice(error, message)))
    return int(error.exit_code)


def _advice(error: Any, message: str) -> str:
    """What to type instead of a call that does not parse."""
    if error.ctx is None:
        return "toolkit --help"
    root, command = error.ctx.find_root(), error.ctx.command_path
    option = getattr(error, "option_name", None)
    if option in {name for each in root.command.params for name in (*each.opts, *each.secondary_opts)}:
        verb = command.removeprefix(root.command_path).strip()
        return f"{option} stands before the verb: {root.command_path} {option} {verb}"
    extra = re.fullmatch(r"Got unexpected extra arguments?(?:\(s\))? \((.+)\)", message)
    if extra and any(Path(word).is_file() for word in extra[1].split()):
        return f"quote a pattern such as '*.jpg', so that it arrives as one word; {command} --help"
    return f"{command} --help"


def _translated(error: Exception) -> ToolkitError | None:
    """The error of another package's kind that a person can mend, in our words."""
    from submission import SubmissionError  # imports numpy, which --help can do without

    if isinstance(error, SubmissionError):
        return ToolkitError(error.what, error.found, error.expected, error.fix)
    if not isinstance(error, OSError):
        return None
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if _is_path(name)]
    if error.errno in OF_THE_MACHINE or (names and error.errno in OF_A_PATH):
        what = f"cannot use {' and '.join(names)}" if names else "the system refused to go on"
        return ToolkitError(what, found=reason(error), fix="`toolkit --debug VERB ...` shows where")
    return None


def _is_path(name: object) -> bool:
    return isinstance(name, (str, bytes, os.PathLike))


def _output_is_gone(error: OSError) -> bool:
    """Whether standard output takes no more; a reader that has gone (`| head`) needs no word about it."""
    if error.filename or error.errno not in (errno.EPIPE, errno.ENOSPC):
        return False
    with suppress(OSError, ValueError):  # an output that is no file
        output = sys.stdout.fileno()
        if not (_has_no_reader(output) if error.errno == errno.EPIPE else _is_full(output)):
            return False
        os.dup2(os.open(os.devnull, os.O_WRONLY), output)  # or the interpreter complains at its end
        if error.errno != errno.EPIPE:
            console.fail(ToolkitError("cannot write standard output", found=reason(error)))
        return True
    return False


def _has_no_reader(output: int) -> bool:
    watch = select.poll()
    watch.register(output, 0)
    return bool(watch.poll(0))


def _is_full(output: int) -> bool:
    try:
        os.write(output, b"\n")
    except OSError as error:
        return error.errno == errno.ENOSPC
    return False


def _report(error: Exception) -> None:
    """Three lines: what was being done, the exception, and where the trace is."""
    words = shlex.join(["toolkit", *sys.argv[1:]])
    console.fail(ToolkitError(f"a fault of the toolkit ended `{_short(words)}`"))
    console.note(_short(f"{type(error).__name__}: {error}"))
    system = f"toolkit {__version__}, {platform.platform()}, Python {sys.version}"
    try:
        place = _keep(f"{words}\n{system}\n\n{_trace(error)}")
    except OSError as failed:
        why = f"the trace could not be written ({reason(failed)})"
        console.note(f"{why}; to report the fault, send what `toolkit --debug VERB ...` prints")
        return
    console.note(f"trace: {place}; to report the fault, send it with what `toolkit doctor --json` prints")


def _trace(error: Exception) -> str:
    return "".join(traceback.format_exception(type(error), error, error.__traceback__))


def debugging() -> bool:
    """Whether ``--debug`` stands before the verb."""
    return "--debug" in itertools.takewhile(lambda word: word.startswith("-"), sys.argv[1:])


def _short(text: str, length: int = 300) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 3]}..."


def _keep(text: str) -> Path:
    """Write a trace, and drop all but the newest :data:`KEPT_TRACES`."""
    folder = cache_folder(NAME) / "traces"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.txt"
    path.write_text(text, encoding="utf-8", errors="backslashreplace")
    for old in sorted(folder.glob("*.txt"))[:-KEPT_TRACES]:
        old.unlink(missing_ok=True)
    return path
