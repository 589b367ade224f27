"""Python processes that take their code from where this process took its own.

``python -m`` and ``python -c`` put the folder that the user works in first on the path of the child. A file
``patches.py``, or a folder named as any package that the child imports, would be taken for the real one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_SAFE_PATH = sys.version_info >= (3, 11)
"""Whether this Python can be told to leave the user's folder out."""

_BOOT = (
    "import sys; sys.path[:] = filter(None, sys.path); import runpy; "
    "runpy.run_module(sys.argv.pop(1), run_name='__main__', alter_sys=True)"
)


def command(module: str, *arguments: str) -> list[str]:
    """The command line that runs ``module`` as ``python -m`` does, without the user's folder on the path."""
    if _SAFE_PATH:
        return [sys.executable, "-P", "-m", module, *arguments]
    return [sys.executable, "-c", _BOOT, module, *arguments]


def environment() -> dict[str, str]:
    """The variables of such a child: the parent's, and :func:`paths`."""
    return {**os.environ, **paths()}


def paths() -> dict[str, str]:
    """What makes a child look for code where this process looks, and keeps its own children safe.

    The latter holds from Python 3.11 on. Before, processes that multiprocessing or torchrun start look into
    the user's folder first.
    """
    roots = [*sys.path, str(Path(__file__).resolve().parents[1])]
    path = os.pathsep.join(dict.fromkeys(filter(None, roots)))
    return {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
