"""What must be true of the process before Triton is imported, and which card really is in the machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from .cache import cache_folder, trim

KFD_NODES = Path("/sys/class/kfd/kfd/topology/nodes")
KERNEL_DAYS, KERNEL_BYTES = 90, 2_000_000_000
"""What is kept of Triton's kernels: a version of everything takes some 50 MB for each model that trains."""


def amd_architectures(nodes: Path = KFD_NODES) -> list[str]:
    """Architectures of the AMD GPUs in this machine, in the kernel driver's order: ``["gfx1010"]``.

    The kernel driver's word, not the runtime's: ``HSA_OVERRIDE_GFX_VERSION`` changes what the runtime
    reports. On Windows, where there is no such driver, it is the runtime's, once torch is imported. The
    number is major * 10000 + minor * 100 + stepping; in the name the last two are hexadecimal digits (90010:
    gfx90a).
    """
    if sys.platform == "win32":
        return _by_runtime()
    found = []
    for path in sorted(nodes.glob("*/properties"), key=lambda p: int(p.parent.name)):
        try:
            lines = path.read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            name, _, value = line.partition(" ")
            if name == "gfx_target_version" and int(value):
                version = int(value)
                found.append(f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}")
    return found


def _by_runtime() -> list[str]:
    """What the runtime reports; opens the cards."""
    torch: Any = sys.modules.get("torch")
    if torch is None or torch.version.hip is None:
        return []
    cards = range(torch.cuda.device_count())
    return [torch.cuda.get_device_properties(card).gcnArchName.partition(":")[0] for card in cards]


def exports(nodes: Path = KFD_NODES) -> dict[str, str]:
    """The variables that any Triton program needs on the cards in this machine: see :func:`prepare`."""
    if not amd_architectures(nodes):
        return {}
    return {"AMDGCN_USE_BUFFER_OPS": "0", "TRITON_CACHE_DIR": str(_kernels())}


def _kernels() -> Path:
    """Triton's cache where :func:`exports` names one."""
    return cache_folder() / "triton-no-buffer-ops"


def trim_kernels() -> None:
    """Bound Triton's cache, which keeps the kernels of every version of everything; only the one of ours."""
    if os.environ.get("TRITON_CACHE_DIR") == str(_kernels()):
        trim(_kernels(), KERNEL_DAYS, KERNEL_BYTES)


def prepare(nodes: Path = KFD_NODES) -> list[str]:
    """Make Triton safe for the cards in this machine; call it before anything imports Triton.

    On gfx101x the descriptor that Triton builds for buffer instructions does not match the hardware: stores
    vanish and nothing reports it. On other AMD cards such an instruction moves a single element, because what
    is known of an operand's alignment is lost on the way to it (Triton 3.6 and 3.8).
    ``AMDGCN_USE_BUFFER_OPS=0`` avoids both, and since Triton's cache key ignores the variable, kernels
    compiled so need a cache directory of their own.

    Args:
        nodes: the kernel driver's topology.

    Returns:
        The names of the environment variables that were set.

    Raises:
        RuntimeError: Triton was imported already, by someone who had not set the variables, on gfx101x; on
            other cards the kernels are slower then.
    """
    architectures, wanted = amd_architectures(nodes), exports(nodes)
    if not wanted:
        return []
    if os.environ.get("AMDGCN_USE_BUFFER_OPS") == "0" and "TRITON_CACHE_DIR" in os.environ:
        return []
    if "triton" in sys.modules:
        if not any(name.startswith("gfx101") for name in architectures):
            return []
        raise RuntimeError(
            "Triton is already imported with buffer operations on, which write nothing on gfx101x cards; "
            "enable the routes before importing Triton, or set AMDGCN_USE_BUFFER_OPS=0 and TRITON_CACHE_DIR"
        )
    os.environ.update(wanted)
    return sorted(wanted)
