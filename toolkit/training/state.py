"""The state of a training in a checkpoint: tensors, numbers, text, lists and dictionaries of them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from toolkit.runs import checkpoints
from toolkit.runs.checkpoints import Checkpoint


def save_state(folder: Path, images: int, state: Mapping[str, Any]) -> Checkpoint:
    """Write ``state`` as :func:`toolkit.runs.checkpoints.write` does.

    Raises:
        ToolkitError: the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return checkpoints.write(folder, images, buffer.getbuffer())


def load_state(checkpoint: Checkpoint) -> dict[str, Any]:
    """The state that :func:`save_state` was given, tensors on the CPU; nothing in the file is executed."""
    state: dict[str, Any] = torch.load(checkpoint.path, map_location="cpu", weights_only=True)
    return state
