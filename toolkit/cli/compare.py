"""``toolkit compare``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from toolkit.cli import completion
from toolkit.cli.options import EngineChoice, Scored, number


def compare(
    a: Annotated[
        str,
        typer.Argument(
            metavar="A",
            help="A run's folder or name, predictions, or weights; what has not predicted yet does so first.",
            autocompletion=completion.compared,
        ),
    ],
    b: Annotated[
        str,
        typer.Argument(metavar="B", help="What is compared with it.", autocompletion=completion.compared),
    ],
    split: Scored = "val",
    truth: Annotated[Path | None, typer.Option(help="A COCO file; default: the split's.")] = None,
    data: Annotated[Path | None, typer.Option(help="Folder with LTDv2's files; default: the run's.")] = None,
    resamples: Annotated[int, typer.Option(min=100, max=1_000_000, help="Bootstrap samples.")] = 1000,
    seed: Annotated[int, number("seed", "Of the bootstrap.")] = 0,
    engine: EngineChoice = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print numbers instead of tables.")] = False,
) -> None:
    """Put two runs or prediction files side by side and tell a gain from noise.

    The interval comes from resampling clips, because frames of one clip are not independent.

    Example: [bold]toolkit compare runs/first runs/second[/bold]
    Example: [bold]toolkit compare first soup.pt[/bold]
    Example: [bold]toolkit compare a.json b.json --truth Valid.json[/bold]
    """
    from submission import Detections
    from submission.validate import check_overlap, check_same_images, check_values
    from toolkit import assessment, console, ltdv2, tables, workspace
    from toolkit.evaluation.compare import compare as run
    from toolkit.evaluation.context import Context, first_context
    from toolkit.evaluation.table import class_difference_table, difference_table
    from toolkit.evaluation.truth import GroundTruth, answers_of

    place = workspace.current()
    named = assessment.named(place, (a, b), split)
    data = assessment.data_of_all(place, named, data)
    paths = [assessment.predictions_of(place, path, split, data) for path in named]
    both = [Detections.read(console.reading(path)) for path in paths]
    first = paths[0]
    known = place.known_data(first, data)[0] if truth else assessment.data_behind(place, first, split, data)
    answers = truth or answers_of(known or place.data_dir(), split)
    true = GroundTruth.read(answers, known)
    for line in check_same_images(dict(zip(map(str, paths), both, strict=True))):
        console.warn(f"{line}; scored as if nothing was found there")
    for path, detections in zip(paths, both, strict=True):  # of other data are also its labels
        check_overlap(detections, true.image_ids, str(path), str(answers))
        check_values(detections, str(path), true.vocabulary.classes)
    files = (answers, known / ltdv2.ANNOTATIONS[split] if known and true.vocabulary.is_own else None)
    context = first_context(files, true.image_ids) or Context.read(answers, true.image_ids)
    console.note(f"scoring {len(true):,} images twice and {resamples:,} resamples of their clips")
    result = run(true, both[0], both[1], context, engine, resamples, seed)
    if json:
        console.print_json(result.as_dict())
        return
    tables.show(difference_table(result, a, b))
    tables.show(class_difference_table(result))
