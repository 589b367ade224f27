"""Ultralytics keeps to itself: no update check, no analytics, no package installed behind the user's back."""

from __future__ import annotations

import os

from patches.cache import cache_folder


def keep_ultralytics_offline() -> None:
    """Set the variables that Ultralytics reads when it is first imported, unless the user has set them.

    Called where a command or a training starts, before Ultralytics is imported. Processes that are started
    from there inherit them.
    """
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    os.environ.setdefault("YOLO_CONFIG_DIR", str(cache_folder() / "ultralytics"))
