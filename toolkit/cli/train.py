"""``toolkit train``."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Annotated

import msgspec
import typer

from toolkit.cli import completion
from toolkit.cli.options import declared
from toolkit.errors import UNPARSED, CallError, ending_with
from toolkit.training.options import Options


# Long: the flags of a verb.
@declared
def train(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN] [NAME=VALUE]...",
            help="With --resume: the run to continue, its name or folder. Ultralytics' training arguments.",
            autocompletion=completion.runs,
        ),
    ] = None,
    *,
    options: Options,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="A training argument of Ultralytics; can be repeated."
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest run, or RUN.")] = False,
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
    from toolkit.dataset import index
    from toolkit.supervision import supervisor
    from toolkit.training import arguments, choices, deciding

    names = [word for word in words or () if "=" not in word]
    if names and (options.name or not resume or len(names) > 1):
        raise _no_argument(names[-1])
    with ending_with(UNPARSED):
        if options.name is not None and not resume:
            deciding.check_name(options.name)
        typed = arguments.parse([*(word for word in words or () if "=" in word), *(settings or ())])
        arguments.check_layer(typed, options.overrides(), "what was typed")
        choices.check_form(options)
    name = names[0] if names else options.name
    options = msgspec.structs.replace(options, name=name, arguments=typed)
    place = workspace.current()
    if os.environ.get("TORCHELASTIC_RUN_ID") and not dry_run:  # started by torchrun, as one of its ranks
        from toolkit.supervision import torchrun

        raise typer.Exit(torchrun.train(place, options, resume))
    if dry_run:
        from toolkit.training import estimate

        for line in estimate.dry_run(place, options, resume).lines():
            typer.echo(line)
        return
    from toolkit.runs.plan import count_images
    from toolkit.training.cautions import cautions

    opened = cache(index.load)
    plan = (deciding.plan_resume if resume else deciding.plan)(place, options, opened)
    if files := place.settings_files(plan.data):
        console.note("settings of " + ", ".join(map(str, files)))
    console.note(f"run {plan.run}: {Path(plan.model).name}, preset {plan.preset}, device {plan.device}")
    for sentence in cautions(plan, count_images(plan, opened(plan.data))["train"]):
        console.warn(sentence)
    unnamed = options.name is None and place.defaults(plan.data).name is None
    best = supervisor.train(plan, numbered=unnamed and not resume, opened=opened)
    console.note(f"next: `toolkit evaluate {quote(best.parents[1].name)} --report`")
    typer.echo(best)


def _no_argument(word: str) -> CallError:
    """A word that is neither a training argument nor the name of the run that goes on."""
    return CallError(
        f"{word} is no option of toolkit train",
        expected="name=value",
        fix=f"continue that run: toolkit train --resume {word}; or begin one: toolkit train --name NAME",
    )
