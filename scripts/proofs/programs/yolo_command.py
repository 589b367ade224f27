"""The command ``yolo`` of Ultralytics; it prints the metrics of a validation with all their digits too."""

from __future__ import annotations

import json
import sys
from typing import Any

from ultralytics.cfg import entrypoint
from ultralytics.utils.callbacks.base import default_callbacks


def _print_metrics(validator: Any) -> None:
    print(json.dumps({name: float(value) for name, value in validator.metrics.results_dict.items()}))


if __name__ == "__main__":
    default_callbacks["on_val_end"].append(_print_metrics)
    sys.exit(entrypoint())
