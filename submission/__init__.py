"""The RTIOD challenge's file format: read, write, validate, zip. Needs numpy and msgspec, no torch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submission.detections import Detections
    from submission.errors import SubmissionError

__all__ = ["Detections", "SubmissionError"]


def __getattr__(name: str) -> Any:
    """The names of :data:`__all__`, imported when asked for: the choices of a flag need no numpy."""
    home = {"Detections": "detections", "SubmissionError": "errors"}.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{home}"), name)
