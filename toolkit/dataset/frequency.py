"""How often frames come in training, and how often rare objects are pasted into them.

Neighbouring frames of a clip are a second apart and nearly alike; a class of few boxes is shown so rarely
that other classes decide every step. Both are answered by one sequence: the frames by clip and time, each as
often as its class asks for, of which an epoch takes every n-th. So what is repeated is spread over the clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import msgspec
import numpy as np
import numpy.typing as npt

from submission.validate import LABELS
from toolkit.dataset.order import EpochOrder
from toolkit.errors import ToolkitError

if TYPE_CHECKING:
    from toolkit.dataset.index import Split

Classes = Mapping[int, str]
"""Label -> name."""

MOST = 1000
"""Times that a frame may come in place of once."""


class Frequency(msgspec.Struct, frozen=True):
    """How often the frames of the training split come.

    Attributes:
        every: an epoch shows each so-manieth frame of every clip, the next epoch others.
        repeat: label of a class -> how many times as often frames that hold it come; of several classes in a
            frame the rarest, that is the largest number, counts.
    """

    every: int = 1
    repeat: dict[int, int] = {}

    @classmethod
    def parse(
        cls, every: int | None = None, repeat: str | None = None, classes: Classes = LABELS
    ) -> Frequency:
        """From what a person writes: ``5`` and ``motorcycle=8,bicycle=2``; ``classes`` are those of the data.

        Raises:
            ToolkitError: a number below 1, or a name that is no class.
        """
        if every is not None and every < 1:
            raise ToolkitError(f"no training on every {every}th frame", expected="1 or more")
        times: dict[int, int] = {}
        for word, label, number in _by_class(repeat, classes):
            if label is None or not number.isdecimal() or not 1 <= int(number) <= MOST:
                names = ", ".join(classes.values())
                raise ToolkitError(
                    f"{word!r} repeats no class",
                    expected=f"such as {_example(classes, 8, 2)}: {names}, each 1 to {MOST}; or none",
                )
            if label in times:
                raise ToolkitError(f"{classes[label]} is repeated twice", found=repeat or "")
            times[label] = int(number)
        return cls(every or 1, times)

    @property
    def is_plain(self) -> bool:
        """Whether every frame comes once an epoch."""
        return self.every == 1 and not self.repeat

    def validations(self, epochs: int) -> int:
        """Epochs of so many that are validated: those that end a pass over the frames, and the last."""
        return -(-epochs // self.every)

    def words(self, classes: Classes) -> str:
        """For a person, who knows the classes by their names."""
        words = [f"one frame in {self.every} of each clip"] if self.every > 1 else []
        words += [f"frames with a {classes[label]} {n} times" for label, n in self.repeat.items()]
        return ", ".join(words) or "every frame once"

    def order(self, split: Split, rows: npt.NDArray[np.int64], seed: int) -> EpochOrder:
        """What the epochs of a run show.

        Args:
            split: the split.
            rows: (n,) of the images that are used; samples count these.
            seed: of the run.

        Raises:
            ToolkitError: no image holds a class that is to be repeated.
        """
        if self.is_plain:
            return EpochOrder(len(rows), seed)
        times = np.ones(len(rows), np.int64)
        for label, number in self.repeat.items():
            holds = _holding(split, rows, label, "repeat")
            times[holds] = np.maximum(times[holds], number)
        by_time = np.lexsort((split.image_ids[rows], split.clips[rows]))
        return EpochOrder(len(rows), seed, np.repeat(by_time, times[by_time]), self.every)


EVERY_FRAME = Frequency()
"""Each frame once an epoch."""


class Paste(msgspec.Struct, frozen=True):
    """How often objects are pasted.

    Attributes:
        chances: label of a class -> the chance that a frame gets one of it, in (0, 1].
    """

    chances: dict[int, float] = {}

    @classmethod
    def parse(cls, text: str | None = None, classes: Classes = LABELS) -> Paste:
        """From what a person writes: ``motorcycle=0.3,bicycle=0.1``; ``classes`` are those of the data.

        Raises:
            ToolkitError: a name that is no class, twice, or a chance outside (0, 1].
        """
        chances: dict[int, float] = {}
        for word, label, number in _by_class(text, classes):
            try:
                chance = float(number)
            except ValueError:
                chance = 0.0
            if label is None or not 0 < chance <= 1 or label in chances:
                names = ", ".join(classes.values())
                raise ToolkitError(
                    f"{word!r} pastes nothing",
                    expected=f"such as {_example(classes, 0.3, 0.1)}: {names}, each once, 0 to 1; or none",
                )
            chances[label] = chance
        return cls(chances)

    def check(self, split: Split, rows: npt.NDArray[np.int64]) -> None:
        """Refuse a class that no frame holds.

        Args:
            split: that objects are taken from.
            rows: (n,) of the images that are used.

        Raises:
            ToolkitError: there is nothing of a class to paste.
        """
        for label in self.chances:
            _holding(split, rows, label, "paste")

    def words(self, classes: Classes) -> str:
        """For a person, who knows the classes by their names."""
        return ", ".join(
            f"a {classes[label]} in {chance:.3g} of frames" for label, chance in self.chances.items()
        )


NOTHING = Paste()
"""No object is pasted."""


def _by_class(text: str | None, classes: Classes) -> Iterator[tuple[str, int | None, str]]:
    """Of ``motorcycle=8,bicycle=2``: each word, the label of its class, None for no class, and its number.

    Of ``none``, by which a flag overrules a preset: nothing.
    """
    labels = {name: label for label, name in classes.items()}
    for word in [] if text is None or text == "none" else map(str.strip, text.split(",")):
        name, _, number = word.rpartition("=") if "=" in word else (word, "", "")
        yield word, labels.get(name.strip()), number.strip()


def _example(classes: Classes, first: float, second: float) -> str:
    """What could be written; of LTDv2 its rare classes."""
    two = ("motorcycle", "bicycle") if classes == LABELS else tuple(classes.values())[:2]
    return ",".join(f"{name}={number:g}" for name, number in zip(two, (first, second), strict=False))


def _holding(split: Split, rows: npt.NDArray[np.int64], label: int, verb: str) -> npt.NDArray[np.bool_]:
    """(n,) whether an image of these rows has a box of the class.

    Raises:
        ToolkitError: none has.
    """
    tables = split.training
    image = np.repeat(np.arange(len(tables.images)), tables.images["boxes"])
    holds = np.zeros(len(tables.images), np.bool_)
    holds[image[tables.boxes["label"] == label]] = True
    if not holds[rows].any():
        raise ToolkitError(
            f"no {split.vocabulary.classes[label]} to {verb}",
            found=f"none in the {len(rows):,} frames of {split.name} that are used",
            fix=f"leave it out of --{verb}, or train on more months or clips",
        )
    return holds[rows]
