"""The options of ``toolkit train``, each declared once: its type, its bounds, and what belongs to it.

Flags, toolkit.toml's keys, help, what a run that goes on may change, and where the dry run says that a value
comes from follow from these declarations.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from toolkit.settings import Argument, Option, TrainingOptions, declared


class Options(TrainingOptions, frozen=True, kw_only=True):
    """What the command line said; None where it said nothing. Those below are flags alone."""

    data: Annotated[
        Path | None, Option("Folder with LTDv2's files, prepared.", resume="apart", otherwise="found")
    ] = None
    subset: Annotated[
        str | None,
        Option("Train on a part such as 10%: whole clips, months in proportion.", becomes="subsets"),
    ] = None
    months: Annotated[
        str | None, Option("Train on these months alone, such as feb,mar.", becomes="subsets")
    ] = None
    val_months: Annotated[str | None, Option("Validate on these months alone.", becomes="subsets")] = None
    train_on: Annotated[
        str | None,
        Option("train, or train,val for the last run: nothing is left to choose by.", becomes="train_on"),
    ] = None
    save_period: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Option("Keep the weights of every N-th epoch, for a soup.", argument=True),
    ] = None
    other_data: Annotated[
        bool, Option("With --resume: go on though the data is another.", resume="apart")
    ] = False
    patches: Annotated[bool, Option("PyTorch's own convolutions.", resume="apart", becomes="patches")] = True
    # Of ``name=value`` and ``--set``; not a flag of its own.
    arguments: Mapping[str, Argument] = msgspec.field(default_factory=dict)


CHANGEABLE = tuple(
    name for name, option in declared(Options).items() if option.argument and option.resume == "changes"
)
"""Ultralytics' arguments that may change when a run goes on."""
