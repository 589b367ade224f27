"""What this machine is, what will work on it, and which settings fit it.

:func:`diagnose` is a function of what was found (``toolkit.machine``, the routes' self-tests);
:func:`examine` finds it. The verdicts of the findings add up to the exit code of ``toolkit doctor``: 0 fine,
1 works with limits, 2 will not work.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import msgspec

from patches.convolution import registry, selftest
from patches.findings import (
    VISIBILITY,
    Finding,
    Verdict,
    architecture,
    buffer_operations,
    built_for,
    packages,
    vendor_library,
)
from patches.runtime import Runtime, ask
from toolkit import __version__, console
from toolkit.dataset.loader import loader_bytes
from toolkit.machine import checks, kernel
from toolkit.machine.cards import PROFILES, Choice, best_card, default_number, recommend_profile
from toolkit.machine.checks import GIB
from toolkit.machine.kernel import Card, LeftOut, Machine
from toolkit.runs.needs import shared_memory

ROUTES = registry.NAMES
"""Ways to compute a convolution that are tried on a GPU."""

CPU_ROUTES = tuple(route.name for route in registry.ROUTES if "cpu" in route.devices)
"""Those that are tried without a GPU: no vendor library is called there, and Triton's kernels need one."""

MODEL_BYTES, IMAGE_BYTES = GIB // 4, GIB // 5
"""GPU memory of a YOLOv8n training step at 640 px in fp32, vendor library off: a constant and a part for each
image. Measured on an H100: 0.8, 3.1 and 6.1 GiB for 4, 16 and 32 images."""

USABLE = 0.8
"""Part of a card's memory to plan for: the desktop and the allocator's fragments take the rest."""

TRAINER_BYTES, SERVER_BYTES, WORKER_BYTES = 2 * GIB, GIB * 7 // 10, GIB // 8
"""RAM of the training process, of the loader's server, which has imported torch and ultralytics, and of each
worker."""

MOST_WORKERS = 4
"""Loader workers that keep up with a card of this class."""

PREPARE_BYTES = 3 * GIB
"""RAM that ``toolkit dataset prepare`` may take on the full dataset."""

DATASET_BYTES = 52 * GIB
"""Disk for LTDv2's four files with their index."""


class SelfTest(msgspec.Struct, frozen=True):
    """Outcome of a convolution route's self-test on a device."""

    route: str
    device: str
    passed: bool
    reason: str
    seconds: float


NO_ROUTE = Choice("none", "every route failed its self-test here")


class Recommendation(msgspec.Struct, frozen=True):
    """What to train with on this machine."""

    profile: Choice
    device: Choice
    route: Choice
    batch: Choice
    workers: Choice


class Report(msgspec.Struct, frozen=True):
    """Everything that ``toolkit doctor`` says."""

    version: str
    verdict: Verdict
    findings: tuple[Finding, ...]
    self_tests: tuple[SelfTest, ...]
    recommendation: Recommendation
    runtime: Runtime


def examine(
    sysfs: Path = kernel.SYSFS, data: Path = Path(), imgsz: int = 640, timeout: float = selftest.TIMEOUT
) -> Report:
    """Examine this machine, or a recorded one.

    Args:
        sysfs: a folder that ``toolkit doctor --record`` wrote, or ``/sys``. Of a recorded machine the
            runtime's answer is the recorded one, and no self-test runs.
        data: folder whose disk will hold the dataset; of a recorded machine the recorded disk counts.
        imgsz: side of the training images, pixels.
        timeout: seconds that each child process may take.

    Raises:
        ToolkitError: the tree cannot be read.
    """
    found = kernel.read(sysfs, data)
    if sysfs != kernel.SYSFS:
        return diagnose(found, found.surroundings.runtime or Runtime(), (), imgsz)
    # Importing torch takes most of the time, in every child: the first ones run side by side.
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(ask, timeout)
        on_cpu = [pool.submit(_try, route, "cpu", timeout) for route in CPU_ROUTES]
        runtime = asked.result()
        if not runtime.devices:
            return diagnose(found, runtime, [test.result() for test in on_cpu], imgsz)
    device = f"cuda:{_default(found, runtime)}"
    tried = [_try(route, device, timeout) for route in registry.serving("cuda", runtime)]
    return diagnose(found, runtime, [test for test in tried if test.reason != selftest.NOT_MEANT], imgsz)


