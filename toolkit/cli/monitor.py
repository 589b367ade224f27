"""``toolkit monitor`` and ``toolkit runs``."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toolkit.cli import completion

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from toolkit.supervision.status import RunLine, Snapshot

REFRESH = 1.0
"""Seconds between two looks on a terminal."""

PLAIN = 10.0
"""Seconds between two lines when the output is no terminal."""


def monitor(
    run: Annotated[
        str | None,
        typer.Argument(
            help="Name of the run; default: the one in training, else the newest.",
            autocompletion=completion.runs,
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="One look, as JSON.")] = False,
    interval: Annotated[
        float | None,
        typer.Option(min=0.1, max=86_400, help="Seconds from look to look; default 1, piped 10."),
    ] = None,
) -> None:
    """Watch a run until it ends: progress, losses, GPU, events. Plain lines when piped.

    Example: [bold]toolkit monitor first[/bold]
    """
    import msgspec

    from toolkit import console, workspace
    from toolkit.supervision import status

    watch = status.Watch(status.find(workspace.current().runs, run))
    snapshot = watch.look()
    if json:
        console.print_json(msgspec.to_builtins(snapshot))
        return
    if not console.out.is_terminal:
        while True:
            typer.echo(snapshot.line())
            if snapshot.state != "running":
                return
            time.sleep(interval or PLAIN)
            snapshot = watch.look()
    from rich.live import Live

    with Live(_view(snapshot, watch.title), console=console.out, auto_refresh=False) as live:
        while snapshot.state == "running":
            time.sleep(interval or REFRESH)
            snapshot = watch.look()
            live.update(_view(snapshot, watch.title), refresh=True)
        live.refresh()


def runs(
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List the runs of this workspace: state, best score, red flags, size. Fewer on a narrow terminal.

    Example: [bold]toolkit runs[/bold]
    """
    import msgspec

    from toolkit import console, tables, workspace
    from toolkit.runs.folder import all_runs
    from toolkit.supervision import status

    place = workspace.current()
    lines = [status.describe(files) for files in all_runs(place.runs)]
    if json:
        console.print_json(msgspec.to_builtins(lines))
        return
    if not lines:
        console.note(f"no runs in {place.runs}; start one: toolkit train")
        return
    shown = list(_COLUMNS)
    unlimited = console.out.options.update(width=tables.UNLIMITED)
    for spare in _SPARE:
        if console.out.measure(_table(lines, shown), options=unlimited).maximum > tables.room():
            shown.remove(spare)
    tables.show(_table(lines, shown))
    for line in lines:
        if line.reason:
            console.warn(f"{line.name} is damaged: {line.reason}")


def _table(lines: list[RunLine], shown: list[str]) -> Table:
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    from toolkit.supervision.status import number

    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    for title in shown:
        table.add_column(title, justify=_COLUMNS[title], no_wrap=title != "run", overflow="fold")
    for line in lines:
        cells = {
            "run": escape(line.name),
            "state": f"[{_COLOURS[line.state]}]{line.state}[/]",
            "preset": line.preset,
            "model": escape(line.model),
            "epochs": f"{line.epochs}/{line.epochs_planned}" if line.epochs_planned else "-",
            "mAP50": number(line.map50, ".4f"),
            "bal": number(line.global_map_bal, ".4f"),
            "flags": str(sum(line.flags.values()) or ""),
            "MiB": f"{line.bytes / 2**20:,.1f}",
            "begun": line.begun[5:].replace("T", " "),
        }
        table.add_row(*(cells[title] for title in shown))
    return table


_COLUMNS: dict[str, Literal["left", "right"]] = {
    "run": "left",
    "state": "left",
    "preset": "left",
    "model": "left",
    "epochs": "right",
    "mAP50": "right",
    "bal": "right",
    "flags": "right",
    "MiB": "right",
    "begun": "left",
}
_SPARE = ("begun", "preset", "MiB", "model", "flags")
"""Columns that give way on a narrow terminal, in this order; long names of runs are then folded."""

