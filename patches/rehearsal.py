"""Testing a card while the program that will use it still imports, reads its data and builds its model.

Importing this imports no torch: what has kernels to compile begins beside the program's own import of it.
"""

from __future__ import annotations

import importlib.util
import threading

from . import COLUMN_BUDGET, variables
from .convolution import planfile, processes

EARLY = {
    "triton": (variables.ROUTE,),
    "fused batch norm": (variables.ROUTE, variables.NORMALIZATION),
}
"""The tests that begin early, because the route "auto" wants them on any card and they have many kernels; by
what can set them aside."""


def begin(dtype: str, index: int = 0) -> None:
    """Begin those of :data:`EARLY` on which no plan of these kernels has a verdict, of whatever card.

    Args:
        dtype: by its name, "float16".
        index: of the GPU.
    """
    if importlib.util.find_spec("triton") is None:
        return
    for test, settings in EARLY.items():
        if not any(map(_is_forced, settings)) and not planfile.is_known(f"{test} {dtype}"):
            processes.begin(test, f"cuda:{index}", dtype)


def rehearse(dtype: str, index: int = 0) -> threading.Thread:
    """See :func:`patches.rehearse`; what was begun and is not wanted ends.

    Returns:
        The thread that waits for the self-tests.
    """
    thread = threading.Thread(target=_test, args=(dtype, index), name="rehearsal", daemon=True)
    thread.start()
    return thread


def _is_forced(variable: variables.Variable) -> bool:
    """Whether the environment names something other than the choice of the patches."""
    forced = variable.read()
    return forced is not None and forced.value != "auto"


def _test(dtype: str, index: int) -> None:
    """By a session of its own, which serves nothing: verdicts reach the other one through the plan's file.

    Whoever needs a verdict while it is being found waits for the lock of that file. What fails here fails
    again, and is said, where it is needed.
    """
    import torch

    from .dispatch import Session

    try:
        if _is_forced(variables.ROUTE):
            return
        session = Session("cuda", "auto", COLUMN_BUDGET)
        with torch.cuda.device(index):
            session.planner.get_tested(getattr(torch, dtype))
    except (RuntimeError, ValueError, AssertionError):  # no device, odd settings, a PyTorch without CUDA
        return
    finally:
        processes.drop()