@cache
def fitting(imgsz: int) -> dict[str, int]:
    """``batch`` and ``workers`` that fit this machine, as the doctor recommends them; no self-test runs.

    Args:
        imgsz: side of the training images, pixels.
    """
    fit = _recommend(kernel.read(kernel.SYSFS, Path()), ask(selftest.TIMEOUT), (), imgsz)
    for name, choice in (("batch", fit.batch), ("workers", fit.workers)):
        console.note(f"{name} {choice.value}: {choice.reason}")
    return {"batch": int(fit.batch.value), "workers": int(fit.workers.value)}


def _try(route: str, device: str, timeout: float) -> SelfTest:
    result = selftest.run(route, device, timeout=timeout)
    return SelfTest(result.route, device, result.passed, result.reason, result.seconds)


def diagnose(found: Machine, runtime: Runtime, self_tests: Sequence[SelfTest], imgsz: int = 640) -> Report:
    """Draw the conclusions from what was found; ``imgsz`` is the side of the training images, pixels."""
    recommendation = _recommend(found, runtime, self_tests, imgsz)
    covered = any(test.passed and test.route not in registry.OWN for test in self_tests)
    findings = (
        *_cards(found, runtime),
        *checks.permissions(found),
        *_software(found, runtime),
        *vendor_library(_true(found), runtime, found.surroundings.environment, covered),
        *_self_tests(self_tests),
        *_room(found, recommendation, imgsz),
    )
    return Report(
        version=__version__,
        verdict=max(finding.verdict for finding in findings),
        findings=findings,
        self_tests=tuple(self_tests),
        recommendation=recommendation,
        runtime=runtime,
    )


def _cards(found: Machine, runtime: Runtime) -> list[Finding]:
    findings = []
    for card in found.cards:
        kind = "shared with the system" if card.shared else "VRAM"
        memory = f"{card.memory_bytes / GIB:.1f} GiB {kind}"
        title = f"{card.arch} {card.name}".rstrip()
        words = f"{title}, {card.compute_units} compute units, {memory}, {card.render_node}"
        verdict, advice = Verdict.FINE, ""
        if card not in found.visible:
            words += f", hidden by {_hiders(found)}"
        elif card.arch not in PROFILES:
            verdict = Verdict.LIMITS
            advice = f"no container profile for {card.arch}: install AMD's PyTorch by hand"
        findings.append(Finding(f"card {card.node}", verdict, words, advice))
    if found.hidden_nodes:
        words = f"{len(found.hidden_nodes)} GPU that the kernel hides from this process"
        if found.cards:  # a container may be given one card of several
            findings.append(Finding("card", Verdict.FINE, words))
        else:
            advice = "start the container with --device /dev/kfd --device /dev/dri (toolkit container does)"
            findings.append(Finding("card", Verdict.FAILS, words, advice))
    findings += [_left_out(found, card) for card in found.left_out]
    if found.cards and not found.visible:
        advice = "training runs on the CPU; unset what hides the card to use it"
        findings.append(Finding("card", Verdict.LIMITS, f"none left by {_hiders(found)}", advice))
    if not found.cards and not found.hidden_nodes and not (found.left_out and not runtime.devices):
        if runtime.devices:
            names = ", ".join(f"{device.name} ({device.arch})" for device in runtime.devices)
            findings.append(Finding("card", Verdict.FINE, names))
        else:
            advice = "training runs on the CPU: good for trying things out"
            findings.append(Finding("card", Verdict.LIMITS, "no GPU", advice))
    if found.visible:
        findings.append(architecture(_true(found), runtime, found.surroundings.environment))
    return findings


def _true(found: Machine) -> list[str]:
    return [card.arch for card in found.visible]


def _left_out(found: Machine, card: LeftOut) -> Finding:
    """A card that shows pictures and cannot compute: the kernel says why in its log alone."""
    words = f"{card.pci}, {card.memory_bytes / GIB:.1f} GiB VRAM, {card.render_node}: driven by amdgpu"
    if found.kfd:
        words += ", left out by KFD: no computing"
        advice = (
            "see why: sudo dmesg | grep -i kfd; for `PCI rejects atomics` take a slot of the processor's, "
            "not of the chipset's, no riser, or a newer kernel and linux-firmware (RDNA1 can do without)"
        )
    else:
        words += ", and this kernel has no KFD: no computing"
        advice = "take a kernel with CONFIG_HSA_AMD=y (grep HSA_AMD /boot/config-$(uname -r))"
    return Finding("card", Verdict.LIMITS if not found.visible else Verdict.FINE, words, advice)


