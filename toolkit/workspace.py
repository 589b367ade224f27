"""Where things are: data, runs, weights, predictions. The only module that knows default paths.

A workspace is a folder, the current one unless ``TOOLKIT_WORKSPACE`` names another; its runs may be
elsewhere, where ``TOOLKIT_RUNS`` says::

    toolkit.toml                       defaults (optional); the user's own lies in ~/.config/ltdv2-toolkit
    data/<name>/codabench-<id>.json    a competition's phases and dates, as the server told them last
    data/<name>/codabench-<id>-<phase>.json   the ids of a phase, from its starting kit
    data/ or data/<name>/              Train.json Valid.json TestNoLabels.json frames.zip [toolkit.toml]
    runs/<name>/weights/best.pt        and last.pt
    runs/<name>/weights/environment.json   what it was begun with, for toolkit reproduce
    runs/<name>/predictions-val.json   and predictions-test.json
    runs/<name>/evaluation/            scores.json and the report of the run's own validation split
    runs/<name>/evaluation-<mark>/     the same of other weights, another split, truth or data
    <file>-evaluation/                 the same of weights or predictions of no run, beside them
    runs/<name>/**/<file>.origin       which weights and split a predictions or scores file is of
    runs/<name>/submission.zip
    submissions/                       the receipt of every upload
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec

from submission import competitions
from submission.errors import NO_JSON
from toolkit import NAME, console, settings, vocabulary
from toolkit.errors import ToolkitError, reason
from toolkit.ltdv2 import ANNOTATIONS, SplitName

ENVIRONMENT = Path("weights", "environment.json")
"""What a run was made with, in its folder (:class:`toolkit.runs.reproduction.Environment`)."""

NAMED_RUNS = 8
"""So many runs are listed where a name is none of theirs."""


EVALUATION = "evaluation"
"""Folder of the scores of a run's best weights on its own validation split."""

BEST = "best.pt"
"""A run's best weights, in its folder of weights."""


def own_evaluation(run: Path, weights: str = BEST) -> Path:
    """Folder of the scores of a run's weights on its own validation split: the best have the plain name."""
    return run / (EVALUATION if weights == BEST else f"{EVALUATION}-{Path(weights).stem}")


class RunRecord(msgspec.Struct, frozen=True):
    """What other commands ask of how a run was begun.

    Attributes:
        data: LTDv2's files.
        job: the rendezvous id, where torchrun began it.
        begun: seconds since 1970.
        train_on: splits that it trains on.
    """

    data: str
    job: str = ""
    begun: float = 0.0
    train_on: tuple[str, ...] = ("train",)

    @staticmethod
    def read(run: Path) -> RunRecord:
        """Of the run in this folder.

        Raises:
            ToolkitError: environment.json is missing or damaged.
        """
        older = run / "run.json"  # 0.1.0 wrote this file as well, and asked its own time for when
        path = older if older.is_file() else run / ENVIRONMENT
        try:
            content = path.read_bytes()
            if path is older:
                record = msgspec.json.decode(content, type=RunRecord)
                return msgspec.structs.replace(record, begun=path.stat().st_mtime)
            environment = msgspec.json.decode(content, type=_Environment)
        except (OSError, *NO_JSON) as error:
            raise ToolkitError(
                f"cannot read {path}", found=reason(error), expected="a run's record"
            ) from error
        plan = environment.plan
        return RunRecord(plan.data, environment.job, environment.begun, plan.train_on)


def record_of(run: Path) -> RunRecord:
    """:meth:`RunRecord.read`, which several questions of one command share until the file changes."""
    files = [file for name in (ENVIRONMENT, "run.json") if (file := run / name).is_file()]
    return _record_of(run, tuple(file.stat().st_mtime_ns for file in files))


@lru_cache(maxsize=64)
def _record_of(run: Path, _changed: tuple[int, ...]) -> RunRecord:
    return RunRecord.read(run)


class _Plan(msgspec.Struct):
    """The part of a plan that a :class:`RunRecord` holds."""

    data: str
    train_on: tuple[str, ...] = ("train",)


class _Environment(msgspec.Struct):
    """The part of environment.json that a :class:`RunRecord` holds."""

    plan: _Plan
    job: str = ""
    begun: float = 0.0


