"""What a device's surroundings change, and put back."""

from __future__ import annotations

import pytest
import torch

from toolkit.machine.device import running


@pytest.mark.skipif(not hasattr(torch.utils, "deterministic"), reason="this PyTorch fills nothing")
@pytest.mark.parametrize("patched", [True, False])
def test_empty_tensors_are_not_filled_while_patches_serve(patched: bool) -> None:
    before = torch.utils.deterministic.fill_uninitialized_memory
    assert before, "PyTorch's own default"
    with running("cpu", patched=patched):
        assert torch.utils.deterministic.fill_uninitialized_memory is not patched
    assert torch.utils.deterministic.fill_uninitialized_memory is before
