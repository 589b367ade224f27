"""What the classes of a dataset and its parts are called: LTDv2's and its months, or those of one's own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from submission.errors import NO_JSON
from submission.validate import LABELS
from toolkit.errors import ToolkitError, reason
from toolkit.ltdv2 import MONTHS

FILE = "dataset.json"
"""Beside the annotation files of data that is not LTDv2."""


class Vocabulary(msgspec.Struct, frozen=True):
    """Names of a dataset's classes and parts.

    Attributes:
        classes: label, from 1, -> name.
        parts: name -> number, for the parts that the consistency is taken over; of LTDv2 the months, YYYYMM.
        by: what the parts are, in a word.
        source: what it was made from; empty for LTDv2.
    """

    classes: dict[int, str]
    parts: dict[str, int]
    by: str = "month"
    source: str = ""

    @property
    def is_own(self) -> bool:
        """Whether this is another dataset than the challenge's."""
        return bool(self.source)

    def names_of_parts(self) -> dict[int, str]:
        """Number in the column ``month`` -> name; none of LTDv2, whose numbers are read as they are."""
        return {number: name for name, number in self.parts.items()} if self.is_own else {}

    def counted(self, parts: int) -> str:
        """``8 months``, ``4 parts by altitude`` or ``one part``."""
        if not self.is_own:
            return f"{parts} months"
        return "one part" if parts == 1 else f"{parts} parts by {self.by}"

    @property
    def remedy(self) -> str:
        """What to do where the files are wrong."""
        return f"mend {self.source}" if self.is_own else "download the files again"


LTDV2 = Vocabulary(
    classes=dict(LABELS),
    parts={name: int(digits) for name, digits in MONTHS.items()},
)
"""The challenge's classes and the eight months that it scores."""


def capitalised(name: str) -> str:
    """The name of a class or part as it begins a line: ``may`` as ``May``, ``OtherVehicle`` as it is."""
    return name[:1].upper() + name[1:]


def of_data(data: Path) -> Vocabulary:
    """The vocabulary of a data folder: its ``dataset.json``'s, else LTDv2's.

    Raises:
        ToolkitError: the file is damaged.
    """
    path = data / FILE
    if not path.is_file():
        return LTDV2
    try:
        return msgspec.json.decode(path.read_bytes(), type=Vocabulary)
    except (OSError, *NO_JSON) as error:
        raise ToolkitError(
            f"{path} cannot be used",
            found=reason(error),
            expected="what `toolkit dataset prepare` wrote",
            fix="prepare the data again from its source",
        ) from error
