"""Parts of a split for experiments: some months, and a part of the clips of each.

Frames of one clip are nearly alike, so a part of the frames would keep nearly all there is to learn and show
nothing about less data; a part of the clips is a smaller dataset of the same kind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from toolkit import ltdv2
from toolkit.errors import ToolkitError
from toolkit.vocabulary import LTDV2, Vocabulary

if TYPE_CHECKING:
    from toolkit.dataset.index import Split

MONTHS = {**{name: int(digits) for name, digits in ltdv2.MONTHS.items()}, "sep": 202009}
"""LTDv2's months. The first eight are those that the challenge scores."""


class Subset(msgspec.Struct, frozen=True):
    """Which images of a split to use. The same part of the same split is always the same clips.

    Attributes:
        months: as YYYYMM; all if there are none.
        part: of the frames of each month, in (0, 1].
    """

    months: tuple[int, ...] = ()
    part: float = 1.0

    @classmethod
    def parse(cls, months: str | None = None, part: str | None = None, words: Vocabulary = LTDV2) -> Subset:
        """From what a person writes: ``feb,mar`` and ``10%``; of other data the names of its parts.

        Raises:
            ToolkitError: a name that is no month, or a part outside (0, 1].
        """
        chosen = parse_months(months, words) if months is not None else ()
        return cls(tuple(sorted(set(chosen))), parse_part(part) if part is not None else 1.0)

    @property
    def is_all(self) -> bool:
        """Whether nothing is left out."""
        return self == Subset()

    def words(self, vocabulary: Vocabulary) -> str:
        """For a person, who knows the parts of other data by their names."""
        names = {number: name for name, number in MONTHS.items()} | vocabulary.names_of_parts()
        months = ", ".join(names.get(month, f"part {month}") for month in self.months) or "all months"
        return months if self.part == 1 else f"{months}, {100 * self.part:.3g} % in whole clips"

    def __str__(self) -> str:
        return self.words(LTDV2)

    def rows(self, split: Split) -> npt.NDArray[np.int64]:
        """Rows of the split; see :func:`select`."""
        return np.arange(len(split)) if self.is_all else select(split, months=self.months, part=self.part)


def parse_months(text: str, words: Vocabulary = LTDV2) -> list[int]:
    """Months from a list such as ``feb`` or ``jan,mar,202007``, as YYYYMM; of other data its parts' numbers.

    Raises:
        ToolkitError: a name that is no month of LTDv2, or no part of the data.
    """
    if words.is_own:
        return [_part(word.strip(), words) for word in text.split(",")]
    found = []
    for word in text.lower().replace(" ", "").split(","):
        month = MONTHS.get(word, int(word) if word.isdigit() else 0)
        if month not in MONTHS.values():
            raise ToolkitError(f"no month named {word!r}", expected=", ".join(MONTHS))
        found.append(month)
    return found


def _part(name: str, words: Vocabulary) -> int:
    if name not in words.parts:
        raise ToolkitError(f"no {words.by} named {name!r}", expected=", ".join(words.parts))
    return words.parts[name]


def parse_part(text: str) -> float:
    """A part from ``10%`` or ``0.1``. Raises ToolkitError unless it lies in (0, 1]."""
    try:
        part = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        part = 0.0
    if not 0 < part <= 1:
        raise ToolkitError(f"{text!r} is no part of a dataset", expected="such as 10% or 0.1")
    return part


def select(
    split: Split, *, months: Iterable[int] = (), part: float = 1.0, seed: int = 0
) -> npt.NDArray[np.int64]:
    """Rows of a split: the given months, and of each month whole clips with about this part of its frames.

    Args:
        split: the split.
        months: as YYYYMM; all by default.
        part: of the frames of each month, in (0, 1].
        seed: of the choice of clips.

    Returns:
        (n,) int64, ascending. At least one clip of every month that the split has.

    Raises:
        ToolkitError: the split has no image of these months.
    """
    months = list(months)
    chosen = np.isin(split.months, months) if months else np.ones(len(split), bool)
    if not chosen.any():
        named = split.vocabulary.names_of_parts()
        raise ToolkitError(
            f"the {split.name} split has no image of " + ", ".join(named.get(m, str(m)) for m in months),
            expected=", ".join(named.get(m, str(m)) for m in np.unique(split.months).tolist()),
        )
    if part < 1:
        keep = np.zeros(len(split), bool)
        for month in np.unique(split.months[chosen]):
            rows = np.flatnonzero(chosen & (split.months == month))
            clips, of, sizes = np.unique(split.clips[rows], return_inverse=True, return_counts=True)
            order = np.random.default_rng([seed, month]).permutation(len(clips))
            before = np.cumsum(sizes[order]) - sizes[order]
            # A clip is taken when half of it or more still fits.
            taken = order[(before + sizes[order] / 2 <= part * len(rows)) | (before == 0)]
            keep[rows[np.isin(of, taken)]] = True
        chosen = keep
    return np.flatnonzero(chosen)
