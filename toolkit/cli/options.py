"""Options that several verbs share, with one set of bounds."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from toolkit import settings


def number(name: str, words: str = "") -> Any:
    """An option with the bounds that toolkit.toml's key of that name has."""
    low, high = settings.bounds(name)
    return typer.Option(min=low, max=high, help=words or None)


Conf = Annotated[float, typer.Option(min=0, max=1, help="Lowest score kept.")]
Iou = Annotated[float, typer.Option(min=0, max=1, help="Overlap at which boxes are merged.")]
MaxDet = Annotated[int, typer.Option(min=1, max=100_000, help="Boxes kept of each class in a frame.")]
Agnostic = Annotated[bool, typer.Option("--agnostic", help="A box suppresses those of other classes too.")]
