"""Which errors say that there was too little memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

NO_MEMORY = ("out of memory", "cublas_status_alloc_failed", "cudnn_status_internal_error")
"""What an error says, in small letters, where a smaller batch may help."""

NO_ENGINE = "unable to find an engine"
"""What cuDNN says there."""


def no_memory(error: RuntimeError) -> bool:
    """Whether an error says that a smaller batch may help."""
    words = str(error).lower()
    return any(each in words for each in (*NO_MEMORY, NO_ENGINE))


@contextmanager
def where_it_suffices() -> Iterator[None]:
    """Inside, what there is too little memory for ends without an error."""
    try:
        yield
    except RuntimeError as error:
        if not no_memory(error):
            raise
