"""The report's pictures, which say the same in colour, in grey, and without colour vision.

Colours are Okabe and Ito's, and every colour is doubled by a marker, a line style, a hatch or a number.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from toolkit.evaluation.context import Context
from toolkit.evaluation.matching import Curve, Matches
from toolkit.evaluation.scoring import Scores, is_number
from toolkit.ltdv2 import MONTHS

INK, MUTED, GRID = "#1b1f24", "#5b6570", "#e3e7eb"
BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#56B4E9",
)
CLASS_STYLE = {
    1: (BLUE, "-", "o", ""),
    2: (ORANGE, "--", "s", "//"),
    3: (PURPLE, ":", "^", ".."),
    4: (GREEN, "-.", "D", "xx"),
}
"""Label -> colour, line style, marker, hatch."""


def class_style(label: int) -> tuple[str, str, str, str]:
    """That of :data:`CLASS_STYLE`; beyond the fourth class they begin again."""
    return CLASS_STYLE[(label - 1) % len(CLASS_STYLE) + 1]


YEARS = {name: digits[:4] for name, digits in MONTHS.items()}
SIZES = (0, 12, 20, 32, 48, 96, np.inf)
"""Edges of the size classes: square root of the box area, pixels of a 384 x 288 frame."""

DPI = 200
"""Dots an inch of a picture: about twice what the page shows on a plain screen."""

BINS = 8
"""Quantile bins of a weather variable."""

HOUR = "hour of the day"

MIN_BOXES = 30
"""True boxes below which a bin's score is too uncertain to show."""


