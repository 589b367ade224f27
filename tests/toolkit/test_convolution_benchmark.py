"""The benchmarks measure what they say: layers, baseline, memory, steps, and what they print and write."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from toolkit.benchmark import commands, measure
from toolkit.benchmark.measure import Steps
from toolkit.errors import ToolkitError

SMALL = replace(measure.six_layers(1, "cpu")[2], height=12, width=10, groups=4, bias=True)


def test_the_six_layers_are_those_of_the_published_table() -> None:
    layers = measure.six_layers(4, "cpu")
    assert [str(layer).partition(",")[0] for layer in layers] == [
        "4x3x640x640 -> 16",
        "4x16x320x320 -> 32",
        "4x32x160x160 -> 32",
        "4x64x80x80 -> 64",
        "4x128x40x40 -> 128",
        "4x256x20x20 -> 256",
    ]
    assert [layer.output_size[0] for layer in layers] == [320, 160, 160, 80, 40, 20]


def test_the_baseline_is_a_convolution() -> None:
    x, weight, bias = torch.randn(1, 32, 12, 10), torch.randn(32, 8, 3, 3), torch.randn(32)
    torch.testing.assert_close(
        measure.unfold_and_matmul(SMALL, x, weight, bias),
        measure.conv2d(SMALL, x, weight, bias),
        rtol=1e-4,
        atol=1e-4,
    )


def test_the_layers_of_a_model_are_recorded_in_order_and_the_hooks_are_gone() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False), nn.Conv2d(4, 6, (1, 3), groups=2)
    )
    layers = measure.layers_of(model, 8, 64, "cpu")
    assert [str(layer) for layer in layers] == [
        "8x1x64x64 -> 4, 3x3 stride 2 pad 1, float32",
        "8x4x32x32 -> 6, 1x3 stride 1 groups 2 bias, float32",
    ]
    assert not any(module._forward_hooks for module in model)


def test_the_recorded_models_are_complete() -> None:
    folder = Path(__file__).parents[2] / "scripts" / "layers"
    layers = {
        name: measure.load_layers(folder / f"{name}.json", 16, "cpu", torch.float32)
        for name in ("yolov8n", "yolo11n")
    }
    assert {name: len(found) for name, found in layers.items()} == {"yolov8n": 63, "yolo11n": 87}
    assert {layer.batch for layer in layers["yolo11n"]} == {16}
    assert max(layer.groups for layer in layers["yolo11n"]) == 256


def test_equal_layers_are_measured_once_and_counted() -> None:
    found = list(measure.measure([SMALL, SMALL], ["unfold", "gemm", "native"], repeats=1, seconds=0.0))
    assert [(m.route, m.count) for m in found] == [("unfold", 2), ("gemm", 2), ("native", 2)]
    assert all(m.forward > 0 and m.seconds >= m.forward for m in found)


def test_the_extra_memory_of_the_columns_is_seen() -> None:
    """Unfold keeps 9 columns of 32 channels and 120 pixels, and makes their gradient beside them."""
    found = list(measure.measure([replace(SMALL, groups=1)], ["unfold"], repeats=1, seconds=0.0))
    assert found[0].extra_bytes >= 2 * 9 * 32 * 120 * 4


def test_steps_know_their_spread_and_their_growth() -> None:
    steps = Steps(tuple(float(i) for i in range(100)), 0, tuple(1000 + 10 * i for i in range(100)))
    assert steps.quantile(0.5) == 50.0
    assert steps.quantile(1.0) == 99.0
    assert steps.growth == 10 * 80


def test_a_training_step_of_a_detector_moves_its_weights_by_a_finite_loss() -> None:
    step = measure.TrainingStep("yolov8n.yaml", 2, 64, "cpu")
    before = step.model.model[0].conv.weight.detach().clone()
    assert 0 < float(step()) < 1000
    assert not torch.equal(step.model.model[0].conv.weight, before)


def test_a_stress_test_writes_the_clock_of_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "stress_step", lambda *_: lambda: torch.ones(1))
    commands.stress(25, 1, "cpu", "gemm", tmp_path / "clock.csv")
    rows = list(csv.DictReader((tmp_path / "clock.csv").open()))
    assert [row["step"] for row in rows] == [str(i) for i in range(25)]
    assert all(float(row["milliseconds"]) >= 0 and int(row["held_bytes"]) > 0 for row in rows)


def test_a_stress_test_fails_on_a_number_that_is_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[float] = iter([1.0, float("nan"), 1.0, float("inf"), 1.0])
    monkeypatch.setattr(commands, "stress_step", lambda *_: lambda: torch.tensor(next(answers)))
    with pytest.raises(ToolkitError, match="2 of 5 steps"):
        commands.stress(5, 1, "cpu", "gemm", None)


def test_a_stress_test_fails_when_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[torch.Tensor] = []

    def leak() -> torch.Tensor:
        held.append(torch.ones(4 * 2**20))
        return torch.ones(1)

    monkeypatch.setattr(commands, "stress_step", lambda *_: leak)
    with pytest.raises(ToolkitError, match="memory grew by"):
        commands.stress(20, 1, "cpu", "gemm", None)


def test_all_layers_are_timed_written_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(commands, "six_layers", lambda *_: [SMALL])
    monkeypatch.setattr(commands, "_layers", lambda *_: [SMALL, replace(SMALL, groups=1), SMALL])
    monkeypatch.setattr(commands, "measure", lambda p, r, **_: measure.measure(p, r, repeats=1, seconds=0.0))
    commands.convolutions("yolov8n", 1, 64, "cpu", tmp_path / "layers.csv", tmp_path / "layers.png")
    rows = list(csv.DictReader((tmp_path / "layers.csv").open()))
    assert [row["route"] for row in rows] == ["unfold", "gemm", "native"] * 3
    assert {row["count"] for row in rows if row["model"] == "yolov8n"} == {"2", "1"}
    assert (tmp_path / "layers.png").read_bytes().startswith(b"\x89PNG")
    assert "32 -> 32 k3 s1" in capsys.readouterr().out


def test_tuning_a_cpu_is_refused() -> None:
    with pytest.raises(ToolkitError, match="nothing to tune"):
        commands.tune("yolov8n", 1, 64, "cpu")


@pytest.mark.parametrize(("seconds", "text"), [(1800.0, "0.5 h"), (90_000.0, "1 d 1.0 h")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert commands._duration(seconds) == text
