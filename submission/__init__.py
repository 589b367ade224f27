"""The RTIOD challenge's file format: read, write, validate, zip. Needs numpy and msgspec, no torch."""

from submission.detections import Detections
from submission.errors import SubmissionError

__all__ = ["Detections", "SubmissionError"]
