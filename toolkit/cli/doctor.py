"""``toolkit doctor``: what this machine is and what will work on it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from toolkit.cli.options import number

if TYPE_CHECKING:
    from toolkit.doctor import Report


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")] = False,
    sysfs: Annotated[
        Path | None, typer.Option(help="Examine a recorded machine instead of this one.", metavar="DIR")
    ] = None,
    record: Annotated[
        Path | None, typer.Option(help="Record this machine into a folder.", metavar="DIR")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder that holds or will hold the data; default: the workspace's."),
    ] = None,
    imgsz: Annotated[int, number("imgsz", "Side of the training images, pixels.")] = 640,
    timeout: Annotated[
        float, typer.Option(help="Seconds that each self-test may take.", min=1, max=86_400)
    ] = 300.0,
) -> None:
    """Examine the card, its true architecture, driver, PyTorch, permissions and memory; recommend settings.

    Exit status: 0 fine, 1 works with limits, 2 will not work or could not be examined.

    Example: [bold]toolkit doctor --json | jq .recommendation[/bold]
    """
    from patches.findings import Verdict
    from toolkit import console, workspace
    from toolkit.doctor import examine
    from toolkit.errors import ToolkitError, ending_with
    from toolkit.machine import kernel

    with ending_with(Verdict.FAILS):  # 1 is a verdict
        if sysfs is not None and record is not None:
            raise ToolkitError("--record writes this machine down, --sysfs examines another: leave one out")
        if data is None:
            try:
                data = workspace.current().data_dir()
            except ToolkitError:  # none there yet
                data = Path("data")
        console.note("examining this machine: seconds, with a new card's self-tests a minute or two")
        try:
            report = examine(sysfs or kernel.SYSFS, data, imgsz, timeout)
        except ToolkitError:
            raise
        except Exception as error:
            raise ToolkitError("the examination failed", f"{type(error).__name__}: {error}") from error
        _show(report, as_json)
        if record is not None:
            kernel.record(record, report.runtime, data)
            console.note(f"recorded in {record}")
    raise typer.Exit(report.verdict)


def _show(report: Report, as_json: bool) -> None:
    import msgspec
    from rich.markup import escape
    from rich.table import Table

    from patches.findings import Verdict
    from toolkit import console, tables

    if as_json:
        console.print_json(msgspec.to_builtins(report))
        return
    colour = {Verdict.FINE: "green", Verdict.LIMITS: "yellow", Verdict.FAILS: "red"}
    table = Table("what", "verdict", title="this machine", title_justify="left")
    for column in ("found", "what to do"):
        table.add_column(column, overflow="fold")
    for finding in report.findings:
        words = f"[{colour[finding.verdict]}]{finding.verdict.words}[/]"
        table.add_row(escape(finding.subject), words, escape(finding.found), escape(finding.advice))
    tables.show(table, len(table.columns), console.out.width)  # prose, which a pipe would draw out
    settings = Table("setting", "value", title="recommended", title_justify="left")
    settings.add_column("why", overflow="fold")
    for name, choice in msgspec.structs.asdict(report.recommendation).items():
        settings.add_row(name, choice.value, escape(choice.reason))
    tables.show(settings, len(settings.columns), console.out.width)
    console.out.print(f"[{colour[report.verdict]}]{report.verdict.words}[/]")
