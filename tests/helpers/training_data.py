"""One small dataset and single-threaded PyTorch for every test of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared dataset of 44 training and 8 validation frames: six batches of eight, the last one short."""
    folder = tmp_path_factory.mktemp("data") / "ltdv2"
    write_sample(folder, train=44, val=8, test=8, seed=0, scene="street")
    prepare(folder)
    return folder


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    torch.set_num_threads(1)
