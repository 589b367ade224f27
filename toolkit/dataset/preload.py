"""What the fork server of the loader workers imports; see ``loader.py``.

The collector's generations are frozen afterwards, so that a worker's first collection does not write to, and
thereby copy, the pages it shares with the server.
"""

from __future__ import annotations

import gc

import cv2

import toolkit.dataset.ultralytics  # noqa: F401

cv2.setNumThreads(0)
gc.collect()
gc.freeze()
