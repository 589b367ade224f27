"""No width of a console cuts a number, or a name that fits a line."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich import box
from rich.console import Console
from rich.table import Table

from toolkit import console, tables
from toolkit.evaluation.compare import Comparison, Difference
from toolkit.evaluation.scoring import Scores, Summary
from toolkit.evaluation.table import class_difference_table, difference_table, month_table

WORDS = st.text("abcdefghijklmnopqrstuvwxyzÄ0123456789_", min_size=1, max_size=15)


def printed(table: Table, width: int, lead: int = 1) -> list[str]:
    """The lines of a table that was fitted into ``width``."""
    shown = Console(width=width, file=io.StringIO())
    with shown.capture() as captured:
        for part in tables.fitted(table, width, lead):
            shown.print(part, crop=False)
    return captured.get().splitlines()


@given(
    st.lists(WORDS, min_size=1, max_size=9, unique=True),
    st.lists(WORDS, min_size=1, max_size=4),
    st.integers(56, 130),
    st.sampled_from([box.SIMPLE_HEAD, box.HEAVY_HEAD]),
    st.integers(1, 2),
)
def test_names_and_numbers_stand_whole_at_every_width(
    names: list[str], rows: list[str], width: int, edges: box.Box, lead: int
) -> None:
    table = Table(title="t", caption="the end", box=edges)
    table.add_column("row", no_wrap=True)
    for name in names:
        table.add_column(name, justify="right")
    cells = [[f"{index / 7:.4f}" for index in range(at, at + len(names))] for at in range(len(rows))]
    for row, numbers in zip(rows, cells, strict=True):
        table.add_row(row, *numbers)
    lines = printed(table, width, min(lead, len(names)))
    assert max(map(len, lines)) <= width
    words = " ".join(lines).replace("│", " ").replace("┃", " ").split()
    assert {*names, *rows, *(number for row in cells for number in row)} <= set(words)
    assert " ".join(lines).count("the end") == 1


def test_a_name_wider_than_the_console_is_folded_and_loses_no_letter() -> None:
    name = "".join(chr(ord("a") + index % 26) for index in range(70))
    table = Table("", box=box.SIMPLE_HEAD)
    table.add_column(name, no_wrap=True)
    table.add_row("x", "0.1234")
    lines = printed(table, 40)
    assert max(map(len, lines)) <= 40
    assert name in "".join("".join(lines).split())


def test_a_column_of_paths_is_folded_before_the_table_is_divided() -> None:
    table = Table("setting", "value", box=box.SIMPLE_HEAD)
    table.add_column("from", overflow="fold")
    path = "/somewhere/" + "far/" * 30
    table.add_row("health.not_finite.limit", "3", path)
    assert len(list(tables.fitted(table, 60))) == 1
    lines = printed(table, 60)
    assert max(map(len, lines)) <= 60
    assert "health.not_finite.limit" in " ".join(lines)
    assert sum(line.count("far") for line in lines) >= 25


def test_a_pipe_gets_a_table_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table(*(f"column{n}" for n in range(40)), box=box.SIMPLE_HEAD)
    table.add_row(*(str(n) for n in range(40)))
    assert not console.out.is_terminal
    tables.show(table)
    header = next(line for line in capsys.readouterr().out.splitlines() if "column0" in line)
    assert header.split() == [f"column{n}" for n in range(40)]


CLASSES = {1: "OtherVehicle", 2: "EmergencyVehicle", 3: "person", 4: "motorcycle", 5: "traffic_light_green"}


def summary(value: float) -> Summary:
    """Scores of a part, the same in all classes."""
    per_class = dict.fromkeys(CLASSES, value)
    return Summary(40_000, value, value, value, 0, 0, 0, per_class, per_class)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_the_classes_of_other_data_keep_their_names_in_every_table_of_scores(width: int) -> None:
    difference = Difference(0.12345, 0.5, -0.25, 0.75, 0.5)
    result = Comparison(
        {f"{name}_map_50": difference for name in CLASSES.values()},
        {"all": dict.fromkeys(CLASSES, difference)},
        clips=12,
        resamples=100,
        names=CLASSES,
    )
    scores = Scores(
        summary(0.5), {"north": summary(0.1), "south": summary(0.2)}, 0.1, 0.4, "e", 0, 0, CLASSES
    )
    found = month_table(scores), class_difference_table(result), difference_table(result, "a", "b")
    for table in found:
        text = " ".join(printed(table, width))
        assert all(name in text for name in CLASSES.values())
        assert "0.5" in text
