"""Losses arrive in order and whole; on a card those of the newest batch are not waited for."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from toolkit.training.losses import Landing, LossReader, Reading

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


class StandIn(Landing):
    """Memory that a card writes into at once or, at the latest, when its event is waited for."""

    def __init__(self, values: Tensor, quick: bool) -> None:
        self.place, self.quick = torch.full_like(values, torch.nan), quick
        self.coming: Tensor | None = None

    def begin(self, values: Tensor) -> None:
        self.coming = values.clone()
        if self.quick:
            self.place.copy_(self.coming)

    def finish(self) -> list[float]:
        assert self.coming is not None, "waited for twice, or lent to a second batch"
        self.place.copy_(self.coming)
        self.coming = None
        numbers: list[float] = self.place.tolist()
        self.place.fill_(torch.nan)  # whoever looks here again finds nothing
        return numbers


class Made(list[Landing]):
    """Makes stand-ins, and keeps them in sight."""

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.quick = quick

    def __call__(self, values: Tensor) -> Landing:
        self.append(StandIn(values, self.quick))
        return self[-1]


@given(quick=st.booleans(), steps=st.lists(st.sampled_from(["put", "other", "read", "wait"]), max_size=40))
def test_memory_is_not_lent_again_before_its_losses_were_read(quick: bool, steps: list[str]) -> None:
    """Whatever the order of putting in and reading, and with components that change in number."""
    reader = LossReader(made := Made(quick))
    put: list[Reading] = []
    found: list[Reading] = []
    most = 0
    for number, step in enumerate([*steps, "wait"]):
        if step == "put":
            reader.put(batch(number, "cpu"), f"batch {number}")
            put.append(expected(number))
        elif step == "other":
            reader.put({"loss": torch.tensor(float(number))}, f"batch {number}")
            put.append(Reading({"loss": float(number)}, f"batch {number}"))
        else:
            found += reader.read(wait=step == "wait")
        most = max(most, len(put) - len(found))
    assert found == put
    assert len(made) <= 2 * most  # of each of the two kinds as many as were on their way at once


def test_a_training_needs_two_places_whatever_its_length() -> None:
    reader = LossReader(made := Made(quick=True))
    found = []
    for number in range(50):
        reader.put(batch(number, "cpu"), f"batch {number}")
        now = list(reader.read(wait=False))
        assert now == ([expected(number - 1)] if number else [])
        found += now
    assert len(made) == 2
    assert [*found, *reader.read(wait=True)] == [expected(number) for number in range(50)]
