#!/usr/bin/env python3
"""The whole table of docs/performance.md on this machine's GPU, in one command.

    python3 scripts/bench_card.py
    python3 scripts/bench_card.py tuning convolutions training
    python3 scripts/bench_card.py models --precisions mixed --models yolov8n yolo11s
    python3 scripts/bench_card.py --dry

Each figure stands beside what it is compared with, measured in the same run, and beside its limit: fp32
unless a row says otherwise, TF32 off, 640 px, medians, host time included. Tuning starts from an empty plan,
as on a card that is new to the toolkit. ``learning`` trains on the synthetic sample with and without the
patches. The sections can be asked for one by one; ``--dry`` says what each does and how long it takes, and
needs no GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from toolkit.quiet import keep_libraries_quiet

keep_libraries_quiet()

import torch

import patches
from patches import children, dispatch, graphs, variables
from patches.convolution.problem import ConvProblem
from patches.convolution.registry import NAMES
from toolkit.benchmark import accuracy, kept, norm_accuracy, steps, whole_trainings
from toolkit.benchmark.measure import (
    BASELINE,
    forced_route,
    load_layers,
    measure,
    missing_device,
    returned_and_done,
)
from toolkit.training.steps import TrainingStep, determinism

MIB, GIB = 2**20, 2**30
T = TypeVar("T")
Row = tuple[str, str, str]
"""What was measured, the figures, and the limit ("" where there is none)."""


def tuning() -> Iterator[Row]:
    """How long it takes to choose a route for every layer of YOLOv8n, self-tests and compilers included."""
    with tempfile.TemporaryDirectory() as folder:
        first, again = _alone(_tune_twice, folder)
    yield "tuning YOLOv8n, batch 16", f"{first:.0f} s, again {again:.2f} s", "180 s, once"


def _tune_twice(folder: str) -> tuple[float, float]:
    os.environ[variables.PLAN.name] = folder
    os.environ["TRITON_CACHE_DIR"] = str(Path(folder) / "triton")
    return _tune(), _tune()


def _tune() -> float:
    start = time.perf_counter()
    with patches.enabled("cuda"):
        session = dispatch.current()
        assert session is not None
        for problem in dict.fromkeys(_layers("yolov8n", 16)):
            session.planner.tune(problem)
    return time.perf_counter() - start


def _alone(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a process of its own, for what is read from the environment once."""
    gc.collect()
    torch.cuda.empty_cache()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def convolutions() -> Iterator[Row]:
    """All convolutions of a model, forward + backward, by every route and by the plan's choice."""
    for model, batch in (("yolov8n", 16), ("yolo11n", 4)):
        routes = [BASELINE, *NAMES, "auto"]
        found = list(measure(_layers(model, batch), routes, repeats=5))
        seconds = {r: sum(m.seconds * m.count for m in found if m.route == r) for r in routes}
        extra = {r: max(m.extra_bytes for m in found if m.route == r) for r in routes}
        title = f"{model} b{batch}, all convolutions"
        for route in routes:
            yield f"{title}: {route}", f"{seconds[route] * 1e3:.1f} ms, {extra[route] / MIB:.1f} MiB", ""
        if model == "yolov8n":
            yield f"{title}: library-off / triton", f"{seconds['native'] / seconds['triton']:.2f} x", "2.5 x"
            yield f"{title}: triton / cuDNN", f"{seconds['triton'] / seconds['library']:.2f} x", "1.5 x"
            yield (
                f"{title}: memory, triton / library-off",
                f"{extra['triton'] / extra['native']:.2f} x",
                "1 x",
            )
        else:
            yield f"{title}: unfold / triton", f"{seconds[BASELINE] / seconds['triton']:.1f} x", "10 x"
        best = min(routes[:-1], key=seconds.__getitem__)
        yield f"{title}: auto / {best}", f"{seconds['auto'] / seconds[best]:.2f} x", ""


TRAINING = {
    "fp32": ({"channels": 3}, False),
    "toolkit train, fp32": ({"channels": 1, "channels_last": True}, True),
    "toolkit train, mixed": ({"channels": 1, "channels_last": True, "amp": True}, True),
}
"""Arguments of a step, and whether it is deterministic. The limits are for the first; the others are how the
toolkit trains on a GPU, by default in mixed precision."""


def training() -> Iterator[Row]:
    """Whole training steps: loss, backward, clipping, SGD."""
    for kind in TRAINING:
        for batch in (16, 32):
            # cuBLAS reads CUBLAS_WORKSPACE_CONFIG once a process.
            yield from _alone(_training, kind, batch)


