"""Tables that a console of any width shows whole: a number or a name that is cut is another one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import replace

from rich.measure import Measurement
from rich.table import Column, Table

from toolkit import console

UNLIMITED = 100_000
"""Characters of a line that has no end."""

FOLDED = 12
"""A column of prose or paths, ``overflow="fold"``, asks for no more than this many characters."""


def room() -> int:
    """Characters of a line of standard output; a pipe has no end, and what is read from it is not cut."""
    return console.out.width if console.out.is_terminal else UNLIMITED


def show(table: Table, lead: int = 1, width: int | None = None) -> None:
    """Print a table on standard output, as :func:`fitted` for ``width``, else for :func:`room`."""
    for part in fitted(table, room() if width is None else width, lead):
        console.out.print(part, crop=False)


def fitted(table: Table, width: int, lead: int = 1) -> Iterator[Table]:
    """The table; where ``width`` is too small, several with the first columns and some of the others each.

    Words are whole. Only what is wider than ``width`` by itself is folded, and columns with
    ``overflow="fold"``.

    Args:
        table: as for a console of any width.
        width: characters of a line.
        lead: so many columns, which name a row, stand in every part.
    """
    first, others = table.columns[:lead], table.columns[lead:]
    blocks: list[list[Column]] = [[]]
    for column in others:
        if blocks[-1] and _least(_part(table, [*first, *blocks[-1], column])) > width:
            blocks.append([])
        blocks[-1].append(column)
    for number, block in enumerate(blocks):
        part = _part(table, [*first, *block])
        part.title = table.title if number == 0 else None
        part.caption = table.caption if number == len(blocks) - 1 else None
        _set_widths(part, width)
        yield part


def _part(table: Table, columns: Sequence[Column]) -> Table:
    """The same table with some of its columns, none wider than it needs to be."""
    part = copy.copy(table)
    part.columns = [
        replace(column, _index=n, width=_asked(column).minimum) for n, column in enumerate(columns)
    ]
    return part


def _asked(column: Column) -> Measurement:
    """Characters that a column needs, and those that it would like."""
    options = console.out.options.update(width=UNLIMITED)
    cells = [Measurement.get(console.out, options, cell) for cell in (column.header, *column.cells)]
    most = max(cell.maximum for cell in cells)
    least = most if column.no_wrap else max(cell.minimum for cell in cells)
    return Measurement(min(least, FOLDED) if column.overflow == "fold" else least, most)


def _least(table: Table) -> int:
    """Characters of a line that a table needs, with its frame."""
    return Measurement.get(console.out, console.out.options.update(width=UNLIMITED), table).minimum


def _set_widths(table: Table, width: int) -> None:
    """Give each column what it would like, then take from the widest until the table is no wider."""
    asked = [_asked(column) for column in table.columns]
    widths = [column.maximum for column in asked]
    around = _least(table) - sum(column.minimum for column in asked)
    while sum(widths) + around > width and max(widths) > 1:
        spare = [n for n, column in enumerate(asked) if widths[n] > column.minimum]
        widths[max(spare or range(len(widths)), key=lambda n: widths[n])] -= 1
    for column, least, chosen in zip(table.columns, asked, widths, strict=True):
        column.width, column.overflow = chosen, "fold"
        column.no_wrap = column.no_wrap and chosen >= least.maximum
    table.width = sum(widths) + around
