"""The benchmarks measure what they say: layers, baseline, memory, steps, and what they print and write."""

from __future__ import annotations

import csv
import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command import Command
from rich.console import Console
from torch import nn

from patches.convolution.gemm import Gemm
from patches.convolution.planfile import Choice
from patches.convolution.problem import ConvProblem
from toolkit.benchmark import accuracy, commands, measure
from toolkit.benchmark.measure import Steps
from toolkit.errors import ToolkitError
from toolkit.training import steps

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


def test_a_route_for_some_layers_alone_is_left_out_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    layers = measure.six_layers(1, "cpu")
    assert commands._serves("gemm", "cpu", layers)
    for served, said in (((1, 1), "some of the layers alone"), ((7, 7), "does not work on this device")):
        monkeypatch.setattr(Gemm, "supports", lambda self, p, stride=served: p.stride == stride)
        assert not commands._serves("gemm", "cpu", layers)
        assert said in " ".join(capsys.readouterr().err.split())


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
    assert [layer.channels_last for layer in layers] == [False, False]
    layers = measure.layers_of(model.to(memory_format=torch.channels_last), 8, 64, "cpu")
    assert [layer.channels_last for layer in layers] == [True, True]


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


def test_the_mean_lies_within_its_interval_which_slow_spells_widen() -> None:
    rng = random.Random(0)
    even = tuple(rng.gauss(1.0, 0.1) for _ in range(400))
    spells = tuple(s + (i // 50 % 2) for i, s in enumerate(even))
    (low, high), (lower, higher) = (Steps(each, 0, (0,)).mean_interval() for each in (even, spells))
    assert low < Steps(even, 0, (0,)).mean < high
    # 1.645 standard errors of independent steps on both sides.
    assert high - low == pytest.approx(2 * 1.645 * 0.1 / math.sqrt(400), rel=0.25)
    shuffled = tuple(rng.sample(spells, len(spells)))
    among_themselves = Steps(shuffled, 0, (0,)).mean_interval()
    assert higher - lower > 2 * (among_themselves[1] - among_themselves[0])


def test_a_training_step_of_a_detector_moves_its_weights_by_a_finite_loss() -> None:
    step = steps.TrainingStep("yolov8n.yaml", 2, 64, "cpu")
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
    layers = [SMALL, replace(SMALL, groups=1), SMALL]
    monkeypatch.setattr(commands, "layers_of", lambda *_: layers)
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


def test_what_is_tuned_is_what_training_runs() -> None:
    net = commands._network("yolov8n", 64, training=True)
    layers = measure.layers_of(net, 16, 64, "cuda", commands._dtype(True))
    assert str(layers[0]) == "16x1x64x64 -> 16, 3x3 stride 2 pad 1, float16"
    assert {layer.channels_out for layer in layers if layer.bias} == {64, 4}
    assert {layer.dtype for layer in layers} == {torch.float16}


@pytest.mark.parametrize(("amp", "dtype"), [(False, torch.float32), (True, torch.float16)])
def test_every_layer_of_training_is_tuned_in_the_dtype_asked_for(
    amp: bool, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[ConvProblem] = []

    class Card:
        file = SimpleNamespace(path="plan.json")
        device = "cuda"

        def __init__(self, *_: object) -> None:
            pass

        def tune(self, problem: ConvProblem) -> Choice:
            assert torch.backends.cudnn.deterministic, "as Ultralytics trains"
            asked.append(problem)
            return Choice("triton", {"triton": 1e-3, "native": 2e-3}, {}, "", 1)

    @contextmanager
    def on_a_gpu(_: object) -> Iterator[str]:
        yield "cuda"

    monkeypatch.setattr(commands, "_on", on_a_gpu)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(commands.dispatch, "Planner", Card)
    commands.tune("yolov8n", 2, 64, None, amp)
    assert len(asked) == len(set(asked)) > 20
    assert {(problem.dtype, problem.device, problem.batch) for problem in asked} == {(dtype, "cuda", 2)}
    assert all(problem.channels_last for problem in asked), "as Ultralytics trains on a GPU"
    shown = capsys.readouterr()
    assert "1.000" in shown.out
    assert "remembered in plan.json" in shown.err


COMMANDS = (("conv",), ("conv", "--tune=yolov8n"), ("stress",), ("train",))


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_nothing_is_measured_while_the_environment_forces_a_route(
    command: tuple[str, ...], toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_ROUTE", "gemm")
    result = toolkit("bench", *command, "--device=cpu")
    assert (result.status, result.out) == (1, "")
    (line,) = result.err.splitlines()
    assert line.startswith("error: TOOLKIT_CONV_ROUTE=gemm would be measured in place of every route; unset")


@pytest.mark.parametrize("script", ["bench_card", "bench_convolution", "bench_host_path"])
def test_no_script_measures_while_the_environment_forces_a_route(script: str) -> None:
    path = Path(__file__).parents[2] / "scripts" / f"{script}.py"
    environment = {**os.environ, "TOOLKIT_CONV_ROUTE": "gemm"}
    done = subprocess.run(
        [sys.executable, path], env=environment, capture_output=True, text=True, check=False
    )
    expected = "TOOLKIT_CONV_ROUTE=gemm would be measured in place of every route\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", expected)


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("bench_convolution --model nosuch", "argument --model: invalid choice: 'nosuch'"),
        ("bench_convolution --routes nosuch", "--routes: expected some of unfold, gemm, native, auto on cpu"),
        ("bench_convolution --routes triton", "--routes: expected some of unfold, gemm, native, auto on cpu"),
        ("bench_convolution --batch 0", "argument --batch: invalid positive value: '0'"),
        ("bench_convolution --device cuda", "no GPU that PyTorch can use"),
        ("bench_host_path --device cuda", "no GPU that PyTorch can use"),
        ("tune_triton --quick", "no GPU that PyTorch can use"),
        ("tune_triton --model nosuch", "argument --model: invalid choice: 'nosuch'"),
        ("rank_tiles --measured nosuch.json", "nosuch.json is not what tune_triton.py --out writes"),
        ("check_convolution_accuracy --device cuda", "no GPU that PyTorch can use"),
        ("check_convolution_accuracy --problems 0", "argument --problems: invalid positive value: '0'"),
        ("check_convolution_accuracy --route nosuch", "argument --route: invalid choice: 'nosuch'"),
        ("compare_training nowhere", "error: nowhere is no folder"),
        (
            "compare_training . --routes nosuch",
            "--routes: expected some of auto, native, library, gemm, triton",
        ),
        ("compare_training . --seeds 0", "argument --seeds: invalid positive value: '0'"),
    ],
)
def test_what_a_script_cannot_do_is_one_line(command: str, said: str) -> None:
    script, *options = command.split()
    path = Path(__file__).parents[2] / "scripts" / f"{script}.py"
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, path, *options], env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0, done.stdout) == (True, "")
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def test_problems_without_a_bias_are_compared_in_what_they_have() -> None:
    found = accuracy.compare(list(accuracy.sample([replace(SMALL, bias=False)], "gemm")))
    assert [each.name for each in found] == ["output", "input gradient", "weight gradient"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("stress", "--route=fastest"), "for '--route': 'fastest' is not one of 'auto', 'native'"),
        (("train", "--route=fastest"), "for '--route': 'fastest' is not one of 'auto', 'native'"),
        (("stress", "--iterations=1"), "Invalid value for '--iterations'"),
        (("conv", "--imgsz=32", "--batch=1"), "yolov8n cannot train on images of 32 px; expected a multiple"),
        (("train", "--imgsz=100"), "yolov8n cannot train on images of 100 px; expected a multiple of 32, at"),
        (("conv", "--model=nonsense"), "no model nonsense.yaml"),
        (("train", "--model=nonsense"), "no model nonsense.yaml"),
        (("conv", "--model=bad.yaml"), "bad.yaml describes no model; found KeyError"),
        (("train", "--model=empty.yaml"), "empty.yaml describes no model; found KeyError"),
        (("train", "--model=cut-off.yaml"), "cut-off.yaml describes no model; found ValueError"),
        (("conv", "--model=unknown.yaml"), "unknown.yaml cannot be built; found KeyError"),
        (
            ("train", "--model=yolov8n-cls"),
            "yolov8n-cls is no detector; found a head Classify",
        ),
        (("train", "--channels=2"), "no training with 2 channels; expected 1 or 3"),
        (("train", "--amp"), "no mixed precision on a CPU; expected a GPU"),
        (("conv", "--csv=."), "Invalid value for '--csv': file '.' is a directory"),
        (("conv", "--csv=nowhere/layers.csv"), "Invalid value for '--csv': no folder nowhere to write in"),
        (("conv", "--plot=nowhere/layers.png"), "Invalid value for '--plot': no folder nowhere to write in"),
        (("conv", "--plot=layers.jpg"), "Invalid value for '--plot': layers.jpg is no .png"),
        (("conv", "--tune=yolov8n", "--csv=layers.csv"), "--tune writes the plan alone; leave --csv and"),
        (("conv", "--tune=yolov8n", "--plot=layers.png"), "--tune writes the plan alone; leave --csv and"),
        (("conv", "--tune="), "nothing to tune"),
    ],
)
def test_bad_options_end_with_one_line_before_anything_is_measured(
    command: tuple[str, ...], said: str, toolkit: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = "nc: 4\nbackbone: [[-1, 1, Nothing, []]]\nhead: []\n"
    for name, content in {"bad": "a: 1", "empty": "", "cut-off": "[1", "unknown": unknown}.items():
        (workspace / f"{name}.yaml").write_text(content)

    def measured(*_: object, **__: object) -> None:
        pytest.fail("something was measured")

    for name in ("measure", "run_steps"):
        monkeypatch.setattr(commands, name, measured)
    result = toolkit("bench", *command, "--device=cpu")
    assert (result.status != 0, result.out) == (True, "")
    assert said in result.err.splitlines()[-1]
    assert "Traceback" not in result.err


def test_the_schedule_is_estimated_from_the_mean(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nine steps of 0.1 s and one of 1.1 s are 0.2 s a step, whatever the median says."""
    steps = Steps((0.1,) * 9 + (1.1,), 0, (0,) * 10)
    monkeypatch.setattr(commands, "timed_training", lambda *_: (steps, 2**20))
    monkeypatch.setattr(commands.console, "out", Console(width=200))
    commands.train("yolov8n", 8, 64, 10, 50, "cpu", "native", None)
    row = next(line for line in capsys.readouterr().out.splitlines() if "patches" in line)
    cells = [cell.strip() for cell in row.strip("│").split("│")]
    hours = 50 * math.ceil(329_299 / 8) * 0.2 / 3600
    assert cells[:4] == ["patches, native", "5.00", "200.0", "100.0"]
    assert cells[-1].startswith(f"{hours // 24:.0f} d {hours % 24:.1f} h (")


def test_what_is_timed_is_what_training_runs_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes: list[torch.Size] = []

    def timed(step: steps.TrainingStep, *_: object) -> tuple[Steps, int]:
        assert torch.are_deterministic_algorithms_enabled()
        shapes.append(step.batch["img"].shape)
        return Steps((0.1, 0.2), 0, (0, 0)), 2**20

    monkeypatch.setattr(commands, "timed_training", timed)
    monkeypatch.setattr(commands.console, "out", Console(width=200))
    for channels in (None, 3):
        commands.train("yolov8n", 2, 64, 10, 50, "cpu", "native", None, channels)
    assert shapes == [(2, 1, 64, 64)] * 2 + [(2, 3, 64, 64)] * 2
    assert not torch.are_deterministic_algorithms_enabled()
    shown = capsys.readouterr().out
    assert "yolov8n, batch 2, 64 px, 1 channel(s), fp32" in shown
    assert "yolov8n, batch 2, 64 px, 3 channel(s), fp32" in shown


@pytest.mark.parametrize(
    ("amp", "mixed", "title"),
    [(None, True, "mixed precision"), (True, True, "mixed"), (False, False, "fp32")],
)
def test_training_on_a_gpu_is_timed_with_mixed_precision_as_training_has_it(
    amp: bool | None,
    mixed: bool,
    title: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked: list[tuple[object, ...]] = []

    @contextmanager
    def on_a_gpu(_: object) -> Iterator[str]:
        yield "cuda"

    monkeypatch.setattr(commands, "_on", on_a_gpu)
    monkeypatch.setattr(commands, "patched_convolutions", lambda *_: on_a_gpu(None))
    monkeypatch.setattr(
        commands, "TrainingStep", lambda *settings, **layout: asked.append((*settings, *layout.values()))
    )
    monkeypatch.setattr(commands, "timed_training", lambda *_: (Steps((0.1, 0.2), 0, (0, 0)), 2**20))
    monkeypatch.setattr(commands.console, "out", Console(width=200))
    commands.train("yolov8n", 2, 64, 10, 50, None, "auto", None, None, amp)
    assert set(asked) == {("yolov8n.yaml", 2, 64, "cuda", 1, mixed, True)}
    assert f"64 px, 1 channel(s), {title}" in capsys.readouterr().out


@pytest.mark.parametrize("wanted", [True, False])
def test_determinism_leaves_what_was_set_before(wanted: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    with pytest.raises(ZeroDivisionError), steps.determinism(wanted):
        assert torch.are_deterministic_algorithms_enabled() == wanted
        assert torch.backends.cudnn.deterministic == wanted
        assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == (":4096:8" if wanted else None)
        _ = 1 / 0
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.backends.cudnn.deterministic
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    assert "PYTHONHASHSEED" not in os.environ


def test_a_checkpoint_is_timed_with_the_channels_asked_for(tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    torch.save({"model": DetectionModel("yolov8n.yaml", ch=3, nc=80, verbose=False)}, tmp_path / "coco.pt")
    step = steps.TrainingStep(str(tmp_path / "coco.pt"), 1, 64, "cpu", channels=1)
    assert step.model.model[0].conv.in_channels == 1
    assert step.model.yaml["nc"] == 4


@pytest.mark.parametrize(("seconds", "text"), [(1800.0, "0.5 h"), (90_000.0, "1 d 1.0 h")])
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert commands._duration(seconds) == text