def _training(kind: str, batch: int) -> list[Row]:
    options, deterministic = TRAINING[kind]
    limits = {16: ("3.1 GiB", "1.7 x"), 32: ("aim 5.5 GiB", "")} if kind == "fp32" else {}
    most, least = limits.get(batch, ("", ""))
    title = f"training step, b{batch}, {kind}"
    step = partial(TrainingStep, "yolov8n.yaml", batch, 640, "cuda", **options)
    torch.backends.cuda.matmul.allow_tf32 = False
    rows, seconds = [], {}
    with determinism(deterministic):
        for name in ("library-off", "cuDNN", "triton", "auto"):
            try:
                seconds[name], peak = _trained(step, name)
                figures = f"{seconds[name] * 1e3:.1f} ms, peak {peak / GIB:.3f} GiB"
            except torch.cuda.OutOfMemoryError:
                figures = "does not fit"
            rows.append((f"{title}: {name}", figures, most if name == "triton" else ""))
    if {"library-off", "triton"} <= set(seconds):
        faster = seconds["library-off"] / seconds["triton"]
        rows.append((f"{title}: library-off / triton", f"{faster:.2f} x", least))
    return rows


SMALL_CARD = 5.5 * GIB
"""What an RX 5600 XT with 6 GiB has left beside its context, by estimate."""


def fits() -> Iterator[Row]:
    """The most images of a training step of YOLOv8n in fp32 for which 5.5 GiB suffice, tried."""
    for name, recompute, limit in (("cuDNN", "off", ""), ("triton", "off", "38"), ("triton", "on", "38")):
        again = ", outputs computed again" * (recompute == "on")
        found = _alone(_largest_batch, name, recompute)
        yield f"images that fit 5.5 GiB, 640 px: {name}{again}", str(found), limit


def _largest_batch(name: str, recompute: str, least: int = 16, beyond: int = 80) -> int:
    os.environ[variables.RECOMPUTE.name] = recompute
    share = SMALL_CARD / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(share)
    while beyond - least > 1:
        batch = (least + beyond) // 2
        try:
            _trained(partial(TrainingStep, "yolov8n.yaml", batch, 640, "cuda"), name, count=3)
            least = batch
        except torch.cuda.OutOfMemoryError:
            beyond = batch
    return least


def _trained(step: Callable[[], TrainingStep], name: str, count: int = 30) -> tuple[float, int]:
    """Median seconds of so many steps and the most bytes held, by a route or as PyTorch comes."""
    from toolkit.benchmark.commands import timed_training
    from toolkit.machine.device import running

    gc.collect()
    torch.cuda.empty_cache()
    cudnn = torch.backends.cudnn
    library = cudnn.flags(enabled=name != "library-off", deterministic=cudnn.deterministic, allow_tf32=False)
    patched = patches.enabled("cuda", name) if name in ("triton", "auto") else nullcontext()
    with running("0", patched=False), library, patched:
        steps, peak = timed_training(step(), count, "cuda")
    return steps.quantile(0.5), peak


def first_batch() -> Iterator[Row]:
    """From a fresh process, plan and cache to the first steps of YOLOv8n, and to the way it settles on."""
    for precision in PRECISIONS:
        with tempfile.TemporaryDirectory() as folder:
            fresh = {variables.PLAN.name: folder, "TRITON_CACHE_DIR": str(Path(folder) / "triton")}
            command = children.command("toolkit.benchmark.first_batch", precision, str(time.monotonic()))
            environment = {**children.environment(), **fresh}
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
            yield from json.loads(done.stdout.splitlines()[-1])


PRECISIONS = ("fp32", "mixed")


def models(names: Sequence[str] = steps.MODELS, precisions: Sequence[str] = PRECISIONS) -> Iterator[Row]:
    """Training steps of eight models in two precisions, against PyTorch without patches."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for precision in precisions:
        for model in names:
            found = {way.name: way for way in steps.compare(model, precision == "mixed")}
            for way in found.values():
                figures = f"{way.seconds * 1e3:.1f} ms, {way.ratio:.2f} x, peak {way.peak / GIB:.2f} GiB"
                title = f"{model}, {precision}: {way.name}"
                yield f"{title}{f' ({way.settled})' if way.settled else ''}", figures, ""
            best = min(way.ratio for way in found.values() if way.name not in ("auto", steps.GRAPH))
            yield f"{model}: auto / the best of the others", f"{found['auto'].ratio / best:.2f} x", "1.03 x"


def memory() -> Iterator[Row]:
    """Steps as CUDA graphs that concatenate in place or by copies, and keep outputs or compute them again."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for model in steps.DETECTORS:
        for precision in PRECISIONS:
            for each in kept.compare(model, precision == "mixed"):
                figures = f"{each.seconds * 1e3:.2f} ms, peak {each.peak / GIB:.3f} GiB"
                yield f"{model}, {precision}: {each.way}", figures, ""


