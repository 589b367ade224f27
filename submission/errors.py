"""The one exception of this package, what a JSON decoder raises, and what helps a file not written."""

from __future__ import annotations

import errno

import msgspec

NO_JSON = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the wanted JSON, are no UTF-8, or nest without end."""


class SubmissionError(ValueError):
    """A file that the organisers would refuse, or that is not what it says it is.

    Attributes:
        what, found, expected, fix: the four parts of the message, each may be empty but ``what``.
    """

    def __init__(self, what: str, found: str = "", expected: str = "", fix: str = "") -> None:
        self.what, self.found, self.expected, self.fix = what, found, expected, fix
        super().__init__("; ".join(part for part in (what, found, expected, fix) if part))


def remedy(error: OSError) -> str:
    """What helps where a file could not be written: space on a full disk, else another place."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space"
    return "choose a place that this user may write"
