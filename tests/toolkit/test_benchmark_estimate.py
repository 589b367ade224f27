"""What a model's convolutions would cost on an AMD card, by a model of the card."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", minversion="3.6", reason="the kernels are named by Triton")

import check_amd_isa
import count_amd_costs
from command import Command

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels.tiles import RDNA
from toolkit.benchmark import estimate
from toolkit.benchmark.measure import load_layers
from toolkit.errors import ToolkitError

LAYERS = Path(__file__).resolve().parents[2] / "scripts" / "layers"
ARCHITECTURES = [name for name in estimate.CARDS if estimate.costs(name)]
PLAIN = check_amd_isa.layer(8, 64, 64, 3, 1, 1, False)


def layers(model: str, batch: int) -> set[ConvProblem]:
    found = load_layers(LAYERS / f"{model}.json", batch, "cuda", torch.float32)
    return {replace(each, channels_last=last) for each in found for last in (False, True)}


@pytest.mark.parametrize("batch", [4, 8, 16])
@pytest.mark.parametrize("model", ["yolov8n", "yolo11n"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_layer_takes_longer_than_its_floors(architecture: str, model: str, batch: int) -> None:
    for layer in layers(model, batch):
        for each in estimate.layer(layer, architecture):
            assert each.total >= max(each.floors) > 0 or not any(each.floors)
            assert each.seconds[each.bound] == each.total


def test_the_first_card_of_the_project_has_a_table() -> None:
    assert "gfx1010" in ARCHITECTURES


def test_twice_the_images_take_about_twice_as_long() -> None:
    one = estimate.total(estimate.layer(replace(PLAIN, batch=8), "gfx1010"))
    two = estimate.total(estimate.layer(replace(PLAIN, batch=16), "gfx1010"))
    assert 1.7 < two / one < 2.3


@pytest.mark.parametrize("last", [False, True], ids=["NCHW", "channels_last"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_step_is_mostly_multiply_adds(architecture: str, last: bool) -> None:
    """Addresses are found before the loops, or in a few instructions: with divisions it was twice as many."""
    for index, launch in enumerate(estimate.launches(replace(PLAIN, channels_last=last), 36)[:3]):
        c = launch.constants
        products = c["BLOCK_M"] * c["BLOCK_N"] * c["BLOCK_K"] / 64
        step = estimate.costs(architecture)[estimate.variant_name(launch)].step
        assert step.arithmetic < 1.25 * products, index


def test_a_count_that_is_cut_off_keeps_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimate, "COSTS", tmp_path / "costs.json")
    rows = {name: [1, [1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]] for name in ("a", "b", "c")}
    table = {"gfx1010": {"old": rows["a"]}, "gfx1030": {"other": rows["b"]}}

    def cut() -> Iterator[tuple[str, list[Any]]]:
        yield "b", rows["b"]
        yield "a", rows["a"]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        count_amd_costs.record(table, "gfx1010", cut())
    written = json.loads(estimate.COSTS.read_text())
    assert written == {"gfx1010": {"a": rows["a"], "b": rows["b"]}, "gfx1030": {"other": rows["b"]}}
    assert [each.name for each in tmp_path.iterdir()] == ["costs.json"]


@pytest.mark.parametrize("index", [0, 2])
def test_the_table_holds_what_counting_gives(index: int) -> None:
    """Another Triton schedules otherwise, so within a tenth."""
    launch = estimate.launches(PLAIN, 36)[index]
    listed = estimate.costs("gfx1010")[estimate.variant_name(launch)]
    counted = count_amd_costs.count("gfx1010", replace(PLAIN, batch=1), index, 36)
    assert counted.resident == listed.resident
    assert counted.step.arithmetic == pytest.approx(listed.step.arithmetic, rel=0.1)
    assert counted.step.lds == pytest.approx(listed.step.lds, rel=0.1)


@pytest.mark.parametrize(
    ("channels", "side", "last"),
    [(32, 160, True), *product((64,), (80,), (False, True)), *product((128, 256), (20,), (False, True))],
)
def test_winograd_wins_what_it_is_kept_for(channels: int, side: int, last: bool) -> None:
    p = replace(
        PLAIN, channels_in=channels, channels_out=channels, height=side, width=side, channels_last=last
    )
    usual, fewer = (estimate.by_route(p, "gfx1010", route) for route in estimate.ROUTES)
    assert estimate.total(usual[:2]) >= 1.15 * estimate.total(fewer[:2])
    assert {each.route for each in estimate.layer(p, "gfx1010")} == {"winograd"}
    assert fewer[2:] == [replace(each, route="winograd") for each in usual[2:]]
    assert not estimate.by_route(replace(p, stride=(2, 2)), "gfx1010", "winograd")


def test_the_table_holds_what_counting_gives_for_winograd() -> None:
    """At another depth than those that were counted: two chains of products."""
    p = replace(PLAIN, batch=1, channels_in=128, height=20, width=20)
    launch = estimate.launches(p, 36, "winograd")[1]
    listed = estimate.costs("gfx1010")[estimate.variant_name(launch)]
    resident, one = count_amd_costs.executed("gfx1010", p, 36, 1, RDNA, winograd=True)
    depth = estimate.steps(p, 0, launch) / launch.grid[0]
    assert resident == listed.resident
    for counted, fixed, step in zip(one[:2], listed.fixed, listed.step, strict=False):
        assert counted == pytest.approx(fixed + depth * step, rel=0.1)


@pytest.mark.parametrize(
    ("problem", "architecture", "said"),
    [(PLAIN, "gfx906", "gfx906"), (replace(PLAIN, kernel=(5, 5), padding=(2, 2)), "gfx1010", "counted")],
)
def test_what_nobody_counted_is_said(problem: ConvProblem, architecture: str, said: str) -> None:
    with pytest.raises(ToolkitError, match=said):
        estimate.layer(problem, architecture)


def test_the_command_says_that_it_is_a_model(toolkit: Command) -> None:
    done = toolkit("bench", "card", "yolov8n", "--estimate", "gfx1010")
    assert done.status == 0, done.err
    assert "Radeon RX 5600 XT" in done.out
    assert "no card has been measured" in " ".join((done.out + done.err).split())
