"""The model of an H100 that scripts/rank_tiles.py ranks tiles by: what it reads, counts and compares."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import pytest
import torch
from hopper import banks, sass, work
from hopper.sass import NONE, Instruction
from hypothesis import given, settings
from hypothesis import strategies as st

from patches import compiling
from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels.tiles import NVIDIA, Tile

pytest.importorskip("triton", reason="needs Triton")


def code(name: str, operands: str = "", stall: int = 1, written: int = NONE, waits: int = 0) -> Instruction:
    return Instruction(name, operands, stall, written, NONE, waits)


def line(text: str, stall: int = 1, written: int = NONE, read: int = NONE, waits: int = 0) -> str:
    high = (stall | written << 5 | read << 8 | waits << 11) << 41
    return f"        /*0010*/    {text} ;    /* 0x0000000000000001 */\n        /* {high:#018x} */\n"


def test_instructions_are_read_with_what_they_wait_for() -> None:
    text = (
        line("LDG.E.128 R4, [R2.64]", stall=2, written=3)
        + ".L_x_1:\n"
        + line("@!P0 FFMA R4, R5, R6, R7", stall=4, read=1, waits=0b001000)
        + line("@P2 BRA `(.L_x_1)", stall=5)
        + ".L_x_2:\n"
        + line("BRA `(.L_x_2)")
    )
    program = sass.read(text, registers=96)
    assert program.instructions[0] == Instruction("LDG.E.128", "R4, [R2.64]", 2, 3, NONE, 0)
    assert program.instructions[1] == Instruction("FFMA", "R4, R5, R6, R7", 4, NONE, 1, 0b001000)
    assert (program.loop, program.registers) == ((1, 2), 96)


def test_a_program_with_two_loops_is_refused() -> None:
    loop = ".L_x_{0}:\n" + line("FFMA R1, R1, R1, R1") + line("@P0 BRA `(.L_x_{0})")
    with pytest.raises(ValueError, match="2 loops"):
        sass.read(loop.format(0) + loop.format(1), 32)


def test_a_warp_waits_for_what_it_has_asked_for() -> None:
    asked = [code("LDG.E", written=0), *[code("FFMA")] * 5]
    assert work.alone(asked) == 6
    assert work.alone([*asked, code("FFMA", waits=1)]) == work.LATENCY["LDG"] + 1


def test_a_copy_is_waited_for_when_fewer_groups_may_be_on_their_way() -> None:
    copies = [code("LDGSTS.E"), code("LDGDEPBAR"), code("LDGSTS.E"), code("LDGDEPBAR")]
    assert work.alone([*copies, code("DEPBAR.LE", "SB0, 0x2")]) == 5
    assert work.alone([*copies, code("DEPBAR.LE", "SB0, 0x1")]) == work.LATENCY["LDGSTS"] + 1
    assert work.alone([*copies, code("DEPBAR.LE", "SB0, 0x0")]) == work.LATENCY["LDGSTS"] + 3


def test_the_busiest_pipe_decides() -> None:
    assert work.issue(Counter(FFMA=100, LDS=20, UIADD3=5)) == 125
    assert work.issue(Counter(FFMA=100, IMAD=30)) == 160
    assert work.issue(Counter(FFMA=100, IADD3=90)) == 190
    assert work.issue(Counter(FFMA=10, IADD3=90)) == 180
    assert work.issue(Counter(MUFU=10, FFMA=20)) == 80


def test_programs_that_a_multiprocessor_holds() -> None:
    assert work.resident(registers=96, shared=16_384, warps=4) == 5
    assert work.resident(registers=32, shared=0, warps=1) == 32
    assert work.resident(registers=255, shared=0, warps=4) == 2
    assert work.resident(registers=32, shared=100_000, warps=4) == 2


def busiest_by_hand(shape: tuple[int, int], memory: banks.Shared, axis: int, product: banks.Blocked) -> int:
    """Passes of every warp's accesses, lane by lane, from the definition of the layouts."""
    total = 0
    lanes = [
        divmod(lane, product.threads[product.quick])[:: 1 if product.quick else -1] for lane in range(32)
    ]
    span = [s * t * w for s, t, w in zip(product.size, product.threads, product.warps, strict=True)]
    words = min(4, memory.vec) if memory.phases > 1 else 4

    def address(own: int, other: int) -> int:
        row, column = (own, other) if axis == 0 else (other, own)
        quick, slow = (column, row) if memory.quick == 1 else (row, column)
        phase = slow // memory.rows_a_phase % memory.phases
        place = (quick // memory.vec ^ phase) * memory.vec + quick % memory.vec
        return slow * shape[memory.quick] + place

    for repeat in range(0, shape[axis], span[axis]):
        along = memory.quick == axis
        step = min(words, product.size[axis] if along else shape[1 - axis])
        for first in range(0, product.size[axis], step if along else 1):
            for other in range(0, shape[1 - axis], 1 if along else step):
                found = set()
                for lane in lanes:
                    own = repeat + lane[axis] * product.size[axis] + first
                    for more in range(step):
                        found.add(address(own + more, other) if along else address(own, other + more))
                total += max(Counter(word % 32 for word in found).values())
    return total * math.prod(product.warps)


layouts = st.builds(
    lambda size, threads, warps, quick: banks.Blocked(size, (threads, 32 // threads), warps, quick),
    st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from([(1, 1), (2, 1), (1, 2), (2, 2)]),
    st.sampled_from([0, 1]),
)
memories = st.builds(
    banks.Shared,
    st.sampled_from([1, 2, 4]),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from([0, 1]),
)


@settings(max_examples=30, deadline=None)
@given(layouts, memories, st.sampled_from([0, 1]), st.sampled_from([(64, 16), (16, 32)]))
def test_passes_over_the_banks(
    product: banks.Blocked, memory: banks.Shared, axis: int, shape: tuple[int, int]
) -> None:
    assert banks._operand(shape, memory, axis, product) == busiest_by_hand(shape, memory, axis, product)


def problem(channels: int, side: int) -> ConvProblem:
    return ConvProblem(
        2,
        channels,
        side,
        side,
        channels,
        (3, 3),
        (1, 1),
        (1, 1),
        (1, 1),
        1,
        False,
        torch.float32,
        "cuda",
        False,
    )


def compiled(kind: str, tile: Tile) -> Any:
    """A kernel as Triton gives it, compiled without a device."""
    rank_tiles = pytest.importorskip("rank_tiles")
    from triton.runtime import driver

    job = rank_tiles.Job(problem(64, 20), kind, tile, 4, "ieee", 132, NVIDIA)
    before = driver._active
    driver.set_active(compiling.Deviceless(rank_tiles.TARGET))
    try:
        return rank_tiles.launches(job)[0].compile_ahead(torch.float32)
    finally:
        driver._active = before


@pytest.mark.skipif(not (sass.tools() / "nvdisasm").exists(), reason="this Triton has no disassembler")
def test_what_is_counted_of_a_compiled_kernel() -> None:
    tile = Tile(64, 32, 16, 2, 1)
    kernel = compiled("weight", tile)
    program = sass.disassembled(kernel.asm["cubin"])
    assert program.loop is not None
    body = program.instructions[program.loop[0] : program.loop[1] + 1]
    products = sum(each.kind == "FFMA" for each in body)
    assert products * 32 * tile.warps == tile.m * tile.n * tile.k  # a trip is a step
    read = sum(work.width(each) for each in body if each.kind == "LDS")
    assert 0 < banks.passes(kernel.asm["ttgir"]) <= read * tile.warps * 8
    cost = work.cost(kernel)
    assert cost.step.arithmetic >= products * tile.warps / work.SCHEDULERS
    assert cost.step.alone >= max(cost.step.lds, sum(each.stall for each in body))


def test_tiles_in_the_card_s_order_and_in_the_reverse() -> None:
    rank_tiles = pytest.importorskip("rank_tiles")
    p = problem(16, 8)
    tiles = [(None, 0), *((Tile(16, n, 16, 2, 2), 0) for n in (32, 64, 128))]
    model = dict(zip(tiles, [4e-5, 1e-5, 2e-5, 3e-5], strict=True))
    same = rank_tiles.Ranked(p, "forward", 2, model, {tile: 2 * time for tile, time in model.items()})
    other = same._replace(measured={tile: 1e-4 - time for tile, time in model.items()})
    assert (same.correlation, other.correlation) == (pytest.approx(1), pytest.approx(-1))
    assert same.choice == other.choice == tiles[1]
    assert math.isnan(same._replace(measured={}).correlation)
    assert "1.00 x, rank  1.00 of 4" in rank_tiles.described(same)
    assert "1.50 x, rank -1.00 of 4" in rank_tiles.described(other)
    assert "rank correlation 1.00 (median of 1); the model's tiles take 1.00 x" in rank_tiles.summary(
        [same], "forward"
    )
    row = {"problem": str(p), "kind": "forward", "times": [[None, 0, 0.04], [[16, 32, 16, 2, 2, 4], 0, 0.01]]}
    assert rank_tiles.measured([row], p, "forward") == {tiles[0]: 4e-5, tiles[1]: 1e-5}
    assert rank_tiles.measured([row], p, "input") == {}
