"""``results.csv``, Ultralytics' row an epoch: the best scores, and whether anything was learned."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from toolkit.errors import ToolkitError, reason
from toolkit.files import replacing


class Epoch(NamedTuple):
    """A row.

    Attributes:
        loss: sum of the components in training; NaN where one of them is no finite number, or there is none.
        map50, map50_95: on the validation split, by Ultralytics' validator; NaN in an epoch that was not
            validated.
        global_map_bal: the challenge's score, NaN in an epoch that was not scored.
    """

    loss: float
    map50: float
    map50_95: float
    global_map_bal: float

    @property
    def validated(self) -> bool:
        """Whether there are scores of the epoch."""
        return not math.isnan(self.map50) and not math.isnan(self.map50_95)


def read(path: Path) -> list[Epoch]:
    """All whole rows; none where there is no file.

    Raises:
        ToolkitError: the file cannot be read, or is no text.
    """
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ToolkitError(f"cannot read {path}", found=reason(error), expected="a row an epoch") from error
    epochs = []
    for row in rows:
        with suppress(KeyError, TypeError, ValueError):
            losses = [float(row[name]) for name in row if name and name.startswith("train/")]
            epochs.append(
                Epoch(
                    sum(losses) if losses else math.nan,
                    float(row["metrics/mAP50(B)"]),
                    float(row["metrics/mAP50-95(B)"]),
                    float(row.get("global_map_bal") or "nan"),
                )
            )
    return epochs


def append(path: Path, row: Mapping[str, float]) -> None:
    """Add a row, and before the first one the names of the columns.

    Ultralytics would write nan, which makes polars read the column as text, also into its checkpoints.

    Raises:
        OSError: the disk is full; no part of the row is left, which the next one would continue.
    """
    size = path.stat().st_size if path.exists() else 0
    lines = [] if size else [",".join(row)]
    lines.append(",".join(f"{value:.6g}".replace("nan", "NaN") for value in row.values()))
    try:
        with path.open("a", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError:
        with suppress(OSError):
            os.truncate(path, size)
        raise


def drop_after(path: Path, epochs: int) -> None:
    """Leave the first ``epochs`` rows, and none that is no whole row; nothing is done without a file.

    Raises:
        ToolkitError: the disk is full.
    """
    if not path.exists():
        return
    text = path.read_text(errors="replace").replace("\0", "")  # a power cut leaves zeros
    header, *rows = [row for row in csv.reader(text.splitlines()) if row] or [[]]
    kept = [row for row in rows if len(row) == len(header) and _number(row[0]) <= epochs]
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([header, *kept] if header else [])


def _number(text: str) -> float:
    """NaN for what is no number."""
    with suppress(ValueError):
        return float(text)
    return math.nan


def nothing_learned(path: Path) -> str:
    """Why the run of this file learned nothing that can be seen; "" if it did, or nobody can say."""
    try:
        epochs = read(path)
    except ToolkitError:
        return ""
    if not epochs:
        return ""
    doubts = []
    # The last one of a run that finished always is: scores that are no numbers are none.
    validated = [epoch for epoch in epochs if epoch.validated] or epochs[-1:]
    if not any(epoch.map50 > 0 for epoch in validated):
        what = "validated epoch" if len(validated) < len(epochs) else "epoch"
        each = f"each of {len(validated)} {what}s" if len(validated) > 1 else f"the only {what}"
        doubts.append(f"mAP@0.5 is 0 after {each}")
    first, later = epochs[0].loss, [epoch.loss for epoch in epochs[1:]]
    if any(math.isnan(epoch.loss) for epoch in epochs):
        doubts.append("the training loss of an epoch is no number")
    elif later and min(later) >= first:
        doubts.append(f"the training loss did not fall: {first:.3g} at first, {min(later):.3g} at best")
    return " and ".join(doubts)
