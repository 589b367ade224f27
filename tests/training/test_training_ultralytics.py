"""What the trainer overrides and when Ultralytics calls it: an upgrade that moves either shows here first."""

from __future__ import annotations

import inspect
import re

import pytest
from ultralytics.engine.trainer import BaseTrainer
from ultralytics.models.yolo.detect import DetectionTrainer

from toolkit.training import resumable
from toolkit.training.resumable import ResumableTrainer
from toolkit.training.trainer import LTDv2Trainer

OVERRIDDEN = (
    "_build_train_pipeline",
    "_handle_nan_recovery",
    "_setup_ddp",
    "_setup_train",
    "build_dataset",
    "check_resume",
    "final_eval",
    "get_class_counts",
    "get_dataloader",
    "get_dataset",
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
    "_handle_nan_recovery",
    "save_metrics",
    "save_model",
    "on_fit_epoch_end",
    "final_eval",
)
"""As the map at the top of toolkit/training/resumable.py has them."""


def test_what_is_overridden_is_ultralytics_and_nothing_else_is() -> None:
    own = {name for kind in (ResumableTrainer, LTDv2Trainer) for name in vars(kind)}
    theirs = {name for name, value in inspect.getmembers(DetectionTrainer) if callable(value)}
    assert sorted(name for name in own & theirs if not name.startswith("__")) == sorted(OVERRIDDEN)


@pytest.mark.parametrize("name", ["_get_memory", "_get_warmup_iterations", "add_callback"])
def test_what_is_called_is_there(name: str) -> None:
    assert callable(getattr(BaseTrainer, name))


def test_the_loop_calls_in_the_order_of_the_map() -> None:
    loop = inspect.getsource(BaseTrainer._do_train)
    pattern = re.compile(r'(?:self\.|run_callbacks\(")(' + "|".join(IN_ORDER) + r")\b")
    assert tuple(dict.fromkeys(pattern.findall(loop))) == IN_ORDER


def test_the_map_names_every_call() -> None:
    assert resumable.__doc__ is not None
    found = re.findall(r"\b(" + "|".join(IN_ORDER) + r")\b", resumable.__doc__.partition("in its order::")[2])
    assert tuple(dict.fromkeys(found)) == IN_ORDER
