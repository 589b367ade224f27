"""What a kernel did is counted as the hardware would do it."""

from __future__ import annotations

import numpy as np
import pytest
from amdgcn.waits import LATENCY, LOAD, SCALAR
from amdgcn_programs import COPY, START, execute


@pytest.mark.parametrize(("waves", "lines", "halves"), [(1, 2, 4), (2, 4, 8)])
def test_neighbouring_lanes_share_a_line(waves: int, lines: int, halves: int) -> None:
    """A load and a store of 128 bytes a wave, in line with the memory."""
    _, counters = execute(COPY, waves=waves)
    assert (counters.lines, counters.halves) == (lines, halves)
    assert (counters.useful, counters.stored) == (256 * waves, 128 * waves)
    assert counters.by_unit()["vmem"] == 2 * waves
    assert counters.waves == waves


@pytest.mark.parametrize(("shift", "passes"), [(2, 1), (3, 2), (4, 4), (7, 32)])
def test_lanes_on_one_bank_are_served_one_after_another(shift: int, passes: int) -> None:
    """Lanes 2^shift bytes apart: 32 banks of 4 bytes."""
    program = f"{START}\nv_lshlrev_b32_e32 v3, {shift}, v0\nds_write_b32 v3, v1\ns_endpgm"
    _, counters = execute(program, lds=4096)
    assert (counters.lds_cycles, counters.lds_least) == (passes, 1)


def test_lanes_that_read_one_word_share_it() -> None:
    program = f"{START}\nds_write_b32 v1, v1\nv_mov_b32_e32 v3, 0\ns_waitcnt lgkmcnt(0)\n"
    program += "ds_read_b32 v2, v3\ns_endpgm"
    _, counters = execute(program, lds=128)
    assert (counters.lds_cycles, counters.lds_least) == (2, 2)


def test_16_bytes_a_lane_take_four_passes() -> None:
    program = f"{START}\nv_lshlrev_b32_e32 v3, 4, v0\nv_mov_b32_e32 v4, 0\nv_mov_b32_e32 v5, 0\n"
    program += "v_mov_b32_e32 v6, 0\nv_mov_b32_e32 v7, 0\nds_write_b128 v3, v[4:7]\ns_endpgm"
    _, counters = execute(program, lds=512)
    assert (counters.lds_cycles, counters.lds_least) == (4, 4)


def test_only_the_workgroups_asked_for_are_executed() -> None:
    result, counters = execute(COPY, groups=3, only=[1])
    assert counters.workgroups == 1
    assert (result[:32] == np.arange(32) + 1).all()


def test_a_wave_alone_waits_for_what_it_loads() -> None:
    """Scalar load, then a load from memory, each waited for; four instructions after and between them."""
    _, counters = execute(COPY, waves=2)
    assert counters.alone == 2 * (1 + LATENCY[SCALAR] + 1 + LATENCY[LOAD] + 2)


@pytest.mark.parametrize(
    ("instruction", "cycles"), [("v_add_nc_u32", 1), ("v_mul_lo_u32", 4), ("v_rcp_f32", 4)]
)
def test_products_of_integers_and_transcendental_functions_take_a_quarter_of_the_rate(
    instruction: str, cycles: int
) -> None:
    operands = "v3, v1" if instruction == "v_rcp_f32" else "v3, v1, v1"
    _, counters = execute(f"{START}\n{instruction} {operands}\ns_endpgm")
    assert counters.busy() == 1 + cycles
