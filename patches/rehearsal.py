"""Testing a card while the program that will use it still imports, reads its data and builds its model."""

from __future__ import annotations

import threading

import torch

from . import COLUMN_BUDGET, variables
from .dispatch import Session


def rehearse(dtype: torch.dtype, index: int = 0) -> threading.Thread:
    """See :func:`patches.rehearse`.

    Returns:
        The thread that waits for the self-tests.
    """
    thread = threading.Thread(target=_test, args=(dtype, index), name="rehearsal", daemon=True)
    thread.start()
    return thread


def _test(dtype: torch.dtype, index: int) -> None:
    """By a session of its own, which serves nothing: verdicts reach the other one through the plan's file.

    Whoever needs a verdict while it is being found waits for the lock of that file. What fails here fails
    again, and is said, where it is needed.
    """
    forced = variables.ROUTE.read()
    if forced and forced.value != "auto":
        return
    try:
        session = Session("cuda", "auto", COLUMN_BUDGET)
        with torch.cuda.device(index):
            session.planner.get_tested(dtype)
    except (RuntimeError, ValueError, AssertionError):  # no device, odd settings, a PyTorch without CUDA
        return
