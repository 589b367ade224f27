"""What is kept in the cache folder stays within its bounds, and what is in use stays."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from patches import cache, compiling, doctor, environment, runtime
from patches.convolution.planfile import Card, PlanFile

DAY = 86_400


def entry(folder: Path, name: str, days: float, size: int = 100) -> Path:
    """A kernel in Triton's cache, last used so many days ago."""
    place = folder / name
    place.mkdir(parents=True)
    file = place / "kernel.hsaco"
    file.write_bytes(bytes(size))
    then = time.time() - days * DAY
    for each in (file, place):
        os.utime(each, (then, then))
    return place


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_nothing_used_for_some_days_goes(tmp_path: Path) -> None:
    entry(tmp_path, "old", 8)
    entry(tmp_path, "new", 6)
    cache.trim(tmp_path, 7, 10_000)
    assert left(tmp_path) == ["new"]


def test_beyond_a_size_what_was_unused_longest_goes_first(tmp_path: Path) -> None:
    for days in (4, 1, 3, 2):
        entry(tmp_path, f"{days} days", days)
    cache.trim(tmp_path, 7, 250)
    assert left(tmp_path) == ["1 days", "2 days"]


def test_what_is_in_use_stays_whatever_it_takes(tmp_path: Path) -> None:
    entry(tmp_path, "being written", 0)
    entry(tmp_path, "yesterday's", 1)
    cache.trim(tmp_path, 7, 10)
    assert left(tmp_path) == ["being written"]


def test_a_file_that_was_read_was_used_though_its_folder_was_not(tmp_path: Path) -> None:
    place = entry(tmp_path, "read", 30)
    file = place / "kernel.hsaco"
    os.utime(file, (time.time() - DAY, file.stat().st_mtime))
    cache.trim(tmp_path, 7, 10_000)
    assert left(tmp_path) == ["read"]


def test_a_link_goes_and_what_it_names_stays(tmp_path: Path) -> None:
    elsewhere = entry(tmp_path / "elsewhere", "kernel", 0)
    (tmp_path / "cache").mkdir()
    link = tmp_path / "cache" / "link"
    link.symlink_to(elsewhere)
    os.utime(link, (0, 0), follow_symlinks=False)
    cache.trim(tmp_path / "cache", 7, 10_000)
    assert left(tmp_path / "cache") == [] and (elsewhere / "kernel.hsaco").exists()


def test_a_folder_that_is_not_there_is_no_error(tmp_path: Path) -> None:
    cache.trim(tmp_path / "none", 7, 10)
    assert left(tmp_path) == []


@pytest.mark.parametrize(("own", "stays"), [(True, []), (False, ["old"])])
def test_kernels_are_removed_from_the_cache_that_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own: bool, stays: list[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "convroutes" / "triton-no-buffer-ops" if own else tmp_path / "a user's"
    monkeypatch.setenv("TRITON_CACHE_DIR", str(folder))
    entry(folder, "old", environment.KERNEL_DAYS + 1)
    compiling.compile_all([], compiling.Target("hip", "gfx1010", 32, 36))
    assert left(folder) == stays


def test_a_card_s_first_plan_takes_the_place_of_old_ones_unless_a_user_named_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Card("gfx1010", "amdgpu 1", "2.11")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for named in ("", str(tmp_path / "named")):
        monkeypatch.setenv("CONVROUTES_PLAN", named)
        if named:
            Path(named).mkdir()
        place = card.path()
        entry(place.parent, "old", 366)
        PlanFile(place, card, print).remember({}, {})
        assert place.exists()
        assert (place.parent / "old").exists() == bool(named)


def test_the_doctor_says_how_much_is_kept_and_tells_nobody_else_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.size(cache.cache_folder()) == 0
    entry(cache.cache_folder() / "convolution", "kernel", 1, 2_500_000)
    kept = cache.size(cache.cache_folder())
    found = doctor.diagnose([], False, runtime.Runtime(), {}, (), kept=kept)
    (line,) = [each.found for each in found.findings if each.subject == "cache"]
    assert line.startswith(f"2.5 MB in {tmp_path}")
    assert str(tmp_path) not in doctor.shareable(found)