def is_run(folder: Path) -> bool:
    """Whether a run was begun in this folder."""
    return any((folder / name).is_file() for name in (ENVIRONMENT, "run.json"))


@dataclass(frozen=True)
class Workspace:
    """A folder with data and runs in it.

    Attributes:
        root: the folder.
        elsewhere: the folder of all runs, if it is not ``runs`` in the root.
    """

    root: Path
    elsewhere: Path | None = None

    @property
    def runs(self) -> Path:
        """The folder of all runs."""
        return self.elsewhere or self.root / "runs"

    @property
    def submissions(self) -> Path:
        """The folder with the receipts of all uploads."""
        return self.root / "submissions"

    def settings_places(self, data: Path | None = None) -> tuple[tuple[Path, str], ...]:
        """Where a ``toolkit.toml`` would count, and whose it is; the one that wins last.

        The user's, the workspace's and the one beside the data. Where the data lies inside the workspace, its
        file is of the same user and the more particular one, and wins; a file beside data elsewhere, on a
        disk that others share, is farther from the user than the workspace's and gives way.
        """
        own, beside = self.root / settings.FILE, (data or self.root) / settings.FILE
        places = {user_settings(): "yours everywhere", own: "this workspace's", beside: "beside the data"}
        if not Path(os.path.realpath(beside.parent)).is_relative_to(os.path.realpath(self.root)):
            places = {path: places[path] for path in (user_settings(), beside, own)}
        return tuple((path, words if path != own else "this workspace's") for path, words in places.items())

    def settings_files(self, data: Path | None = None) -> tuple[Path, ...]:
        """The files of :meth:`settings_places` that are there, the one that wins last."""
        return tuple(path for path, _ in self.settings_places(data) if path.exists())

    def defaults(self, data: Path | None = None) -> settings.Defaults:
        """What :meth:`settings_files` set, key by key.

        Raises:
            ToolkitError: a file is no TOML, or has a key, a type or a value that is not possible.
        """
        files = self.settings_files(data)
        console.detail("settings: " + (", ".join(map(str, files)) or "no toolkit.toml"))
        return settings.read(files)

    def competition(self, flag: str | None = None, data: Path | None = None) -> int:
        """Codabench's number of the competition: the flag's, toolkit.toml's, RTIOD at WACV 2026.

        Raises:
            SubmissionError: the name is no competition's.
        """
        named = flag if flag is not None else self.defaults(data).codabench.competition
        return competitions.DEFAULT if named is None else competitions.number_of(str(named))

    def data_dir(self, flag: Path | None = None) -> Path:
        """The folder with LTDv2's files: the flag, ``TOOLKIT_DATA``, toolkit.toml's, ``.``, ``data`` or the
        only ``data/*``.

        Raises:
            ToolkitError: there is no such folder, or more than one and nothing says which.
        """
        if flag is not None:
            if not flag.is_dir():
                raise ToolkitError(
                    f"no folder {flag}", expected="a folder with " + ", ".join(ANNOTATIONS.values())
                )
            console.detail(f"the data is {flag}")
            return flag
        configured = os.environ.get("TOOLKIT_DATA") or self.defaults().data
        if configured is not None:
            return self.data_dir(self.root / configured)
        candidates = self.datasets()
        if len(candidates) == 1:
            console.detail(f"the data is {candidates[0]}")
            return candidates[0]
        raise ToolkitError(
            "cannot tell where the data is",
            found=", ".join(str(c) for c in candidates) or f"no LTDv2 files in {self.root}",
            expected="one folder with " + ", ".join(ANNOTATIONS.values()),
            fix="name it with --data, or try `toolkit dataset sample data/demo`",
        )

    def datasets(self) -> list[Path]:
        """The folders that could be meant where nothing names one."""
        here = [folder for folder in (self.root, self.root / "data") if _is_dataset(folder)]
        return here[:1] or sorted(f for f in (self.root / "data").glob("*") if _is_dataset(f))

    def run(self, name: str) -> Path:
        """The folder of a run: ``name`` itself if it is a folder, else the run of that name.

        A folder that is no run gives way to a run of its name: data and runs are often called alike. The run
        need not exist.
        """
        path, named = Path(name), self.runs / name
        return path if path.is_dir() and (is_run(path) or not is_run(named)) else named

    def weights(self, name: str) -> Path:
        """A weights file: ``name`` itself, for a bare ``best.pt`` or ``last.pt`` the newest run's, or the
        best of the run of that name or folder.

        Raises:
            ToolkitError: there is no such file or run, or the run has no weights.
        """
        path = Path(name)
        if path.is_file():
            return path
        if path.name == name and name in ("best.pt", "last.pt"):
            newest = _newest(self.runs.glob(f"*/weights/{name}"))
            if newest is not None:
                console.detail(f"{name} is {newest}")
                return newest
            raise ToolkitError(
                f"no {name}", found=f"no run with weights in {self.runs}", fix="train one: toolkit train"
            )
        run = self.run(name)
        best = run / "weights" / "best.pt"
        if best.is_file():
            return best
        raise ToolkitError(
            f"no {best}" if run.is_dir() else f"no file or run {name}",
            found="" if run.is_dir() else self._known_runs(),
            expected="a run with weights, a YOLO checkpoint (.pt) or predictions (.json)",
        )

    def newest_predictions(self, split: str | None = None) -> Path:
        """The newest ``predictions-<split>.json`` of all runs, of any split if none is named.

        Raises:
            ToolkitError: there are none.
        """
        newest = _newest(self.runs.glob(f"*/predictions-{split or '*'}.json"))
        if newest is None:
            raise ToolkitError(
                "no predictions to submit",
                found=f"no predictions-{split or '*'}.json in {self.runs}",
                fix="make some: toolkit predict best.pt --split test",
            )
        return newest

    def predictions(self, name: str, split: str, rank: Callable[[Path], int] = lambda _: 0) -> Path:
        """A predictions file: ``name`` itself, or of this split in the run of that name or folder the newest
        of the highest ``rank``. Of a run that has none, its best weights, which can make them.

        Raises:
            ToolkitError: there is no such file or run, or the run has neither.
        """
        path = Path(name)
        if path.is_file():
            return path
        run = self.run(name)
        kinds = [run / f"predictions-{split}.json"]
        if split == "val":
            kinds.append(own_evaluation(run) / "predictions.json")
        else:
            kinds.append(run / f"{EVALUATION}-{split}" / "predictions.json")
        found = [kind for kind in kinds if kind.is_file()]
        if not found:
            if (best := run / "weights" / BEST).is_file():
                return best
            raise ToolkitError(
                f"no predictions in {run}" if run.is_dir() else f"no file or run {name}",
                found=f"no {BEST} either, which could make them" if run.is_dir() else self._known_runs(),
                expected=f"predictions of the split {split}, or a run that has them",
            )
        return max(found, key=lambda path: (rank(path), path.stat().st_mtime_ns))

    def _known_runs(self) -> str:
        """The runs that a name could have meant, for a message."""
        names = sorted(folder.name for folder in self.runs.glob("*") if is_run(folder))
        more = f" and {len(names) - NAMED_RUNS} more" if len(names) > NAMED_RUNS else ""
        return f"runs {', '.join(names[:NAMED_RUNS])}{more}" if names else f"no runs in {self.runs}"

    def run_of(self, path: Path) -> Path | None:
        """The run folder that a weights or predictions file lies in; None for a file of no run."""
        for folder in path.absolute().parents[:2]:
            if is_run(folder):
                return folder
        return None

    def evaluation(
        self,
        path: Path,
        split: SplitName,
        data: Path | None = None,
        truth: Path | None = None,
        named: bool = True,
        weights: str | None = BEST,
    ) -> Path:
        """Where scores go: those of a run's best weights on its own validation split to its ``evaluation``,
        all others to a folder of their own. What was made of predictions is no prediction of the weights.

        Args:
            path: weights or predictions.
            split: that is scored.
            data: its folder, if known.
            truth: the file with the true boxes, where it is not the split's own.
            named: whether a person named the data; else it is the run's own, where that is still there.
            weights: name of those that made the predictions of a run; None: it holds something else.
        """
        run = self.run_of(path)
        weights = weights if path.suffix == ".json" else path.name
        if weights is not None and run is not None and _is_of_weights(path, run):
            base = own_evaluation(run, weights)
        elif weights is not None and run is None and _is_beside_scores(path):
            base = path.parent
        else:  # a file of no run, or one that was made of a run's predictions
            base = path.with_name(f"{path.stem}-{EVALUATION}")
        marks: list[str] = [split] if split != "val" and truth is None else []
        if truth is not None and (run is not None or truth.name != ANNOTATIONS[split]):
            stem = f"{truth.parent.name}-{truth.stem}" if truth.stem in ANNOTATIONS else truth.stem
            marks.append(_split_of(truth, data) or stem)
        if named and run is not None and data is not None and is_other_data(run, data):
            marks.append(data.resolve().name)
        return base.with_name("-".join([base.name, *marks]))

    def of_a_run(self, paths: Iterable[Path]) -> Path:
        """Of several files that belong to one data: the first that a run lies around, else the first."""
        files = list(paths)
        return next((path for path in files if self.run_of(path) is not None), files[0])

    def known_data(self, path: Path, flag: Path | None = None) -> tuple[Path | None, dict[int, str]]:
        """:meth:`data_of`, None where there is none, and the names of its classes by label, else LTDv2's."""
        try:
            data = self.data_of(path, flag)
        except ToolkitError:
            return None, vocabulary.LTDV2.classes
        return data, vocabulary.of_data(data).classes

    def data_of(self, path: Path, flag: Path | None = None) -> Path:
        """The data that belongs to a weights or predictions file: the flag, its run's data, the default."""
        run = self.run_of(path)
        if flag is None and run is not None:
            recorded = Path(record_of(run).data)
            if recorded.is_dir():
                console.detail(f"the data is {recorded}, of run {run.name}")
                return recorded
            try:
                return self.data_dir()
            except ToolkitError as error:
                raise ToolkitError(
                    f"the data of run {run.name} is not here",
                    found=f"no folder {recorded}; {error.found}",
                    expected=error.expected,
                    fix="say with --data where it lies",
                ) from error
        return self.data_dir(flag)


