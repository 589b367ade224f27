#!/usr/bin/env python3
"""Record the convolution layers of a model in scripts/layers, for machines that have torch alone.

    python3 scripts/record_layers.py yolov8n yolo11n

Needs Ultralytics and no network: the models are built from their configuration, untrained.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

from ultralytics import YOLO

from toolkit.benchmark.measure import layers_of

RUNTIME = ("batch", "dtype", "device", "channels_last")
"""What a benchmark decides, not the model."""


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of an Ultralytics configuration")
    parser.add_argument("--imgsz", type=int, default=640, help="side of the square input, pixels")
    options = parser.parse_args()
    for name in options.models:
        layers = [asdict(layer) for layer in layers_of(YOLO(f"{name}.yaml").model, 1, options.imgsz, "cpu")]
        entries = [{key: layer[key] for key in layer if key not in RUNTIME} for layer in layers]
        lines = ",\n".join(f"    {json.dumps(entry)}" for entry in entries)
        path = ROOT / "scripts" / "layers" / f"{name}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(
            f'{{\n  "model": "{name}",\n  "image_size": {options.imgsz},\n  "layers": [\n{lines}\n  ]\n}}\n'
        )
        print(f"{path.relative_to(ROOT)}: {len(entries)} layers")


if __name__ == "__main__":
    main()
