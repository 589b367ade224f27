"""``toolkit bench ...``: loading, convolutions and training steps, measured on this machine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from patches.convolution import registry
from toolkit.cli.options import number

app = typer.Typer(
    help="Measure this machine: loading, convolutions, endurance, training steps.", no_args_is_help=True
)

Device = Annotated[
    str | None, typer.Option(help="cpu, or a GPU number; default: the first GPU, else the CPU.")
]
Model = Annotated[str, typer.Option(help="An Ultralytics configuration (yolov8n) or a checkpoint.")]
Batch = Annotated[int, number("batch", "Images a step.")]
ImageSize = Annotated[int, number("imgsz", "Side of the square images, pixels.")]
Amp = Annotated[bool, typer.Option("--amp", help="The model's layers in fp16, as mixed precision has them.")]
if TYPE_CHECKING:
    RouteName = str
else:
    RouteName = Literal[("auto", *registry.NAMES)]
Route = Annotated[
    RouteName, typer.Option(help=f"auto, {', '.join(registry.NAMES[:-1])} or {registry.NAMES[-1]}.")
]


def _new_file(path: Path | None) -> Path | None:
    """Refuse at once what could not be written after minutes of measuring."""
    if path and not os.access(path.parent, os.W_OK):
        raise typer.BadParameter(f"no folder {path.parent} to write in")
    return path


def _new_picture(path: Path | None) -> Path | None:
    if path and path.suffix != ".png":
        raise typer.BadParameter(f"{path} is no .png")
    return _new_file(path)


Csv = Annotated[
    Path | None, typer.Option(dir_okay=False, callback=_new_file, help="Write the numbers here as well.")
]
Plot = Annotated[
    Path | None, typer.Option(dir_okay=False, callback=_new_picture, help="Draw the totals into this PNG.")
]


@app.callback()
def _root() -> None:
    pass


@app.command()
def conv(
    model: Model = "yolov8n",
    tune: Annotated[
        str | None, typer.Option(help="Measure this model's layers for the plan, and stop.")
    ] = None,
    batch: Batch = 4,
    imgsz: ImageSize = 640,
    amp: Amp = False,
    device: Device = None,
    csv: Csv = None,
    plot: Plot = None,
) -> None:
    """Time convolutions by every route: unfold + matmul, gemm, triton, cuDNN or MIOpen on and off.

    First the six layers of the published table at batch 4, then all layers of a model. --tune takes a model
    as training has it (four classes, one channel), in fp32, or with --amp in fp16: as the run will be.

    Example: [bold]toolkit bench conv --model yolo11n --batch 16 --csv layers.csv[/bold]
    Example: [bold]toolkit bench conv --tune yolov8n --batch 16 --imgsz 640[/bold]
    Example: [bold]toolkit bench conv --tune yolo11m --batch 16 --imgsz 480 --amp[/bold]
    """
    from toolkit.benchmark import commands
    from toolkit.errors import CallError

    if tune is not None and (csv or plot):
        raise CallError("--tune writes the plan alone", fix="leave --csv and --plot out")
    if tune is not None:
        commands.tune(tune, batch, imgsz, device, amp)
    else:
        commands.convolutions(model, batch, imgsz, device, csv, plot, amp)


@app.command()
def card(
    model: Annotated[str, typer.Argument(help="An Ultralytics configuration (yolov8n) or a checkpoint.")],
    estimate: Annotated[
        str, typer.Option(metavar="ARCH", help="The architecture of the card, such as gfx1010.")
    ],
    batch: Batch = 8,
    imgsz: ImageSize = 640,
    channels_last: Annotated[
        bool, typer.Option("--channels-last", help="In the layout that toolkit train uses on a GPU.")
    ] = False,
) -> None:
    """Estimate what a model's convolutions cost on an AMD card, by a model of the card: none was measured.

    The kernels' machine code was executed in an emulator and counted; no card is needed. Each layer stands
    beside the least time that its arithmetic and its memory traffic would take.

    Example: [bold]toolkit bench card yolov8n --estimate gfx1010 --batch 8 --imgsz 640[/bold]
    """
    from toolkit.benchmark import commands

    commands.card(model, batch, imgsz, estimate, channels_last)


@app.command()
def stress(
    iterations: Annotated[int, typer.Option(min=10, max=10**9, help="Steps to run.")] = 1000,
    batch: Batch = 4,
    device: Device = None,
    route: Route = "auto",
    csv: Csv = None,
) -> None:
    """Run the six layers forward and backward many times: no NaN, no growing memory, the time of every step.

    Example: [bold]toolkit bench stress --iterations 10000 --csv clock.csv[/bold]
    """
    from toolkit.benchmark import commands

    commands.stress(iterations, batch, device, route, csv)


@app.command()
def train(
    model: Model = "yolov8n",
    batch: Batch = 8,
    imgsz: ImageSize = 640,
    iterations: Annotated[int, typer.Option(min=10, max=10**9, help="Steps to time, ten are not.")] = 100,
    epochs: Annotated[int, number("epochs", "Length of the schedule that is estimated.")] = 50,
    channels: Annotated[
        int | None, typer.Option(help="1 for grey frames, 3 for colour weights; default: as toolkit train.")
    ] = None,
    amp: Annotated[
        bool | None, typer.Option("--amp/--no-amp", help="Mixed precision; default: as toolkit train.")
    ] = None,
    device: Device = None,
    route: Route = "auto",
    csv: Csv = None,
) -> None:
    """Time real training steps (loss, backward, SGD) and say how long the whole schedule would take.

    Images are random and in memory: loading, validation and pauses for cooling come on top.

    Example: [bold]toolkit bench train --model yolov8n --batch 8 --epochs 50[/bold]
    Example: [bold]toolkit bench train --model yolov8n --batch 8 --no-amp[/bold], as --preset rx5600xt trains
    """
    from toolkit.benchmark import commands

    commands.train(model, batch, imgsz, iterations, epochs, device, route, csv, channels, amp)


@app.command()
def data(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Prepared dataset.")],
    batch: Annotated[int, number("batch", "Images in a batch.")] = 16,
    imgsz: Annotated[int, number("imgsz", "Side of a sample, pixels.")] = 640,
    channels: Annotated[int, typer.Option(min=1, max=3, help="1 grey, 3 for colour weights.")] = 1,
    frames: Annotated[str, typer.Option(help="Channels of a sample, such as now,before,background.")] = "now",
    device: Annotated[str, typer.Option(help="Where batches go: cpu, or a GPU's number.")] = "cpu",
    workers: Annotated[str, typer.Option(help="Numbers of workers to try; default: up to the cores.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Show how many training images a second arrive: by stage, and by number of loader workers.

    Example: [bold]toolkit bench data data/ltdv2 --workers 0,2,4[/bold]
    Example: [bold]toolkit bench data data/ltdv2 --frames now,before,background[/bold]
    """
    import msgspec
    from rich.table import Table
    from ultralytics.cfg import get_cfg

    from toolkit import console, tables
    from toolkit.benchmark.data import measure, worker_counts
    from toolkit.dataset.index import load
    from toolkit.dataset.ultralytics import build_dataset, data_dictionary
    from toolkit.dataset.views import Views
    from toolkit.errors import CallError
    from toolkit.machine.device import resolve_device, torch_device

    target = torch_device(resolve_device(device))
    numbers = workers.split(",") if workers else worker_counts()
    if not all(str(number).isdecimal() for number in numbers):
        raise CallError(f"--workers {workers} are no numbers of workers", expected="such as 0,2,4")
    index = load(folder)
    options = get_cfg(overrides={"imgsz": imgsz})
    views = Views.parse(frames)
    described = data_dictionary(index, channels if views.is_plain else views.channels, views)
    dataset = build_dataset(index, "train", options, "train", batch, described)
    console.note(f"train frames: {dataset.pixels.origin}")
    rates = measure(dataset, batch, target, [int(number) for number in numbers])
    if as_json:
        console.print_json(msgspec.to_builtins(rates, str_keys=True))
        return
    table = Table(
        title=f"mosaics of {imgsz} px, {described['channels']} channel(s), batches of {batch}, to {device}"
    )
    table.add_column("stage or loader")
    table.add_column("images/s", justify="right")
    for stage, rate in rates.stages.items():
        table.add_row(stage, f"{rate:,.0f}")
    for count, rate in rates.workers.items():
        table.add_row(f"loader, {count} workers", f"{rate:,.0f}")
    tables.show(table)
    console.note(
        f"the stages decoded {rates.frames_per_sample:.1f} frames a sample and had the others at hand"
    )
