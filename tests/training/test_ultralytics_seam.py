"""toolkit/training/ultralytics.md against the installed Ultralytics, and against what our code uses of it."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

from toolkit.dataset import grey
from toolkit.dataset import ultralytics as dataset
from toolkit.training import resumable, trainer

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "toolkit" / "training" / "ultralytics.md"
TEXT = PAGE.read_text()


def rows(title: str) -> list[list[str]]:
    """Cells of the table below a heading; the row of titles left out."""
    section = re.split(r"^#", TEXT.split(f"# {title}\n")[1], maxsplit=1, flags=re.M)[0]
    table = [line for line in section.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


def code(cell: str) -> list[str]:
    return [text.replace(r"\|", "|") for text in re.findall(r"`([^`]+)`", cell)]


NAMES = [
    (code(home)[0], *re.fullmatch(r"(\w+)(?:\((.+)\))?", name).groups(), breaks)  # type: ignore[union-attr]
    for home, names, breaks in rows("Every name")
    for name in code(names)
]
LISTED = {f"{home}.{name}" for home, name, _, _ in NAMES}


@cache
def resolve(path: str) -> Any:
    """A module, or what one holds."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        holder, _, name = path.rpartition(".")
        return getattr(resolve(holder), name)


@cache
def attributes(kind: type) -> frozenset[str]:
    """What Ultralytics' part of a class defines, or sets on itself; of a model also what its builder sets."""
    found = set(dir(DetectionModel("yolov8n.yaml", verbose=False))) if kind is DetectionModel else set()
    for each in kind.__mro__:
        if each.__module__.partition(".")[0] == "ultralytics":
            found |= {*vars(each), *getattr(each, "__annotations__", {})}
            for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(each)))):
                if own(node) and isinstance(node.ctx, ast.Store):  # type: ignore[attr-defined]
                    found.add(node.attr)  # type: ignore[attr-defined]
    return frozenset(found)


def own(node: ast.AST) -> bool:
    """Whether it is ``self.something`` or ``super().something``."""
    if not isinstance(node, ast.Attribute):
        return False
    value = node.value
    if isinstance(value, ast.Call):
        value = value.func
        return isinstance(value, ast.Name) and value.id == "super"
    return isinstance(value, ast.Name) and value.id == "self"


def holds(home: Any, name: str) -> bool:
    if (
        isinstance(home, type)
        and home.__module__.partition(".")[0] == "ultralytics"
        and not isinstance(home, Mapping)
    ):
        return name in attributes(home)
    if name.startswith("YOLO_"):  # an environment variable
        return f'"{name}"' in inspect.getsource(home)
    return name in home if isinstance(home, Mapping) else hasattr(home, name)


@pytest.mark.parametrize(("home", "name", "given", "breaks"), NAMES, ids=[f"{n[0]}.{n[1]}" for n in NAMES])
def test_ultralytics_has_what_we_rely_on(home: str, name: str, given: str | None, breaks: str) -> None:
    assert holds(resolve(home), name), f"{home} has no {name} any more: {breaks}"
    if given:
        taken = inspect.signature(getattr(resolve(home), name)).parameters
        missing = set(given.split(", ")) - set(taken)
        assert not missing, f"{home}.{name} takes no {', '.join(sorted(missing))} any more: {breaks}"


@pytest.mark.parametrize("method", ["_setup_train", "_do_train"])
def test_the_loop_goes_as_it_was_read(method: str) -> None:
    source, at = inspect.getsource(getattr(BaseTrainer, method)), 0
    table = rows(f"`BaseTrainer.{method}`")
    assert len(table) >= 8
    for line, ours in table:
        (anchor,) = code(line)
        found = source.find(anchor, at)
        assert found >= 0, f"{method} of Ultralytics has no {anchor!r} at its place any more. It met: {ours}"
        at = found + len(anchor)


def test_the_version_that_was_read_is_the_one_that_is_pinned() -> None:
    (read,) = re.findall(r"^Read with ultralytics (\S+)\. ", TEXT, flags=re.M)
    pins = (ROOT / "docker" / "constraints.txt").read_text()
    assert f"ultralytics-opencv-headless=={read}" in pins, f"read the loop again: {PAGE} speaks of {read}"


def used() -> Iterator[tuple[str, str]]:
    """What toolkit/ and patches/ import from Ultralytics, and read from what they imported; with the file."""
    for path in [*ROOT.glob("toolkit/**/*.py"), *ROOT.glob("patches/**/*.py")]:
        tree, bound = ast.parse(path.read_text()), {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and not node.level and node.module:
                if node.module.partition(".")[0] == "ultralytics":
                    bound |= {each.asname or each.name: f"{node.module}.{each.name}" for each in node.names}
            elif isinstance(node, ast.Import):
                for each in node.names:
                    assert each.name.partition(".")[0] != "ultralytics", f"{path}: write from ... import ..."
        for name in bound.values():
            yield name, path.name
        for node in ast.walk(tree):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in bound
            ):
                yield f"{bound[node.value.id]}.{node.attr}", path.name


