"""``toolkit soup``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from toolkit.cli import completion
from toolkit.cli.options import number, refuse_source, require_place

if TYPE_CHECKING:
    from toolkit.workspace import Workspace


def soup(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="A.pt B.pt ...|RUN ...",
            help="Checkpoints, or runs with several.",
            autocompletion=completion.weights,
        ),
    ],
    out: Annotated[Path, typer.Option(help="Where the averaged weights go.")] = Path("soup.pt"),
    select_by: Annotated[
        Literal["global_map_50", "global_map", "global_map_bal"],
        typer.Option(help="Validation score that decides what is kept."),
    ] = "global_map_50",
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    imgsz: Annotated[int | None, number("imgsz", "Default: as trained.")] = None,
    batch: Annotated[int, number("batch", "Frames at a time.")] = 16,
    device: Annotated[str | None, typer.Option(help="cpu, 0; default: the first GPU or the CPU.")] = None,
) -> None:
    """Average the weights of checkpoints of one model, greedily by their validation score.

    Example: [bold]toolkit soup runs/a runs/b runs/c[/bold]
    Example: [bold]toolkit soup runs/a/weights/best.pt runs/a/weights/epoch40.pt --out soup.pt[/bold]
    """
    from toolkit import assessment, console, ltdv2, prediction, workspace
    from toolkit import soup as soups
    from toolkit.evaluation.scoring import score
    from toolkit.evaluation.truth import GroundTruth
    from toolkit.runs import health

    require_place(out, ".pt")
    place = workspace.current()
    paths = [path for source in sources for path in _checkpoints(place, source)]
    refuse_source(out, paths)
    assessment.warn_of_seen(place, paths, "val")
    source = place.data_of(place.of_a_run(paths), data)
    truth = GroundTruth.read(source / ltdv2.ANNOTATIONS["val"])
    options = prediction.PredictionOptions(
        imgsz=imgsz,
        batch=batch,
        device=device,
        bad_frames=health.of(place, source).frames_allowed(),
    )

    def judge(weights: Path) -> float:
        found = prediction.predict(weights, source, "val", options, may_find_nothing=True)
        return float(score(truth, found, source=str(weights)).as_dict()[select_by])

    made = soups.make(paths, judge, out, truth.vocabulary.classes)
    best = next(iter(made.alone.values()))
    console.note(
        f"{len(made.members)} of {len(made.alone)} checkpoints averaged: {select_by} {made.score:.4f} on "
        f"validation, the best one alone {best:.4f}"
    )
    typer.echo(out)


def _checkpoints(place: Workspace, source: str) -> list[Path]:
    from toolkit.soup import files_of

    run = place.run(source)
    return files_of(run) if run.is_dir() else [place.weights(source)]
