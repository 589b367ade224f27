"""Ultralytics' training arguments as a person gives them: read, and checked by name and type."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from submission.validate import LABELS
from toolkit import settings
from toolkit.errors import ToolkitError
from toolkit.settings import Argument
from toolkit.training.model import check_model

TABLE = "[arguments] of toolkit.toml"
"""Where a person may have given them, for a message."""

TOPICS = {
    "schedule": "epochs time patience batch nbs imgsz rect multi_scale fraction close_mosaic",
    "optimiser": "optimizer lr0 lrf cos_lr momentum weight_decay warmup_epochs warmup_momentum "
    "warmup_bias_lr",
    "model": "pretrained cls_remap freeze amp channels_last compile quantize deterministic seed",
    "loss": "box cls cls_pw dfl single_cls classes",
    "augmentation": "hsv_h hsv_s hsv_v degrees translate scale shear perspective flipud fliplr bgr mosaic "
    "mixup cutmix",
    "validation": "val conf iou max_det agnostic_nms plots save_period",
    "loader": "workers",
}
"""Those of Ultralytics' arguments that say how a detector is trained."""

DECIDED = {
    "task": "leave it out: the toolkit trains detectors",
    "mode": "leave it out: toolkit train trains",
    "model": "--model",
    "data": "--data",
    "device": "--device",
    "project": "leave it out: runs lie in runs/ of the workspace (TOOLKIT_WORKSPACE)",
    "name": "--name",
    "exist_ok": "--name with a new name, or --resume",
    "save_dir": "--name",
    "resume": "--resume",
    "save": "leave it out: weights are always saved",
    "cache": "toolkit dataset cache DATA, once",
    "verbose": "leave it out",
    "split": "--months and --val-months, which choose images",
    "cfg": "--preset FILE.yaml",
    "profile": "leave it out; toolkit bench measures",
}
"""What the toolkit itself decides, and what does that."""

OPTIMIZERS = ("SGD", "MuSGD", "Adam", "Adamax", "AdamW", "NAdam", "RAdam", "RMSprop", "auto")

UNSETTLED_BATCH = 0.6
"""Part of the GPU's memory that ``batch=-1`` fills, as in Ultralytics."""


def parse(words: Sequence[str]) -> dict[str, Argument]:
    """``name=value`` in Ultralytics' own grammar: Python's literals, true, false, none, or a text.

    Raises:
        ToolkitError: a word without a name or a value, or a name given twice; see :func:`check`.
    """
    from ultralytics.cfg import smart_value

    given: dict[str, Argument] = {}
    for word in words:
        name, equals, text = (part.strip() for part in word.partition("="))
        if not name or not equals or not text:
            raise ToolkitError(f"{word!r} is no training argument", expected="name=value, such as lr0=0.005")
        name = name.removeprefix("--")
        if name in given:
            raise ToolkitError(f"{name} is given twice", found=f"{given[name]} and {text}")
        value = smart_value(text)
        given[name] = list(value) if isinstance(value, tuple) else value
    check(given, "what was typed", None)
    return given


def check(arguments: Mapping[str, Argument], source: str, classes: Mapping[int, str] | None = LABELS) -> None:
    """Hold arguments against Ultralytics' names and types.

    Args:
        arguments: what was given.
        source: where, for the message.
        classes: label, from 1, -> name of those that the data has; None before that is known.

    Raises:
        ToolkitError: a name that Ultralytics does not have (with the one that was meant), that has no part in
            training a detector, or that the toolkit decides (with the flag that does it); a value of another
            type or out of its bounds.
    """
    for name, value in arguments.items():
        _check_name(name, source)
        _check_value(name, value, source, classes)


def check_layer(words: Mapping[str, Argument], named: Mapping[str, Argument], source: str) -> None:
    """:func:`check`, and that none of ``words`` is among ``named``, which the same place gives as options.

    Raises:
        ToolkitError: as :func:`check`; one is given twice.
    """
    check(words, source, None)
    if twice := sorted(words.keys() & named.keys()):
        raise ToolkitError(
            f"{twice[0]} is given twice",
            found=f"{named[twice[0]]} and {words[twice[0]]} ({source})",
            fix="leave one of them out",
        )


def check_settings(defaults: settings.Defaults) -> None:
    """What a training would refuse of ``[arguments]`` in toolkit.toml.

    Raises:
        ToolkitError: see :func:`check_layer` and :func:`check_numbers`.
    """
    check_layer(defaults.arguments, defaults.overrides(), TABLE)
    check_numbers(defaults.arguments, TABLE)


