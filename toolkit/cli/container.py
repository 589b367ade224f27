"""``toolkit container ...``: the toolkit in an image that holds every pin and the code of this checkout."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from toolkit.container.request import EngineOptions, Request
from toolkit.container.verbs import VERBS

app = typer.Typer(help="Run the toolkit in an image with every pin and this code.", no_args_is_help=True)

Profile = Annotated[
    str | None, typer.Option(help="Profile of docker/profiles; default: the one for this machine's card.")
]
Base = Annotated[str | None, typer.Option(help="Image to build on, with Python and PyTorch in it.")]
ImageName = Annotated[str | None, typer.Option("--image", help="Image to run; default: this checkout's.")]
Data = Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the workspace's.")]
Runs = Annotated[Path | None, typer.Option(help="Folder for runs; default: the workspace's.")]
User = Annotated[str | None, typer.Option(help="uid:gid that files are written as; default: yours.")]
Volumes = Annotated[list[str] | None, typer.Option("--volume", "-v", help="HOST:CONTAINER[:ro].")]
Variables = Annotated[list[str] | None, typer.Option("--env", "-e", help="NAME=VALUE or NAME.")]
Ports = Annotated[list[str] | None, typer.Option("--publish", "-p", help="[ADDRESS:]PORT:PORT.")]
Memory = Annotated[str | None, typer.Option(help="Most RAM that it may use, such as 16g.")]
SharedMemory = Annotated[str | None, typer.Option("--shm-size", help="Of /dev/shm; default: up to 8g.")]
ContainerName = Annotated[str | None, typer.Option("--container-name", help="Default: what runs in it.")]
Detach = Annotated[bool, typer.Option("--detach", "-d", help="Return as soon as it runs.")]
Which = Annotated[str | None, typer.Argument(metavar="[NAME]", help="Default: the only one.")]
PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command()
def build(
    profile: Profile = None,
    base: Base = None,
    tag: Annotated[str | None, typer.Option(help="Another name for it.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Build even if it is there.")] = False,
) -> None:
    """Build the image of a profile and this checkout, unless it is there; print its name.

    Example: [bold]toolkit container build --profile cpu[/bold]
    """
    from toolkit.container import build as builder
    from toolkit.container import images, profiles
    from toolkit.container.engine import engine
    from toolkit.machine import kernel

    _speak(Request(profile, base))
    wanted = images.source(profiles.choose_profile(profile, kernel.read()), base, tag)
    with engine() as client:
        if again or tag is not None:
            builder.build(client, wanted)
        else:
            image = images.ensure(client, wanted, lambda: builder.build(client, wanted))
            if wanted.tag not in image.tags:
                raise typer.Exit(1)
    typer.echo(wanted.tag)


def _register(name: str) -> None:
    verb = VERBS[name]

    def command(
        context: typer.Context,
        profile: Profile = None,
        base: Base = None,
        image: ImageName = None,
        data: Data = None,
        runs: Runs = None,
        user: User = None,
        volume: Volumes = None,
        env: Variables = None,
        publish: Ports = None,
        memory: Memory = None,
        shm_size: SharedMemory = None,
        container_name: ContainerName = None,
        detach: Detach = False,
    ) -> None:
        from toolkit.container import start

        engine = _engine(volume, env, publish, memory, shm_size, container_name, detach=detach)
        request = Request(profile, base, image, data, runs, user, engine)
        _run(request, lambda told: start.verb(told, name, context.args))

    inside = "the demo" if name == "demo" else f"[bold]{' '.join(verb.command)}[/bold]"
    command.__doc__ = (
        f"{verb.help[0].upper()}{verb.help[1:]}; further arguments are those of {inside}.\n\n"
        f"Example: [bold]toolkit container {name} {verb.example}[/bold]".replace(" [/", "[/")
    )
    app.command(name, context_settings=PASS_ON)(command)


for _name in VERBS:
    _register(_name)


@app.command(context_settings={**PASS_ON, "allow_interspersed_args": False})
def run(
    context: typer.Context,
    profile: Profile = None,
    base: Base = None,
    image: ImageName = None,
    data: Data = None,
    runs: Runs = None,
    user: User = None,
    volume: Volumes = None,
    env: Variables = None,
    publish: Ports = None,
    memory: Memory = None,
    shm_size: SharedMemory = None,
    name: Annotated[str | None, typer.Option("--name", "--container-name", help="Of the container.")] = None,
    detach: Detach = False,
    writable: Annotated[bool, typer.Option("--writable-data", help="Let it write to the data.")] = False,
) -> None:
    """Run any command in the image: data read-only, runs and files yours. What is piped in arrives.

    Example: [bold]toolkit container run --data data/ltdv2 toolkit compare first second[/bold]
    """
    from toolkit.container import start

    engine = _engine(volume, env, publish, memory, shm_size, name, detach=detach)
    request = Request(profile, base, image, data, runs, user, engine)
    command = context.args or ["toolkit", "--help"]
    _run(request, lambda told: start.command(told, command, writable=writable))


@app.command(context_settings=PASS_ON)
def doctor(
    context: typer.Context,
    profile: Profile = None,
    base: Base = None,
    image: ImageName = None,
    user: User = None,
    runs: Runs = None,
) -> None:
    """Examine the machine from inside the image, with the image's PyTorch.

    Exit status: that of [bold]toolkit doctor[/bold], 2 as well when the container cannot be started.

    Example: [bold]toolkit container doctor --json[/bold]
    """
    from patches.findings import Verdict
    from toolkit.container import start
    from toolkit.errors import ending_with

    with ending_with(Verdict.FAILS):
        request = Request(profile, base, image, None, runs, user)
        _run(request, lambda told: start.command(told, ["toolkit", "doctor", *context.args]))


@app.command()
def shell(
    profile: Profile = None,
    base: Base = None,
    image: ImageName = None,
    data: Data = None,
    runs: Runs = None,
    user: User = None,
    volume: Volumes = None,
    env: Variables = None,
    publish: Ports = None,
    memory: Memory = None,
    shm_size: SharedMemory = None,
    name: Annotated[str | None, typer.Option("--name", "--container-name", help="Of the container.")] = None,
) -> None:
    """Open a shell in the image.

    Example: [bold]toolkit container shell --profile cpu -p 8888:8888[/bold]
    """
    from toolkit.container import start
    from toolkit.errors import ToolkitError

    def open_shell(told: Request) -> int:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            raise ToolkitError(
                "a shell needs a terminal", "none", fix="`toolkit container run COMMAND` needs none"
            )
        return start.command(told, ["bash"], shell=True)

    engine = _engine(volume, env, publish, memory, shm_size, name)
    _run(Request(profile, base, image, data, runs, user, engine), open_shell)


@app.command()
def ps(json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False) -> None:
    """List this checkout's containers: name, state, health, command, image.

    Example: [bold]toolkit container ps[/bold]
    """
    from toolkit import console
    from toolkit.container import manage, running
    from toolkit.container.engine import engine

    _speak(Request())
    with engine() as client:
        running.sweep(client)
        lines = manage.rows(client)
    if json:
        console.print_json(lines)
    elif not lines:
        console.note("no container of this checkout")
    for line in lines if not json else ():
        typer.echo("\t".join(line.values()))


@app.command()
def logs(
    name: Which = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", "-f", help="Go on while it runs.")] = True,
) -> None:
    """Print what a container has printed; Ctrl-C ends this, not the container.

    Example: [bold]toolkit container logs ltdv2-train-first[/bold]
    """
    from toolkit.container import manage
    from toolkit.container.engine import engine

    _speak(Request())
    with engine() as client:
        manage.logs(client, name, follow=follow)


@app.command()
def attach(name: Which = None) -> None:
    """Stand for a container that runs: its output, its exit status; Ctrl-C and SIGTERM are its own.

    Example: [bold]toolkit container attach ltdv2-train-first[/bold]
    """
    from toolkit.container import manage
    from toolkit.container.engine import engine

    _speak(Request())
    with engine() as client:
        raise typer.Exit(manage.attach(client, name))


@app.command()
def stop(name: Which = None) -> None:
    """Stop a container; a training saves a checkpoint first, and `--resume` goes on from it.

    Example: [bold]toolkit container stop ltdv2-train-first[/bold]
    """
    from toolkit.container import manage
    from toolkit.container.engine import engine

    _speak(Request())
    with engine() as client:
        manage.stop(client, name)


@app.command()
def prune(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")] = False,
) -> None:
    """Remove this checkout's ended containers and the images that neither its code nor a run needs.

    Example: [bold]toolkit container prune --dry-run[/bold]
    """
    from toolkit.container import start
    from toolkit.container.engine import engine

    _speak(Request())
    with engine() as client:
        gone = start.prune(client, dry_run=dry_run)
    for line in gone:
        typer.echo(line)


def _speak(request: Request) -> Request:
    """From here on, messages name commands as the caller types them; so they do in the container."""
    import os

    from toolkit import cli, console
    from toolkit.container.words import VARIABLE, Caller, takes_value

    style = os.environ.get(VARIABLE, "").split(" ")[0]
    given = {name: getattr(request, name) for name in ("profile", "base", "image", "runs")}
    options = {name: str(value) for name, value in given.items() if value is not None}
    caller = Caller("make" if style == "make" else "container", options, takes_value(cli.app))
    console.reword_with(caller.reword)
    return replace(request, caller=caller.encode())


def _engine(
    volume: list[str] | None,
    env: list[str] | None,
    publish: list[str] | None,
    memory: str | None,
    shm_size: str | None,
    name: str | None,
    *,
    detach: bool = False,
) -> EngineOptions:
    return EngineOptions(volume or (), env or (), publish or (), memory, shm_size, name, detach)


def _run(request: Request, act: Callable[[Request], int]) -> None:
    raise typer.Exit(act(_speak(request)))
