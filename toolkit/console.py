"""What a person sees: progress, tables, messages, and errors with their hint.

Standard output carries results (tables, JSON); progress, notes and errors go to standard error, so
that ``toolkit ... --json | jq`` works.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from typing import Any, TextIO, TypeVar

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from toolkit.errors import ToolkitError

T = TypeVar("T")

out = Console()
err = Console(stderr=True)

PLAIN_INTERVAL = 10.0
"""Seconds between two progress lines when the output is no terminal."""

LARGE = 16_000_000
"""Bytes of JSON that take about a second to read: 211 MB of predictions took 12 s on two shared cores."""

LEAST_SECONDS = 1.0
"""A rate over less says nothing, and is not shown."""


class _PatientStream:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def outlive_readers() -> None:
    """From now on, what this process prints to a full disk, a closed terminal or a pipe without a reader is
    lost, and nothing else."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if not isinstance(stream, _PatientStream):
            setattr(sys, name, _PatientStream(stream))


_reword: Callable[[str], str] = str
"""Puts a message into the words of whoever called the toolkit."""


def reword_with(reword: Callable[[str], str]) -> None:
    """From now on, notes, warnings and errors are what ``reword`` makes of them."""
    global _reword
    _reword = reword


class Level(Enum):
    """How much a command says on standard error."""

    QUIET = "warnings and errors alone"
    NORMAL = "what was done, what comes next, and progress"
    VERBOSE = "also which files, data and device were chosen"


_level = Level.NORMAL

_details: set[str] = set()
"""What :func:`detail` has said."""


def speak(level: Level) -> None:
    """From now on, say this much, and each detail once."""
    global _level
    _level = level
    _details.clear()


def level() -> Level:
    """How much is said now."""
    return _level


def detail(message: str) -> None:
    """:func:`note`, for whoever asked for more (``-v``); what was said before is not said again."""
    if _level is Level.VERBOSE and message not in _details:
        _details.add(message)
        note(message)


def note(message: str) -> None:
    """Print one line for the person at the keyboard (standard error, no markup); not with ``-q``."""
    if _level is Level.QUIET:
        return
    err.print(escape(_reword(message)), highlight=False, soft_wrap=True)


def reading(path: Path) -> Path:
    """``path``, said in a line if it will take long to read."""
    with suppress(OSError):  # whoever reads it says what is wrong
        if (size := path.stat().st_size) > LARGE:
            note(f"reading {path}, {size / 1e6:,.0f} MB")
    return path


def warn(message: str) -> None:
    """Print a warning, one line (standard error)."""
    err.print(f"[yellow]warning:[/yellow] {escape(_reword(message))}", highlight=False, soft_wrap=True)


def fail(error: ToolkitError) -> None:
    """Print an error (standard error): one line, or on a terminal a line for each part of it."""
    lines = error.lines() if err.file.isatty() else [error.line()]
    what, *others = (escape(_reword(line)) for line in lines)
    others = [re.sub("^hint:", "[bold cyan]hint:[/bold cyan]", line) for line in others]
    err.print("\n".join([f"[bold red]error:[/bold red] {what}", *others]), highlight=False, soft_wrap=True)


def print_json(value: Any) -> None:
    """Print ``value`` as strict JSON on standard output, for a program to read; NaN becomes null."""
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value), indent=2).decode() + "\n")


class _RateColumn(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if (task.finished_time or task.elapsed or 0) < LEAST_SECONDS:
            speed = None
        return Text(f"{speed:,.0f} {self.unit}/s" if speed else f"- {self.unit}/s", style="cyan")


class _PlainProgress:
    def __init__(self, title: str, total: int | None, unit: str) -> None:
        self.title, self.total, self.unit = title, total, unit
        self.done, self.start = 0, time.monotonic()
        self.last, self.shown = self.start, -1

    def advance(self, n: int = 1) -> None:
        self.done += n
        now = time.monotonic()
        if now - self.last >= PLAIN_INTERVAL:
            self.last = now
            self.line()

    def line(self) -> None:
        """Print where things stand, unless the last line said it."""
        if self.shown == self.done:
            return
        self.shown = self.done
        elapsed = max(time.monotonic() - self.start, 1e-9)
        rate = self.done / elapsed
        fast = f", {rate:,.{0 if rate >= 10 else 1}f}/s" if elapsed >= LEAST_SECONDS else ""
        if self.total is None:
            text = f"{self.title}: {self.done:,} {self.unit}{fast}"
        else:
            left = f", {(self.total - self.done) / rate:,.0f} s left" if 0 < self.done < self.total else ""
            text = f"{self.title}: {self.done:,}/{self.total:,} {self.unit}{fast}{left}"
        note(text)


class Advance:
    """Handle that :func:`progress` yields: call it with the number of items just done."""

    def __init__(self, advance: Any) -> None:
        self._advance = advance

    def __call__(self, n: int = 1) -> None:
        self._advance(n)


@contextmanager
def progress(title: str, total: int | None, unit: str = "images") -> Iterator[Advance]:
    """Show a bar with rate and time left on a terminal, plain lines elsewhere.

    Args:
        title: what is being done.
        total: number of items, or None when it is not known.
        unit: what an item is, in the plural.
    """
    if _level is Level.QUIET:
        yield Advance(lambda n: None)
        return
    if not err.is_terminal:
        plain = _PlainProgress(title, total, unit)
        yield Advance(plain.advance)
        plain.line()
        return
    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _RateColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=err) as bar:
        task = bar.add_task(title, total=total)
        yield Advance(lambda n: bar.advance(task, n))


def track(items: Iterable[T], title: str, total: int | None = None, unit: str = "images") -> Iterator[T]:
    """Iterate over ``items`` under :func:`progress`."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with progress(title, total, unit) as advance:
        for item in items:
            yield item
            advance()


def duration(seconds: float) -> str:
    """Seconds as a person says them: 45 s, 12 min, 3 h 20 min, 2 d 4 h."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if hours < 48:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"
