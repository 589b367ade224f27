"""Checkpoint files: whole or not there, checked, few."""

from __future__ import annotations

import random
import resource
from pathlib import Path

import pytest
import torch

from toolkit.errors import ToolkitError
from toolkit.runs import checkpoints
from toolkit.training.state import load_state, save_state


def state(value: float) -> dict[str, object]:
    return {"weights": {"w": torch.full((1000,), value)}, "name": "x", "numbers": [1, 2.5, None]}


def test_what_is_written_is_what_is_read(tmp_path: Path) -> None:
    written = save_state(tmp_path, 7, state(3.5))
    found, damaged = checkpoints.newest(tmp_path)
    assert found == written
    assert damaged == []
    read = load_state(found)
    assert torch.equal(read["weights"]["w"], torch.full((1000,), 3.5))
    assert read["numbers"] == [1, 2.5, None]


def test_the_newest_and_the_two_before_it_are_kept(tmp_path: Path) -> None:
    for batches in (1, 2, 30, 4, 100):
        save_state(tmp_path, batches, state(batches))
    assert [c.images for c in checkpoints.listed(tmp_path)] == [100, 30, 4]


@pytest.mark.parametrize("seed", range(8))
def test_any_damage_is_noticed(tmp_path: Path, seed: int) -> None:
    """A flipped bit, a cut, bytes too many: at a place that chance chooses."""
    chance = random.Random(seed)
    older = save_state(tmp_path, 1, state(1))
    newer = save_state(tmp_path, 2, state(2))
    content = bytearray(newer.path.read_bytes())
    at = chance.randrange(len(content))
    damage = [
        lambda: content.__setitem__(at, content[at] ^ 1 << chance.randrange(8)),
        lambda: content.__delitem__(slice(at, None)),
        lambda: content.extend(b"\0"),
    ]
    chance.choice(damage)()
    newer.path.write_bytes(content)
    assert checkpoints.newest(tmp_path) == (older, [newer])


def test_a_write_that_fails_leaves_the_older_ones_and_no_litter(tmp_path: Path) -> None:
    kept = [save_state(tmp_path, n, state(n)) for n in (1, 2, 3)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(ToolkitError, match="cannot write"):
            save_state(tmp_path, 4, state(4))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpoints.listed(tmp_path) == kept[::-1]
    assert not list(tmp_path.glob(".*"))


def test_what_a_killed_writer_left_is_removed(tmp_path: Path) -> None:
    (tmp_path / ".image-000000000001-abc.pt.x1.tmp").write_text("half")
    checkpoints.remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_going_back_drops_what_came_after(tmp_path: Path) -> None:
    for batches in (10, 20, 30):
        save_state(tmp_path, batches, state(batches))
    found, _ = checkpoints.newest(tmp_path, before=30)
    assert found is not None
    assert found.images == 20
    checkpoints.discard_after(tmp_path, found.images)
    assert [c.images for c in checkpoints.listed(tmp_path)] == [20, 10]
