"""``stats.html``: what a dataset looks like, its counts as tables and frames of every month."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt

from toolkit.dataset.frames import FrameError
from toolkit.dataset.index import DatasetIndex, Split
from toolkit.dataset.stats import SIZES, ClipRange, SplitStats, WeatherRange
from toolkit.files import replacing

COLUMNS = 6
"""Frames of a month on the picture sheet."""


COLOURS = {1: (0, 158, 230), 2: (115, 158, 0), 3: (167, 121, 204), 4: (66, 228, 240)}
"""Blue, green, red of each label's boxes, which colour-blind readers can tell apart (Okabe and Ito)."""


Rows = Mapping[str, Mapping[str, int | float | str]]


def sheet(split: Split) -> npt.NDArray[np.uint8]:
    """A picture, (height, width, 3) BGR: a legend and :data:`COLUMNS` frames of each month.

    Every second one shows its boxes. Frames are spread over the month's clips; one that does not decode
    leaves its place black.
    """
    frames, rows = split.frames(), [_legend(split.vocabulary.classes)]
    for month in split.part_order:
        of_month = np.flatnonzero(split.part_names == month)
        chosen = of_month[np.linspace(0, len(of_month) - 1, COLUMNS).astype(int)]
        cells = []
        for place, row in enumerate(chosen.tolist()):
            try:
                cell = cv2.cvtColor(frames.grey(row), cv2.COLOR_GRAY2BGR)
            except FrameError:
                cell = np.zeros((int(split.heights[row]), int(split.widths[row]), 3), np.uint8)
            if place % 2:
                _draw_boxes(cell, split, row)
            cells.append(cv2.resize(cell, (256, 192), interpolation=cv2.INTER_AREA))
        strip = np.hstack(cells)
        cv2.rectangle(strip, (0, 0), (70, 24), (0, 0, 0), -1)
        cv2.putText(strip, str(month), (6, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255,) * 3, 1, cv2.LINE_AA)
        rows.append(strip)
    return np.vstack(rows)


def _legend(classes: Mapping[int, str]) -> Any:
    strip = np.zeros((28, COLUMNS * 256, 3), np.uint8)
    for place, (label, name) in enumerate(classes.items()):
        x = 12 + 140 * place
        cv2.rectangle(strip, (x, 8), (x + 16, 20), COLOURS[(label - 1) % len(COLOURS) + 1], 2)
        cv2.putText(strip, name, (x + 24, 19), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (255,) * 3, 1, cv2.LINE_AA)
    return strip


def _draw_boxes(image: Any, split: Split, row: int) -> None:
    boxes = slice(int(split.box_offsets[row]), int(split.box_offsets[row + 1]))
    for box, label in zip(split.boxes[boxes].round().astype(int), split.labels[boxes], strict=True):
        x1, y1, x2, y2 = box.tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), COLOURS[(int(label) - 1) % len(COLOURS) + 1], 1)


def write_report(index: DatasetIndex, stats: dict[str, SplitStats], folder: Path) -> Path:
    """Write ``stats.json``, a PNG sheet a split and ``stats.html``, which needs no other file.

    Returns:
        The path of the page.
    """
    pictures = {name: cv2.imencode(".png", sheet(index.split(name)))[1].tobytes() for name in stats}
    contents = {
        "stats.json": msgspec.json.format(msgspec.json.encode(stats)),
        **{f"frames-{name}.png": picture for name, picture in pictures.items()},
        "stats.html": _page(index, stats, pictures).encode(),
    }
    for name, content in contents.items():
        with replacing(folder / name) as temporary:
            temporary.write_bytes(content)
    return folder / "stats.html"


_STYLE = """
body{font:15px/1.45 system-ui,sans-serif;margin:2rem auto;max-width:100rem;padding:0 1rem;color:#222}
table{border-collapse:collapse;margin:.6rem 0 1.4rem}
td,th{padding:.2rem .7rem;border-bottom:1px solid #ccc;text-align:right;white-space:nowrap}
td:first-child,th:first-child,caption{text-align:left}
caption{font-weight:600;white-space:nowrap}
img{max-width:100%}
"""


def _page(index: DatasetIndex, stats: dict[str, SplitStats], pictures: dict[str, bytes]) -> str:
    parts = [f"<h1>{html.escape(index.data.name)}</h1>"]
    by = index.manifest.vocabulary.by
    for name, s in stats.items():
        known = list(s.images_by_month)
        parts.append(f"<h2>{name}: {s.images:,} images, {s.clips:,} clips, {s.boxes:,} boxes</h2>")
        parts.append(_table(f"images by {by}", {"images": s.images_by_month}, known))
        parts.append(_table(f"clips by {by}", _clip_rows(s.clips_by_month), known))
        parts.append(_table(f"boxes by {by}", s.boxes_by_class_and_month, known))
        sizes = "boxes by size (small below 32 x 32, large from 96 x 96)"
        parts.append(_table(sizes, s.boxes_by_class_and_size))
        parts.append(_table("images by hour", {"images": s.images_by_hour}))
        parts.append(_table("boxes by hour", s.boxes_by_class_and_hour))
        ranges = {k: {"lowest": w.low, "mean": w.mean, "highest": w.high} for k, w in s.weather.items()}
        parts.append(_table("weather", ranges))
        weather = _weather_rows(s.weather_by_month)
        parts.append(_table(f"weather by {by}: mean, lowest to highest", weather, known))
        picture = base64.b64encode(pictures[name]).decode()
        parts.append(f'<img alt="frames of each {html.escape(by)}" src="data:image/png;base64,{picture}">')
    title = f"<title>{html.escape(index.data.name)}</title>"
    head = f'<meta charset="utf-8">{title}<style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>"


def _clip_rows(clips: dict[str, ClipRange]) -> Rows:
    return {
        "clips": {month: c.clips for month, c in clips.items()},
        "fewest images a clip": {month: c.fewest for month, c in clips.items()},
        "median": {month: c.median for month, c in clips.items()},
        "most": {month: c.most for month, c in clips.items()},
    }


def _weather_rows(by_month: dict[str, dict[str, WeatherRange]]) -> Rows:
    rows: dict[str, dict[str, str]] = {}
    for month, ranges in by_month.items():
        for key, w in ranges.items():
            low, mean, high = map(_text, (w.low, w.mean, w.high))
            rows.setdefault(key, dict.fromkeys(by_month, ""))[month] = (
                f"{mean}<br><small>{low} to {high}</small>"
            )
    return rows


def _table(caption: str, rows: Rows, known: Sequence[str] = ()) -> str:
    """A table with the columns of all rows: ``known`` in their order, then others by their names."""
    named = {name: place for place, name in enumerate((*known, *SIZES, "lowest", "mean", "highest"))}
    keys = {key for row in rows.values() for key in row}
    columns = sorted(keys, key=lambda key: (named.get(key, -1), key))
    if not columns:
        return ""
    header = "".join(f"<th>{html.escape(c)}</th>" for c in ("", *columns))
    body = ""
    for name, row in rows.items():
        cells = "".join(f"<td>{_text(row.get(c, 0))}</td>" for c in columns)
        body += f"<tr><td>{html.escape(name)}</td>{cells}</tr>"
    return f"<table><caption>{html.escape(caption)}</caption><tr>{header}</tr>{body}</table>"


def _text(cell: float | str) -> str:
    if isinstance(cell, str):
        return cell
    return f"{cell:,}" if isinstance(cell, int) else f"{cell:,.{1 if abs(cell) >= 1 else 2}f}"
