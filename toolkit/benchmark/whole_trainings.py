"""Whole trainings of YOLOv8n by the verbs a user calls: seconds of an epoch, with loader and validation."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from patches import variables

PRESETS = {"fp32": "rx5600xt", "mixed": "thermal"}
"""By precision."""

FRAMES = 3200
"""Of an epoch; a tenth of that is validated."""

LIBRARY_OFF = MappingProxyType(
    {
        variables.ROUTE.name: "native",
        variables.NORMALIZATION.name: "off",
        variables.GRAPH.name: "off",
    }
)
"""PyTorch's own kernels alone, as where the vendor's library does not know the card."""

NOTHING: Mapping[str, str] = MappingProxyType({})
"""No variables of the environment."""


def draw(folder: Path) -> None:
    """Draw the datasets that the trainings in a folder read.

    Raises:
        SystemExit: a verb failed.
    """
    for data, frames in (("whole", FRAMES), ("quarter", FRAMES // 4)):
        _call(folder, f"dataset sample {data} --scene street --train {frames} --val {frames // 10}")
        _call(folder, f"dataset prepare {data}")


def second_epochs(folder: Path, preset: str) -> dict[str, float]:
    """Seconds of the second of two epochs, without patches, with them, and with the library off.

    With the library off a quarter of the frames is shown, and the seconds are taken four times.

    Raises:
        SystemExit: a verb failed.
    """
    return {
        "no patches": _second_epoch(folder, preset, "whole --no-patches"),
        "patches": _second_epoch(folder, preset, "whole"),
        "library-off": 4 * _second_epoch(folder, preset, "quarter", LIBRARY_OFF),
    }


def _second_epoch(folder: Path, preset: str, data: str, environment: Mapping[str, str] = NOTHING) -> float:
    """``data`` may have flags behind it."""
    run = f"{preset}-{data.replace(' --', '-')}"
    _call(
        folder,
        f"train --preset {preset} --model yolov8n.yaml --epochs 2 --batch 16 --imgsz 640 --workers 8 "
        f"--name {run} --data {data}",
        environment,
    )
    table = folder / "runs" / run / "results.csv"
    first, second = (float(row.split(",")[1]) for row in table.read_text().splitlines()[1:3])
    return second - first


def _call(folder: Path, words: str, environment: Mapping[str, str] = NOTHING) -> None:
    """Call the toolkit in a folder; what it says is shown where it fails, so that a table stays one."""
    done = subprocess.run(
        [sys.executable, "-m", "toolkit", *words.split()],
        cwd=folder,
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"toolkit {words} ended with status {done.returncode}:\n{done.stdout[-2000:]}")
