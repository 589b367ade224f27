"""``toolkit drift``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from submission import Detections
    from toolkit.drift import Row


# Long: the flags of a verb.
def drift(
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[-- FLAGS OF TRAIN]", help="For every training."),
    ] = None,
    train_months: Annotated[
        str, typer.Option(help="A run each: feb,jun; feb+jun is one run on both; all: each month.")
    ] = "all",
    test_months: Annotated[str, typer.Option(help="Months that are tested.")] = "all",
    data: Annotated[Path | None, typer.Option(help="Folder with the data.")] = None,
    prefix: Annotated[str, typer.Option(help="Of the runs' names: drift-feb.")] = "drift",
    collect: Annotated[bool, typer.Option("--collect", help="Train nothing, score what is there.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say which runs there would be.")] = False,
    device: Annotated[str | None, typer.Option(help="cpu, 0; default: the first GPU or the CPU.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the results; default: runs/PREFIX-matrix.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the matrix as JSON.")] = False,
) -> None:
    """Train on some months, test on all: the matrix of scores with intervals. Run it again to continue.

    Example: [bold]toolkit drift --train-months feb,jun -- --preset rx5600xt --epochs 30[/bold]
    """
    from toolkit import console, tables, workspace
    from toolkit import drift as matrices
    from toolkit.errors import CallError
    from toolkit.machine import checks

    place = workspace.current()
    source = place.data_dir(data)
    if more and not more[0].startswith("-") and "=" not in more[0]:
        raise CallError(
            f"{more[0]} is no flag of toolkit train",
            expected="months with --train-months, and flags of toolkit train behind --",
            fix=f"toolkit drift --train-months {more[0]}",
        )
    matrices.refuse_decided(more or [])
    rows = matrices.plan(place, source, train_months, prefix)
    matrices.tested(source, test_months)  # not after the hours of training
    results = out or place.runs / f"{prefix}-matrix"
    if dry_run and json:
        names = ("run", "months", "state")
        console.print_json([dict(zip(names, _words(row), strict=True)) for row in rows])
        return
    if dry_run:
        for row in rows:
            typer.echo("\t".join(_words(row)))
        return
    checks.writable(results)
    if not collect:
        words = [*(more or []), *(["--device", device] if device else [])]
        matrices.train_all(rows, source.absolute(), words, matrices.train_in_child)
        rows = matrices.plan(place, source, train_months, prefix)
    for row in rows:
        if row.state != "finished":
            console.warn(f"{row.files.run.name} is {row.state}: its row is left out")

    def predict(weights: Path, folder: Path) -> Detections:
        from toolkit import prediction
        from toolkit.runs import health

        allowed = health.of(place, folder).frames_allowed()
        options = prediction.PredictionOptions(device=device, bad_frames=allowed)
        return prediction.predict(weights, folder, "val", options, may_find_nothing=True)

    table = matrices.matrix(rows, source, test_months, predict)
    for written in matrices.write(table, results):
        console.note(str(written))
    if json:
        console.print_json(table.to_dicts())
        return
    for shown in matrices.shown(table, tables.room()):
        console.out.print(shown)
    console.out.print(matrices.legend(table), style="italic dim", highlight=False)


def _words(row: Row) -> tuple[str, str, str]:
    return row.files.run.name, row.months, row.state
