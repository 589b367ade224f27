"""Libraries keep to themselves: no update check, no analytics, no package installed unasked."""

from __future__ import annotations

import logging
import os

from patches.cache import cache_folder
from toolkit import NAME

OF_NO_INTEREST = (
    *("Creating new Ultralytics Settings", "Ultralytics settings updated"),
    "Optimizer stripped from",
)
"""How Ultralytics begins what it says of its file of settings, while it is imported, and of the temporary
file that a checkpoint is written to."""


def keep_libraries_quiet() -> None:
    """Set the variables that Ultralytics and matplotlib read when they are first imported.

    Called where a command or a training starts, before either is imported. Processes that are started from
    there inherit them. Ultralytics' own are left as the user set them.
    """
    # Pictures are files, and the same for everybody. A notebook hands on a backend that may not be
    # installed, and a matplotlibrc that is no UTF-8 ends whoever imports matplotlib.
    os.environ["MPLBACKEND"] = "agg"
    os.environ["MATPLOTLIBRC"] = os.devnull
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_CONFIG_DIR", str(cache_folder(NAME) / "ultralytics"))
    logging.getLogger("ultralytics").addFilter(_is_of_interest)


def _is_of_interest(record: logging.LogRecord) -> bool:
    """Whether a message is none of those that stand before JSON on standard output or name no file to use."""
    return not record.getMessage().startswith(OF_NO_INTEREST)
