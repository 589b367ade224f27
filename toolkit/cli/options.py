"""Options that several verbs share, with one set of bounds, and flags made of declarations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_origin

import msgspec
import typer
from msgspec import Meta

from submission import SubmissionError
from submission.competitions import NUMBERS, PHASES, number_of
from toolkit import settings
from toolkit.cli import completion
from toolkit.errors import CallError, ToolkitError

IN_THE_FILE = "Options that toolkit.toml may set too"
"""Where ``--help`` shows them."""


def number(name: str, words: str = "") -> Any:
    """An option with the bounds that toolkit.toml's key of that name has."""
    low, high = settings.bounds(name)
    return typer.Option(min=low, max=high, help=words or None)


def declared(verb: Callable[..., None]) -> Callable[..., None]:
    """Put a flag a field in the place of a verb's parameter ``options``: a struct that declares them.

    A field that is true unless somebody says otherwise becomes a flag ``--no-<name>``.
    """
    signature = inspect.signature(verb, eval_str=True)
    struct: type[msgspec.Struct] = signature.parameters["options"].annotation
    flags = {name: _flag(struct, name) for name in settings.declared(struct)}
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        parameters += flags.values() if parameter.name == "options" else [parameter]

    def parsed(**values: Any) -> None:
        options = {name: values.pop(flag.name) for name, flag in flags.items()}
        options |= {name: not options[name] for name, flag in flags.items() if flag.name != name}
        verb(options=struct(**options), **values)

    parsed.__doc__, parsed.__name__ = verb.__doc__, verb.__name__
    parsed.__annotations__ = {each.name: each.annotation for each in parameters}
    parsed.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in parameters]
    )
    return parsed


def _flag(struct: type[msgspec.Struct], name: str) -> inspect.Parameter:
    """A parameter as Typer reads it, from a field with its Meta and its Option; each has a default."""
    defaults = dict(zip(struct.__struct_fields__, struct.__struct_defaults__, strict=True))
    hint = get_args(settings.hints(struct)[name])[0]
    kind = get_args(hint)[0] if type(None) in get_args(hint) else hint
    limits = next((part for part in get_args(kind) if isinstance(part, Meta)), Meta())
    kind = get_args(kind)[0] if hasattr(kind, "__metadata__") else kind
    if get_origin(kind) is Literal and not isinstance(get_args(kind)[0], str):
        kind = type(get_args(kind)[0])  # Typer has choices of words alone
    word = f"no_{name}" if defaults[name] is True else name
    complete = settings.declared(struct)[name].complete
    option = typer.Option(
        "--" + word.replace("_", "-"),
        min=limits.ge,
        max=limits.le,
        help=settings.declared(struct)[name].help,
        autocompletion=getattr(completion, complete) if complete else None,
        rich_help_panel=IN_THE_FILE if name in settings.Defaults.__struct_fields__ else None,
    )
    default: Any = False if kind is bool else None
    return inspect.Parameter(
        word,
        inspect.Parameter.KEYWORD_ONLY,
        default=default,
        annotation=Annotated[kind if kind is bool else kind | None, option],
    )


Scored = Annotated[Literal["train", "val", "test"], typer.Option(help="Split that is scored.")]
"""A split; LTDv2's test split has no truth, that of other data may have one."""

if TYPE_CHECKING:
    PhaseName = str
else:
    PhaseName = Literal[tuple(PHASES)]
"""A phase of a competition that is known."""


def _known(name: str | None) -> str | None:
    if name is not None:
        try:
            number_of(name)
        except SubmissionError as error:
            raise CallError(error.what, error.found, error.expected, error.fix) from error
    return name


Competition = Annotated[
    str | None, typer.Option(callback=_known, help=f"Number or name at Codabench: {NUMBERS}.")
]
"""Whom a submission goes to."""

EngineChoice = Annotated[
    Literal["auto", "pycocotools", "hotcoco"],
    typer.Option(help="Both give the same numbers; auto is hotcoco where it is installed."),
]
"""Evaluators of the COCO protocol."""


def given(context: typer.Context, names: Iterable[str]) -> dict[str, bool]:
    """The flags of these parameters of the verb that runs, and whether each stood on the command line."""
    flags = {each.name: each.opts[-1] for each in context.command.params}
    sources = {name: context.get_parameter_source(name) for name in names}
    return {flags[name]: getattr(sources[name], "name", "") == "COMMANDLINE" for name in names}


def refuse_flags(flags: Mapping[str, object], belongs: str) -> None:
    """Refuse flags that have no effect in this call.

    Args:
        flags: each as it was given; false or None where it was not.
        belongs: what they are for, and what this call is.

    Raises:
        CallError: one was given.
    """
    for flag, value in flags.items():
        if value:
            raise CallError(f"{flag} is for {belongs}", fix=f"leave {flag} out")


def require_place(path: Path, suffix: str, sources: Iterable[Path] = ()) -> None:
    """Refuse, before any work, a file that cannot be written or whose name says another kind of file.

    Args:
        path: of the file.
        suffix: that its name should have.
        sources: what it is made from, which it must not replace.

    Raises:
        ToolkitError: the name ends in another suffix (without one it may stay) or is a folder's, its folder
            takes no file, or it is one of the sources.
    """
    from toolkit.machine import checks

    if path.suffix not in ("", suffix):
        raise CallError(f"cannot write {path}", found=f"a name in {path.suffix}", expected=f"one in {suffix}")
    if path.is_dir():
        raise ToolkitError(
            f"cannot write {path}", found="a folder of that name", expected="a name for a file"
        )
    checks.writable(path.parent)
    refuse_source(path, sources)


def refuse_source(path: Path, sources: Iterable[Path]) -> None:
    """Refuse to write a file over what it is made from. Raises CallError: it is one of the sources."""
    from toolkit.files import real

    if real(path) in map(real, sources):
        raise CallError(
            f"cannot write {path}",
            found="one of the files that it is made from",
            expected="another one: that file would be lost",
        )


def require_predictions(paths: Iterable[Path]) -> None:
    """Refuse, before any of them is read, what is no file; a run is told which of its files could be meant.

    Raises:
        ToolkitError: one is not there, or a folder or the name of a run.
    """
    from toolkit import workspace

    place = workspace.current()
    for path in paths:
        if path.exists() and not path.is_dir():  # a pipe is good enough
            continue
        run = place.run(str(path))
        if not workspace.is_run(run):
            what = f"{path} is a folder" if path.is_dir() else f"no file {path}"
            raise ToolkitError(what, expected="a file of predictions")
        files = ", ".join(str(file) for file in sorted(run.glob("predictions-*.json")))
        raise ToolkitError(
            f"{path} is a run",
            found=f"its predictions {files}" if files else "no predictions in it",
            expected="a file of predictions",
            fix="name one of these" if files else f"make some: toolkit predict {path} --split test",
        )


Conf = Annotated[float, typer.Option(min=0, max=1, help="Lowest score kept.")]
Iou = Annotated[float, typer.Option(min=0, max=1, help="Overlap at which boxes are merged.")]
MaxDet = Annotated[int, typer.Option(min=1, max=100_000, help="Boxes kept of each class in a frame.")]
Agnostic = Annotated[bool, typer.Option("--agnostic", help="A box suppresses those of other classes too.")]
