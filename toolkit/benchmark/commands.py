"""What ``toolkit bench`` does: measure, show tables, write CSV and a plot."""

from __future__ import annotations

import csv
import io
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from ultralytics.cfg import get_cfg

import patches
from patches import dispatch
from patches.convolution import registry
from patches.convolution.problem import ConvProblem
from toolkit import console, tables
from toolkit.benchmark import estimate
from toolkit.benchmark.measure import (
    BASELINE,
    Measurement,
    Steps,
    forced_route,
    layers_of,
    measure,
    six_layers,
    stress_step,
)
from toolkit.errors import CallError, ToolkitError
from toolkit.files import replacing
from toolkit.ltdv2 import TRAINING_IMAGES
from toolkit.machine.device import patched_convolutions, resolve_device, running, torch_device
from toolkit.settings import DEFAULT_PRESET
from toolkit.training.model import check_model
from toolkit.training.precision import mixed_precision
from toolkit.training.preset import load_preset
from toolkit.training.steps import CLASSES, TrainingStep, determinism, run_steps

GROWTH_LIMIT = 32 * 2**20
"""Bytes by which memory may differ between early and late steps of a stress test."""

WARM_UP = 10
"""Steps before the clock starts: self-tests, measurements and compilation happen in them."""


def tune(model: str, batch: int, image_size: int, device: str | None, amp: bool = False) -> None:
    """Measure every layer of a model, as training has it on a GPU, for the plan and show the choices."""
    with _on(device) as kind:
        if kind == "cpu":
            raise ToolkitError(
                "nothing to tune", found="a CPU, where PyTorch's own kernels serve all", expected="a GPU"
            )
        net = _network(model, image_size, training=True).to(memory_format=torch.channels_last)
        problems = list(dict.fromkeys(layers_of(net, batch, image_size, kind, _dtype(amp))))
        table = Table("layer", "route", "ms", "library off, ms", title=f"{model}, batch {batch}")
        options = get_cfg(overrides=load_preset(DEFAULT_PRESET).arguments)
        with determinism(options.deterministic), patches.enabled(kind):
            session = dispatch.current()
            assert session is not None
            for problem in console.track(problems, "tuning", unit="layers"):
                choice = session.planner.tune(problem)
                times = [choice.seconds.get(name, math.nan) * 1e3 for name in (choice.route, "native")]
                table.add_row(str(problem), choice.route, *(f"{time:.3f}" for time in times))
            path = session.planner.file.path
    tables.show(table)
    console.note(f"remembered in {path}")


def convolutions(
    model: str,
    batch: int,
    image_size: int,
    device: str | None,
    csv_path: Path | None,
    plot: Path | None,
    amp: bool = False,
) -> None:
    """Time the six published layers at batch 4 in fp32 and all layers of a model, by every route."""
    with _on(device) as kind:
        layers = layers_of(_network(model, image_size), batch, image_size, kind, _dtype(amp))
        ours_first = sorted(registry.ROUTES, key=lambda route: route.own)
        routes = [route.name for route in ours_first if kind in route.devices]
        routes = [BASELINE, *(route for route in routes if _serves(route, kind, layers))]
        six = _measured("six layers", six_layers(4, kind), routes)
        found = _measured(model, layers, routes)
    title = f"{model}, batch {batch}, {image_size} px" + ", fp16" * amp
    tables.show(_layer_table(six, "six layers, batch 4, milliseconds"))
    tables.show(_total_table(found, f"all convolutions of {title}"))
    if csv_path:
        rows = [("six layers", m) for m in six] + [(model, m) for m in found]
        _write_csv(
            csv_path,
            ["model", "layer", "count", "route", "forward_ms", "backward_ms", "extra_mib"],
            [
                [name, m.problem, m.count, m.route, m.forward * 1e3, m.backward * 1e3, m.extra_bytes / 2**20]
                for name, m in rows
            ],
        )
    if plot:
        _plot(plot, found, title)