def batch_norm() -> Iterator[Row]:
    """Error of the fused batch norm against float64 on 200 random problems, beside PyTorch's own."""
    for name, ratio, largest in _alone(_batch_norm, 200):
        figures = f"rms {ratio:.2f} x, largest {largest:.1e}"
        yield f"batch norm + activation, {name}: error / PyTorch's", figures, "2 x"


def _batch_norm(count: int) -> list[tuple[str, float, float]]:
    return list(norm_accuracy.compare(count))


def trainings() -> Iterator[Row]:
    """Whole trainings of YOLOv8n, loader and validation included: seconds of the second of two epochs."""
    with tempfile.TemporaryDirectory() as folder:
        whole_trainings.draw(Path(folder))
        for kind, preset in whole_trainings.PRESETS.items():
            seconds = whole_trainings.second_epochs(Path(folder), preset)
            for way, taken in seconds.items():
                yield f"second epoch, {kind}: {way}", f"{taken:.1f} s", ""
            for way in ("no patches", "library-off"):
                ratio = seconds["patches"] / seconds[way]
                yield f"second epoch, {kind}: patches / {way}", f"{ratio:.2f} x", ""


def precision() -> Iterator[Row]:
    """Error against float64 on 500 random problems, beside cuDNN's."""
    from patches.convolution.triton_kernels.ahead import compile_ahead

    problems = accuracy.problems(500, "cuda")
    compile_ahead(problems)
    for route in ("triton", "gemm"):
        for each in accuracy.compare(list(accuracy.sample(problems, route))):
            largest, rms = each.largest[0] / each.largest[1], each.rms[0] / each.rms[1]
            beyond = len(each.beyond(accuracy.ALLOWED))
            figures = f"rms {rms:.2f} x, largest {largest:.2f} x, {beyond} of {len(each.ratios)} beyond 2 x"
            yield f"{route}, error of the {each.name} against cuDNN's", figures, "2 x"


