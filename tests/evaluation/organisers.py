"""The organisers' evaluation, as the challenge describes it, on torchmetrics: the oracle of these tests."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from submission import Detections
from toolkit.evaluation.truth import GroundTruth
from toolkit.ltdv2 import MONTHS

Entries = dict[str, dict[str, list[Any]]]

NOTHING: dict[str, list[Any]] = {"boxes": [], "scores": [], "labels": []}


def organisers_scores(truth: Entries, predictions: Entries) -> dict[str, Any]:
    """Every key of the organisers; ids without predictions count as empty, unknown ids are ignored."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        sets = {"global": list(truth)}
        sets |= {name: [i for i in truth if digits in i[:8]] for name, digits in MONTHS.items()}
        scores = {
            f"{name}_{key}": value
            for name, ids in sets.items()
            for key, value in _summary(truth, predictions, ids).items()
        }
        monthly = [scores[f"{name}_map_50"] for name in MONTHS]
        scores["global_map_con"] = float(np.std(monthly, ddof=1) / np.mean(monthly))
        scores["global_map_bal"] = (1 - scores["global_map_con"]) * scores["global_map_50"]
    return scores


def _summary(truth: Entries, predictions: Entries, ids: list[str]) -> dict[str, Any]:
    from torchmetrics.detection import MeanAveragePrecision

    metric = MeanAveragePrecision(iou_type="bbox", box_format="xyxy", class_metrics=True, average="macro")
    for i in ids:
        metric.update([_tensors(predictions.get(i, NOTHING))], [_tensors(truth[i])])
    result = metric.compute()
    keys = ("map", "map_50", "map_75", "mar_1", "mar_10", "mar_100")
    values: dict[str, Any] = {key: float(result[key]) for key in keys}
    if "map_per_class" in result:
        values["map_per_class"] = result["map_per_class"].tolist()
    return values


def _tensors(entry: dict[str, list[Any]]) -> dict[str, torch.Tensor]:
    kinds = {"boxes": torch.float32, "scores": torch.float32, "labels": torch.uint8}
    return {key: torch.tensor(entry[key], dtype=kinds[key]) for key in kinds if key in entry}


def assert_same_scores(ours: dict[str, Any], reference: dict[str, Any]) -> None:
    """The organisers' keys and no others but ``toolkit``; every number within 1e-6, NaN equal to NaN."""
    assert ours.keys() - {"toolkit"} == reference.keys()
    for key, expected in reference.items():
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-6, err_msg=key)


def parsed(truth: Entries, predictions: Entries, folder: Path) -> tuple[GroundTruth, Detections]:
    """Both through files, as a user's would be."""
    (folder / "truth.json").write_text(json.dumps(truth))
    (folder / "predictions.json").write_text(json.dumps(predictions))
    return GroundTruth.read(folder / "truth.json"), Detections.read(folder / "predictions.json")
