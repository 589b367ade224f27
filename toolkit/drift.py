"""How a model trained in one month does in another: one run a training month, scored in every test month.

Each step is kept: a run that finished is not trained again, and predictions that its weights made are not
made again. What was cut off goes on where it was, and ends with the same numbers.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich import box
from rich.table import Table

from patches import children
from submission import Detections
from toolkit import console, provenance, tables, vocabulary
from toolkit.dataset.subset import parse_months
from toolkit.errors import UNPARSED, CallError, ToolkitError, ending_with
from toolkit.evaluation.compare import RESAMPLES, intervals
from toolkit.evaluation.context import Context
from toolkit.evaluation.scoring import is_number, score
from toolkit.evaluation.truth import GroundTruth
from toolkit.files import replacing
from toolkit.ltdv2 import ANNOTATIONS
from toolkit.runs.folder import Exit, RunFiles, state_of
from toolkit.runs.plan import read_plan
from toolkit.training.deciding import check_name
from toolkit.workspace import Workspace, own_evaluation

if TYPE_CHECKING:
    import polars as pl
    from matplotlib.figure import Figure

Train = Callable[[Sequence[str]], object]
"""Runs ``toolkit train`` with these words."""

Predict = Callable[[Path, Path], Detections]
"""Predicts the validation split of a data folder with weights."""

SPREAD = "global_map_con"

DECIDED = {
    "--name": "--prefix names the runs",
    "--months": "--train-months says on what they train",
    "--data": "put --data before --",
    "--resume": "the same command goes on with what was stopped",
    "--dry-run": "put --dry-run before --",
}
"""Flags of ``toolkit train`` that are not for every training, and what says it here."""

HEADINGS = {"global_map_50": "all", SPREAD: "CoV", "global_map_bal": "bal"}
"""Of the columns that are taken over all parts."""


@dataclass(frozen=True)
class Row:
    """One run of the matrix.

    Attributes:
        months: what it trains on, as named: ``feb``, or ``feb,jun`` together.
        files: of the run.
        state: "absent", or as :func:`toolkit.runs.folder.state_of` says.
    """

    months: str
    files: RunFiles
    state: str

    def words(self, data: Path, more: Sequence[str]) -> list[str]:
        """What ``toolkit train`` is given to begin or continue the run."""
        if self.state != "absent":
            return ["--resume", "--name", self.files.run.name]
        return ["--name", self.files.run.name, "--months", self.months, "--data", str(data), *more]


def plan(place: Workspace, data: Path, train_months: str, prefix: str = "drift") -> list[Row]:
    """The runs of a matrix and their states.

    Args:
        place: where runs are.
        data: the data folder.
        train_months: months, a run each; ``feb+jun`` is one run on both; ``all`` is a run for each month.
        prefix: of the runs' names.

    Raises:
        ToolkitError: a name that is no month of the data, a prefix that makes no name of a run, or a run of
            that name has other months.
    """
    words = vocabulary.of_data(data)
    groups = (
        list(words.parts) if train_months == "all" else [each.strip() for each in train_months.split(",")]
    )
    names = {number: name for name, number in words.parts.items()}
    rows = []
    for group in dict.fromkeys(groups):
        months = group.replace("+", ",")
        wanted = tuple(sorted(set(parse_months(months, words))))
        with ending_with(UNPARSED):
            check_name(_name(prefix, group))
        files = RunFiles(place.runs / _name(prefix, group))
        there = files.plan.is_file()
        found = read_plan(files).subset("train").months if there else wanted
        if found != wanted:
            raise ToolkitError(
                f"run {files.run.name} trains on other months",
                found=", ".join(names.get(number, str(number)) for number in found) or "all months",
                expected=group,
                fix="choose other names with --prefix",
            )
        rows.append(Row(months, files, state_of(files) if there else "absent"))
    return rows


def tested(data: Path, test_months: str) -> list[str]:
    """Parts of the data that are tested, as named: months, or ``all``.

    Raises:
        ToolkitError: a name that is no month of the data.
    """
    words = vocabulary.of_data(data)
    wanted = list(words.parts) if test_months == "all" else [each.strip() for each in test_months.split(",")]
    if unknown := [name for name in wanted if name not in words.parts]:
        raise ToolkitError(f"no {words.by} named {unknown[0]!r}", expected=", ".join(words.parts))
    return wanted


def _name(prefix: str, group: str) -> str:
    return f"{prefix}-" + "".join(c if c.isalnum() or c in "+.-" else "-" for c in group)


def refuse_decided(more: Sequence[str]) -> None:
    """Raises ToolkitError: a flag for every training says what the matrix decides for each."""
    for word in more:
        flag = word.partition("=")[0]
        if flag in DECIDED:
            raise CallError(
                f"{flag} cannot be said for every training",
                found="a flag that `toolkit drift` decides for each run",
                fix=DECIDED[flag],
            )


def train_all(rows: Sequence[Row], data: Path, more: Sequence[str], train: Train) -> None:
    """Begin or continue every run that has not finished.

    Raises:
        ToolkitError: a run was stopped or given up; the same command goes on there.
    """
    for number, row in enumerate(rows, 1):
        if row.state == "finished":
            console.note(f"{row.files.run.name} has finished")
            continue
        console.note(f"run {number} of {len(rows)}: {row.files.run.name} on {row.months}")
        train(row.words(data, more))


def train_in_child(words: Sequence[str]) -> None:
    """``toolkit train`` in a process of its own, which is told once of Ctrl-C and SIGTERM: it saves and ends.

    Raises:
        ToolkitError: it ended with another status than 0, which is this error's.
    """
    loudness = {console.Level.QUIET: ["-q"], console.Level.VERBOSE: ["-v"]}.get(console.level(), [])
    command = children.command("toolkit", *loudness, "train", *words)
    # In a session of its own: a terminal would tell it of Ctrl-C too, and a second time means not to save.
    child = subprocess.Popen(
        command, env=children.environment(), stdout=subprocess.DEVNULL, start_new_session=True
    )
    with _passing_on(child):
        code = child.wait()
    if code:
        stopped = code in (Exit.STOPPED, 130)
        raise ToolkitError(
            "the matrix was stopped" if stopped else "a run of the matrix did not finish",
            found=f"status {code} of toolkit train {' '.join(words)}",
            fix="the same command goes on there"
            if stopped
            else "once what it said is mended, the same command goes on there",
            exit_code=code if code > 0 else 1,
        )


@contextmanager
def _passing_on(child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Inside, SIGINT and SIGTERM go to the child, and this process waits for what it does about them."""
    before = {
        number: signal.signal(number, lambda number, _: child.send_signal(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def detections_of(row: Row, data: Path, predict: Predict) -> Detections:
    """What a run finds in the validation split: as the same weights did before without flags, or now."""
    path = own_evaluation(row.files.run) / "predictions.json"
    weights = row.files.best
    sha256 = provenance.sha256(weights)
    origin = provenance.origin_of(path)
    if origin is not None and (origin.split, origin.weights_sha256, origin.flags) == ("val", sha256, ""):
        return Detections.read(console.reading(path))
    found = predict(weights, data)
    path.parent.mkdir(parents=True, exist_ok=True)
    found.write(path)
    provenance.record(path, "val", weights.name, sha256)
    return found


def matrix(
    rows: Sequence[Row],
    data: Path,
    test_months: str,
    predict: Predict,
    resamples: int = RESAMPLES,
) -> pl.DataFrame:
    """mAP@0.5 of each finished run in each month of validation, with intervals over resampled clips.

    Args:
        rows: the runs.
        data: the data folder.
        test_months: months, or ``all``, which adds the scores over all of them.
        predict: see :data:`Predict`.
        resamples: number of bootstrap samples.

    Returns:
        ``train``, ``test``, ``map_50``, ``low``, ``high`` (95 %; null if undecided), ``images``;
        ``test`` is a month, ``global_map_50``, ``global_map_con`` or ``global_map_bal``.

    Raises:
        ToolkitError: no run has finished; a name that is no month.
    """
    import polars as pl

    wanted = tested(data, test_months)
    truth = GroundTruth.read(data / ANNOTATIONS["val"])
    context = Context.read(data / ANNOTATIONS["val"], truth.image_ids)
    names = list(truth.vocabulary.parts)
    done = [row for row in rows if row.state == "finished"]
    if not done:
        raise ToolkitError("no run of the matrix has finished", expected="one or more, to collect")
    cells: list[tuple[str, str, float | None, float | None, float | None, int]] = []
    for row in console.track(done, "scoring", unit="runs"):
        found = detections_of(row, data, predict)
        scores = score(truth, found)
        between = intervals(truth, found, context, resamples)
        if not scores.compared and "global_map_50" in between:  # one part is the whole
            between[f"{next(iter(scores.months), names[0])}_map_50"] = between["global_map_50"]
        exact = {f"{name}_map_50": summary.map_50 for name, summary in scores.months.items()}
        exact |= {"global_map_50": scores.overall.map_50, "global_map_con": scores.consistency}
        exact |= {"global_map_bal": scores.balanced}
        shown = [f"{name}_map_50" for name in wanted]
        shown += [key for key in exact if key.startswith("global")] if test_months == "all" else []
        for key in shown:
            test = key.removesuffix("_map_50") if not key.startswith("global") else key
            images = scores.overall.images if test == key else 0  # a part without true boxes is not scored
            images = scores.months[test].images if test in scores.months else images
            low, high = between.get(key, (float("nan"), float("nan")))
            value = exact.get(key, float("nan"))
            cells.append((row.months, test, _known(value), _known(low), _known(high), images))
    schema = {"train": pl.String, "test": pl.String, "map_50": pl.Float64, "low": pl.Float64}
    return pl.DataFrame(cells, schema={**schema, "high": pl.Float64, "images": pl.Int64}, orient="row")


def _known(value: float) -> float | None:
    return float(value) if is_number(value) else None


def write(table: pl.DataFrame, folder: Path) -> tuple[Path, Path]:
    """Write ``drift.parquet`` and ``drift.png``. Raises ToolkitError: the folder cannot be written."""
    parquet, picture = folder / "drift.parquet", folder / "drift.png"
    with replacing(parquet) as temporary:
        table.write_parquet(temporary)
    with replacing(picture) as temporary:
        draw(table).savefig(temporary, format="png", dpi=160, metadata={"Software": None})
    return parquet, picture


def draw(table: pl.DataFrame) -> Figure:
    """The matrix as a heat map of the scores, intervals below them; what a run learnt from is framed."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    cells = _cells(table)
    columns = _tested(table)
    # The coefficient of variation is no score: less of it is better, and it takes no colour.
    scores = [[_number(None if c == SPREAD else row[c].value) for c in columns] for row in cells.values()]
    grid = np.ma.masked_invalid(scores)
    figure = Figure(figsize=(1.6 + 1.05 * len(columns), 1.5 + 0.72 * len(cells)), layout="constrained")
    axes = figure.subplots()
    colours = colormaps["cividis"].with_extremes(bad="#f1f3f5")
    axes.imshow(grid, cmap=colours, vmin=0, vmax=1, aspect="auto")
    for y, (train, row) in enumerate(cells.items()):
        for x, column in enumerate(columns):
            cell = row[column]
            ink = "white" if _number(scores[y][x]) < 0.55 else "#1b1f24"
            axes.text(x, y - 0.1, _show(cell.value), ha="center", va="center", color=ink, weight="bold")
            if cell.low is not None and cell.high is not None:
                between = f"{_show(cell.low)} to {_show(cell.high)}"
                axes.text(x, y + 0.25, between, ha="center", va="center", color=ink, fontsize=7)
            if column in train.split(","):
                axes.add_patch(Rectangle((x - 0.48, y - 0.46), 0.96, 0.92, fill=False, ec="#D55E00", lw=2))
    axes.set_xticks(range(len(columns)), [fill(HEADINGS.get(column, column), 12) for column in columns])
    axes.set_yticks(range(len(cells)), list(cells))
    axes.set(ylabel="trained on")
    axes.set_xlabel("tested on\n" + fill(_legend(columns), 24 + 14 * len(columns)), fontsize=8)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def shown(table: pl.DataFrame, width: int) -> Iterator[Table]:
    """The matrix for a console: a score, and below it the ends of its interval, in lines of their own.

    Columns that ``width`` cannot hold go to a table below, because a number that is cut is another number.
    """
    cells, columns = _cells(table), _tested(table)
    matrix = Table(box=box.SIMPLE_HEAD, padding=0, show_edge=False)
    matrix.add_column("trained", overflow="fold")
    for column in columns:
        matrix.add_column(HEADINGS.get(column, column), justify="right")
    for train, row in cells.items():
        matrix.add_row(train, *(_show(row[column].value) for column in columns))
        for end, name in enumerate(("low", "high")):
            numbers = [row[column].interval[end] for column in columns]
            if any(number is not None for number in numbers):
                matrix.add_row(f"  {name}", *(_show(number, "") for number in numbers), style="dim")
    yield from tables.fitted(matrix, width)


def legend(table: pl.DataFrame) -> str:
    """What the numbers of the matrix are, for below it."""
    return _legend(_tested(table))


def _legend(columns: Sequence[str]) -> str:
    numbers = "mAP@.5, low and high of the 95 % interval"
    if SPREAD not in columns:
        return numbers
    return f"{numbers}; CoV: of the scores of all parts, less is better; bal = (1 - CoV) x all"


class Cell(NamedTuple):
    """A score and its interval; None where it is not decided."""

    value: float | None
    low: float | None
    high: float | None
    images: int

    @property
    def interval(self) -> tuple[float | None, float | None]:
        return self.low, self.high


def _cells(table: pl.DataFrame) -> dict[str, dict[str, Cell]]:
    """Trained on -> tested on -> cell, of every pair."""
    columns = _tested(table)
    found: dict[str, dict[str, Cell]] = {}
    for train, test, *values in table.iter_rows():
        row = found.setdefault(train, dict.fromkeys(columns, Cell(None, None, None, 0)))
        row[test] = Cell(*values)
    return found


def _tested(table: pl.DataFrame) -> list[str]:
    names: list[str] = table["test"].unique(maintain_order=True).to_list()
    return names


def _number(value: float | None) -> float:
    return float("nan") if value is None else value


def _show(value: float | None, none: str = "-") -> str:
    return none if value is None else f"{round(value, 3) + 0.0:.3f}"  # no minus before a zero
