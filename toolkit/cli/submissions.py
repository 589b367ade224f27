"""``toolkit submissions``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli.options import Competition


def submissions(
    competition: Competition = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with LTDv2's files, whose toolkit.toml counts.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """List your submissions: phase, state, scores, weights, commit, and what is left of the quota.

    Codabench is asked with the token CODABENCH_TOKEN, and the receipts of finished submissions get their
    scores. Without a token the receipts in submissions/ are listed.

    Example: [bold]toolkit submissions[/bold]
    Example: [bold]toolkit submissions --competition 16106 --json[/bold]
    """
    from contextlib import suppress

    import msgspec

    from toolkit import console, entry, tables, workspace
    from toolkit import submissions as sent
    from toolkit.errors import ToolkitError

    place = workspace.current()
    client = entry.account()
    folder = place.data_dir(data) if data is not None else None
    with suppress(ToolkitError):  # no data is needed to list what was sent
        folder = folder or place.data_dir()
    seen = sent.overview(place.submissions, place.competition(competition, folder), client, folder)
    if json:
        console.print_json(msgspec.to_builtins(seen))
        return
    if client is None:
        console.warn("no token in CODABENCH_TOKEN: this is what the receipts say")
    for line in sent.quota_lines(seen):
        console.note(line)
    if not seen.lines:
        console.note(f"no submissions to competition {seen.competition}; make one: toolkit submit --upload")
        return
    tables.show(sent.overview_table(seen))