def card(model: str, batch: int, image_size: int, architecture: str, channels_last: bool) -> None:
    """Estimate all convolutions of a model on an AMD card, forward and backward, in fp32."""
    known = estimate.card(architecture)
    net = _network(model, image_size)
    if channels_last:
        net = net.to(memory_format=torch.channels_last)
    layers = Counter(layers_of(net, batch, image_size, "cuda"))
    found = {layer: estimate.layer(layer, architecture) for layer in layers}
    names = ("forward ms", "backward ms", "bound by", "arithmetic floor", "memory floor")
    table = Table("layer", "times", "route", *names)
    table.title = (
        f"{model}, batch {batch}, {image_size} px, fp32 on a {known.name} ({architecture}), by a model"
    )
    sums = [0.0] * 4
    for layer, count in layers.items():
        launches = found[layer]
        floors = [sum(each.floors[k] for each in launches) for k in range(2)]
        times = [estimate.total(launches[:1]), estimate.total(launches[1:]), *floors]
        sums = [total + count * time for total, time in zip(sums, times, strict=True)]
        forward, backward, *least = (f"{1e3 * time:.3f}" for time in times)
        bound = max(launches, key=lambda each: each.total).bound
        table.add_row(str(layer), str(count), launches[0].route, forward, backward, bound, *least)
    table.add_section()
    forward, backward, *least = (f"{1e3 * total:.2f}" for total in sums)
    table.add_row("sum", str(layers.total()), "", forward, backward, "", *least)
    tables.show(table)
    console.note(
        f"{1e3 * sum(sums[:2]):.1f} ms in all, by a model: each launch takes what it needs of the "
        "part of the card that it needs longest; no card has been measured"
    )


def stress(iterations: int, batch: int, device: str | None, route: str, csv_path: Path | None) -> None:
    """Run the six layers many times.

    Raises:
        ToolkitError: a number was not finite, or memory grew.
    """
    with _on(device) as kind, patched_convolutions(kind, route):
        steps = _run(stress_step(batch, kind), iterations, kind, "stress")
    tables.show(_steps_table(steps, f"six layers, batch {batch}, {iterations} steps, {kind}"))
    console.note(str(patches.report()))
    if csv_path:
        _write_clock(csv_path, steps)
    if steps.bad:
        raise ToolkitError(f"{steps.bad} of {iterations} steps gave numbers that are not finite")
    if steps.growth > GROWTH_LIMIT:
        raise ToolkitError(f"memory grew by {steps.growth / 2**20:.0f} MiB over {iterations} steps")


def train(
    model: str,
    batch: int,
    image_size: int,
    iterations: int,
    epochs: int,
    device: str | None,
    route: str,
    csv_path: Path | None,
    channels: int | None = None,
    amp: bool | None = None,
) -> None:
    """Time training steps, patched and as PyTorch comes, and estimate the schedule.

    Args:
        channels, amp: of the run; None: those of ``toolkit train`` without a preset.
    """
    preset = load_preset(DEFAULT_PRESET)
    channels = preset.channels if channels is None else channels
    if channels not in (1, 3):
        raise CallError(f"no training with {channels} channels", expected="1 or 3")
    count = epochs * math.ceil(TRAINING_IMAGES / batch)
    options = get_cfg(overrides=preset.arguments)
    schedule = f"{epochs} epochs of LTDv2 (90 % interval)"
    table = Table("", "steps/s", "mean ms", "median ms", "10 % to 90 %, ms", "peak MiB", schedule)
    with _on(device) as kind, determinism(options.deterministic):
        if amp and kind == "cpu":
            raise ToolkitError("no mixed precision on a CPU", expected="a GPU", fix="leave --amp out")
        if amp is None:
            amp = mixed_precision(kind, options.amp)
        _network(model, image_size, training=True)
        step = partial(
            TrainingStep, _named(model), batch, image_size, kind, channels, amp, channels_last=True
        )
        precision = "mixed precision (fp16)" if amp else "fp32"
        table.title = f"{model}, batch {batch}, {image_size} px, {channels} channel(s), {precision}"
        with patched_convolutions(kind, route):
            steps, peak = timed_training(step(), iterations, kind)
            shares = ", ".join(f"{name} {calls:,}" for name, calls in patches.report().by_route().items())
        for name, result, most in (
            (f"patches, {route}", steps, peak),
            *_unpatched(step, iterations, kind),
        ):
            low, high = result.mean_interval()
            table.add_row(
                name,
                f"{1 / result.mean:.2f}",
                f"{result.mean * 1e3:.1f}",
                f"{result.quantile(0.5) * 1e3:.1f}",
                f"{result.quantile(0.1) * 1e3:.1f} to {result.quantile(0.9) * 1e3:.1f}",
                f"{most / 2**20:,.0f}",
                f"{_duration(count * result.mean)} ({_duration(count * low)} to {_duration(count * high)})",
            )
    tables.show(table)
    console.note(f"calls: {shares}; loading, validation and pauses come on top")
    if csv_path:
        _write_clock(csv_path, steps)


