"""The organisers' evaluation as facts describe it, on torchmetrics, and small random problems for it."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch

from toolkit.evaluation.scoring import MONTHS

Entries = dict[str, dict[str, list[Any]]]


def reference_scores(truth: Entries, predictions: Entries) -> dict[str, Any]:
    """Every key of the organisers for ``{id: {boxes, scores, labels}}``; ids of the truth decide."""
    from torchmetrics.detection import MeanAveragePrecision

    def tensors(entry: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
        kinds = {"boxes": torch.float32, "scores": torch.float32, "labels": torch.uint8}
        return {key: torch.tensor(entry[key], dtype=kind) for key, kind in kinds.items() if key in entry}

    def summary(ids: list[str]) -> dict[str, Any]:
        metric = MeanAveragePrecision(
            iou_type="bbox", box_format="xyxy", class_metrics=True, average="macro"
        )
        empty: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": []}
        for image_id in ids:
            metric.update([tensors(predictions.get(image_id, empty))], [tensors(truth[image_id])])
        result = metric.compute()
        values: dict[str, Any] = {
            key: float(result[key]) for key in ("map", "map_50", "map_75", "mar_1", "mar_10", "mar_100")
        }
        if "map_per_class" in result:
            values["map_per_class"] = result["map_per_class"].tolist()
        return values

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sets = {"global": list(truth)}
        sets |= {name: [i for i in truth if digits in i[:8]] for name, digits in MONTHS.items()}
        scores = {f"{name}_{k}": v for name, ids in sets.items() for k, v in summary(ids).items()}
        monthly = [scores[f"{name}_map_50"] for name in MONTHS]
        scores["global_map_con"] = float(np.std(monthly, ddof=1) / np.mean(monthly))
        scores["global_map_bal"] = (1 - scores["global_map_con"]) * scores["global_map_50"]
    return scores


def assert_same_scores(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    """Same keys, every number within 1e-6 (NaN equals NaN)."""
    assert ours.keys() - {"toolkit"} == reference.keys()
    for key, expected in reference.items():
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-6, err_msg=key)
