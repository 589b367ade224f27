"""Dropping an instruction of a real kernel is noticed, or shown to change nothing."""

from __future__ import annotations

from dataclasses import replace

import pytest

pytest.importorskip("triton", minversion="3.6", reason="Triton's AMD backend needs Triton")

import plant_amd_faults
from amdgcn.planted import MISSED, NOTICED, Planter


@pytest.fixture(scope="module")
def planter() -> Planter:
    small = replace(plant_amd_faults.PLAIN, kernel=(1, 1), padding=(0, 0), channels_in=64, height=3, width=5)
    return Planter("gather_gemm", [plant_amd_faults.case("gfx1010", small, "forward")])


def test_every_dropped_barrier_is_a_race(planter: Planter) -> None:
    drops = list(planter.drops("barrier"))
    assert drops
    assert {drop.found for drop in drops} == {NOTICED}


def test_every_dropped_wait_is_noticed_or_waits_for_nothing(planter: Planter) -> None:
    drops = list(planter.drops("wait", count=30))
    assert [drop.text for drop in drops if drop.found == MISSED] == []
    assert sum(drop.why == "MissingWait" for drop in drops) >= 3


def test_most_other_dropped_instructions_are_noticed(planter: Planter) -> None:
    drops = list(planter.drops("any", count=20, seed=1))
    assert sum(drop.found == MISSED for drop in drops) <= 3