def _unpatched(
    step: Callable[[], TrainingStep], iterations: int, kind: str
) -> Iterator[tuple[str, Steps, int]]:
    if torch.version.hip is None:
        yield ("PyTorch", *timed_training(step(), iterations, kind))
    if kind == "cuda":
        with torch.backends.cudnn.flags(enabled=False):
            yield ("PyTorch, library off", *timed_training(step(), iterations, kind))


def timed_training(step: TrainingStep, iterations: int, kind: str) -> tuple[Steps, int]:
    """Training steps after a warm-up, and the most bytes that were held in one of them."""
    for _ in run_steps(step, WARM_UP, kind):
        pass
    if kind == "cuda":
        torch.cuda.reset_peak_memory_stats()
    steps = _run(step, iterations, kind, "training")
    return steps, torch.cuda.max_memory_allocated() if kind == "cuda" else max(steps.held)


def _run(step: Callable[[], Tensor], iterations: int, kind: str, title: str) -> Steps:
    found = list(console.track(run_steps(step, iterations, kind), title, iterations, "steps"))
    seconds, finite, held = zip(*found, strict=True)
    return Steps(seconds, finite.count(False), held)


@contextmanager
def _on(device: str | None) -> Iterator[str]:
    """Quiet Ultralytics, unpatched, on a device: "cpu" or "cuda", with the GPU made current.

    Raises:
        ToolkitError: the environment forces a route.
    """
    forced = forced_route()
    if forced:
        name = forced.partition("=")[0]
        raise ToolkitError(forced, fix=f"unset {name}; `bench stress` and `bench train` take --route")
    flag = resolve_device(device)
    chosen = torch_device(flag)
    with running(flag, patched=False):
        if chosen.type == "cuda":
            torch.cuda.set_device(chosen)
        yield chosen.type


def _serves(route: str, kind: str, layers: list[ConvProblem]) -> bool:
    """Whether a route can be timed here, in fp32 and in the layers' dtypes; says so where it cannot."""
    dtypes = {torch.float32, *(layer.dtype for layer in layers)}
    with patches.enabled(kind):
        session = dispatch.current()
        assert session is not None
        there = route in session.routes
        served = [there and session.routes[route].supports(each) for each in (*six_layers(1, kind), *layers)]
        works = served[0] and (kind == "cpu" or all(session.planner.trusted(route, each) for each in dtypes))
    if not works:
        some = any(served) and not served[0]
        why = "it serves some of the layers alone, in auto" if some else "it does not work on this device"
        console.note(f"route {route} is left out: {why}")
    return works


def _named(model: str) -> str:
    return model if Path(model).suffix else f"{model}.yaml"


def _network(model: str, image_size: int, *, training: bool = False) -> Any:
    """A model as it is, or as ``toolkit train`` makes it: the challenge's classes, grey images.

    Raises:
        ToolkitError: no such model, or none that can be built, or images of a size that it cannot train on.
    """
    from ultralytics import YOLO
    from ultralytics.nn.tasks import DetectionModel

    name = check_model(_named(model))
    try:
        net: Any = YOLO(name).model
        if training:
            net = DetectionModel(net.yaml, ch=1, nc=CLASSES, verbose=False)
        stride = int(net.stride.max())
    except Exception as error:  # Ultralytics raises whatever the architecture makes it raise
        raise ToolkitError(
            f"{model} cannot be built",
            found=f"{type(error).__name__} in Ultralytics",
            expected="a model such as yolo11n",
        ) from error
    if image_size % stride or image_size < 2 * stride:
        raise ToolkitError(
            f"{model} cannot train on images of {image_size} px",
            expected=f"a multiple of {stride}, at least {2 * stride}",
        )
    return net