def _hiders(found: Machine) -> str:
    environment = found.surroundings.environment
    return " ".join(f"{name}={environment[name]}" for name in VISIBILITY if name in environment)


def _software(found: Machine, runtime: Runtime) -> list[Finding]:
    rocm = found.surroundings.rocm
    driver = f"{found.driver or 'no amdgpu'}; ROCm {rocm or 'not under /opt/rocm'}"
    findings = []
    if found.cards:
        findings.append(Finding("driver", Verdict.FINE if found.driver else Verdict.FAILS, driver))
    if runtime.error:
        return [*findings, Finding("torch", Verdict.FAILS, runtime.error, "make setup, or use a container")]
    if not runtime.torch:
        return [*findings, Finding("torch", Verdict.LIMITS, "not recorded")]
    words = f"{runtime.torch} built for {built_for(runtime)}, torchvision {runtime.torchvision or 'missing'}"
    verdict, advice = Verdict.FINE, ""
    if found.visible and not runtime.hip:
        verdict, advice = Verdict.LIMITS, "this torch cannot use the card: use the container profile below"
    elif found.visible and not runtime.devices:
        verdict, advice = Verdict.FAILS, "torch sees no GPU: mend the devices above, or use the profile below"
    elif not runtime.torchvision:
        verdict, advice = Verdict.FAILS, "install the torchvision that belongs to this torch"
    findings.append(Finding("torch", verdict, words, advice))
    findings += packages(runtime, bool(found.visible or runtime.devices))
    return [*findings, *buffer_operations(_true(found), found.surroundings.environment)]


def _self_tests(self_tests: Sequence[SelfTest]) -> Iterator[Finding]:
    for test in self_tests:
        outcome = "passed" if test.passed else f"failed: {test.reason}"
        yield Finding(
            f"route {test.route}",
            Verdict.FINE if test.passed else Verdict.LIMITS,
            f"self-test on {test.device} {outcome} ({test.seconds:.1f} s)",
            "" if test.passed else "this route is not used here",
        )
    if self_tests and not any(test.passed for test in self_tests):
        device = self_tests[0].device
        advice = "use the container profile below" + ("" if device == "cpu" else ", or --device cpu")
        yield Finding("convolutions", Verdict.FAILS, f"no route works on {device}", advice)


def _room(found: Machine, recommendation: Recommendation, imgsz: int) -> list[Finding]:
    here = found.surroundings
    batch, workers = int(recommendation.batch.value), int(recommendation.workers.value)
    training = TRAINER_BYTES + SERVER_BYTES + workers * WORKER_BYTES
    findings = []
    card = best_card(found)
    if card is not None:
        need = step_bytes(batch, imgsz)
        free = card.memory_bytes - card.memory_used_bytes
        if card.shared:
            free = min(free, here.memory_free_bytes)
            training += need
        findings.append(
            checks.enough(
                "GPU memory",
                free,
                need,
                f"a batch of {batch} at {imgsz} px",
                "close what uses the card, or lower --batch",
            )
        )
    findings.append(shared_memory(here.shared_memory_bytes, batch, max(workers, 1), imgsz))
    findings.append(
        checks.enough(
            "RAM",
            here.memory_free_bytes,
            max(PREPARE_BYTES, training),
            "preparing and training on the full dataset",
            "lower --workers, or use a subset of the data",
        )
    )
    return [*findings, _disk(here.disk_free_bytes, here.dataset_bytes)]


def _disk(free: int | None, there: int) -> Finding:
    if free is None:
        return Finding("disk", Verdict.FINE, "not recorded")
    advice = "enough for samples and subsets only" if free > checks.RUN_BYTES else "free some space"
    if not there:
        need = DATASET_BYTES + checks.RUN_BYTES
        return checks.enough("disk", free, need, "the full dataset and a run", advice)
    rest = max(DATASET_BYTES - there, 0)
    purpose = f"a run and what the full dataset has beyond the {there / GIB:.1f} GiB here"
    return checks.enough("disk", free, rest + checks.RUN_BYTES, purpose, advice)


def step_bytes(batch: int, imgsz: int) -> int:
    """GPU memory that a YOLOv8n training step needs, bytes; an estimate (see :data:`IMAGE_BYTES`)."""
    return MODEL_BYTES + int(batch * IMAGE_BYTES * (imgsz / 640) ** 2)


