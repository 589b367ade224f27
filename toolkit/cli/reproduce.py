"""``toolkit reproduce``."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated

import typer


def reproduce(
    run: Annotated[str, typer.Argument(help="Name of a run, its folder, or that of its weights.")],
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the new run; default: the next train-N.")] = None,
    anyway: Annotated[bool, typer.Option("--anyway", help="Start although something differs.")] = False,
) -> None:
    """Train again as a run was begun, or say what differs (status 1).

    All that it needs is environment.json, beside the weights. What was changed when the run was continued is
    a difference too. On the CPU, and with nothing different, the weights come out the same bit for bit.

    Example: [bold]toolkit reproduce first[/bold]
    """
    from toolkit import console, workspace
    from toolkit.dataset import index
    from toolkit.errors import UNPARSED, ending_with
    from toolkit.runs import reproduction
    from toolkit.supervision import supervisor
    from toolkit.training import deciding
    from toolkit.training.options import Options

    if name is not None:
        with ending_with(UNPARSED):
            deciding.check_name(name)
    place = workspace.current()
    folder = place.run(run)
    then = reproduction.read(folder if (folder / workspace.ENVIRONMENT.name).exists() else folder / "weights")
    opened = cache(index.load)
    plan = deciding.plan_again(place, then.plan, Options(data=data, name=name))
    differences = [*then.resumed, *reproduction.differences(then, reproduction.here(plan, opened))]
    for line in differences:
        typer.echo(line)
    if differences and not anyway:
        console.note("not started: --anyway starts it all the same")
        raise typer.Exit(1)
    typer.echo(supervisor.train(plan, numbered=name is None, opened=opened))