def host() -> Iterator[Row]:
    """Microseconds of the host for one small convolution."""
    script = [sys.executable, str(ROOT / "scripts" / "bench_host_path.py"), "--device", "cuda"]
    done = subprocess.run(script, check=True, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines()[1:-1]:
        name, (cudnn, patched, *override) = line[:36].strip(), line[36:].split()
        alone = f"{override[0]} us; whole call " if override else ""
        yield f"host, {name}", f"{alone}{patched} us, cuDNN {cudnn}", "25 us a launch" if override else ""


HOST_STEPS = (("yolo11n", 4, "12 ms"), ("yolov8n", 16, "33 ms"))
"""Model, images a step, limit of the step by the Triton route."""


def host_steps(device: str = "cuda", size: int = 640, rounds: int = 30) -> Iterator[Row]:
    """Training steps in fp32 that wait for the host: until they return, and until the card is done."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for model, batch, limit in HOST_STEPS:
        step = TrainingStep(f"{model}.yaml", batch, size, device)
        sessions: dict[str, dispatch.Session | None] = {"no patches": None}
        for route in ("triton", "auto") if device == "cuda" else ("gemm",):
            patches.enable(device, route)
            step()
            sessions[route] = dispatch.current()
        calls: dict[str, Callable[[], object]] = dict.fromkeys(sessions, step)
        if graphs.available():
            dispatch.resume(sessions["triton"])
            sessions["triton, CUDA graph"] = sessions["triton"]
            calls["triton, CUDA graph"] = step.recorded()
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in sessions}
        for _ in range(rounds + 2):
            for name, session in sessions.items():
                dispatch.resume(session)
                found[name].append(returned_and_done(calls[name], device))
        patches.disable()
        for name, times in found.items():
            returned, done = (statistics.median(each) * 1e3 for each in zip(*times[2:], strict=True))
            figures = f"returns after {returned:.1f} ms, done after {done:.1f} ms"
            yield f"step, {model} b{batch}, fp32: {name}", figures, limit if name.startswith("triton") else ""


def winograd() -> Iterator[Row]:
    """3 x 3 layers of YOLOv8n and YOLO11s, batch 16, by the route winograd with AMD's tiles and by triton."""
    from toolkit.benchmark.winograd import Pass, compare, routes

    both = routes(torch.cuda.get_device_properties(0).multi_processor_count)
    for model in ("yolov8n", "yolo11s"):
        found: list[Pass] = []
        for each in compare(_problems_of(model, 16), both, "cuda"):
            found.append(each)
            yield f"{model}, {each.count} of {each.problem}: {each.name}", each.figures, ""
        for name in dict.fromkeys(each.name for each in found):
            seconds = [
                sum(each.count * each.seconds[way] for each in found if each.name == name) for way in (0, 1)
            ]
            ratio = seconds[0] / seconds[1]
            yield f"{model}, all: {name}", f"{ratio:.2f} x of {seconds[1] * 1e3:.2f} ms", "1.15 x"


def _problems_of(model: str, batch: int) -> dict[ConvProblem, int]:
    """The convolutions of a training step in fp32, and how often each comes."""
    with patches.enabled("cuda", "native"):
        TrainingStep(f"{model}.yaml", batch, 640, "cuda")()
        found: Counter[ConvProblem] = Counter()
        for use in patches.report().problems:
            found[use.problem] += use.forward
    return found


def learning() -> Iterator[Row]:
    """Losses and mAP of a short training on the sample, with and without the patches."""
    with tempfile.TemporaryDirectory() as folder:
        for verb in (["sample", folder, "--scene", "street"], ["prepare", folder]):
            subprocess.run([sys.executable, "-m", "toolkit", "dataset", *verb], check=True)
        script = [sys.executable, str(ROOT / "scripts" / "compare_training.py"), folder]
        options = ["--device", "0", "--routes", "triton,gemm", "--seeds", "3"]
        done = subprocess.run([*script, *options], check=True, stdout=subprocess.PIPE, text=True)
    for line in done.stdout.splitlines()[1:]:
        yield "learning: " + line[:10].strip(), line[10:].strip(), ""


SECTIONS = {
    each.__name__: each
    for each in (
        first_batch,
        tuning,
        convolutions,
        training,
        fits,
        models,
        memory,
        trainings,
        host,
        host_steps,
        winograd,
        precision,
        batch_norm,
        learning,
    )
}

MINUTES = {
    "first_batch": 1.5,
    "tuning": 2,
    "convolutions": 2,
    "training": 4,
    "fits": 1,
    "models": 10,
    "memory": 2,
    "trainings": 8,
    "host": 1,
    "host_steps": 1.5,
    "winograd": 2,
    "precision": 4,
    "batch_norm": 2,
    "learning": 5,
}
"""Expected of each section on one H100, rounded up; of ``models`` for all of them in both precisions."""


def _plan(names: Sequence[str], share: float) -> Iterator[Row]:
    """What sections would measure, with ``share`` of the models: command, minutes, description."""
    for name in names:
        minutes = MINUTES[name] * (share if name == "models" else 1)
        yield f"`python3 scripts/bench_card.py {name}`", f"{minutes:.1f} min", str(SECTIONS[name].__doc__)
    total = sum(MINUTES[name] * (share if name == "models" else 1) for name in names)
    yield "all of it", f"{total:.1f} min", ""


def _layers(model: str, batch: int) -> list[ConvProblem]:
    return load_layers(ROOT / "scripts" / "layers" / f"{model}.json", batch, "cuda", torch.float32)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", metavar="section", help=f"default: {' '.join(SECTIONS)}")
    parser.add_argument(
        "--models", nargs="*", default=steps.MODELS, choices=steps.MODELS, help="of the section models"
    )
    parser.add_argument(
        "--precisions", nargs="*", default=PRECISIONS, choices=PRECISIONS, help="of the section models"
    )
    parser.add_argument("--dry", action="store_true", help="print what would be measured")
    options = parser.parse_args()
    names = options.sections or list(SECTIONS)
    sections = {**SECTIONS, "models": partial(models, options.models, options.precisions)}
    if not set(names) <= set(SECTIONS):
        parser.error(f"expected some of {', '.join(SECTIONS)}")
    if options.dry:
        share = len(options.models) * len(options.precisions) / (len(steps.MODELS) * len(PRECISIONS))
        print("| command | expected | what |\n|---|---|---|")
        for row in _plan(names, share):
            print(f"| {' | '.join(row)} |")
        return
    obstacle = forced_route() or missing_device("cuda")
    if obstacle:
        sys.exit(obstacle)
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}\n")
    print("| what | measured | limit |\n|---|---|---|", flush=True)
    for name in names:
        for row in sections[name]():
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
