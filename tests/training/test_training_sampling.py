"""The order of an epoch: every image once, from any place on, shared by any number of ranks."""

from __future__ import annotations

import random
import traceback
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit.runs.folder import Batch
from toolkit.training.sampling import (
    SEEDS,
    EpochSampler,
    _seeds,
    batch_seed,
    seed_everything,
)

sizes = st.integers(1, 200)
epochs = st.integers(0, 5)
seeds = st.integers(0, 2**31)


def images(sampler: EpochSampler) -> list[int]:
    """Images that are left, with the epoch taken off again."""
    numbers = list(sampler)
    assert all(number // sampler.images == sampler.epoch for number in numbers)
    return [number % sampler.images for number in numbers]


@given(sizes, st.integers(1, 64), seeds, epochs)
def test_an_epoch_has_every_image_once(n: int, batch: int, seed: int, epoch: int) -> None:
    sampler = EpochSampler(n, batch, seed)
    sampler.enter(epoch)
    assert sorted(images(sampler)) == list(range(n))
    assert len(list(sampler)) == len(sampler)


@given(sizes, st.integers(1, 64), seeds, epochs, st.data())
def test_what_is_left_is_the_end_of_the_whole(
    n: int, batch: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    start = data.draw(st.integers(0, n))
    sampler = EpochSampler(n, batch, seed)
    sampler.enter(epoch)
    whole = images(sampler)
    sampler.enter(epoch, start)
    assert images(sampler) == whole[start:]


@given(sizes, st.sampled_from([2, 3, 4]), st.integers(1, 12), seeds, st.data())
def test_ranks_share_each_batch(n: int, ranks: int, each: int, seed: int, data: st.DataObject) -> None:
    batch = ranks * each
    start = data.draw(st.integers(0, n - 1)) // batch * batch
    alone = EpochSampler(n, batch, seed)
    alone.enter(1, start)
    together = [EpochSampler(n, batch, seed, rank, ranks) for rank in range(ranks)]
    for sampler in together:
        sampler.enter(1, start)
    parts = [images(sampler) for sampler in together]
    whole = images(alone)
    for first in range(0, len(whole), batch):
        shared = [part[first // ranks : first // ranks + each] for part in parts]
        assert all(shared), "every rank has an image of every batch"
        assert set().union(*shared) == set(whole[first : first + batch])
    last_batch_is_small = len(whole) % batch and len(whole) % batch < ranks
    assert last_batch_is_small or sum(map(len, parts)) == len(whole)


@given(st.integers(20, 200), st.integers(1, 10), seeds)
def test_a_batch_that_is_skipped_takes_no_other_with_it(n: int, batch: int, seed: int) -> None:
    sampler = EpochSampler(n, batch, seed)
    sampler.enter(0)
    whole = images(sampler)
    poisoned = frozenset({Batch(0, batch, batch)})
    sampler.enter(0, skipped=poisoned)
    assert images(sampler) == whole[:batch] + whole[2 * batch :]
    sampler.enter(1, skipped=poisoned)
    assert len(images(sampler)) == n
    larger = EpochSampler(n, batch + 1, seed)
    larger.enter(0, skipped=poisoned)
    assert images(larger) == whole, "a batch of another size holds other samples"


@given(sizes, st.integers(1, 12), st.integers(1, 4), seeds, epochs, st.data())
def test_ahead_of_an_epoch_come_the_batches_of_the_next_ones(
    n: int, each: int, ranks: int, seed: int, epoch: int, data: st.DataObject
) -> None:
    """No batch spans the border, none that is skipped comes, and the last epoch is the end."""
    samplers = [EpochSampler(n, each * ranks, seed, rank, ranks) for rank in range(ranks)]
    numbers = st.integers(0, 2 * -(-n // (each * ranks)))
    left_out = data.draw(st.sets(st.tuples(st.integers(epoch, epoch + 2), numbers), max_size=6))
    size = each * ranks
    skipped = frozenset(Batch(e, size * number, size) for e, number in left_out)
    start = size * data.draw(numbers)
    for sampler in samplers:
        expected = []
        for e, first in ((epoch, start), (epoch + 1, 0), (epoch + 2, 0)):
            sampler.enter(e, first, skipped)
            samples = iter(sampler)
            for batch in sampler.batches():
                count = max(min(size, n - batch.first), ranks)
                mine = len(range(sampler.rank, count, ranks))
                expected.append([next(samples) for _ in range(mine)])
            assert next(samples, None) is None
        sampler.enter(epoch, start, skipped)
        ahead = sampler.ahead()
        assert [next(ahead) for _ in expected] == expected
        sampler.enter(epoch + 2, 0, skipped, is_last=True)
        last = [batch for batch in expected if batch[0] // n == epoch + 2]
        assert list(sampler.ahead()) == last
        assert sampler.following() is None


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(100, 8, seed)
        sampler.enter(epoch)
        orders.append(tuple(images(sampler)))
    assert len(set(orders)) == 3


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 3), unique=True, min_size=2, max_size=50))
def test_seeds_of_different_places_differ(places: list[tuple[int, int, int]]) -> None:
    assert len({batch_seed(*place) for place in places}) == len(places)


places = st.tuples(st.sampled_from([0, 1, 2**31]), st.integers(0, 2), st.integers(0, 3 * SEEDS))


@given(st.lists(places, max_size=30))
def test_seeds_of_batches_do_not_depend_on_what_was_asked_before(asked: list[tuple[int, int, int]]) -> None:
    found = [batch_seed(*place) for place in asked]
    again = []
    for place in asked:
        _seeds.cache_clear()
        again.append(batch_seed(*place))
    assert found == again


def draws() -> list[Any]:
    return [
        random.random(),
        np.random.rand(),  # noqa: NPY002 - the global generator
        np.random.randint(2**31),  # noqa: NPY002 - the global generator
        torch.rand(3).tolist(),
        torch.randn(17, dtype=torch.float64).tolist(),
        torch.randperm(11).tolist(),
        torch.initial_seed(),
    ]


@given(st.integers(0, 2**32 - 1))
def test_a_seed_draws_what_the_libraries_own_functions_draw(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the global generator
    torch.manual_seed(seed)
    theirs = draws()
    seed_everything(seed)
    assert draws() == theirs


def test_cards_in_use_are_seeded_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    cards = [SimpleNamespace(manual_seed=seeds.append)] * 2
    monkeypatch.setattr(torch.cuda, "default_generators", cards)
    seed_everything(7)
    assert seeds == [7, 7]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_a_seed_draws_on_a_card_what_torch_draws() -> None:
    torch.zeros(1, device="cuda")  # in use from now on
    torch.manual_seed(2**32 - 5)
    theirs = torch.rand(1000, device="cuda")
    seed_everything(2**32 - 5)
    assert torch.equal(torch.rand(1000, device="cuda"), theirs)


def test_seeding_writes_down_no_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch.manual_seed does for each kind of device that is not in use, once a batch."""

    def refuse(*_: Any) -> None:
        raise AssertionError("the stack was written down")

    monkeypatch.setattr(traceback, "format_stack", refuse)
    seed_everything(3)
