"""The order of an epoch: every image once, from any place on, shared by any number of ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from toolkit.runs.folder import Batch
from toolkit.training.sampling import EpochSampler, derived_seed

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


def test_epochs_and_seeds_shuffle_differently() -> None:
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        sampler = EpochSampler(100, 8, seed)
        sampler.enter(epoch)
        orders.append(tuple(images(sampler)))
    assert len(set(orders)) == 3


@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 3), unique=True, min_size=2, max_size=50))
def test_seeds_of_different_places_differ(places: list[tuple[int, int, int]]) -> None:
    assert len({derived_seed(*place) for place in places}) == len(places)
