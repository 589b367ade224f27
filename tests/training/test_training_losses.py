"""Losses arrive in order and whole; on a card those of the newest batch are not waited for."""

from __future__ import annotations

import pytest
import torch

from toolkit.training.losses import LossReader, Reading

CARD = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")


def batch(number: int, device: str) -> dict[str, torch.Tensor]:
    return {
        "box": torch.tensor(float(number), device=device, requires_grad=True),
        "cls": torch.tensor([number + 0.5], device=device),
    }


def expected(number: int) -> Reading:
    return Reading({"box": float(number), "cls": number + 0.5}, f"batch {number}")


def test_on_the_processor_a_loss_is_there_at_once() -> None:
    reader = LossReader()
    for number in range(3):
        reader.put(batch(number, "cpu"), f"batch {number}")
        assert list(reader.read(wait=False)) == [expected(number)]
    assert not list(reader.read(wait=True))


@CARD
def test_on_a_card_a_loss_is_there_a_batch_later_or_when_it_is_waited_for() -> None:
    reader = LossReader()
    found = []
    for number in range(5):
        reader.put(batch(number, "cuda"), f"batch {number}")
        now = list(reader.read(wait=number == 3))
        assert len(now) == {0: 0, 3: 2, 4: 0}.get(number, 1)
        found += now
    found += reader.read(wait=True)
    assert found == [expected(number) for number in range(5)]


@CARD
def test_a_loss_that_is_overwritten_afterwards_is_the_one_that_was_put_in() -> None:
    reader = LossReader()
    losses = batch(1, "cuda")
    reader.put(losses, "batch 1")
    with torch.no_grad():
        for each in losses.values():
            each.fill_(9.0)
    assert list(reader.read(wait=True)) == [expected(1)]