def _dtype(amp: bool) -> torch.dtype:
    return torch.float16 if amp else torch.float32


def _measured(title: str, problems: list[ConvProblem], routes: list[str]) -> list[Measurement]:
    total = len(set(problems)) * len(routes)
    return list(console.track(measure(problems, routes, repeats=5), title, total, "measurements"))


def _layer_table(found: list[Measurement], title: str) -> Table:
    """The published table's form, a row for each layer and route, and the sums."""
    table = Table("layer", "input shape", "route", "forward", "backward", "total", title=title)
    for problem in dict.fromkeys(m.problem for m in found):
        layer = f"{problem.channels_in} -> {problem.channels_out} k{problem.kernel[0]} s{problem.stride[0]}"
        shape = f"{problem.batch}x{problem.channels_in}x{problem.height}x{problem.width}"
        for m in found:
            if m.problem == problem:
                table.add_row(layer, shape, m.route, *_milliseconds([m]))
        table.add_section()
    for route in dict.fromkeys(m.route for m in found):
        table.add_row("sum", "", route, *_milliseconds([m for m in found if m.route == route]))
    return table


def _milliseconds(found: list[Measurement]) -> list[str]:
    """Forward, backward and total of all."""
    forward, backward = sum(m.forward for m in found), sum(m.backward for m in found)
    return [f"{seconds * 1e3:.2f}" for seconds in (forward, backward, forward + backward)]


def _totals(found: list[Measurement]) -> dict[str, float]:
    """Seconds of all layers by route."""
    totals: dict[str, float] = {}
    for m in found:
        totals[m.route] = totals.get(m.route, 0.0) + m.seconds * m.count
    return totals


def _total_table(found: list[Measurement], title: str) -> Table:
    totals = _totals(found)
    table = Table(
        "route", "forward + backward, ms", f"against {BASELINE}", "peak extra MiB, worst layer", title=title
    )
    for route, seconds in totals.items():
        peak = max(m.extra_bytes for m in found if m.route == route)
        table.add_row(
            route, f"{seconds * 1e3:.1f}", f"{totals[BASELINE] / seconds:.2f} x", f"{peak / 2**20:.0f}"
        )
    return table


def _steps_table(steps: Steps, title: str) -> Table:
    table = Table(
        "median ms", "1 % to 99 %, ms", "longest ms", "not finite", "memory growth, MiB", title=title
    )
    table.add_row(
        f"{steps.quantile(0.5) * 1e3:.2f}",
        f"{steps.quantile(0.01) * 1e3:.2f} to {steps.quantile(0.99) * 1e3:.2f}",
        f"{max(steps.seconds) * 1e3:.2f}",
        str(steps.bad),
        f"{steps.growth / 2**20:.1f}",
    )
    return table


def _duration(seconds: float) -> str:
    days, rest = divmod(seconds, 86_400)
    return f"{days:.0f} d {rest / 3600:.1f} h" if days else f"{rest / 3600:.1f} h"


def _write_clock(path: Path, steps: Steps) -> None:
    rows = [[i, s * 1e3, held] for i, (s, held) in enumerate(zip(steps.seconds, steps.held, strict=True))]
    _write_csv(path, ["step", "milliseconds", "held_bytes"], rows)


def _write_csv(path: Path, header: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row] for row in rows)
    with replacing(path) as temporary:
        temporary.write_text(text.getvalue())


def _plot(path: Path, found: list[Measurement], title: str) -> None:
    """Bars: milliseconds of all layers by route, forward below backward."""
    from matplotlib.figure import Figure

    routes = list(_totals(found))
    forward = [sum(m.forward * m.count for m in found if m.route == route) * 1e3 for route in routes]
    backward = [sum(m.backward * m.count for m in found if m.route == route) * 1e3 for route in routes]
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.bar(routes, forward, label="forward")
    axes.bar(routes, backward, bottom=forward, label="backward")
    axes.set_ylabel("milliseconds, all convolutions")
    axes.set_title(title)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
