"""Options that several verbs share, with one set of bounds."""

from __future__ import annotations

from typing import Any

import typer

from toolkit import settings


def number(name: str, words: str = "") -> Any:
    """An option with the bounds that toolkit.toml's key of that name has."""
    low, high = settings.bounds(name)
    return typer.Option(min=low, max=high, help=words or None)