@dataclass(frozen=True)
class Evaluated:
    """Everything that a picture may be drawn from.

    Attributes:
        scores: the challenge's numbers.
        matches: what found what.
        image_ids: (images,) int64.
        context: clips, hours and weather, if the truth file says.
        threshold: score at which detections are counted as found, missed and false.
    """

    scores: Scores
    matches: Matches
    image_ids: npt.NDArray[np.int64]
    context: Context | None
    threshold: float


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Attributes:
        name: file name without ``.png``.
        title: heading.
        caption: what it shows and how to read it.
        figure: the drawing.
    """

    name: str
    title: str
    caption: str
    figure: Figure


def pictures(data: Evaluated) -> list[Picture]:
    """All pictures that the data allows, in the order of the report."""
    made: list[Callable[[Evaluated], Picture | None]] = [
        months,
        classes,
        precision_recall,
        sizes,
        counts,
        conditions,
    ]
    return [picture for make in made if (picture := make(data)) is not None]


def save(picture: Picture, path: Path) -> None:
    """Write the picture as PNG."""
    picture.figure.savefig(path, format="png", dpi=DPI, metadata={"Software": None})


def months(data: Evaluated) -> Picture:
    """mAP@0.5 by month with mean and band of the coefficient of variation."""
    scores = data.scores
    figure, axes = _canvas(8.6, 3.9)
    shown = {name: s.map_50 for name, s in scores.months.items() if s.images}
    x = np.arange(len(scores.months))
    known = np.array([shown.get(name, np.nan) for name in scores.months])
    decided = [v for v in shown.values() if is_number(v)]
    bars = axes.bar(x, np.nan_to_num(known.clip(min=0)), width=0.62, color=BLUE, zorder=3)
    for bar, value in zip(bars, known.tolist(), strict=True):
        text = f"{value:.3f}" if is_number(value) else "none"
        axes.annotate(
            text,
            (bar.get_x() + bar.get_width() / 2, bar.get_height()),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            color=INK,
            fontsize=9,
            zorder=6,
        )
    if len(decided) > 1:
        mean, deviation = float(np.mean(decided)), float(np.std(decided, ddof=1))
        axes.axhspan(mean - deviation, mean + deviation, color=ORANGE, alpha=0.25, lw=0, zorder=1)
        axes.axhline(mean, color=VERMILION, lw=1.6, zorder=5)
        axes.annotate(
            f"mean {mean:.3f}\n± {deviation:.3f}\nCoV {deviation / mean:.3f}" if mean else "mean 0",
            (1, mean),
            xycoords=("axes fraction", "data"),
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
            color=VERMILION,
            fontsize=9,
        )
    years = YEARS if scores.part == "month" else {}
    below = {name: f"\n{year}" for name, year in years.items()}
    axes.set_xticks(x, [scores.heading(name) + below.get(name, "") for name in scores.months])
    axes.set_ylim(0, max([*decided, 0.1]) * 1.12)
    axes.set_yticks([tick for tick in axes.get_yticks() if tick <= 1])
    axes.set_ylabel("mAP@0.5")
    return Picture(
        "months",
        f"mAP@0.5 by {scores.by}",
        "Line and band: their mean and one sample standard deviation. Band over line is the "
        "coefficient of variation that the ranking subtracts.",
        figure,
    )


def classes(data: Evaluated) -> Picture:
    """Heat map of AP@0.5, class by month."""
    p = data.matches.problem
    sets = {**data.scores.compared, "all": data.scores.overall}
    masks = {**p.months, "all": np.ones(p.images, np.bool_)}
    values = np.full((len(p.classes), len(sets)), np.nan)
    numbers = np.zeros_like(values, np.int64)
    for column, (name, summary) in enumerate(sets.items()):
        inside = masks[name][p.truth_image]
        for row, label in enumerate(p.classes):
            value = (summary.map_50_per_class or {}).get(label, -1.0)
            values[row, column] = value if is_number(value) else np.nan
            numbers[row, column] = int((inside & (p.truth_label == label)).sum())
    figure, axes = _canvas(8.6, 3.2, grid=False)
    colours = colormaps["cividis"].with_extremes(bad="#f1f3f5")
    axes.imshow(np.ma.masked_invalid(values), cmap=colours, vmin=0, vmax=1, aspect="auto")
    for row in range(values.shape[0]):
        for column in range(values.shape[1]):
            value = values[row, column]
            ink = "white" if value < 0.55 else INK
            known = bool(np.isfinite(value))
            axes.text(
                column,
                row - 0.08,
                f"{value:.2f}" if known else "–",
                ha="center",
                va="center",
                color=ink if known else MUTED,
                fontsize=10.5,
                weight="bold",
            )
            axes.text(
                column,
                row + 0.28,
                f"{numbers[row, column]:,}",
                ha="center",
                va="center",
                color=ink if known else MUTED,
                fontsize=7,
            )
    axes.axvline(len(sets) - 1.5, color="white", lw=5)
    axes.set_xticks(range(len(sets)), [data.scores.heading(name) for name in sets])
    axes.set_yticks(range(len(p.classes)), list(p.classes.values()))
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return Picture(
        "classes",
        f"AP@0.5 by class and {data.scores.by}",
        "Small numbers: true boxes. The mean over classes weighs a rare class like a common one.",
        figure,
    )


def precision_recall(data: Evaluated) -> Picture:
    """Precision over recall at IoU 0.5, by class."""
    figure, axes = _canvas(4.9, 3.9)
    for label, curve in _curves(data.matches).items():
        colour, line, marker, _ = class_style(label)
        recall = np.concatenate([[0.0], curve.recall, curve.recall[-1:]])
        precision = np.concatenate([curve.precision[:1], curve.precision, [0.0]])
        axes.plot(
            recall,
            precision,
            color=colour,
            ls=line,
            lw=2,
            marker=marker,
            markevery=(0.06, 0.17),
            ms=5,
            label=f"{data.scores.classes[label]}  AP {curve.ap:.3f}",
        )
    axes.set(xlim=(0, 1.01), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
    if axes.lines:
        figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=8.5, handlelength=2.4)
    return Picture(
        "precision_recall",
        "Precision over recall by class",
        f"At IoU 0.5, all {data.scores.part}s. Where a curve ends, lowering the threshold finds nothing "
        "more. A class without a curve: none of its true boxes was found.",
        figure,
    )


def sizes(data: Evaluated) -> Picture:
    """AP@0.5 by size of box."""
    m, p = data.matches, data.matches.problem
    truth_side = np.sqrt(np.abs(p.truth_boxes[:, 2] * p.truth_boxes[:, 3]))
    # A detection that found something counts with the size of what it found.
    side = np.sqrt(np.abs(p.boxes[:, 2] * p.boxes[:, 3]))
    hit = m.found >= 0
    side[hit] = truth_side[m.found[hit]]
    labels, values, numbers = [], [], []
    for low, high in pairwise(SIZES):
        truths = (truth_side >= low) & (truth_side < high)
        labels.append(f"{low:g}–{high:g}" if np.isfinite(high) else f"≥ {low:g}")
        values.append(m.mean_ap((side >= low) & (side < high), truths))
        numbers.append(int(truths.sum()))
    figure, axes = _canvas(4.9, 3.9)
    bars = axes.bar(range(len(labels)), np.nan_to_num(values), width=0.62, color=BLUE, zorder=3)
    for bar, value, number in zip(bars, values, numbers, strict=True):
        axes.annotate(
            f"{value:.2f}\n{number:,}" if np.isfinite(value) else "no boxes",
            (bar.get_x() + bar.get_width() / 2, bar.get_height()),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            fontsize=8.5,
            color=INK,
        )
    axes.set_xticks(range(len(labels)), labels)
    axes.set_ylim(0, max([*np.nan_to_num(values), 0.1]) * 1.25)
    axes.set(xlabel="side of a square of the box's area, pixels", ylabel="mAP@0.5")
    return Picture(
        "sizes",
        "mAP@0.5 by box size",
        "Second line: true boxes. A detection counts with the size of the true box that it found, a "
        "false alarm with its own.",
        figure,
    )


def counts(data: Evaluated) -> Picture:
    """True boxes by class, and found, missed and false at the threshold, by month."""
    m, p = data.matches, data.matches.problem
    figure, (left, right) = _canvas(8.6, 3.8, columns=2)
    masks = p.months
    x = np.arange(len(masks))
    base = np.zeros(len(masks))
    for label, name in p.classes.items():
        colour, _, _, hatch = class_style(label)
        heights = np.array(
            [int((mask[p.truth_image] & (p.truth_label == label)).sum()) for mask in masks.values()]
        )
        left.bar(
            x, heights, 0.7, bottom=base, color=colour, hatch=hatch, edgecolor="white", label=name, zorder=3
        )
        base += heights
    sure = m.counted & (p.scores >= data.threshold)
    hit = np.zeros(len(m.found_by), np.bool_)
    hit[m.found[sure & (m.found >= 0)]] = True
    kinds: Mapping[str, tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_], str, str]] = {
        "found": (p.truth_image, hit, BLUE, ""),
        "missed": (p.truth_image, ~hit, ORANGE, "//"),
        "false alarm": (p.image, sure & (m.found < 0), VERMILION, "xx"),
    }
    for n, (name, (image, rows, colour, hatch)) in enumerate(kinds.items()):
        heights = np.array([int((mask[image] & rows).sum()) for mask in masks.values()])
        right.bar(
            x + (n - 1) * 0.27,
            heights,
            0.26,
            color=colour,
            hatch=hatch,
            edgecolor="white",
            label=name,
            zorder=3,
        )
    for axes, title in ((left, "true boxes"), (right, f"detections with score ≥ {data.threshold:.2f}")):
        axes.set_xticks(x, [data.scores.heading(name) for name in masks])
        axes.set_title(title, fontsize=10, loc="left", color=INK)
        axes.set_ylim(0, axes.get_ylim()[1] * 1.3)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        _legend(axes, loc="upper left", ncols=2 if axes is left else 3)
    return Picture(
        "counts",
        f"Counts by {data.scores.part}",
        "Left: what there is. Right: what happens at the one threshold where F1 over all classes is best.",
        figure,
    )


def conditions(data: Evaluated) -> Picture | None:
    """mAP@0.5 against the hour and the weather, if the truth file has them."""
    context = data.context
    if context is None:
        return None
    variables = {HOUR: context.hours, **context.weather}
    panels = {name: _binned(data, values, name) for name, values in variables.items()}
    panels = {name: panel for name, panel in panels.items() if len(panel[0]) > 1}
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(8.6, 2.35 * rows + 0.2), layout="constrained")
    grid = np.atleast_1d(figure.subplots(rows, columns, sharey=True, squeeze=False)).ravel()
    top = max(float(np.nanmax(panel[1])) for panel in panels.values())
    for axes, (name, (centre, value, number)) in zip(grid, panels.items(), strict=False):
        _style(axes)
        axes.axhline(data.scores.overall.map_50, color=VERMILION, lw=1, ls="--", zorder=2)
        axes.plot(centre, value, color=BLUE, lw=1.8, zorder=3)
        area = 18 + 60 * np.array(number) / max(number)
        axes.scatter(centre, value, s=area, color=BLUE, edgecolor="white", lw=0.8, zorder=4)
        axes.set_xlabel(name, fontsize=9)
        if name == HOUR:
            axes.set_xlim(0, 24)
            axes.set_xticks(range(0, 25, 6))
        axes.set_ylim(0, min(max(top * 1.15, 0.1), 1.05))
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes in grid[::columns]:
        axes.set_ylabel("mAP@0.5")
    return Picture(
        "conditions",
        "mAP@0.5 against hour and weather",
        "Each point is a bin with about as many images as the next (hours: three-hour bins); larger points "
        "have more true boxes. Dashed: all images. Classes that a bin lacks do not enter its mean. "
        "Weather is in the truth file's units.",
        figure,
    )


def operating_point(matches: Matches) -> float:
    """The score at which F1 over all classes together is largest."""
    p = matches.problem
    order = np.argsort(-p.scores[matches.counted], kind="stable")
    hits = (matches.found[matches.counted] >= 0)[order]
    return Curve.of(p.scores[matches.counted][order], hits, len(p.truth_label)).best_score()


def _binned(
    data: Evaluated, values: npt.NDArray[np.float64], name: str
) -> tuple[list[float], list[float], list[int]]:
    """Centre, mAP@0.5 and number of true boxes of each bin of a variable that has enough of them."""
    known = values[np.isfinite(values)]
    if not len(known):
        return [], [], []
    if name == HOUR:
        edges = np.arange(0.0, 25.0, 3.0)
    else:
        edges = np.unique(np.quantile(known, np.linspace(0, 1, BINS + 1)))
        edges = np.append(edges[:-1], np.inf)
    centre: list[float] = []
    value: list[float] = []
    number: list[int] = []
    for low, high in pairwise(edges.tolist()):
        inside = (values >= low) & (values < high)
        detections, truths = data.matches.in_images(inside)
        if truths.sum() >= MIN_BOXES:
            centre.append(float(np.mean(values[inside])))
            value.append(data.matches.mean_ap(detections, truths))
            number.append(int(truths.sum()))
    return centre, value, number


def _curves(matches: Matches) -> dict[int, Curve]:
    labels: Sequence[int] = [label for label in matches.problem.classes if label in matches.problem.labels]
    curves = {label: matches.curve(label) for label in labels}
    return {label: curve for label, curve in curves.items() if curve.positives}


def _canvas(width: float, height: float, grid: bool = True, columns: int = 1) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, columns)
    for one in np.atleast_1d(axes).ravel():
        _style(one, grid)
    return figure, axes


def _style(axes: Axes, grid: bool = True) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#b8c0c8")
    axes.tick_params(colors=MUTED, labelcolor=INK, labelsize=9, color="#b8c0c8")
    axes.xaxis.label.set(color=MUTED, size=9)
    axes.yaxis.label.set(color=MUTED, size=9)
    if grid:
        axes.grid(axis="y", color=GRID, lw=0.8, zorder=0)
        axes.set_axisbelow(True)


def _legend(axes: Axes, **options: Any) -> None:
    axes.legend(frameon=True, framealpha=0.9, edgecolor="none", fontsize=8.5, handlelength=2.4, **options)
