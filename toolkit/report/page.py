"""``report.html``: the scores and what lies below them, one file that needs nothing else."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

import numpy as np

from submission import Detections
from toolkit.evaluation.context import Context, first_context
from toolkit.evaluation.leverage import CAUSES, STEP, Cell, causes, cells
from toolkit.evaluation.matching import match
from toolkit.evaluation.scoring import Scores, align, is_number
from toolkit.evaluation.truth import GroundTruth
from toolkit.files import replacing
from toolkit.ltdv2 import ANNOTATIONS
from toolkit.report.figures import Evaluated, Picture, operating_point, pictures, save
from toolkit.report.gallery import Reader, frames_of, gallery
from toolkit.vocabulary import capitalised

if TYPE_CHECKING:
    from toolkit.dataset.index import DatasetIndex
    from toolkit.ltdv2 import SplitName

WIDE = ("months", "classes", "counts", "conditions", "gallery")
"""Pictures that take the whole width of the page."""


def write_report(
    folder: Path,
    title: str,
    scores: Scores,
    truth: GroundTruth,
    predictions: Detections,
    context: Context | None = None,
    read: Reader | None = None,
) -> Path:
    """Write ``report.html`` and its pictures (``months.png`` and so on) into a folder.

    Args:
        folder: made if it is missing.
        title: heading of the report, say the run's name.
        scores: result of :func:`toolkit.evaluation.scoring.score` on the same truth and predictions.
        truth, predictions: what was scored.
        context: clips, hours and weather of the truth's images, if known.
        read: the truth's frames, if at hand; without them there is no gallery.

    Returns:
        The path of ``report.html``.

    Raises:
        ToolkitError: the folder cannot be written.
    """
    matches = match(align(truth, predictions))
    data = Evaluated(scores, matches, truth.image_ids, context, operating_point(matches))
    drawn = pictures(data)
    if read is not None and (worst := gallery(data, read)) is not None:
        drawn.append(worst)
    folder.mkdir(parents=True, exist_ok=True)
    embedded = []
    for picture in drawn:
        with replacing(folder / f"{picture.name}.png") as temporary:
            save(picture, temporary)
        embedded.append(_figure(picture, (folder / f"{picture.name}.png").read_bytes()))
    template = Template((files(__package__) / "page.html").read_text(encoding="utf-8"))
    page = template.substitute(
        title=html.escape(title),
        subtitle=html.escape(
            f"{scores.overall.images:,} images, {len(truth.labels):,} true boxes, "
            f"{len(matches.problem.scores):,} detections"
        ),
        cards="\n".join(_cards(scores)),
        findings="\n".join(f"<li>{html.escape(text)}</li>" for text in findings(scores)),
        figures="\n".join(embedded),
        levers=_levers(data),
        table=_table(scores),
        part=scores.part,
        footer=html.escape(
            f"ltdv2-toolkit, engine {scores.engine}. {scores.missing:,} images had no predictions, "
            f"{scores.ignored:,} predicted images were not in the truth."
        ),
    )
    path = folder / "report.html"
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def report_on(
    folder: Path,
    title: str,
    scores: Scores,
    truth: GroundTruth,
    predictions: Detections,
    answers: Path,
    data: Path | DatasetIndex | None,
    split: SplitName,
) -> Path:
    """:func:`write_report` with whatever the files give: weather from a COCO truth, frames from the data.

    Args:
        answers: the file that the truth was read from.
        data: folder with LTDv2's files, or its index; or None.
        split: the split that the truth is of.
    """
    source = data if data is None or isinstance(data, Path) else data.data
    context = first_context((answers, source / ANNOTATIONS[split] if source else None), truth.image_ids)
    read = frames_of(data, split, truth.image_ids) if data else None
    return write_report(folder, title, scores, truth, predictions, context, read)


def findings(scores: Scores) -> list[str]:
    """What costs the score, in sentences: the drift between months, the weakest month, the weakest class.

    Months or classes that are alike in the digits shown are named together.
    """
    told = []
    months = {name: s.map_50 for name, s in scores.months.items() if is_number(s.map_50)}
    if len(months) > 1 and is_number(scores.balanced):
        lost = scores.overall.map_50 - scores.balanced
        told.append(
            f"The drift between {scores.part}s costs {lost:.3f}: with equal {scores.part}s the score would "
            f"be {scores.overall.map_50:.3f} instead of {scores.balanced:.3f}."
        )
        shown = {scores.heading(name): f"{value:.3f}" for name, value in months.items()}
        low, high = min(shown.values()), max(shown.values())
        worst, best = ([name for name in shown if shown[name] == value] for value in (low, high))
        if low == high:
            told.append(f"All {scores.part}s score alike ({low}).")
        else:
            told.append(
                f"{_are(worst)} the weakest {scores.part}{'s' * (len(worst) > 1)} ({low}), "
                f"{_listed(best)} the strongest ({high})."
            )
    empty = [scores.heading(name) for name, s in scores.months.items() if not is_number(s.map_50)]
    if empty:
        told.append(
            f"No true boxes in {', '.join(empty)}: the challenge's formula then counts -1 for the "
            f"{scores.part}, and global_map_con and global_map_bal say nothing."
        )
    if scores.left_out:
        told.append(f"No true boxes in {_listed(list(scores.left_out))}: left out of the scores.")
    classes = {k: v for k, v in (scores.overall.map_50_per_class or {}).items() if is_number(v)}
    if len(classes) > 1:
        low = f"{min(classes.values()):.3f}"
        weak = [k for k, value in classes.items() if f"{value:.3f}" == low]
        rest = [value for k, value in classes.items() if k not in weak]
        names = [capitalised(scores.classes.get(k, str(k))) for k in weak]
        if not rest:
            told.append(f"All classes score alike (AP@0.5 {low}).")
        else:
            told.append(
                f"{_are(names)} the weakest class{'es' * (len(weak) > 1)} "
                f"(AP@0.5 {low}; the others have {np.mean(rest):.3f} on average). "
                f"Each class is a {_share(len(classes))} of mAP."
            )
    return told


def _listed(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def _are(names: list[str]) -> str:
    return f"{_listed(names)} {'are' if len(names) > 1 else 'is'}"


def _share(n: int) -> str:
    return {2: "half", 3: "third", 4: "quarter"}.get(n, f"{n}th")


def _cards(scores: Scores) -> Iterable[str]:
    def card(value: float, text: str, kind: str = "") -> str:
        number = f"{value:.4f}" if is_number(value) else "–"
        return f'<div class="card{kind}"><b>{number}</b><span>{html.escape(text)}</span></div>'

    yield card(scores.balanced, "global_map_bal, the number that ranks: (1 − CoV) × mAP@0.5", " main")
    yield card(scores.overall.map_50, "global_map_50: mAP@0.5")
    yield card(scores.consistency, f"global_map_con: CoV of the {scores.part}s")
    yield card(scores.overall.map, "global_map: mAP@0.50:0.95")


def _figure(picture: Picture, png: bytes) -> str:
    wide = " class=wide" if picture.name in WIDE else ""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return (
        f"<figure{wide}>\n<h2>{html.escape(picture.title)}</h2>\n"
        f'<img alt="{html.escape(picture.title)}" src="{source}">\n'
        f"<figcaption>{html.escape(picture.caption)}</figcaption>\n</figure>"
    )


def _levers(data: Evaluated) -> str:
    """Two tables: what a better class would give, by month, and what each cause of error costs."""
    scores = data.scores
    if not scores.compared:
        return (
            f"<p>One {scores.part} has no global_map_bal: global_map_50 is its score. What that gains if one "
            "cause of error is gone, in the manner of TIDE; gains do not add up.</p>\n"
            f"{_by_cause(data, ranks=False)}"
        )
    if not is_number(scores.balanced):
        nothing = not any(summary.map_50 for summary in scores.compared.values())
        why = f"mAP@0.5 is 0 in every {scores.part}" if nothing else f"A {scores.part} has no true boxes"
        return f"<p>{why}: there is no score that ranks, and none to move.</p>"
    by_class = cells(scores, data.matches)
    months, names = [*scores.months, "all"], scores.classes
    rows = [
        f"<tr><td>{html.escape(names.get(label, str(label)))}</td>"
        + "".join(f"<td>{_cell(row[month])}</td>" for month in months)
        + "</tr>"
        for label, row in by_class.items()
    ]
    by_month = _rows(("class", *(html.escape(scores.heading(month)) for month in months)), rows)
    return (
        f"<p>What global_map_bal gains if a class has {STEP:.2f} more AP@0.5 in a {scores.part}, or in "
        "all. Below it stand the AP@0.5 and the number of true boxes: with a handful of boxes an AP is an "
        "accident.</p>\n"
        f"{by_month}\n{_absent(by_class, scores)}<p>What it gains if one cause of error is gone, in the "
        f"manner of TIDE; gains do not add up.</p>\n{_by_cause(data, ranks=True)}"
    )


def _by_cause(data: Evaluated, ranks: bool) -> str:
    """What each cause of error costs; ``ranks`` is whether there is a score that ranks."""
    heads = ["cause", "boxes", *(["global_map_bal"] if ranks else []), "global_map_50"]
    rows = []
    for name, cause in causes(data.matches).items():
        gains = [cause.gain, cause.gain_50] if ranks else [cause.gain_50]
        cells_of = [html.escape(CAUSES[name]), f"{cause.boxes:,}", *(f"{gain:+.4f}" for gain in gains)]
        rows.append("<tr>" + "".join(f"<td>{text}</td>" for text in cells_of) + "</tr>")
    return _rows(heads, rows)


def _rows(heads: Iterable[str], rows: Iterable[str]) -> str:
    head = "".join(f"<th>{text}</th>" for text in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n" + "\n".join(rows) + "\n</tbody></table>"


def _cell(cell: Cell) -> str:
    if cell.ap_50 is None or cell.gain is None:
        return "<b>none</b>"
    return f"<b>{cell.gain:+.4f}</b><br>{cell.ap_50:.2f} of {cell.boxes:,}"


def _absent(by_class: dict[int, dict[str, Cell]], scores: Scores) -> str:
    """Which classes which months lack, and what that does to the score."""
    lacks = {
        scores.classes.get(label, str(label)): [m for m in scores.months if row[m].ap_50 is None]
        for label, row in by_class.items()
    }
    told = [
        f"{name} in {_listed([scores.heading(m) for m in months])}"
        for name, months in lacks.items()
        if months
    ]
    if not told:
        return ""
    return (
        f"<p>There is no {html.escape('; no '.join(told))}. Such a {scores.part}'s mean is over its other "
        f"classes. Where the missing class is a weak one the {scores.part} looks better than it is, the "
        f"{scores.part}s differ more, and global_map_bal falls: that is the split's doing, not the "
        "model's.</p>\n"
    )


def _table(scores: Scores) -> str:
    heads = [html.escape(scores.by), "images", "mAP", "mAP@0.5", "mAP@0.75", "AR@1", "AR@10", "AR@100"]
    rows = []
    for name, s in {**scores.compared, "all": scores.overall}.items():
        values = [s.map, s.map_50, s.map_75, s.mar_1, s.mar_10, s.mar_100]
        cells = [f"{s.images:,}", *(f"{v:.4f}" if is_number(v) else "–" for v in values)]
        first = f"<tr><td>{html.escape(scores.heading(name))}</td>"
        rows.append(first + "".join(f"<td>{c}</td>" for c in cells) + "</tr>")
    return _rows(heads, rows)
