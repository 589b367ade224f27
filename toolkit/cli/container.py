"""``toolkit container ...``: build the image for this machine's card and run the toolkit in it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Build an image with every pin, and run the toolkit in it.", no_args_is_help=True)

Profile = Annotated[
    str | None, typer.Option(help="Profile of docker/profiles; default: the one for this machine's card.")
]
Data = Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the workspace's.")]
Runs = Annotated[Path | None, typer.Option(help="Folder for runs; default: the workspace's.")]
User = Annotated[str | None, typer.Option(help="uid:gid that files are written as; default: yours.")]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def build(
    profile: Profile = None,
    base: Annotated[
        str | None, typer.Option(help="Image to build on, with Python and PyTorch in it.")
    ] = None,
) -> None:
    """Build the image of a profile; print its name.

    Example: [bold]toolkit container build --profile cpu[/bold]
    """
    from toolkit import containers, machine

    chosen = containers.choose_profile(profile, machine.read())
    with containers.engine() as client:
        containers.build(client, chosen, base)
    typer.echo(chosen.image)


@app.command(context_settings=PASS_ON)
def run(
    context: typer.Context,
    profile: Profile = None,
    data: Data = None,
    runs: Runs = None,
    user: User = None,
    writable: Annotated[bool, typer.Option("--writable-data", help="Let it write to the data.")] = False,
) -> None:
    """Run any command in the image: data read-only, runs and files yours.

    Example: [bold]toolkit container run --data data/ltdv2 toolkit submit --zip[/bold]
    """
    _run(context.args or ["toolkit", "--help"], profile, data, runs, user, writable=writable)


@app.command(context_settings=PASS_ON)
def train(
    context: typer.Context, profile: Profile = None, data: Data = None, runs: Runs = None, user: User = None
) -> None:
    """Train in the image; further arguments are those of [bold]toolkit train[/bold].

    Example: [bold]toolkit container train --data data/ltdv2 --preset rx5600xt --name first[/bold]
    """
    _run(["toolkit", "train", *context.args], profile, data, runs, user, needs_data=True)


@app.command(context_settings=PASS_ON)
def evaluate(
    context: typer.Context, profile: Profile = None, data: Data = None, runs: Runs = None, user: User = None
) -> None:
    """Evaluate in the image; further arguments are those of [bold]toolkit evaluate[/bold].

    Example: [bold]toolkit container evaluate best.pt --report[/bold]
    """
    _run(["toolkit", "evaluate", *context.args], profile, data, runs, user)


@app.command(context_settings=PASS_ON)
def doctor(context: typer.Context, profile: Profile = None, user: User = None) -> None:
    """Examine the machine from inside the image, with the image's PyTorch.

    Exit status: that of [bold]toolkit doctor[/bold], 2 as well when the container cannot be started.

    Example: [bold]toolkit container doctor --json[/bold]
    """
    from toolkit.checks import Verdict
    from toolkit.errors import ending_with

    with ending_with(Verdict.FAILS):
        _run(["toolkit", "doctor", *context.args], profile, None, None, user)


@app.command()
def shell(profile: Profile = None, data: Data = None, runs: Runs = None, user: User = None) -> None:
    """Open a shell in the image.

    Example: [bold]toolkit container shell --profile cpu[/bold]
    """
    from toolkit.errors import ToolkitError

    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise ToolkitError("a shell needs a terminal", "none", fix="toolkit container run COMMAND needs none")
    _run(["bash"], profile, data, runs, user, interactive=True)


def _run(
    command: Sequence[str],
    profile: str | None,
    data: Path | None,
    runs: Path | None,
    user: str | None,
    *,
    writable: bool = False,
    interactive: bool = False,
    needs_data: bool = False,
) -> None:
    from toolkit import containers, machine, workspace
    from toolkit.errors import ToolkitError

    place = workspace.current()
    try:
        data = place.data_dir(data)
    except ToolkitError:
        if data is not None or needs_data:
            raise
    folder = runs or place.runs
    defaults = place.root / "toolkit.toml"
    user = user or containers.default_user()
    containers.make_runs(folder, user)
    found = machine.read()
    chosen = containers.choose_profile(profile, found)
    arguments = containers.create_arguments(
        chosen,
        found,
        containers.Places(data, folder, writable, defaults if defaults.is_file() else None),
        command,
        user,
        tty=sys.stdout.isatty(),
        stdin=interactive,
    )
    with containers.engine() as client:
        raise typer.Exit(containers.run(client, chosen, arguments))
