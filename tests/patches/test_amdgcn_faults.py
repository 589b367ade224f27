"""What a card would punish silently is an error in the interpreter: small programs, one fault each."""

from __future__ import annotations

import re

import numpy as np
import pytest
from amdgcn import faults
from amdgcn.launch import Kernel, pack_arguments
from amdgcn_programs import COPY, HEADER, SOURCE, START, run

# Each wave writes its part of LDS and reads the other's.
EXCHANGE = f"""{START}
v_xor_b32_e32 v3, 0x80, v1
ds_write_b32 v1, v1
s_waitcnt lgkmcnt(0)
s_barrier
ds_read_b32 v2, v3
s_waitcnt lgkmcnt(0)
global_store_dword v1, v2, s[6:7]
s_endpgm"""
SPLIT = (
    re.sub("s_waitcnt lgkmcnt", "s_wait_dscnt", EXCHANGE)
    .replace("s_barrier", "s_barrier_signal -1\ns_barrier_wait -1")
    .replace("s_load_dwordx4 s[4:7], s[0:1], 0x0", "s_load_b128 s[4:7], s[0:1], 0x0")
)
SPLIT = SPLIT.replace("s_wait_dscnt(0)", "s_wait_kmcnt 0x0", 1).replace("s_wait_dscnt(0)", "s_wait_dscnt 0x0")


def without(body: str, line: str) -> str:
    """The program with the first such line dropped."""
    assert line in body
    return body.replace(line + "\n", "", 1)


def test_a_sound_program_does_what_it_says() -> None:
    assert (run(COPY, waves=2) == np.arange(64) + 1).all()
    assert (run(EXCHANGE, waves=2, lds=256) == (np.arange(64) ^ 32) * 4).all()
    assert (run(SPLIT, "gfx1201", waves=2, lds=256) == (np.arange(64) ^ 32) * 4).all()


@pytest.mark.parametrize("line", ["s_waitcnt vmcnt(0)", "s_waitcnt lgkmcnt(0)"])
def test_a_dropped_wait_for_memory_is_noticed(line: str) -> None:
    with pytest.raises(faults.MissingWait, match="before the load"):
        run(without(COPY, line))


@pytest.mark.parametrize(("kind", "offset"), [("dword", 0), ("ushort", 2), ("ubyte", 3)])
def test_memory_is_no_way_from_one_wave_to_another(kind: str, offset: int) -> None:
    """A barrier orders LDS; in WGP mode another compute unit's cache may hold what was there before."""
    through = f"""{START}
v_xor_b32_e32 v3, 0x80, v1
global_store_dword v1, v1, s[6:7]
s_barrier
global_load_{kind} v2, v3, s[6:7] offset:{offset}
s_waitcnt vmcnt(0)
s_endpgm"""
    with pytest.raises(faults.MemoryRace, match="same launch"):
        run(through, waves=2)
    with pytest.raises(faults.MemoryRace, match="same launch"):
        run(through.replace("s_barrier", "s_waitcnt_vscnt null, 0x0\ns_barrier"), waves=2)


def test_the_vector_register_with_the_number_of_null_is_a_register() -> None:
    high = COPY.replace("v2", "v124")
    assert (run(high, waves=2) == np.arange(64) + 1).all()
    with pytest.raises(faults.MissingWait, match="v124"):
        run(without(high, "s_waitcnt vmcnt(0)"))


def test_a_wait_that_leaves_one_load_too_many_is_noticed() -> None:
    two = COPY.replace("s_waitcnt vmcnt(0)", "global_load_dword v3, v1, s[4:5]\ns_waitcnt vmcnt({})")
    assert (run(two.format(1), waves=2) == np.arange(64) + 1).all()
    with pytest.raises(faults.MissingWait):
        run(two.format(2))


def test_with_a_scalar_load_under_way_only_zero_waits_for_lds() -> None:
    mixed = EXCHANGE.replace("ds_read_b32 v2, v3", "ds_read_b32 v2, v3\ns_load_dword s9, s[0:1], 0x0")
    with pytest.raises(faults.MissingWait, match="v2"):
        run(
            mixed.replace("s9, s[0:1], 0x0\ns_waitcnt lgkmcnt(0)", "s9, s[0:1], 0x0\ns_waitcnt lgkmcnt(1)"),
            lds=256,
            waves=2,
        )


def test_a_register_is_not_overwritten_while_a_load_owes_it() -> None:
    with pytest.raises(faults.MissingWait, match="v2"):
        run(COPY.replace("s_waitcnt vmcnt(0)", "v_mov_b32_e32 v2, 0"))


def test_a_dropped_barrier_is_a_race() -> None:
    with pytest.raises(faults.LdsRace):
        run(without(EXCHANGE, "s_barrier"), waves=2, lds=256)


