"""The command ``toolkit``: one thin function a verb. Parse, call, print; the work lives elsewhere.

Modules that import torch, ultralytics or polars are imported inside the functions, so that ``--help``
and shell completion answer at once.
"""

from __future__ import annotations

import atexit
import gc
import os
from typing import Annotated

import typer

from toolkit import __version__
from toolkit.cli import bench, border, container, dataset
from toolkit.cli.compare import compare
from toolkit.cli.config import config
from toolkit.cli.doctor import doctor
from toolkit.cli.drift import drift
from toolkit.cli.ensemble import ensemble
from toolkit.cli.evaluate import evaluate
from toolkit.cli.link import link
from toolkit.cli.monitor import monitor, runs
from toolkit.cli.predict import predict
from toolkit.cli.reproduce import reproduce
from toolkit.cli.soup import soup
from toolkit.cli.submissions import submissions
from toolkit.cli.submit import submit
from toolkit.cli.train import train
from toolkit.errors import STATUSES
from toolkit.quiet import keep_libraries_quiet

VAL = "The same as evaluate, by Ultralytics' name.\n\nExample: [bold]toolkit val best.pt[/bold]"

app = typer.Typer(
    name="toolkit",
    help="From LTDv2's raw files to a zip that the RTIOD challenge accepts.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    epilog="\n\n".join(["Exit status:", *(f"{status}  {meaning}" for status, meaning in STATUSES.items())]),
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(dataset.app, name="dataset")
app.command()(train)
app.command()(monitor)
app.command()(runs)
app.command()(reproduce)
app.command()(evaluate)
app.command("val", help=VAL)(evaluate)
app.command()(compare)
app.command()(predict)
app.command()(soup)
app.command()(link)
app.command()(ensemble)
app.command()(drift)
app.command()(submit)
app.command()(submissions)
app.command()(doctor)
app.command()(config)
app.add_typer(container.app, name="container")
app.add_typer(bench.app, name="bench")


def _version(value: bool) -> None:
    if value:
        typer.echo(f"ltdv2-toolkit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Print the whole trace of an unexpected error.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Warnings, errors and results alone.")] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also say which files, data and device were chosen.")
    ] = False,
) -> None:
    from toolkit import console

    if quiet and verbose:
        raise typer.BadParameter("-q and -v contradict each other")
    level = console.Level.QUIET if quiet else console.Level.VERBOSE if verbose else console.Level.NORMAL
    console.speak(level)


def _speak_as_called() -> None:
    """Name commands as the host has them where this process runs in a container, else as they are."""
    from toolkit import console

    console.reword_with(str)
    called = os.environ.get("TOOLKIT_CALLER")
    if called and os.environ.get("TOOLKIT_IMAGE"):
        from toolkit.container.words import Caller, takes_value

        caller = Caller.decode(called, takes_value(app), inside=True)
        if caller is not None:
            console.reword_with(caller.reword)


def main() -> None:
    """Entry point of the console script: errors become one line, Ctrl-C becomes status 130."""
    # Imports and annotation files make objects by the hundred thousand and hardly any garbage. Looking for it
    # every 700 objects, and among all of them at the end, took a third of a short command's time.
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)
    keep_libraries_quiet()
    _speak_as_called()
    border.run(lambda: app(standalone_mode=False))
