"""What PyTorch reports on this machine, asked in a child process with a time limit.

A broken driver makes ``import torch`` or the first question to the GPU hang or die; the child does that, not
the caller. Run as a module this file is the child: it prints one line of JSON.
"""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from . import children

TRITON = ("triton", "pytorch-triton", "pytorch-triton-rocm", "triton-rocm")
"""Names under which Triton is installed."""

NO_ANSWER = "no answer from PyTorch within"
"""How an error begins where a child ran into its time limit."""


@dataclass(frozen=True)
class RuntimeDevice:
    """A GPU as PyTorch sees it: name, architecture ("gfx1030", "sm_90"), memory in bytes."""

    name: str
    arch: str
    memory_bytes: int


@dataclass(frozen=True)
class Runtime:
    """What PyTorch says of itself and of the GPUs.

    Attributes:
        error: why nothing else is known ("" when all is well).
        torch, torchvision, triton, ultralytics, numpy: versions, "" where absent.
        hip, cuda: versions that torch was built for, "" where it was not.
        devices: the GPUs.
        kernel_databases: architectures for which MIOpen's files hold compiled kernels or tuned choices.
        blas_databases: architectures for which rocBLAS has kernels.
    """

    error: str = ""
    torch: str = ""
    torchvision: str = ""
    triton: str = ""
    ultralytics: str = ""
    numpy: str = ""
    hip: str = ""
    cuda: str = ""
    devices: tuple[RuntimeDevice, ...] = ()
    kernel_databases: tuple[str, ...] = ()
    blas_databases: tuple[str, ...] = ()


def ask(timeout: float = 60.0) -> Runtime:
    """Ask PyTorch in a child process; a hang, a crash or a failed import becomes ``Runtime.error``.

    Args:
        timeout: seconds after which the child is killed.
    """
    try:
        child = subprocess.run(
            children.command(__name__),
            env=children.environment(),
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Runtime(error=f"{NO_ANSWER} {timeout:.0f} s")
    except OSError as error:
        return Runtime(error=f"PyTorch could not be asked: {error}")
    if child.returncode < 0:
        return Runtime(error=f"PyTorch was killed by signal {-child.returncode}")
    if child.returncode:
        last = child.stderr.decode(errors="replace").strip().splitlines()
        return Runtime(error=last[-1] if last else f"PyTorch ended with status {child.returncode}")
    for line in child.stdout.splitlines():  # ROCm's libraries may print too
        with suppress(ValueError, TypeError, AttributeError, RecursionError):
            return _decoded(json.loads(line))
    return Runtime(error="PyTorch ended without an answer")


def _decoded(answer: dict[str, Any]) -> Runtime:
    """What the child said.

    Raises:
        TypeError: it is something else.
    """
    answer = {name: tuple(value) if isinstance(value, list) else value for name, value in answer.items()}
    devices = tuple(RuntimeDevice(**each) for each in answer.pop("devices", ()))
    return Runtime(devices=devices, **answer)


def installed(*names: str) -> str:
    """Version of the first of these packages that is installed, "" if none is."""
    for name in names:
        with suppress(PackageNotFoundError):
            return version(name)
    return ""


def version_of(package: str) -> str:
    """Version of a package by the name of its import, "" where it is absent."""
    return installed(*(TRITON if package == "triton" else (package,)))


def built_for_nvidia() -> bool:
    """Whether PyTorch is, asked of its version file: importing it takes seconds."""
    found = importlib.util.find_spec("torch")
    if found is None or found.origin is None:
        return False
    with suppress(OSError):
        text = Path(found.origin).with_name("version.py").read_text()
        return re.search(r"^cuda\b[^=]*= *['\"]", text, re.MULTILINE) is not None
    return False


def _examine() -> Runtime:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        arch = getattr(found, "gcnArchName", "").split(":")[0] or f"sm_{found.major}{found.minor}"
        devices.append(RuntimeDevice(found.name, arch, found.total_memory))
    hip = torch.version.hip or ""
    roots = _library_roots(Path(torch.__file__).parent) if hip else []
    return Runtime(
        torch=str(torch.__version__),
        torchvision=installed("torchvision"),
        triton=version_of("triton"),
        ultralytics=installed("ultralytics-opencv-headless", "ultralytics"),
        numpy=installed("numpy"),
        hip=hip,
        cuda=torch.version.cuda or "",
        devices=tuple(devices),
        kernel_databases=_architectures(roots, "share/miopen/db/gfx*"),
        blas_databases=_architectures(roots, "lib/**/library/*gfx*"),
    )


def _library_roots(torch_folder: Path) -> list[Path]:
    """Where ROCm's libraries may be: inside the torch wheel, AMD's SDK wheels beside it, and /opt/rocm."""
    return [torch_folder, *sorted(torch_folder.parent.glob("_rocm_sdk*")), Path("/opt/rocm")]


def _architectures(roots: list[Path], pattern: str) -> tuple[str, ...]:
    # MIOpen appends the number of compute units, with or without "_": gfx90a68.db is gfx90a with 0x68.
    name = re.compile(r"gfx(1[0-9a-f]{3}|[7-9][0-9a-f]{2})")
    found = (name.search(path.name) for root in roots for path in root.glob(pattern))
    return tuple(sorted({match.group() for match in found if match}))


if __name__ == "__main__":
    sys.stdout.write(json.dumps(asdict(_examine())) + "\n")
