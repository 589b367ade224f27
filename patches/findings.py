"""What can be said of a card, its switches and its libraries, and how bad it is. Imports no torch.

Functions of what was found: whoever examines a machine, this package's doctor or a larger one, says the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from .convolution.registry import PACKAGES
from .runtime import Runtime

OVERRIDE = "HSA_OVERRIDE_GFX_VERSION"
BUFFER_OPS = "AMDGCN_USE_BUFFER_OPS"

VISIBILITY = ("ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""Environment variables that hide cards."""

NO_BUFFER_STORES = frozenset({"gfx1010", "gfx1011", "gfx1012"})
"""Architectures on which Triton's buffer operations write nothing and report success."""


class Verdict(IntEnum):
    """How bad a finding is; the number is the exit code."""

    FINE = 0
    LIMITS = 1
    FAILS = 2

    @property
    def words(self) -> str:
        """The verdict for people."""
        return ("fine", "works with limits", "will not work")[self]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at: what it is, how it is, what was found, what to do about it."""

    subject: str
    verdict: Verdict
    found: str
    advice: str = ""


def built_for(runtime: Runtime) -> str:
    """What this PyTorch was built for."""
    return f"HIP {runtime.hip}" if runtime.hip else f"CUDA {runtime.cuda}" if runtime.cuda else "the CPU"


def packages(runtime: Runtime, needed: bool) -> Iterator[Finding]:
    """A row for each package that some route imports; ``needed``: whether there is a card for that route."""
    for name in PACKAGES:
        version: str = getattr(runtime, name)
        if needed and not version:
            yield Finding(name, Verdict.LIMITS, "missing", "convolutions go by the gemm route")
        else:
            yield Finding(name, Verdict.FINE, version or "missing, and not needed")


def override_name(value: str) -> str:
    """The architecture that ``HSA_OVERRIDE_GFX_VERSION=value`` makes the runtime report; "" if it is none."""
    parts = re.fullmatch(r"([0-9]+)\.([0-9]+)\.([0-9]+)", value)
    if parts is None:
        return ""
    major, minor, step = (int(part) for part in parts.groups())
    if major > 63 or minor > 255 or step > 255:  # libhsakmt's limits
        return ""
    return f"gfx{major}{minor:x}{step:x}"


def architecture(true: Sequence[str], runtime: Runtime, environment: Mapping[str, str]) -> Finding:
    """What the visible cards are, and what the runtime takes them for.

    Args:
        true: the kernel driver's word, one for each card.
    """
    value = environment.get(OVERRIDE, "")
    override = override_name(value)
    if value and not override:
        advice = "the runtime expects three numbers such as 10.3.0 and does not start: unset it"
        return Finding("override", Verdict.FAILS, f"{OVERRIDE}={value}", advice)
    reported = [device.arch for device in runtime.devices]
    words = f"true {', '.join(true)}; runtime reports {', '.join(reported) or 'nothing'}"
    words += f"; override to {override}" if override else "; no override"
    verdict, advice = Verdict.FINE, ""
    if override and any(arch != override for arch in true):
        verdict = Verdict.LIMITS
        advice = f"an override adds no kernels: unset {OVERRIDE}, except where ROCm has none for the card"
    elif reported and sorted(reported) != sorted(true):
        verdict = Verdict.LIMITS
        advice = f"PyTorch sees other cards than the kernel: see {', '.join(VISIBILITY)}"
    return Finding("architecture", verdict, words, advice)


def buffer_operations(true: Sequence[str], environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether Triton's stores reach memory on the visible cards."""
    if not NO_BUFFER_STORES.intersection(true):
        return
    value = environment.get(BUFFER_OPS)
    advice = "Triton's buffer stores write nothing on this card: unset it, 0 is then set"
    wrong = value not in (None, "", "0")
    yield Finding(
        "buffer operations",
        Verdict.LIMITS if wrong else Verdict.FINE,
        f"{BUFFER_OPS}={value}" if value else "switched off for the routes",
        advice if wrong else "",
    )


def vendor_library(
    true: Sequence[str], runtime: Runtime, environment: Mapping[str, str], covered: bool
) -> Iterator[Finding]:
    """MIOpen compiles for the true architecture; rocBLAS loads kernels of the one that is reported.

    Args:
        covered: whether some other route serves the convolutions.
    """
    if not runtime.hip:
        return
    override = override_name(environment.get(OVERRIDE, ""))
    for arch in dict.fromkeys(true):
        if arch in runtime.kernel_databases:
            yield Finding("MIOpen", Verdict.FINE, f"kernels for {arch}")
        else:
            verdict = Verdict.FINE if covered else Verdict.LIMITS
            advice = "convolutions go by this project's routes; MIOpen stays off"
            yield Finding("MIOpen", verdict, f"no kernels for {arch}", advice)
        asked = override or arch
        if asked in runtime.blas_databases:
            yield Finding("rocBLAS", Verdict.FINE, f"kernels for {asked}")
        else:
            advice = "matrix products fail: only the triton route is left"
            yield Finding("rocBLAS", Verdict.LIMITS, f"no kernels for {asked}", advice)