def _recommend(
    found: Machine, runtime: Runtime, self_tests: Sequence[SelfTest], imgsz: int
) -> Recommendation:
    card = best_card(found)
    profile = recommend_profile(card, runtime.devices)
    if card is None and not runtime.devices:
        return Recommendation(
            profile,
            Choice("cpu", "no GPU"),
            _cpu_route(self_tests),
            Choice("4", "a step on a CPU takes seconds: small batches show progress"),
            Choice("0", "one process reads images faster than a CPU trains on them"),
        )
    if card is None:
        memory = max(device.memory_bytes for device in runtime.devices)
        device = Choice(_default(found, runtime), runtime.devices[0].name)
    else:
        memory = card.memory_bytes
        device = Choice(_default(found, runtime), _why(card, found.visible))
        if card.shared:
            others = TRAINER_BYTES + SERVER_BYTES + MOST_WORKERS * WORKER_BYTES
            memory = min(memory, max(found.surroundings.memory_free_bytes - others, 0))
    batch = _batch(memory, imgsz)
    return Recommendation(
        profile,
        device,
        _route(card, runtime, self_tests),
        batch,
        _workers(found, int(batch.value), imgsz),
    )


def _default(found: Machine, runtime: Runtime) -> str:
    """The number that a command without ``--device`` takes."""
    return str(default_number(found, len(runtime.devices), hip=bool(runtime.hip)))


def _why(card: Card, cards: Sequence[Card]) -> str:
    """Why :func:`best_card` chose this one of the cards."""
    words = f"{card.arch} with {card.memory_bytes / GIB:.1f} GiB"
    if len(cards) == 1:
        return words
    discrete = not card.integrated and any(other.integrated for other in cards)
    served = card.arch in PROFILES and any(other.arch not in PROFILES for other in cards)
    return (
        f"{words}, the {'discrete ' if discrete else ''}card with the most memory"
        f"{' that a profile serves' if served else ''}"
    )


def _route(card: Card | None, runtime: Runtime, self_tests: Sequence[SelfTest]) -> Choice:
    passed = [test.route for test in self_tests if test.passed]
    failed = [test.route for test in self_tests if not test.passed]
    if not self_tests:
        reason = "measured on the card in the first steps; not tested here: run doctor in the container"
        return Choice("auto", reason)
    if not passed:
        return NO_ROUTE
    if len(passed) == 1:
        return Choice(passed[0], "the only route that passed its self-test here")
    reason = f"passed their self-tests: {', '.join(passed)}; the fastest for each layer is measured"
    return Choice("auto", reason + (f"; struck off: {', '.join(failed)}" if failed else ""))


def _cpu_route(self_tests: Sequence[SelfTest]) -> Choice:
    if self_tests and not any(test.passed for test in self_tests):
        return NO_ROUTE
    if any(test.route == "native" and not test.passed for test in self_tests):
        return Choice("gemm", "PyTorch's own convolutions failed their self-test here")
    return Choice("native", "PyTorch's own convolutions are the fastest on a CPU")


def _batch(memory: int, imgsz: int) -> Choice:
    usable = int(memory * USABLE)
    batch = next((size for size in (64, 32, 16, 8, 4, 2) if step_bytes(size, imgsz) <= usable), 1)
    return Choice(
        str(batch),
        f"a step needs about {step_bytes(batch, imgsz) / GIB:.1f} of {usable / GIB:.1f} GiB usable"
        f" (YOLOv8n, fp32, {imgsz} px; an estimate from another card)",
    )


def _workers(found: Machine, batch: int, imgsz: int) -> Choice:
    here = found.surroundings
    shared, free = here.shared_memory_bytes, here.memory_free_bytes
    limits = {
        f"{MOST_WORKERS} keep up with a card of this class": MOST_WORKERS,
        f"{here.cpus} processors, one for the training process": here.cpus - 1,
        f"{shared / GIB:.2f} GiB of shared memory": shared // loader_bytes(batch, 1, imgsz),
        f"{free / GIB:.1f} GiB of free RAM": (free - TRAINER_BYTES - SERVER_BYTES) // WORKER_BYTES,
    }
    reason = min(limits, key=lambda words: limits[words])
    return Choice(str(max(limits[reason], 0)), reason)
