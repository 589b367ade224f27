"""The life of an RTIOD competition entry: prepare, train, evaluate, predict, submit."""

import os
from pathlib import Path

__version__ = "0.1.0"

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ltdv2-toolkit"
"""What may be deleted at any time: tuned plans, compiled kernels, indexes of read-only data folders."""

# Ultralytics reads these when it is first imported, so they are set before any module can do that:
# no update check, no analytics, no package installed behind the user's back, no settings file of its own.
os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_CONFIG_DIR", str(CACHE / "ultralytics"))