def same(name: str) -> bool:
    """Whether the page has a name, or rows for what is in it, perhaps by where Ultralytics defines it."""
    if name in LISTED or any(f"{home}.".startswith(f"{name}.") for home, *_ in NAMES):
        return True
    holder, _, attribute = name.rpartition(".")
    thing = resolve(holder)
    if isinstance(thing, type):
        return f"{CLASSES.get(thing)}.{attribute}" in LISTED
    return not isinstance(thing, (ModuleType, Mapping))  # a logger's handlers are Python's


CLASSES = {thing: home for home, *_ in NAMES if isinstance(thing := resolve(home), type)}


def test_every_name_that_we_import_is_on_the_page() -> None:
    lacking = sorted({f"{name} ({file})" for name, file in used() if not same(name)})
    assert not lacking, f"{PAGE} lacks " + ", ".join(lacking)


HELPERS = [ROOT / "toolkit" / "training" / f"{name}.py" for name in ("state", "telemetry", "weights")]
"""Functions that are given the trainer."""


def of_a_trainer(path: Path) -> set[str]:
    """What a module's functions read from, and set on, the trainer that they are given."""
    found = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "trainer"
    }
    assert found
    return found


@pytest.mark.parametrize(
    "kind", [trainer.LTDv2Trainer, trainer.Validator, dataset.LTDv2Dataset, grey.GreyFormat]
)
def test_every_attribute_that_we_share_with_a_base_class_is_on_the_page(kind: type) -> None:
    ours = [each for each in kind.__mro__ if each.__module__.partition(".")[0] == "toolkit"]
    base = next(each for each in kind.__mro__ if each.__module__.partition(".")[0] == "ultralytics")
    touched: set[str] = set()
    for each in ours:
        touched |= {
            name for name, value in vars(each).items() if callable(value) or isinstance(value, staticmethod)
        }
        tree = ast.parse(textwrap.dedent(inspect.getsource(each)))
        touched |= {node.attr for node in ast.walk(tree) if own(node)}  # type: ignore[attr-defined]
    if kind is trainer.LTDv2Trainer:
        touched |= {name for path in HELPERS for name in of_a_trainer(path)}
    shared = touched & attributes(base) - {"__init__", "__dict__"}
    assert shared
    home = CLASSES[base]
    lacking = sorted(name for name in shared if f"{home}.{name}" not in LISTED)
    assert not lacking, f"{PAGE} lacks of {home}: {', '.join(lacking)}"


def test_every_training_argument_that_we_read_is_on_the_page() -> None:
    read: set[str] = set()
    for path in [*ROOT.glob("toolkit/training/*.py"), Path(dataset.__file__)]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute):
                holder = node.value
                name = holder.attr if isinstance(holder, ast.Attribute) else getattr(holder, "id", "")
                if name in ("args", "hyp"):
                    read.add(node.attr)
    assert "imgsz" in read
    assert not {name for name in read if f"ultralytics.cfg.DEFAULT_CFG_DICT.{name}" not in LISTED}


OVERRIDDEN = (
    "_build_train_pipeline",
    "_do_train",
    "_setup_ddp",
    "_setup_train",
    "build_dataset",
    "check_resume",
    "final_eval",
    "get_class_counts",
    "get_dataloader",
    "get_dataset",
    "get_model",
    "get_validator",
    "optimizer_step",
    "preprocess_batch",
    "resume_training",
    "save_metrics",
    "save_model",
    "setup_model",
    "validate",
)
"""Methods of Ultralytics' trainer that have another body here."""

IN_ORDER = (
    "_setup_train",
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "preprocess_batch",
    "optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "validate",
    "save_metrics",
    "save_model",
    "on_fit_epoch_end",
    "final_eval",
)
"""As the map at the top of toolkit/training/resumable.py has them."""


def test_what_is_overridden_is_ultralytics_and_nothing_else_is() -> None:
    ours = (each for each in trainer.LTDv2Trainer.__mro__ if each.__module__.startswith("toolkit."))
    own = {name for kind in ours for name in vars(kind)}
    theirs = {name for name, value in inspect.getmembers(DetectionTrainer) if callable(value)}
    assert sorted(name for name in own & theirs if not name.startswith("__")) == sorted(OVERRIDDEN)


def test_the_loop_calls_in_the_order_of_the_map() -> None:
    loop = inspect.getsource(BaseTrainer._do_train)
    pattern = re.compile(r'(?:self\.|run_callbacks\(")(' + "|".join(IN_ORDER) + r")\b")
    assert tuple(dict.fromkeys(pattern.findall(loop))) == IN_ORDER


def test_the_map_names_every_call() -> None:
    assert resumable.__doc__ is not None
    found = re.findall(r"\b(" + "|".join(IN_ORDER) + r")\b", resumable.__doc__.partition("in its order::")[2])
    assert tuple(dict.fromkeys(found)) == IN_ORDER
