"""Ultralytics' last.pt and best.pt: written whole or not at all, and what the best one is worth."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ultralytics.nn.tasks import load_checkpoint
from ultralytics.utils.torch_utils import strip_optimizer

from toolkit.errors import ToolkitError
from toolkit.files import replacing


@contextmanager
def written_whole(trainer: Any) -> Iterator[None]:
    """Have a trainer's ``save_model`` write under temporary names; files get their own when all are there.

    Raises:
        OSError: the disk is full; the files are as they were.
    """
    final = {"last": trainer.last, "best": trainer.best}
    partial = {name: path.with_name(f".{path.name}.tmp") for name, path in final.items()}
    trainer.last, trainer.best = partial["last"], partial["best"]
    try:
        yield
        for name, path in partial.items():
            if path.exists():
                with path.open("rb+") as file:
                    os.fsync(file.fileno())
                path.replace(final[name])
    finally:
        trainer.last, trainer.best = final["last"], final["best"]
        for path in partial.values():
            with suppress(OSError):
                path.unlink()


def fitness_of(best: Path) -> float | None:
    """best.pt may be newer than the checkpoint: an epoch that is trained again must beat it as well."""
    if not best.exists():
        return None
    with suppress(Exception):  # whatever a damaged file may raise; the next best epoch replaces it
        fitness = load_checkpoint(best)[1].get("best_fitness")
        return None if fitness is None else float(fitness)
    return None


def without_optimizer(weights: Path, target: Path, **updates: Any) -> None:
    """Write a checkpoint without its optimizer to ``target``, which may be the file itself.

    Args:
        weights: the checkpoint.
        target: where it goes, whole or not at all.
        updates: entries of the checkpoint that get other values.

    Raises:
        ToolkitError: it cannot be read, or the disk is full; of a full disk PyTorch makes a RuntimeError.
    """
    with replacing(target) as temporary:
        if not strip_optimizer(weights, str(temporary), updates=updates or None):
            raise ToolkitError(f"cannot read {weights}")