def in_training() -> list[str]:
    """Names of the arguments that a training takes."""
    return " ".join(TOPICS.values()).split()


def _check_name(name: str, source: str) -> None:
    from ultralytics.cfg import DEFAULT_CFG_DICT

    if name in DECIDED:
        fix = DECIDED[name] if DECIDED[name].startswith("leave") else f"use {DECIDED[name]}"
        raise ToolkitError(f"{name} in {source} is decided by the toolkit", fix=fix)
    if name in in_training():
        return
    if name in DEFAULT_CFG_DICT:
        raise ToolkitError(
            f"{name} in {source} has no part in training a detector here",
            expected="one of those that `toolkit train --dry-run` lists",
        )
    if name in settings.Defaults.__struct_fields__:
        raise ToolkitError(f"{name} in {source} is no training argument of Ultralytics", fix=f"use --{name}")
    meant = get_close_matches(name, [*in_training(), *DECIDED], n=2)
    raise ToolkitError(
        f"Ultralytics has no training argument {name}",
        found=f"{name} in {source}",
        expected="one of those that `toolkit train --dry-run` lists",
        fix=f"did you mean {' or '.join(meant)}?" if meant else "",
    )


def _check_value(name: str, value: Argument, source: str, classes: Mapping[int, str] | None) -> None:
    from ultralytics.cfg import CFG_BOOL_KEYS, DEFAULT_CFG_DICT, check_cfg

    wanted = _other_than_wanted(name, value, classes)
    default = DEFAULT_CFG_DICT[name]
    if not wanted and isinstance(value, bool) and name not in CFG_BOOL_KEYS:
        takes_both = name in ("amp", "compile", "pretrained")
        wanted = "" if takes_both else f"a number, such as {default}"
    if not wanted and isinstance(value, float) and not math.isfinite(value):
        wanted = "a finite number"
    if not wanted:
        try:
            check_cfg({name: value})
        except (TypeError, ValueError) as error:
            words = re.search(r"(?:Valid|must be) (.+)", " ".join(str(error).split()))
            wanted = words.group(1).rstrip(".").removeprefix(f"'{name}' ") if words else f"such as {default}"
    if wanted:
        raise ToolkitError(
            f"{name} cannot be {value!r}", found=f"{name}={value} in {source}", expected=wanted
        )
    if name == "pretrained" and isinstance(value, str):
        check_model(value)  # never downloaded


def _other_than_wanted(name: str, value: Argument, classes: Mapping[int, str] | None) -> str:
    """What is expected instead, of arguments whose values Ultralytics does not check, or checks too late."""
    integer = isinstance(value, int) and not isinstance(value, bool)
    if name == "optimizer" and str(value).lower() not in map(str.lower, OPTIMIZERS):
        return ", ".join(OPTIMIZERS)
    if name == "fraction" and isinstance(value, list):
        return "one number: --val-months chooses for validation"
    if name == "imgsz" and not integer:
        return "a whole number of pixels"
    if name == "batch" and not (value == -1 or (integer and value >= 1) or _part(value)):  # type: ignore[operator]
        return "1 or more, -1 for what fits on the GPU, or the part of its memory to fill, such as 0.7"
    if name == "time" and isinstance(value, (int, float)) and value <= 0:
        return "hours, more than 0"
    if name == "classes" and value is not None:
        listed: list[Any] = value if isinstance(value, list) else [value]
        numbers = listed and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in listed)
        if not numbers or (classes is not None and any(n + 1 not in classes for n in listed)):
            named = ", ".join(f"{label - 1} {title}" for label, title in (classes or {}).items())
            return "numbers of classes, such as [0,2]" + (f": {named}" if named else "")
    if name == "freeze" and isinstance(value, str):
        return "a number of layers, or a list such as [0,1,2]"
    return ""


def _part(value: Argument) -> bool:
    return isinstance(value, float) and 0 < value < 1


def is_settled(batch: Argument) -> bool:
    """Whether a batch size is a number of images, and not a wish for what fits on the GPU."""
    return batch != -1 and not _part(batch)


def memory_part(batch: Argument) -> float:
    """Part of the GPU's memory that an unsettled batch size wants to fill."""
    return float(batch) if _part(batch) else UNSETTLED_BATCH  # type: ignore[arg-type]


def check_numbers(arguments: Mapping[str, Any], source: str) -> None:
    """The bounds that flags and toolkit.toml have too; a batch that is to be measured is none yet."""
    bounded = {name: value for name, value in arguments.items() if name != "batch" or is_settled(value)}
    settings.check(bounded, source)
