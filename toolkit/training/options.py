"""The options of ``toolkit train``, each declared once: its type, its bounds, and what belongs to it.

Flags, toolkit.toml's keys, help, what a run that goes on may change, and where the dry run says that a value
comes from follow from these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from toolkit.errors import ToolkitError
from toolkit.settings import Argument, Option, TrainingOptions, declared

if TYPE_CHECKING:
    from toolkit.dataset.frequency import Frequency
    from toolkit.dataset.subset import Subset
    from toolkit.vocabulary import Vocabulary


class Options(TrainingOptions, frozen=True, kw_only=True):
    """What the command line said; None where it said nothing. Those below are flags alone."""

    data: Annotated[Path | None, Option("Folder with LTDv2's files, prepared.", resume="apart")] = None
    subset: Annotated[
        str | None, Option("Train on a part such as 10%: whole clips, months in proportion.", resume="apart")
    ] = None
    months: Annotated[str | None, Option("Train on these months alone, such as feb,mar.", resume="apart")] = (
        None
    )
    val_months: Annotated[str | None, Option("Validate on these months alone.", resume="apart")] = None
    train_on: Annotated[
        str | None,
        Option("train, or train,val for the last run: nothing is left to choose by.", resume="apart"),
    ] = None
    save_period: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Option("Keep the weights of every N-th epoch, for a soup.", argument=True),
    ] = None
    other_data: Annotated[
        bool, Option("With --resume: go on though the data is another.", resume="apart")
    ] = False
    patches: Annotated[bool, Option("PyTorch's own convolutions.", resume="apart")] = True
    # Of ``name=value`` and ``--set``; not a flag of its own.
    arguments: Mapping[str, Argument] = msgspec.field(default_factory=dict)

    def subsets(self, words: Vocabulary | None = None) -> dict[str, Subset]:
        """Which images of the two splits are wanted; ``words`` names the parts of other data than LTDv2.

        Raises:
            ToolkitError: a name that is no month, or a part outside (0, 1].
        """
        from toolkit.dataset.subset import Subset  # imports NumPy, which ``--help`` does without
        from toolkit.vocabulary import LTDV2

        known = words or LTDV2
        wanted = {
            "train": Subset.parse(self.months, self.subset, known),
            "val": Subset.parse(self.val_months, words=known),
        }
        return {split: subset for split, subset in wanted.items() if not subset.is_all}

    def frequency(self) -> Frequency:
        """How often the training frames are to come. Raises ToolkitError: see :meth:`Frequency.parse`."""
        from toolkit.dataset.frequency import Frequency  # as above

        return Frequency.parse(self.every, self.repeat)

    def splits(self) -> tuple[str, ...]:
        """What is to be trained on.

        Raises:
            ToolkitError: another choice than the training split, with or without the validation split.
        """
        chosen = tuple((self.train_on or "train").replace(" ", "").split(","))
        if chosen not in (("train",), ("train", "val")):
            raise ToolkitError(f"no training on {self.train_on}", expected="train, or train,val")
        return chosen


CHANGEABLE = tuple(
    name for name, option in declared(Options).items() if option.argument and option.resume == "changes"
)
"""Ultralytics' arguments that may change when a run goes on."""
