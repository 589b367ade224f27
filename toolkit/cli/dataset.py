"""``toolkit dataset ...``: the verbs about LTDv2's files."""

from __future__ import annotations

import typer

app = typer.Typer(help="LTDv2's files: sample, prepare, verify, export.", no_args_is_help=True)


@app.callback()
def _root() -> None:
    pass
