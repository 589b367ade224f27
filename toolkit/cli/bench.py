"""``toolkit bench ...``: measurements on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Measure this machine.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass


@app.command()
def data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared dataset.")],
    batch: Annotated[int, typer.Option(min=1, help="Images in a batch.")] = 16,
    imgsz: Annotated[int, typer.Option(min=32, help="Side of a sample, pixels.")] = 640,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 grey, 3 for colour weights.")] = 1,
    device: Annotated[str, typer.Option(help="Where batches go: cpu or cuda.")] = "cpu",
    workers: Annotated[str, typer.Option(help="Numbers of workers to try; default: up to the cores.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show how many training images a second arrive: by stage, and by number of loader workers.

    Example: [bold]toolkit bench data data/LTDv2 --workers 0,2,4[/bold]
    """
    import msgspec
    import torch
    from rich.table import Table
    from ultralytics.cfg import get_cfg

    from toolkit import console
    from toolkit.dataset.benchmark import measure, worker_counts
    from toolkit.dataset.index import load
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary

    index = load(folder)
    options = get_cfg(overrides={"imgsz": imgsz})
    dataset = build_dataset(index, "train", options, "train", batch, data_dictionary(index, channels))
    numbers = [int(n) for n in workers.split(",")] if workers else worker_counts()
    rates = measure(dataset, batch, torch.device(device), numbers)
    if as_json:
        console.print_json(msgspec.to_builtins(rates, str_keys=True))
        return
    table = Table(title=f"mosaics of {imgsz} px, {channels} channel(s), batches of {batch}, to {device}")
    table.add_column("stage or loader")
    table.add_column("images/s", justify="right")
    for stage, rate in rates.stages.items():
        table.add_row(stage, f"{rate:,.0f}")
    for number, rate in rates.workers.items():
        table.add_row(f"loader, {number} workers", f"{rate:,.0f}")
    console.out.print(table)
    console.note(f"{rates.frames_per_sample:.1f} frames read for a sample; the others come from its buffer")
