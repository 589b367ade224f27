#!/usr/bin/env python3
"""Record the convolution layers of a model in scripts/layers, for machines that have torch alone.

    python3 scripts/record_layers.py yolov8n yolo11n

Needs Ultralytics and no network: the models are built from their configuration, untrained.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import nn
from ultralytics import YOLO

LAYERS = Path(__file__).parent / "layers"


def layers(model: nn.Module, image_size: int) -> list[dict[str, object]]:
    """One entry for each call of a Conv2d in a forward pass, in order; lengths in pixels."""
    found: list[dict[str, object]] = []

    def record(module: nn.Module, inputs: tuple[torch.Tensor, ...], _: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        _, channels, height, width = inputs[0].shape
        found.append(
            {
                "channels_in": channels,
                "height": height,
                "width": width,
                "channels_out": module.out_channels,
                "kernel": module.kernel_size,
                "stride": module.stride,
                "padding": module.padding,
                "dilation": module.dilation,
                "groups": module.groups,
                "bias": module.bias is not None,
            }
        )

    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(record)
    with torch.no_grad():
        model.train()(torch.zeros(1, 3, image_size, image_size))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="name of an Ultralytics configuration")
    parser.add_argument("--imgsz", type=int, default=640, help="side of the square input, pixels")
    options = parser.parse_args()
    LAYERS.mkdir(exist_ok=True)
    for name in options.models:
        found = layers(YOLO(f"{name}.yaml").model, options.imgsz)
        lines = ",\n".join("    " + json.dumps(layer) for layer in found)
        path = LAYERS / f"{name}.json"
        path.write_text(
            f'{{\n  "model": "{name}",\n  "image_size": {options.imgsz},\n  "layers": [\n{lines}\n  ]\n}}\n'
        )
        print(f"{path}: {len(found)} layers")


if __name__ == "__main__":
    main()
