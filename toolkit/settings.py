"""``toolkit.toml``: what it may set, and the bounds of each value, which hold for flags and presets too."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec import Meta

from toolkit.errors import ToolkitError, reason

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "toolkit.toml"

Argument = bool | int | float | str | list[Any] | None
"""A value of one of Ultralytics' training arguments."""

Count = Annotated[int, Meta(ge=0)]
# TOML writes inf: no number to print, nor to wait for. 1e9 is 32 years, which is how a plan says never.
Seconds = Annotated[float, Meta(ge=0, le=1e9)]


class Saving(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When checkpoints inside an epoch are written: whichever comes first.

    Attributes:
        seconds: since the last one.
        batches: since the last one; 0 for no such limit.
    """

    seconds: Seconds = 300.0
    batches: Count = 0


class Restarts(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often a trainer is helped before the run is given up.

    Attributes:
        an_hour: restarts.
        roll_backs: within an hour as well.
    """

    an_hour: Count = 10
    roll_backs: Count = 3


class Codabench(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where submissions go.

    Attributes:
        competition: number or name (:data:`submission.competitions.KNOWN`).
    """

    competition: int | str | None = None


Resume = Literal["keeps", "changes", "apart"]
SelectBy = Literal["fitness", "global_map_bal", "cells"]


PRESETS = Path(__file__).parent / "training" / "presets"
"""The recipes that ship with the toolkit, a file each."""


DEFAULT_PRESET = "thermal"
"""The recipe where nobody names one."""


def presets() -> list[str]:
    """Names of the recipes that ship with the toolkit."""
    return sorted(path.stem for path in PRESETS.glob("*.yaml"))


@dataclass(frozen=True)
class Option:
    """What belongs to an option of a training beside its type and its bounds.

    Attributes:
        help: its words in ``toolkit train --help``.
        argument: whether it is Ultralytics' training argument of that name, which a preset sets too.
        resume: a run that goes on "keeps" the value that it was begun with and refuses another, or "changes"
            to it; "apart": a rule of its own says.
        preset: whether a preset says it too, though Ultralytics has no such argument.
        becomes: of a setting of our own, the field of :class:`toolkit.runs.plan.TrainingPlan` that it is, by
            itself or with others (:data:`toolkit.training.choices.CHOICES`).
        otherwise: where its value comes from if no flag and no toolkit.toml has it, in the dry run's word.
        complete: what a shell completes its value to, a function of ``toolkit/cli/completion.py``.
    """

    help: str
    argument: bool = False
    resume: Resume = "keeps"
    preset: bool = False
    becomes: str = ""
    otherwise: str = ""
    complete: str | None = None


class Numbers(msgspec.Struct, frozen=True, kw_only=True):
    """The numbers of a training that a flag, toolkit.toml or a preset sets; None where it says nothing."""

    epochs: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Option("Passes over the training split.", argument=True),
    ] = None
    batch: Annotated[
        Annotated[int, Meta(ge=1, le=65_536)] | None,
        Option("Frames in a step.", argument=True, resume="changes"),
    ] = None
    # Ultralytics' networks halve it five times.
    imgsz: Annotated[
        Annotated[int, Meta(ge=32, le=16_384)] | None,
        Option("Side of the network's input, pixels.", argument=True),
    ] = None
    channels: Annotated[
        Literal[1, 3] | None,
        Option("1 for grey frames, 3 for pretrained colour weights.", otherwise="preset"),
    ] = None
    workers: Annotated[
        Annotated[int, Meta(ge=0, le=1024)] | None,
        Option("Loader processes.", argument=True, resume="changes"),
    ] = None
    # NumPy takes 32 bits, and each rank adds its number.
    seed: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None,
        Option("Of weights, order and augmentation.", argument=True),
    ] = None


class TrainingOptions(Numbers, frozen=True, kw_only=True):
    """Every option of a training that a flag and toolkit.toml set: a field here is all that one takes."""

    model: Annotated[str | None, Option("Checkpoint (.pt) or architecture (.yaml).", otherwise="preset")] = (
        None
    )
    preset: Annotated[
        str | None,
        Option(
            f"Recipe: {', '.join(presets())}, FILE.yaml.",
            otherwise="default",
            complete="presets",
        ),
    ] = None
    device: Annotated[
        str | None,
        Option(
            "cpu, 0, 0,1; default: the first GPU or the CPU; auto: batch too.",
            resume="apart",
            otherwise="found",
        ),
    ] = None
    name: Annotated[str | None, Option("Name of the run; default: the next train-N.", resume="apart")] = None
    every: Annotated[
        Annotated[int, Meta(ge=1, le=100_000)] | None,
        Option("Each N-th frame of every clip an epoch, then others.", preset=True, becomes="frequency"),
    ] = None
    repeat: Annotated[
        str | None,
        Option(
            "Frames with a class come more often: motorcycle=8,bicycle=2.", preset=True, becomes="frequency"
        ),
    ] = None
    paste: Annotated[
        str | None,
        Option(
            "Part of frames that get a rare object of another clip: motorcycle=0.3,bicycle=0.1.",
            preset=True,
            becomes="paste",
        ),
    ] = None
    frames: Annotated[
        str | None,
        Option(
            "Channels of a sample: now,before,background; before3 is three frames earlier.",
            preset=True,
            becomes="views",
            otherwise="weights",
        ),
    ] = None
    score_every: Annotated[
        Annotated[int, Meta(ge=1, le=1_000_000)] | None,
        Option(
            "Score as the challenge does after every N epochs; else never.",
            preset=True,
            becomes="score_every",
        ),
    ] = None
    select_by: Annotated[
        SelectBy | None,
        Option("What chooses best.pt and stops early; default: fitness.", preset=True, becomes="select_by"),
    ] = None

    def overrides(self) -> dict[str, Any]:
        """Those of Ultralytics' training arguments that were given as options."""
        given = {name: getattr(self, name) for name, each in declared(type(self)).items() if each.argument}
        return {name: value for name, value in given.items() if value is not None}


class Defaults(TrainingOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What ``toolkit.toml`` may set; a flag on the command line wins.

    ``[arguments]`` are Ultralytics' training arguments; :func:`toolkit.training.arguments.check` knows them.
    ``[health.<rule>]`` is what :func:`toolkit.runs.health.load` takes; ``[logging]`` names those of
    :data:`toolkit.runs.plan.TRACKERS` that are told about a run.
    """

    data: str | None = None
    arguments: dict[str, Argument] = {}
    health: dict[str, dict[str, float | str]] = {}
    saving: Saving = Saving()
    restarts: Restarts = Restarts()
    logging: dict[str, bool] = {}
    codabench: Codabench = Codabench()


@cache
def hints(struct: type[msgspec.Struct]) -> Mapping[str, Any]:
    """The types of a struct's fields with what is annotated, read once: ``toolkit --help`` waits for it."""
    return get_type_hints(struct, include_extras=True)


@cache
def declared(struct: type[msgspec.Struct]) -> Mapping[str, Option]:
    """What is declared of each field that has an :class:`Option`, by name."""
    types = hints(struct)
    parts = {name: getattr(types[name], "__metadata__", ()) for name in struct.__struct_fields__}
    return {name: part for name, each in parts.items() for part in each if isinstance(part, Option)}


def lever_names() -> list[str]:
    """The options that a preset says too, though Ultralytics has no such arguments."""
    return [name for name, option in declared(TrainingOptions).items() if option.preset]


def levers(said: msgspec.Struct) -> dict[str, Any]:
    """What flags, toolkit.toml or a preset say of the options that a preset says too."""
    found = {name: getattr(said, name) for name in lever_names()}
    return {name: value for name, value in found.items() if value is not None}


def bounds(name: str) -> tuple[int, int]:
    """Lowest and highest value of a number of :class:`TrainingOptions`, for the flag of that name."""
    kind = get_args(hints(TrainingOptions)[name])[0]
    (limits,) = (each for part in get_args(kind) for each in get_args(part) if isinstance(each, Meta))
    return int(limits.ge or 0), int(limits.le or 0)


def check(values: Mapping[str, Any], source: str) -> None:
    """Hold values from anywhere against what :class:`TrainingOptions` declares; other names pass.

    Raises:
        ToolkitError: a value is out of bounds, or of another type.
    """
    known = {name: values[name] for name in declared(TrainingOptions) if name in values}
    try:
        msgspec.convert(known, TrainingOptions)
    except msgspec.ValidationError as error:
        raise refusal(f"{source} cannot be used", known, error, TrainingOptions) from error


def read(files: Sequence[Path]) -> Defaults:
    """The settings of all ``files``, key by key, tables within tables too; a later file wins.

    Raises:
        ToolkitError: a file is no TOML, or has a key, a type or a value that is not possible.
    """
    merged: dict[str, Any] = {}
    for path in files:
        merged = _merge(merged, content(path))  # each checked by itself: an error names the file
    return msgspec.convert(merged, Defaults)


def content(path: Path) -> dict[str, Any]:
    """What one file sets; it is read again only if it was written since.

    Raises:
        ToolkitError: see :func:`read`.
    """
    if not path.is_file():  # a pipe would be waited for
        raise ToolkitError(
            f"{path} cannot be used",
            found="a folder" if path.is_dir() else "something that is no file",
            expected="a TOML file in UTF-8",
        )
    status = path.stat()
    return _checked(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=8)  # a command asks for a few files, each several times
def _checked(path: Path, _: tuple[int, ...]) -> dict[str, Any]:
    found = _parse(path)
    try:
        msgspec.convert(found, Defaults)
    except msgspec.ValidationError as error:
        raise refusal(f"{path} cannot be used", found, error) from error
    return found


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))  # editors on Windows write the mark
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ToolkitError(
            f"{path} cannot be used", found=reason(error), expected="a TOML file in UTF-8"
        ) from error


def _merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for key, value in above.items():
        before = both.get(key)
        tables = isinstance(before, Mapping) and isinstance(value, Mapping)
        both[key] = _merge(before, value) if tables and before is not None else value
    return both


def refusal(
    what: str,
    content: Mapping[str, Any],
    error: msgspec.ValidationError,
    kind: type[msgspec.Struct] = Defaults,
) -> ToolkitError:
    """msgspec's words as an error: which key, what it was, what it may be.

    Args:
        what: the first words of the error.
        content: what was converted.
        error: what came of it.
        kind: what it was converted to.
    """
    words, _, place = str(error).partition(" - at `$.")
    unknown = re.search(r"unknown field `(.+)`", words)
    if unknown:
        table = place.rstrip("`") or "the file"
        return ToolkitError(
            what,
            found=f"{unknown.group(1)} in {table}",
            expected="" if place else ", ".join(Defaults.__struct_fields__),
        )
    key, value = _refused_value(content, place.rstrip("`"), words)
    expected = words.removeprefix("Expected ").partition(", got")[0].replace("`", "")
    if expected.startswith("str") and isinstance(value, int | float):
        expected = f'text in quotes: {key} = "{value}"'
    if words.startswith("Invalid enum value"):
        expected = _listed(_choices(kind, place.rstrip("`")))
    return ToolkitError(what, found=f"{key} = {value}", expected=expected)


def _choices(kind: Any, place: str) -> list[str]:
    """The values that the field at ``place`` of a struct may have, if they are so many words or numbers."""
    for part in place.split("."):
        if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
            return []
        kind = hints(kind).get(part)
        while hasattr(kind, "__metadata__") or type(None) in get_args(kind):
            kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(member.value) for member in kind]
    return []


def _listed(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return " or ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def _refused_value(content: Mapping[str, Any], place: str, words: str) -> tuple[str, Any]:
    """Key and value at ``place``, where msgspec writes ``[...]`` for a key of a table with free names."""
    found: list[tuple[str, Any]] = [("", content)]
    for part in re.findall(r"\[\.\.\.\]|[^.\[]+", place):
        found = [
            (f"{above}.{name}" if above else name, value)
            for above, table in found
            if isinstance(table, Mapping)
            for name, value in table.items()
            if part in (name, "[...]")
        ]
    named: dict[type, str] = {list: "array", dict: "object"}
    same = [
        (key, value)
        for key, value in found
        if f"got `{named.get(type(value), type(value).__name__)}`" in words
    ]
    return (same or found or [(place, None)])[0]
