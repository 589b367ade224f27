"""What is in a dataset: counts by class, month, hour and size, and the weather."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import msgspec
import numpy as np

from toolkit.dataset.index import DatasetIndex, Split
from toolkit.ltdv2 import ANNOTATIONS

if TYPE_CHECKING:
    import polars as pl

SIZES = {"small": 0.0, "medium": 32.0**2, "large": 96.0**2}
"""COCO's size classes by the area of a box, square pixels: where each begins."""


T = TypeVar("T")

Counts = dict[str, dict[str, int]]


class ClipRange(msgspec.Struct, frozen=True):
    """Clips of a month, and images a clip: fewest, median, most."""

    clips: int
    fewest: int
    median: float
    most: int


class WeatherRange(msgspec.Struct, frozen=True):
    """A weather number over a split or a month of it: smallest, mean, largest."""

    low: float
    mean: float
    high: float


class SplitStats(msgspec.Struct, frozen=True):
    """Counts of one split.

    Attributes:
        images, clips, boxes: how many.
        images_by_month, images_by_hour: by YYYYMM, of other data by part in the dataset's order, and by hour
            of ``date_captured`` where it has one.
        clips_by_month: by YYYYMM.
        boxes_by_class_and_month, boxes_by_class_and_size, boxes_by_class_and_hour: by class, then by that.
        weather: range of each number in ``meta``.
        weather_by_month: by YYYYMM, then by number.
    """

    images: int
    clips: int
    boxes: int
    images_by_month: dict[str, int]
    images_by_hour: dict[str, int]
    clips_by_month: dict[str, ClipRange]
    boxes_by_class_and_month: Counts
    boxes_by_class_and_size: Counts
    boxes_by_class_and_hour: Counts
    weather: dict[str, WeatherRange]
    weather_by_month: dict[str, dict[str, WeatherRange]]


def describe(index: DatasetIndex) -> dict[str, SplitStats]:
    """Count every split of the index."""
    return {name: _describe(index.split(name)) for name in ANNOTATIONS if index.manifest.images.get(name)}


def _describe(split: Split) -> SplitStats:
    import polars as pl

    hour = pl.col("date").str.extract(r"[T ](\d\d):", 1)
    month = pl.Series("month", split.part_names)
    images = split.table("date", "clip").with_columns(hour.alias("hour"), month)
    counts = np.diff(split.box_offsets)
    widths, heights = (split.boxes[:, 2:] - split.boxes[:, :2]).T
    place = np.searchsorted(list(SIZES.values()), np.maximum(widths * heights, 0), side="right") - 1
    boxes = pl.DataFrame(
        {
            "class": np.array([split.vocabulary.classes.get(k, "") for k in range(256)])[split.labels],
            "month": np.repeat(split.part_names, counts),
            "size": np.array(list(SIZES))[place],
            "hour": images["hour"].gather(np.repeat(np.arange(len(split)), counts)),
        },
        schema_overrides={"class": pl.String, "month": pl.String, "size": pl.String},
    )
    meta, names = split.meta(), list(split.vocabulary.classes.values())
    months = split.part_order if meta.width else []
    return SplitStats(
        images=len(split),
        clips=images["clip"].n_unique(),
        boxes=len(boxes),
        images_by_month=_ordered(_counts(images, "month"), split.part_order),
        images_by_hour=_counts(images, "hour"),
        clips_by_month=_ordered(_clips(images), split.part_order),
        boxes_by_class_and_month={
            name: _ordered(counts, split.part_order) for name, counts in _cross(boxes, "month", names).items()
        },
        boxes_by_class_and_size=_cross(boxes, "size", names),
        boxes_by_class_and_hour=_cross(boxes, "hour", names),
        weather=_weather(meta),
        weather_by_month={m: _weather(meta.filter(pl.Series(split.part_names == m))) for m in months},
    )


def _ordered(by_part: dict[str, T], parts: list[str]) -> dict[str, T]:
    return {part: by_part[part] for part in parts if part in by_part}


def _counts(table: pl.DataFrame, column: str) -> dict[str, int]:
    return {str(k): n for k, n in table.drop_nulls(column).group_by(column).len().sort(column).iter_rows()}


def _cross(boxes: pl.DataFrame, column: str, names: list[str]) -> Counts:
    found: Counts = {name: {} for name in names}
    for kind, key, n in boxes.drop_nulls(column).group_by("class", column).len().sort(column).iter_rows():
        found[kind][str(key)] = n
    return found


def _clips(images: pl.DataFrame) -> dict[str, ClipRange]:
    import polars as pl

    length = pl.col("len")
    ranges = (pl.len(), length.min().alias("min"), length.median().alias("median"), length.max().alias("max"))
    by_month = images.group_by("month", "clip").len().group_by("month").agg(*ranges).sort("month")
    return {str(month): ClipRange(*row) for month, *row in by_month.iter_rows()}


def _weather(meta: pl.DataFrame) -> dict[str, WeatherRange]:
    return {
        column.name: WeatherRange(column.min(), column.mean(), column.max())  # type: ignore[arg-type]
        for column in meta.iter_columns()
        if column.null_count() < len(column)
    }
