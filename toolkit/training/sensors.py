"""Temperature, load and memory of the GPU that trains, read from outside the training process."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from toolkit import machine


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


def reader(device: str, sysfs: Path = machine.SYSFS) -> Callable[[], Sensors | None]:
    """A function that reads the (first) GPU of ``device`` ("cpu", "0", "0,1").

    amdgpu's files below ``/sys/class/drm``, in the order in which the kernel driver numbers its cards; else
    ``nvidia-smi``.
    """
    if device == "cpu":
        return lambda: None
    number = int(device.split(",")[0])
    cards = machine.read(sysfs).visible
    if number < len(cards):
        folder = sysfs / "class" / "drm" / Path(cards[number].render_node).name / "device"
        return lambda: _read_amdgpu(folder)
    if shutil.which("nvidia-smi"):
        return lambda: _read_nvidia(number)
    return lambda: None


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


def _read_nvidia(number: int) -> Sensors | None:
    query = "utilization.gpu,temperature.gpu,memory.used,memory.total"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--id={number}", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    busy, temperature, used, total = (_number(text) for text in answer.stdout.strip().split(","))
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
