"""On a ROCm build the vendor's library is off while the patches are on, for every layer."""

from __future__ import annotations

import pytest
import torch

import patches


@pytest.fixture
def rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "5.2.21151")
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)


@pytest.mark.usefixtures("rocm")
def test_a_rocm_build_trains_without_miopen_and_gets_it_back() -> None:
    with patches.enabled("cuda"):
        assert not torch.backends.cudnn.enabled
        with patches.enabled("cuda", route="gemm"):
            assert not torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled


@pytest.mark.usefixtures("rocm")
def test_patching_the_cpu_leaves_the_library_alone() -> None:
    with patches.enabled("cpu"):
        assert torch.backends.cudnn.enabled


def test_a_cuda_build_keeps_cudnn_for_batch_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    with patches.enabled("cuda"):
        assert torch.backends.cudnn.enabled
