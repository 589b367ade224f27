"""Each row of the instruction tables against its meaning, written a second time on Python's integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from amdgcn.assembly import Program, parse_line
from amdgcn.decode import decode
from amdgcn.scalar import SAVE_EXEC, SCALAR
from amdgcn.team import EXEC, SCALARS, Team, bits_of
from amdgcn.vector import VECTOR, Row
from amdgcn_meaning import ORDER, SCALAR_STATE, WORD, f, h, overflow, s
from amdgcn_meaning import SCALAR as SCALAR_MEANING
from amdgcn_meaning import VECTOR as VECTOR_MEANING

# Integers around the ends, shifts by 31 and 32, and bits that are floats: 1, -1, infinities, NaN, denormals,
# the  # smallest and largest numbers, halves of each kind.
EDGES = (
    0, 1, 2, 15, 16, 31, 32, 33, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFF, 0x8000, 0x00800000, 0x3F800000,
    0xBF800000, 0x7F800000, 0xFF800000, 0x7FC00000, 0x00000001, 0x807FFFFF, 0x7F7FFFFF, 0x4F800000,
    0xCF000001, 0x3C00BC00, 0x7C00FC00, 0x7E000001, 0x03FF7BFF, 0x0C050401, 0xDEADBEEF,
)  # fmt: skip
BITS = {"u64": 64, "i64": 64, "u16": 16, "i16": 16, "f16": 16, "b16": 16}
AS: dict[str, Callable[[int], Any]] = {
    "i16": lambda x: s(x, 16), "i32": s, "i64": lambda x: s(x, 64), "f16": h, "f32": f,
}  # fmt: skip


def meaning(name: str) -> Callable[..., Any]:
    if not name.startswith(("v_cmp_", "s_cmp")):
        return {**VECTOR_MEANING, **SCALAR_MEANING}[name]
    *_, order, kind = name.split("_")
    read = AS.get(kind, int)
    return lambda x, y: ORDER[order](read(x), read(y))


def team_of(size: int) -> Team:
    team = Team(
        np.full((40, size, 32), 0xA5A5A5A5, np.uint32), np.zeros((SCALARS, size), np.uint32),
        np.zeros(size, bool), np.zeros(size, np.int64), np.zeros(size, np.int64),
    )  # fmt: skip
    team.s[EXEC] = 0xFFFFFFFF
    team.refresh()
    return team


def step(text: str) -> Any:
    return decode(Program("kernel", "gfx1100", [parse_line(text)]))[0]


def samples(kinds: tuple[str, ...]) -> list[tuple[int, ...]]:
    """Operands of those kinds: all pairs of the edges, a third operand from some of them."""

    def values(kind: str, place: int) -> list[int]:
        if kind == "mask":
            return [0, 1]
        if kind in ("u64", "i64"):
            return [x | y << 32 for x, y in itertools.product(EDGES[::5], EDGES[::4])]
        edges = EDGES if place < 2 else EDGES[::3]
        return [x & 0xFFFF for x in edges] if BITS.get(kind) == 16 else list(edges)

    return list(itertools.product(*(values(kind, place) for place, kind in enumerate(kinds))))


def same(got: int, wanted: int, kind: str) -> bool:
    bits = BITS.get(kind, 32)
    wanted &= (1 << bits) - 1
    if kind == "f32" and math.isnan(f(wanted)):
        return bool(math.isnan(f(got)))
    if kind == "f16" and math.isnan(h(wanted)):
        return bool(math.isnan(h(got)))
    return got == wanted


@pytest.mark.parametrize("name", sorted(VECTOR))
def test_a_vector_instruction_does_what_its_row_says(name: str) -> None:
    entry = VECTOR[name]
    cases = samples(entry.operands)
    size = -(-len(cases) // 32)
    padded = cases + [cases[-1]] * (size * 32 - len(cases))
    team = team_of(size)
    text = operands(entry, name, team, padded)
    instruction = step(text)
    with np.errstate(all="ignore"):
        instruction.run(None, team)
        expected = [meaning(name)(*case) for case in padded]
    for place, kind in enumerate(entry.results):
        got = result(team, place, kind)
        for case, one, wanted in zip(padded, got, expected, strict=True):
            value = wanted[place] if isinstance(wanted, tuple) else wanted
            if value is not None:
                assert same(one, int(value), kind), f"{text} of {[*map(hex, case)]}: {one:#x}"


def operands(entry: Row, name: str, team: Team, cases: list[tuple[int, ...]]) -> str:
    """Put the operands into registers, and return the instruction that reads them."""
    shape = (team.size, 32)
    text = [
        {"mask": "s30"}.get(kind, "v[30:31]" if kind in ("u64", "i64") else "v30") for kind in entry.results
    ]
    if len(text) == 2:
        text[1] = "s31"
    for place, kind in enumerate(entry.operands):
        column = [case[place] for case in cases]
        if kind == "mask":
            team.s[20 + place] = bits_of(np.array(column, bool).reshape(shape))
            text.append(f"s{20 + place}")
            continue
        low = np.array([x & WORD for x in column], np.uint32).reshape(shape)
        register = 30 if entry.accumulates and place == len(entry.operands) - 1 else 2 * place
        if BITS.get(kind) == 16:
            low = low | np.uint32(0x5A5A0000)
        team.v[register] = low
        if kind in ("u64", "i64"):
            team.v[register + 1] = np.array([x >> 32 for x in column], np.uint32).reshape(shape)
        if register != 30:
            text.append(f"v[{register}:{register + 1}]" if kind in ("u64", "i64") else f"v{register}")
    return f"{name}_e64 {', '.join(text)}"


def result(team: Team, place: int, kind: str) -> list[int]:
    if kind == "mask":
        bits = team.s[30 + place]
        return [int(word) >> lane & 1 for word in bits for lane in range(32)]
    values = team.v[30].astype(np.uint64)
    if kind in ("u64", "i64"):
        values |= team.v[31].astype(np.uint64) << np.uint64(32)
    if BITS.get(kind) == 16:
        assert len(np.unique(values >> np.uint64(16))) == 1, "the other half of the register stays"
        values &= np.uint64(0xFFFF)
    return [int(each) for each in values.ravel()]


# Their constant is in the instruction: see the test of their own.
WITH_CONSTANT = {name for name in SCALAR if "k16" in SCALAR[name].operands}


@pytest.mark.parametrize("name", sorted(set(SCALAR) - WITH_CONSTANT))
def test_a_scalar_instruction_does_what_its_row_says(name: str) -> None:
    entry = SCALAR[name]
    kinds = entry.operands
    state = (("mask",) if entry.carries else ()) + ((entry.result,) if entry.accumulates else ())
    cases = samples(state + kinds)
    team = team_of(len(cases))
    text = [] if not entry.result else ["s[40:41]" if entry.result in ("u64", "i64") else "s40"]
    if entry.carries:
        team.scc = np.array([bool(case[0]) for case in cases])
    if entry.accumulates:
        team.s[40] = np.array([case[len(state) - 1] for case in cases], np.uint32)
    for place, kind in enumerate(kinds):
        column = [case[len(state) + place] for case in cases]
        team.s[2 * place] = np.array([x & WORD for x in column], np.uint32)
        team.s[2 * place + 1] = np.array([x >> 32 for x in column], np.uint32)
        text.append(f"s[{2 * place}:{2 * place + 1}]" if kind in ("u64", "i64") else f"s{2 * place}")
    line = f"{name} {', '.join(text)}"
    before = team.scc.copy()
    with np.errstate(all="ignore"):
        step(line).run(None, team)
        said = SCALAR_STATE.get(name) or meaning(name.replace("cmpk", "cmp"))
        expected = [said(*case) for case in cases]
    got = team.s[40].astype(np.uint64)
    if entry.result in ("u64", "i64"):
        got |= team.s[41].astype(np.uint64) << np.uint64(32)
    for k, (case, wanted) in enumerate(zip(cases, expected, strict=True)):
        value, condition = wanted if isinstance(wanted, tuple) else (wanted, wanted)
        where = f"{line} of {[hex(x) for x in case]}"
        if entry.result:
            assert same(int(got[k]), int(value), entry.result), f"{where}: {int(got[k]):#x}, not {value}"
        width = (1 << BITS.get(entry.result, 32)) - 1
        if entry.sets == "given":
            assert bool(team.scc[k]) == bool(condition), where
        else:
            kept = bool(int(value) & width) if entry.sets == "nonzero" else bool(before[k])
            assert bool(team.scc[k]) == kept, where


@pytest.mark.parametrize("constant", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_constants_of_16_bits_are_signed(constant: int) -> None:
    team = team_of(len(EDGES))
    for name, said in (
        ("s_movk_i32", lambda old: (s(constant, 16), None)),
        ("s_mulk_i32", lambda old: (s(old) * s(constant, 16), None)),
        ("s_addk_co_i32", lambda old: overflow(s(old) + s(constant, 16))),
    ):
        team.s[3] = np.array(EDGES, np.uint32)
        step(f"{name} s3, {constant:#x}").run(None, team)
        for k, old in enumerate(EDGES):
            value, condition = said(old)
            assert int(team.s[3][k]) == value & WORD
            assert condition is None or bool(team.scc[k]) == condition
    for order in ("eq", "lg", "lt", "le", "gt", "ge"):
        team.s[3] = np.array(EDGES, np.uint32)
        step(f"s_cmpk_{order}_i32 s3, {constant:#x}").run(None, team)
        assert team.scc.tolist() == [ORDER[order](s(x), s(constant, 16)) for x in EDGES]


@pytest.mark.parametrize("name", sorted(SAVE_EXEC))
def test_exec_is_saved_and_replaced(name: str) -> None:
    said = {
        "s_and_saveexec_b32": lambda x, on: x & on, "s_or_saveexec_b32": lambda x, on: x | on,
        "s_xor_saveexec_b32": lambda x, on: x ^ on, "s_and_not1_saveexec_b32": lambda x, on: x & ~on,
        "s_and_not0_saveexec_b32": lambda x, on: ~x & on, "s_or_not1_saveexec_b32": lambda x, on: x | ~on,
    }[name]  # fmt: skip
    pairs = list(itertools.product(EDGES, EDGES))
    team = team_of(len(pairs))
    team.s[4] = np.array([x for x, _ in pairs], np.uint32)
    team.s[EXEC] = np.array([on for _, on in pairs], np.uint32)
    step(f"{name} s9, s4").run(None, team)
    assert team.s[9].tolist() == [on for _, on in pairs]
    assert team.s[EXEC].tolist() == [said(x, on) & WORD for x, on in pairs]
    assert team.scc.tolist() == [said(x, on) & WORD != 0 for x, on in pairs]


def test_lanes_that_are_off_keep_their_registers() -> None:
    team = team_of(2)
    team.v[1] = 7
    team.s[EXEC] = np.array([0x0000FFFF, 1], np.uint32)
    team.refresh()
    step("v_mov_b32_e32 v2, v1").run(None, team)
    assert (team.v[2] == 7).sum(1).tolist() == [16, 1]
    assert set(np.unique(team.v[2])) == {7, 0xA5A5A5A5}


@pytest.mark.parametrize("target", ["gfx1100", "gfx1201"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_matrix_product_is_spread_over_a_wave_as_documented(target: str, kind: str) -> None:
    """RDNA3 keeps both halves of a wave alike, RDNA4 gives each half of the steps."""
    rng = np.random.default_rng(0)
    a, right = rng.standard_normal((2, 16, 16)).astype(np.float16)
    c = rng.standard_normal((16, 16)).astype(np.float32)
    team = team_of(1)
    words = 8 if target == "gfx1100" else 4
    for lane in range(32):
        steps = range(16) if words == 8 else range(8 * (lane >> 4), 8 * (lane >> 4) + 8)
        for base, matrix in ((0, a), (8, right.T)):
            half = [bits16(matrix[lane & 15, k], kind) for k in steps]
            for k in range(words):
                team.v[base + k, 0, lane] = half[2 * k] | half[2 * k + 1] << 16
        for k in range(8):
            row = 2 * k + (lane >> 4) if words == 8 else k + 8 * (lane >> 4)
            team.vf[16 + k, 0, lane] = c[row, lane & 15]
    text = f"v_wmma_f32_16x16x16_{kind} v[24:31], v[0:{words - 1}], v[8:{7 + words}], v[16:23]"
    decode(Program("kernel", target, [parse_line(text)]))[0].run(None, team)
    product = rounded(a, kind) @ rounded(right, kind) + c.astype(np.float64)
    for lane, k in itertools.product(range(32), range(8)):
        row = 2 * k + (lane >> 4) if words == 8 else k + 8 * (lane >> 4)
        assert abs(team.vf[24 + k, 0, lane] - product[row, lane & 15]) < 1e-5


def bits16(value: Any, kind: str) -> int:
    if kind == "f16":
        return int(np.float16(value).view(np.uint16))
    return int(np.float32(value).view(np.uint32)) >> 16


def rounded(matrix: Any, kind: str) -> Any:
    if kind == "f16":
        return matrix.astype(np.float64)
    return (matrix.astype(np.float32).view(np.uint32) >> 16 << 16).view(np.float32).astype(np.float64)


@pytest.mark.parametrize("name", ["rcp", "rsq", "sqrt", "exp", "log"])
def test_a_function_of_a_scalar_is_that_of_a_lane(name: str) -> None:
    team = team_of(len(EDGES))
    team.s[4] = np.array(EDGES, np.uint32)
    with np.errstate(all="ignore"):
        step(f"v_s_{name}_f32 s9, s4").run(None, team)
        expected = [VECTOR_MEANING[f"v_{name}_f32"](x) for x in EDGES]
    for x, one, wanted in zip(EDGES, team.s[9].tolist(), expected, strict=True):
        assert same(one, int(wanted), "f32"), f"{name} of {x:#x}"
