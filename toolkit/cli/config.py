"""``toolkit config``: every value that a file may set, with where it comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def config(
    data: Annotated[
        Path | None, typer.Option(help="Folder with the data; its toolkit.toml counts too.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show every setting, its value, and the file or variable that it comes from.

    Example: [bold]toolkit config --data data/ltdv2[/bold]
    """
    from rich import box
    from rich.table import Table

    from toolkit import configuration, console, tables, workspace

    place = workspace.current()
    values = configuration.values(place, data)
    given = place.defaults(configuration.data_of(place, data))
    if given.arguments:  # here: Ultralytics, which knows their names, takes seconds to import
        from toolkit.training.arguments import check_settings

        check_settings(given)
    if json:
        console.print_json({value.key: {"value": value.value, "source": value.source} for value in values})
        return
    table = Table("setting", box=box.SIMPLE_HEAD)
    for column in ("value", "from"):
        table.add_column(column, overflow="fold")  # a path is of no use without its end
    for value in values:
        shown = "-" if value.value is None else str(value.value)
        table.add_row(value.key, shown, value.source, style="dim" if value.source == "default" else "")
    tables.show(table, lead=3)
    console.note("-: not set; the preset, the run or the machine decides, as `toolkit train --dry-run` shows")
    for path, words in place.settings_places(data):
        console.note(f"{words}: {path}{'' if path.exists() else ' (not there)'}")
