"""The one exception that a command turns into a line for its user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
"""What would break a line, or speak to the terminal."""


STATUSES = {
    0: "done: what was made can be used",
    1: "an error, one line says which; of verify and doctor, their verdict: something is bad or limited",
    2: "a call that does not parse; of doctor, a machine that cannot train",
    75: "a training that SIGTERM or a closed terminal stopped after saving: --resume goes on",
    130: "Ctrl-C: a training was saved, nothing else is left half-written",
}
"""What a command's exit status means, for all verbs."""


UNPARSED = 2
"""The status of a call that does not parse."""


class ToolkitError(Exception):
    """A problem that the user can understand and mend.

    Attributes:
        what: the subject and what is wrong with it ("Train.json is cut off").
        found: what was there ("end of file at byte 1,024").
        expected: what should have been there ("a JSON object that closes").
        fix: what to do next ("download it again: toolkit dataset download DIR").
        exit_code: the status that the command ends with.
    """

    def __init__(
        self, what: str, found: str = "", expected: str = "", fix: str = "", *, exit_code: int = 1
    ) -> None:
        self.what, self.found, self.expected, self.fix = what, found, expected, fix
        self.exit_code = exit_code
        super().__init__(self.line())

    def line(self) -> str:
        """The message as one line: what; found ...; expected ...; fix. Names may hold any character."""
        parts = [self.what]
        if self.found:
            parts.append(f"found {self.found}")
        if self.expected:
            parts.append(f"expected {self.expected}")
        if self.fix:
            parts.append(self.fix)
        return _CONTROL.sub(" ", "; ".join(parts))

    def lines(self) -> list[str]:
        """The message for a terminal: what; below it what was found and expected; then the hint."""
        parts = [self.what]
        if self.found:
            parts.append(f"  found     {self.found}")
        if self.expected:
            parts.append(f"  expected  {self.expected}")
        if self.fix:
            parts.append(f"hint: {self.fix}")
        return [_CONTROL.sub(" ", part) for part in parts]


class CallError(ToolkitError):
    """A call that does not parse, whatever the files and the machine hold (status 2).

    A value is of another form than its flag takes, or flags exclude each other. A name of what is not there
    (a file, a run, a preset, a month, a device) is an error like any other.
    """

    def __init__(self, what: str, found: str = "", expected: str = "", fix: str = "") -> None:
        super().__init__(what, found, expected, fix, exit_code=UNPARSED)


@contextmanager
def ending_with(exit_code: int) -> Iterator[None]:
    """Inside, a :class:`ToolkitError` ends the command with this status."""
    try:
        yield
    except ToolkitError as error:
        error.exit_code = exit_code
        raise


def reason(error: Exception) -> str:
    """Why something failed, without the number and the path that an OSError repeats."""
    why = getattr(error, "strerror", None) or str(error)
    return why[:1].lower() + why[1:]