def _is_of_weights(path: Path, run: Path) -> bool:
    """Whether a file of a run is weights, or has a name and place that ``predict`` or ``evaluate`` give."""
    if path.suffix != ".json" or _is_beside_scores(path):
        return True
    return path.absolute().parent == run and path.name in {
        f"predictions-{split}.json" for split in ANNOTATIONS
    }


def _is_beside_scores(path: Path) -> bool:
    """Whether this is the file of predictions that ``evaluate`` writes beside scores."""
    return path.name == "predictions.json" and EVALUATION in path.parent.name


def _split_of(truth: Path, data: Path | None) -> str | None:
    """The split whose annotations the file is, but validation, which a run's own evaluation is of."""
    files = {split: (data or truth.parent) / name for split, name in ANNOTATIONS.items() if split != "val"}
    return next((s for s, file in files.items() if file.is_file() and file.samefile(truth)), None)


def is_other_data(run: Path, data: Path) -> bool:
    """Whether a run was trained on data that is still there, and that is not this."""
    recorded = Path(record_of(run).data)
    return recorded.is_dir() and not recorded.samefile(data)


def user_settings() -> Path:
    """The user's own ``toolkit.toml``: ``TOOLKIT_SETTINGS``, or in ``XDG_CONFIG_HOME`` or ``~/.config``.

    It need not exist. A relative ``XDG_CONFIG_HOME`` counts for nothing, as the XDG base directory
    specification has it.
    """
    if file := os.environ.get("TOOLKIT_SETTINGS"):
        return Path(file)
    named = Path(os.environ.get("XDG_CONFIG_HOME", ""))
    home = named if named.is_absolute() else Path(os.path.expanduser("~")) / ".config"  # noqa: PTH111 - never fails
    return home / NAME / settings.FILE


def current() -> Workspace:
    """The workspace that this process works in."""
    runs = os.environ.get("TOOLKIT_RUNS")
    return Workspace(Path(os.environ.get("TOOLKIT_WORKSPACE") or Path.cwd()), Path(runs) if runs else None)


def _is_dataset(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ANNOTATIONS.values())


def _newest(paths: Iterable[Path]) -> Path | None:
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
