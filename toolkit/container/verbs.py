"""What can be run in a container by name: the life of an entry, each step a verb and a make target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Data = Literal["none", "reads", "needs", "writes", "makes"]


@dataclass(frozen=True)
class Verb:
    """A step.

    Attributes:
        help: one line.
        command: what runs inside.
        data: what it does with LTDv2's files: nothing, read them if there are any, need them, write beside
            them, or make them.
        folder: whether the data's folder is its first argument.
        flag: whether it has a ``--data``.
        where: the folder for data that it makes, if none is named.
        writes_runs: whether it writes into the folder for runs.
        example: arguments of a call.
    """

    help: str
    command: tuple[str, ...]
    data: Data = "none"
    folder: bool = False
    flag: bool = False
    where: str = ""
    writes_runs: bool = True
    example: str = ""


_DATASET = ("toolkit", "dataset")

VERBS = {
    "demo": Verb(
        "sample data, prepared, trained on, evaluated, predicted and zipped: runs/demo/submission.zip",
        ("/opt/ltdv2/scripts/demo",),
        "makes",
        where="data/demo",
        example="--profile cpu",
    ),
    "sample": Verb(
        "draw a small synthetic dataset in LTDv2's layout",
        (*_DATASET, "sample"),
        "makes",
        folder=True,
        where="data/demo",
        writes_runs=False,
        example="--profile cpu --data data/demo",
    ),
    "download": Verb(
        "fetch LTDv2 (48 GB); again to continue",
        (*_DATASET, "download"),
        "makes",
        folder=True,
        where="data/ltdv2",
        writes_runs=False,
        example="--data data/ltdv2",
    ),
    "prepare": Verb(
        "write the index that training and evaluation read",
        (*_DATASET, "prepare"),
        "writes",
        folder=True,
        writes_runs=False,
        example="--data data/ltdv2",
    ),
    "verify": Verb(
        "check the frames against the index",
        (*_DATASET, "verify"),
        "needs",
        folder=True,
        writes_runs=False,
        example="--data data/ltdv2 --deep",
    ),
    "train": Verb(
        "train a detector", ("toolkit", "train"), "needs", flag=True, example="--preset rx5600xt --name first"
    ),
    "evaluate": Verb(
        "score weights as the challenge does",
        ("toolkit", "evaluate"),
        "reads",
        flag=True,
        example="first --report",
    ),
    "predict": Verb(
        "predict the test split", ("toolkit", "predict"), "reads", flag=True, example="first --split test"
    ),
    "submit": Verb(
        "check the newest predictions and zip them", ("toolkit", "submit"), "reads", example="--profile cpu"
    ),
    "monitor": Verb("watch a run", ("toolkit", "monitor"), writes_runs=False, example="first"),
    "runs": Verb("list the runs", ("toolkit", "runs"), writes_runs=False, example="--profile cpu"),
}
"""The verbs by name; ``docker-<name>`` is the target of each."""

OTHERS = (
    "compare",
    "config",
    "doctor",
    "drift",
    "ensemble",
    "link",
    "reproduce",
    "soup",
    "submissions",
    "val",
)
"""Commands of the toolkit without a verb of their own: ``docker-run`` runs them."""

PREDICTED = ("best.pt", "--split", "test")
"""What ``predict`` is given where the caller does not say."""


def compose(name: str, arguments: Sequence[str], data: Path | None, runs: Path, *, named: bool) -> list[str]:
    """The command inside for a verb.

    Args:
        arguments: of the caller, for the verb.
        data: LTDv2's files.
        runs: the folder of runs.
        named: whether the caller named the data.
    """
    verb, given = VERBS[name], list(arguments)
    if name == "predict":
        weights, flag, split = PREDICTED
        if not given or given[0].startswith("-"):
            given.insert(0, weights)
        has_source = len(given) > 1 and not given[1].startswith("-")
        if not has_source and not any(one == flag or one.startswith(f"{flag}=") for one in given):
            given += [flag, split]
    if name == "submit" and "--zip" not in given:
        given.append("--zip")
    before = [str(data)] if verb.folder else []
    if name == "demo":
        before = [str(data), str(runs / "demo")]
    after = ["--data", str(data)] if verb.flag and named else []
    return [*verb.command, *before, *given, *after]
