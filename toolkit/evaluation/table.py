"""Scores as a table for the console."""

from __future__ import annotations

from rich import box
from rich.table import Table

from submission.validate import LABELS
from toolkit.evaluation.scoring import Scores, Summary, is_number


def month_table(scores: Scores) -> Table:
    """One row a month, one for all images; a dash where the truth has nothing to measure against."""
    con, bal = (_show(value, 4) for value in (scores.consistency, scores.balanced))
    table = Table(
        title=f"global_map_bal {bal} = (1 - {con}) x {_show(scores.overall.map_50, 4)}",
        caption=f"engine {scores.engine}; class columns are AP@.5",
        title_justify="left",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),  # eighty columns hold it
    )
    table.add_column("month")
    for name in ("images", "mAP", "mAP@.5", "mAP@.75", "AR@100", *LABELS.values()):
        table.add_column(name, justify="right")
    for name, summary in scores.months.items():
        table.add_row(name, *_cells(summary))
    table.add_section()
    table.add_row("all", *_cells(scores.overall), style="bold")
    return table


def _cells(summary: Summary) -> list[str]:
    per_class = summary.map_50_per_class or {}
    values = [summary.map, summary.map_50, summary.map_75, summary.mar_100]
    values += [per_class.get(label, -1.0) for label in LABELS]
    return [f"{summary.images:,}", *(_show(value) for value in values)]


def _show(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}f}" if is_number(value) else "-"
