"""``toolkit train``."""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path
from shlex import quote
from typing import Annotated

import typer

from toolkit.cli.options import number
from toolkit.errors import ToolkitError


class SelectBy(str, Enum):
    """What best.pt is the best of: Ultralytics' mAP@0.5:0.95, the number that ranks, or the mean AP@0.5 of
    classes in months with 20 boxes or more."""

    fitness = "fitness"
    global_map_bal = "global_map_bal"
    cells = "cells"


def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [NAME=VALUE]...",
            help="With --resume: the run to continue, its name or folder. Ultralytics' training arguments.",
        ),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files, prepared.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint (.pt) or architecture (.yaml).")] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="Recipe: thermal, thermal-large, thermal-6gb, rx5600xt, smoke, or FILE.yaml."),
    ] = None,
    epochs: Annotated[int | None, number("epochs", "Passes over the training split.")] = None,
    batch: Annotated[int | None, number("batch", "Frames in a step.")] = None,
    imgsz: Annotated[int | None, number("imgsz", "Side of the network's input, pixels.")] = None,
    channels: Annotated[
        int | None, typer.Option(help="1 for grey frames, 3 for pretrained colour weights.")
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="cpu, 0, 0,1; default: the first GPU or the CPU.")
    ] = None,
    workers: Annotated[int | None, number("workers", "Loader processes.")] = None,
    seed: Annotated[int | None, number("seed", "Of weights, order and augmentation.")] = None,
    subset: Annotated[
        str | None, typer.Option(help="Train on a part such as 10%: whole clips, months in proportion.")
    ] = None,
    months: Annotated[str | None, typer.Option(help="Train on these months alone, such as feb,mar.")] = None,
    val_months: Annotated[str | None, typer.Option(help="Validate on these months alone.")] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, max=100_000, help="Each N-th frame of every clip an epoch, then others."),
    ] = None,
    repeat: Annotated[
        str | None, typer.Option(help="Frames with a class come more often: motorcycle=8,bicycle=2.")
    ] = None,
    paste: Annotated[
        str | None,
        typer.Option(
            help="Part of frames that get a rare object of another clip: motorcycle=0.3,bicycle=0.1."
        ),
    ] = None,
    train_on: Annotated[
        str | None, typer.Option(help="train, or train,val for the last run: nothing is left to choose by.")
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(help="Channels of a sample: now,before,background; before3 is three frames earlier."),
    ] = None,
    score_every: Annotated[
        int | None,
        typer.Option(
            min=1, max=1_000_000, help="Score as the challenge does after every N epochs; else never."
        ),
    ] = None,
    select_by: Annotated[
        SelectBy | None, typer.Option(help="What chooses best.pt and stops early; default: fitness.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A training argument of Ultralytics; can be repeated."
        ),
    ] = None,
    save_period: Annotated[
        int | None,
        typer.Option(min=1, max=1_000_000, help="Keep the weights of every N-th epoch, for a soup."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Name of the run; default: the next train-N.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest run, or RUN.")] = False,
    other_data: Annotated[
        bool, typer.Option("--other-data", help="With --resume: go on though the data is another.")
    ] = False,
    no_patches: Annotated[bool, typer.Option("--no-patches", help="PyTorch's own convolutions.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be used and expected; train nothing.")
    ] = False,
) -> None:
    """Train a detector on the prepared data; watched, saved every few minutes, restarted when it fails.

    SIGTERM and Ctrl-C save and stop (status 75 and 130); --resume goes on at the next batch.

    Example: [bold]toolkit train --data data/ltdv2 --preset rx5600xt --name first[/bold]
    Example: [bold]toolkit train --preset thermal lr0=0.005 mosaic=0.5[/bold]
    Example: [bold]toolkit train --months feb --val-months jan,mar,apr,may,jun,jul,aug[/bold]
    """
    from toolkit import console, workspace
    from toolkit.supervision import supervisor
    from toolkit.training import arguments, deciding

    names = [word for word in words or () if "=" not in word]
    if names and (name or not resume or len(names) > 1):
        raise _no_argument(names[-1])
    options = deciding.Options(
        data=data,
        model=model,
        preset=preset,
        epochs=epochs,
        batch=batch,
        imgsz=imgsz,
        device=device,
        workers=workers,
        name=names[0] if names else name,
        channels=channels,
        seed=seed,
        patches=not no_patches,
        subset=subset,
        months=months,
        val_months=val_months,
        score_every=score_every,
        select_by=select_by.value if select_by else None,
        every=every,
        repeat=repeat,
        paste=paste,
        train_on=train_on,
        frames=frames,
        save_period=save_period,
        arguments=arguments.parse([*(word for word in words or () if "=" in word), *(settings or ())]),
        other_data=other_data,
    )
    place = workspace.current()
    if os.environ.get("TORCHELASTIC_RUN_ID") and not dry_run:  # started by torchrun, as one of its ranks
        from toolkit.supervision import torchrun

        raise typer.Exit(torchrun.train(place, options, resume))
    if dry_run:
        from toolkit.training import estimate

        for line in estimate.dry_run(place, options, resume).lines():
            typer.echo(line)
        return
    from toolkit.dataset import index
    from toolkit.runs.plan import count_images
    from toolkit.training.cautions import cautions

    plan = deciding.plan_resume(place, options) if resume else deciding.plan(place, options)
    if files := place.settings_files(plan.data):
        console.note("settings of " + ", ".join(map(str, files)))
    console.note(f"run {plan.run}: {Path(plan.model).name}, preset {plan.preset}, device {plan.device}")
    for sentence in cautions(plan, count_images(plan, index.load(plan.data))["train"]):
        console.warn(sentence)
    unnamed = options.name is None and place.defaults(plan.data).name is None
    best = supervisor.train(plan, numbered=unnamed and not resume)
    console.note(f"next: `toolkit evaluate {quote(best.parents[1].name)} --report`")
    typer.echo(best)


def _no_argument(word: str) -> ToolkitError:
    """A word that is neither a training argument nor the name of the run that goes on."""
    return ToolkitError(
        f"{word} is no option of toolkit train",
        expected="name=value",
        fix=f"continue that run: toolkit train --resume {word}; or begin one: toolkit train --name NAME",
    )