_COLOURS = {
    "running": "green",
    "finished": "bold green",
    "stopped": "yellow",
    "interrupted": "yellow",
    "failed": "bold red",
    "damaged": "bold red",
}


def _view(snapshot: Snapshot, title: str) -> RenderableType:
    """The live display: a panel of bars and numbers, and below it the last events."""
    from rich.console import Group
    from rich.markup import escape
    from rich.panel import Panel
    from rich.progress_bar import ProgressBar
    from rich.table import Table

    from toolkit.console import duration
    from toolkit.machine.checks import GIB
    from toolkit.supervision.status import number

    beat = snapshot.beat
    grid = Table.grid(padding=(0, 2), expand=True)
    grid.add_column(style="dim", no_wrap=True, width=12)
    grid.add_column(ratio=1)
    state = f"[{_COLOURS[snapshot.state]}]{snapshot.state}[/]"
    if beat is None or not beat.batches:
        waiting = "waiting for the trainer's first batch" if snapshot.state == "running" else ""
        grid.add_row("state", f"{state}  {escape(snapshot.reason) or waiting}")
    else:
        phase = f", {beat.phase}" if snapshot.state == "running" else ""
        quiet = snapshot.silent_seconds or 0.0
        late = f"  [yellow]no heartbeat for {duration(quiet)}[/]" if phase and quiet > 10 else ""
        grid.add_row("state", f"{state}{phase}  {escape(snapshot.reason)}{late}")
        done = beat.epoch * beat.batches + beat.batch
        grid.add_row("run", ProgressBar(total=max(beat.epochs * beat.batches, 1), completed=done))
        grid.add_row("epoch", f"{min(beat.epoch + 1, beat.epochs)} of {beat.epochs}")
        grid.add_row("batch", f"{beat.batch:,} of {beat.batches:,}")
        low, middle, high = map(duration, snapshot.seconds_left or (0.0, 0.0, 0.0))
        left = f", {middle} left, {low} to {high}" if snapshot.seconds_left else ""
        grid.add_row("rate", f"{beat.images_per_second:.1f} images/s{left}")
        losses = (f"{name.removesuffix('_loss')} {number(value, '.4f')}" for name, value in beat.loss.items())
        grid.add_row("loss", "  ".join(losses) + f"  running median {number(beat.median_loss, '.4f')}")
        best = f"{number(snapshot.map50, '.4f')} at 0.5, {number(snapshot.map50_95, '.4f')} at 0.5:0.95"
        grid.add_row("best mAP", best)
        if snapshot.global_map_bal is not None:
            grid.add_row("best score", f"global_map_bal {snapshot.global_map_bal:.4f}")
        grid.add_row("loader", f"{beat.loader_wait:.0%} of the time waiting")
        saved = "no checkpoint" if snapshot.checkpoint is None else f"after image {snapshot.checkpoint:,}"
        grid.add_row("saved", f"{saved}, learning rate {beat.learning_rate:.3g}")
        grid.add_row("memory", f"{beat.memory / GIB:.2f} GiB, on the GPU {beat.gpu_memory / GIB:.2f} GiB")
    if snapshot.gpu_busy is not None or snapshot.temperature is not None:
        used = number(snapshot.vram_used and snapshot.vram_used / GIB, ".1f")
        total = number(snapshot.vram_total and snapshot.vram_total / GIB, ".1f")
        busy, degrees = number(snapshot.gpu_busy, ".0f"), number(snapshot.temperature, ".0f")
        grid.add_row("GPU", f"{busy} % busy, {degrees} C, {used} of {total} GiB")
    parts: list[RenderableType] = [grid]
    if snapshot.recent:
        happened = Table.grid(padding=(0, 2))
        for event in snapshot.recent:
            happened.add_row(f"[dim]{event.time[11:19]}[/]", escape(event.line()))
        parts += ["", happened]
    heading = f"[bold]{escape(snapshot.name)}[/]  {escape(title)}"
    return Panel(Group(*parts), title=heading, title_align="left")
