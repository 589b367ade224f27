"""Scores as a table for the console."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich import box
from rich.table import Table

from toolkit.evaluation.compare import Comparison
from toolkit.evaluation.scoring import Scores, Summary, is_number


def month_table(scores: Scores) -> Table:
    """One row a month, one for all images; a dash where the truth has nothing to measure against."""
    con, bal = (_show(value, 4) for value in (scores.consistency, scores.balanced))
    ranks = f"global_map_bal {bal} = (1 - {con}) x"
    alone = f"one {scores.part} has no global_map_bal; global_map_50"
    table = Table(
        title=f"{ranks if scores.compared else alone} {_show(scores.overall.map_50, 4)}",
        caption=f"engine {scores.engine}; class columns are AP@.5",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # eighty columns hold it
    )
    table.add_column(scores.by if scores.compared else "")
    for name in ("images", "mAP", "mAP@.5", "mAP@.75", *scores.classes.values()):
        table.add_column(name, justify="right")
    for name, summary in scores.compared.items():
        table.add_row(name, *_cells(summary, scores.classes))
    table.add_section()
    table.add_row("all", *_cells(scores.overall, scores.classes), style="bold")
    return table


def _cells(summary: Summary, classes: Iterable[int]) -> list[str]:
    per_class = summary.map_50_per_class or {}
    values = [summary.map, summary.map_50, summary.map_75]
    values += [per_class.get(label, -1.0) for label in classes]
    return [f"{summary.images:,}", *(_show(value) for value in values)]


def _show(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if is_number(value) else "-"


def difference_table(result: Comparison, a: str, b: str) -> Table:
    """One row a number: A, B, the difference and its interval; what is certain is marked."""
    table = Table(
        title=f"A {a}\nB {b}",
        caption=f"95% interval of B - A from {result.resamples:,} resamples of {result.clips:,} clips; "
        "* leaves out no change",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("")
    for name in ("A", "B", "B - A", "low", "high", "B above A"):
        table.add_column(name, justify="right")
    *months, _ = result.classes
    ends = {"global_map_con", *(f"{name}_map_50" for name in months[-1:])}
    for name, d in result.differences.items():
        wins = f"{d.wins:.0%}" if is_number(d.wins) else "-"
        mark = " *" if d.certain else ""
        values = [_show(d.a, 4), _show(d.b, 4), _signed(d.change), _signed(d.low), _signed(d.high), wins]
        table.add_row(name + mark, *values, style="bold" if name == "global_map_bal" else None)
        if name in ends:
            table.add_section()
    return table


def class_difference_table(result: Comparison) -> Table:
    """AP@0.5 of B and its difference from A, class by month."""
    table = Table(title="AP@.5 of B (B - A)", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column(result.by)
    for name in result.names.values():
        table.add_column(name, justify="right", no_wrap=True)
    for month, row in result.classes.items():
        cells = [f"{_show(row[label].b)} ({_signed(row[label].change, 3)})" for label in result.names]
        table.add_row(month, *cells, style="bold" if month == "all" else None)
    return table


def _signed(value: float, digits: int = 4) -> str:
    return f"{value:+.{digits}f}" if not math.isnan(value) else "-"
