"""Temperature, load and memory of the GPU that trains, read from outside the training process."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from patches.runtime import built_for_nvidia
from toolkit.machine import kernel

STALE = 15.0
"""Seconds after which a reading says nothing any more."""


@dataclass(frozen=True)
class Sensors:
    """One reading; None for what the driver does not tell.

    Attributes:
        busy: percent.
        temperature: degrees Celsius.
        memory_used, memory_total: bytes.
    """

    busy: float | None = None
    temperature: float | None = None
    memory_used: int | None = None
    memory_total: int | None = None


def reader(device: str, sysfs: Path = kernel.SYSFS) -> Callable[[], Sensors | None]:
    """A function that reads the GPUs of ``device`` ("cpu", "0", "0,1"), of several the worst of each value.

    AMD's by amdgpu's files below ``/sys/class/drm``, in the order in which the kernel numbers its cards;
    NVIDIA's by ``nvidia-smi``. A machine may have both, and PyTorch is built for one of them.
    """
    if device == "cpu":
        return lambda: None
    numbers = [int(number) for number in device.split(",")]
    cards = () if built_for_nvidia() else kernel.read(sysfs).visible
    if max(numbers) < len(cards):
        nodes = [Path(cards[number].render_node).name for number in numbers]
        folders = [sysfs / "class" / "drm" / node / "device" for node in nodes]
        return lambda: _worst([_read_amdgpu(folder) for folder in folders])
    if shutil.which("nvidia-smi"):
        shown = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        names = [shown[number] if number < len(shown) else str(number) for number in numbers]
        return lambda: _worst([_read_nvidia(name) for name in names])
    return lambda: None


def in_background(device: str) -> Callable[[], Sensors | None]:
    """The last reading of a thread that takes one every second; None when it is older than :data:`STALE`.

    A driver that hangs holds whoever asks it for as long as it likes: here that thread alone. The thread
    ends when nobody holds the returned function any more.
    """
    read = reader(device)
    if device == "cpu":
        return read
    newest: tuple[float, Sensors | None] = (-STALE, None)
    unused = threading.Event()

    def watch() -> None:
        nonlocal newest
        while not unused.is_set():
            with suppress(Exception):  # whatever a driver may answer: the next answer may be a better one
                newest = time.monotonic(), read()
            unused.wait(1.0)

    def look() -> Sensors | None:
        at, reading = newest
        return reading if time.monotonic() - at < STALE else None

    weakref.finalize(look, unused.set)
    threading.Thread(target=watch, daemon=True).start()
    return look


def _worst(readings: list[Sensors | None]) -> Sensors | None:
    known = [reading for reading in readings if reading is not None]
    if not known:
        return None
    fullest = max(known, key=lambda card: (card.memory_used or 0) / (card.memory_total or 1))
    return Sensors(
        busy=min((card.busy for card in known if card.busy is not None), default=None),
        temperature=max((card.temperature for card in known if card.temperature is not None), default=None),
        memory_used=fullest.memory_used,
        memory_total=fullest.memory_total,
    )


def _read_amdgpu(card: Path) -> Sensors:
    def number(pattern: str) -> int | None:
        for path in sorted(card.glob(pattern)):
            with suppress(OSError, ValueError):
                return int(path.read_text())
        return None

    temperature = number("hwmon/hwmon*/temp1_input")
    return Sensors(
        busy=number("gpu_busy_percent"),
        temperature=None if temperature is None else temperature / 1000,
        memory_used=number("mem_info_vram_used"),
        memory_total=number("mem_info_vram_total"),
    )


def _read_nvidia(name: str) -> Sensors | None:
    """A card by its number or UUID."""
    query = "utilization.gpu,temperature.gpu,memory.used,memory.total"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--id={name}", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
        busy, temperature, used, total = (_number(text) for text in answer.stdout.strip().split(","))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    mib = 2**20
    return Sensors(
        busy=busy,
        temperature=temperature,
        memory_used=None if used is None else int(used * mib),
        memory_total=None if total is None else int(total * mib),
    )


def _number(text: str) -> float | None:
    with suppress(ValueError):  # "[N/A]"
        return float(text)
    return None