def test_a_write_before_the_other_wave_has_read_is_a_race() -> None:
    late = EXCHANGE.replace("global_store", "ds_write_b32 v1, v0\nglobal_store")
    with pytest.raises(faults.LdsRace):
        run(late, waves=2, lds=256)
    barrier = late.replace("ds_write_b32 v1, v0", "s_barrier\nds_write_b32 v1, v0")
    assert (run(barrier, waves=2, lds=256) == (np.arange(64) ^ 32) * 4).all()


def test_a_dropped_wait_for_lds_is_noticed() -> None:
    *head, _, _ = re.split(r"(?=s_waitcnt lgkmcnt|global_store)", EXCHANGE)
    with pytest.raises(faults.MissingWait, match="v2"):
        run("".join(head) + EXCHANGE[EXCHANGE.index("global_store") :], waves=2, lds=256)


def test_a_barrier_needs_no_wait_for_what_was_written_to_lds() -> None:
    """Accesses to LDS are executed in the order of their issue, those of all waves."""
    early = EXCHANGE.replace("s_waitcnt lgkmcnt(0)\ns_barrier", "s_barrier")
    assert (run(early, waves=2, lds=256) == (np.arange(64) ^ 32) * 4).all()


@pytest.mark.parametrize("line", ["s_wait_kmcnt 0x0", "s_wait_dscnt 0x0", "s_barrier_signal -1"])
def test_the_split_counters_and_barrier_of_gfx12_are_kept(line: str) -> None:
    head, _, tail = SPLIT.rpartition(line + "\n")
    with pytest.raises(faults.Stuck if "barrier" in line else faults.MissingWait):
        run(head + tail, "gfx1201", waves=2, lds=256)


def test_a_barrier_that_one_wave_skips_hangs_no_longer_than_this() -> None:
    skipped = EXCHANGE.replace(
        "s_barrier", "v_readfirstlane_b32 s8, v0\ns_cmp_eq_u32 s8, 0\ns_cbranch_scc1 .L1\ns_barrier\n.L1:"
    )
    with pytest.raises(faults.Fault):
        run(skipped, waves=2, lds=256)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("v1, s[4:5]", "v1, s[4:5] offset:512", faults.WildAccess),
        ("v1, v2, s[6:7]", "v1, v2, s[4:5]", faults.WildAccess),
        ("v1, s[4:5]", "v1, s[4:5] offset:2", faults.Misaligned),
        ("v1, s[4:5]", "v7, s[4:5]", faults.Unwritten),
        ("v_add_nc_u32_e32 v2, 1, v2", ".L0:\ns_branch .L0", faults.EndlessLoop),
        ("v_add_nc_u32_e32 v2, 1, v2", "v_frobnicate_b32 v2, 1", faults.UnknownInstruction),
        ("v_add_nc_u32_e32 v2, 1, v2", "v_add_f32_e64 v2, 1, v2 clamp", faults.UnknownInstruction),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_fault_has_its_name(
    old: str, new: str, fault: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amdgcn.machine.MOST_STEPS", 10_000)
    with pytest.raises(fault):
        run(COPY.replace(old, new, 1))


@pytest.mark.parametrize("lds", [0, 128, 252])
def test_lds_beyond_the_request_is_a_fault(lds: int) -> None:
    with pytest.raises(faults.LdsBounds):
        run(EXCHANGE, waves=2, lds=lds)


def test_lds_that_nothing_wrote_is_not_read() -> None:
    with pytest.raises(faults.Unwritten):
        run(without(EXCHANGE, "ds_write_b32 v1, v1"), waves=2, lds=256)


def test_arguments_of_the_wrong_size_are_refused() -> None:
    kernel = Kernel.from_assembly(HEADER.format(target="gfx1010", body=COPY))
    for values in ([("*i32", SOURCE)], [("*i32", SOURCE), ("i32", 3)]):
        with pytest.raises(faults.BadArguments):
            pack_arguments(kernel.program, values)


DESCRIPTOR = f"""{START}
s_and_b32 s9, s7, 0xffff
s_mov_b32 s8, s6
s_mov_b32 s10, 0x100
s_mov_b32 s11, {{}}
buffer_store_dword v1, v1, s[8:11], 0 offen
s_endpgm"""


def test_a_buffer_store_needs_the_bounds_check_of_its_generation() -> None:
    """With OOB_SELECT 0 and no stride, as Triton leaves it on gfx101x, every offset is out of bounds."""
    assert (run(DESCRIPTOR.format("0x31027000"), waves=2) == np.arange(64) * 4).all()
    assert (run(DESCRIPTOR.format("0x27000"), waves=2) == 0).all()
