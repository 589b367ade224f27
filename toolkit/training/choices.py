"""Settings of our own: from what flags, toolkit.toml and presets say to fields of a plan, and to words."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from typing import Any

import msgspec

from toolkit.dataset.frequency import Frequency, Paste
from toolkit.dataset.subset import Subset
from toolkit.dataset.views import Views
from toolkit.errors import ToolkitError
from toolkit.runs.folder import RunFiles
from toolkit.runs.plan import TrainingPlan, describe
from toolkit.settings import declared
from toolkit.training.options import Options
from toolkit.vocabulary import LTDV2, Vocabulary, of_data


@dataclass(frozen=True)
class Choice:
    """A field of the plan that is made of what a person writes; others are as they were said.

    Attributes:
        make: its value. Raises ToolkitError: what was written makes none.
        title: of its line in the dry run; none, where the dry run says it in its own words.
        words: a value, of a plan, for a person.
        kept: of a field of several options, what a run that goes on does with it, for the refusal of another.
    """

    make: Callable[[Options, Vocabulary], Any]
    title: str = ""
    words: Callable[[Any, TrainingPlan], str] = lambda value, _: str(value)
    kept: str = ""


def subsets(options: Options, words: Vocabulary = LTDV2) -> dict[str, Subset]:
    """Which images of the two splits are wanted; ``words`` names the parts of other data than LTDv2.

    Raises:
        ToolkitError: a name that is no month, or a part outside (0, 1].
    """
    wanted = {
        "train": Subset.parse(options.months, options.subset, words),
        "val": Subset.parse(options.val_months, words=words),
    }
    return {split: subset for split, subset in wanted.items() if not subset.is_all}


def splits(text: str) -> tuple[str, ...]:
    """What is to be trained on.

    Raises:
        ToolkitError: another choice than the training split, with or without the validation split.
    """
    chosen = tuple(text.replace(" ", "").split(","))
    if chosen not in (("train",), ("train", "val")):
        raise ToolkitError(f"no training on {text}", expected="train, or train,val")
    return chosen


CHOICES: Mapping[str, Choice] = {
    "subsets": Choice(
        subsets,
        "subset",
        lambda value, plan: describe(value, plan.data),
        "keeps the images that it was started with",
    ),
    "frequency": Choice(
        lambda options, words: Frequency.parse(options.every, options.repeat, words.classes),
        "frequency",
        lambda value, plan: value.words(of_data(plan.data).classes),
        kept="shows its frames as often as it was started to",
    ),
    "paste": Choice(
        lambda options, words: Paste.parse(options.paste, words.classes),
        "paste",
        lambda value, plan: value.words(of_data(plan.data).classes),
    ),
    "train_on": Choice(lambda options, _: splits(str(options.train_on)), words=lambda on, _: ",".join(on)),
    "views": Choice(lambda options, _: Views.parse(str(options.frames)), "frames"),
}
"""By the plan's field."""

WORDED = ("patches", "score_every", "select_by")
"""Fields that the dry run says in its own words."""


def becoming() -> dict[str, list[str]]:
    """The plan's fields that are settings of our own, each with the options that it is made of."""
    found: dict[str, list[str]] = {}
    for name, option in declared(Options).items():
        if option.becomes:
            found.setdefault(option.becomes, []).append(name)
    return found


def own(options: Options, words: Vocabulary) -> dict[str, Any]:
    """The plan's fields that are settings of our own, of which something was said.

    Args:
        options: what was said.
        words: names the parts of the data.

    Raises:
        ToolkitError: what was written makes no such value.
    """
    return {
        field: CHOICES[field].make(options, words) if field in CHOICES else getattr(options, names[0])
        for field, names in becoming().items()
        if any(getattr(options, name) is not None for name in names)
    }


def check_form(options: Options) -> None:
    """What can be refused of the settings of our own before there is data, which names months and classes.

    Raises:
        ToolkitError: see :func:`own`; any name may be a class.
    """
    words = ",".join(filter(None, (options.repeat, options.paste))).split(",")
    names = ((word.rpartition("=")[0] if "=" in word else word).strip() for word in words)
    named = dict(enumerate(dict.fromkeys(filter(None, names)), 1))
    typed = msgspec.structs.replace(LTDV2, classes=named or LTDV2.classes)
    own(msgspec.structs.replace(options, months=None, val_months=None), typed)


def begun_with_another(option: str, files: RunFiles, found: str, expected: str) -> ToolkitError:
    """An option of a run that goes on, which must be what it was."""
    return ToolkitError(
        f"run {files.run.name} was begun with another {option}",
        found=found,
        expected=expected,
        fix=f"leave {option} out, or start a new run",
    )


def again(files: RunFiles, before: TrainingPlan, options: Options, words: Vocabulary) -> dict[str, Any]:
    """Those of the plan's fields that change as a run goes on; the others are what it was begun with.

    Args:
        files: of the run.
        before: the plan that it was begun with.
        options: what was said.
        words: names the parts of the data.

    Raises:
        ToolkitError: a field that the run keeps is another; see :func:`own`.
    """
    wanted, changed = own(options, words), {}
    for field, names in becoming().items():
        if field not in wanted or wanted[field] == getattr(before, field):
            continue
        rules = {declared(Options)[name].resume for name in names}
        if rules == {"changes"}:
            changed[field] = wanted[field]
        if "keeps" not in rules:
            continue
        flags = ["--" + name.replace("_", "-") for name in names]
        choice, values = CHOICES.get(field), (wanted[field], getattr(before, field))
        if choice is None:
            raise begun_with_another(flags[0], files, *(f"{flags[0]} {value}" for value in values))
        found, known = (choice.words(value, before) for value in values)
        if not choice.kept:
            raise begun_with_another(flags[0], files, getattr(options, names[0]), known or "none")
        raise ToolkitError(
            f"run {files.run.name} {choice.kept}",
            found=found,
            expected=known,
            fix=f"leave {', '.join(flags[:-1])} and {flags[-1]} out, or start a new run",
        )
    return changed


def lines(plan: TrainingPlan, sources: Mapping[str, str]) -> dict[str, str]:
    """What a dry run says of the settings of our own that are not as they are by default, by their titles.

    Args:
        plan: that is to run.
        sources: where an option was given, by its name; "run" where it was not.
    """
    by_default = {
        each.name: each.default if each.default_factory is MISSING else each.default_factory()
        for each in fields(TrainingPlan)
    }
    found = {}
    for field, names in becoming().items():
        choice, value = CHOICES.get(field), getattr(plan, field)
        title = choice.title if choice else "" if field in WORDED else names[0].replace("_", " ")
        if title and value != by_default[field]:
            said = dict.fromkeys(sources[name] for name in names if name in sources)
            words = choice.words(value, plan) if choice else str(value)
            found[title] = f"{words} ({', '.join(said) or 'run'})"
    return found
