"""What convolutions on this machine's card can and cannot do: every route in every dtype, by self-test.

:func:`diagnose` is a function of what was found; :func:`examine` finds it, in child processes alone. Nothing
here imports torch.
"""

from __future__ import annotations

import json
import os
import platform
import re
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from . import __version__, cache, findings, install, runtime, startup, variables
from .convolution import selftest
from .convolution.registry import NAMES, OWN, serving
from .environment import KFD_NODES, amd_architectures
from .findings import Finding, Verdict
from .runtime import Runtime

SWITCHES = (
    *findings.VISIBILITY,
    findings.OVERRIDE,
    findings.BUFFER_OPS,
    "TRITON_CACHE_DIR",
    "MIOPEN_USER_DB_PATH",
    startup.VARIABLE,
    startup.DEVICE_VARIABLE,
    *variables.KERNELS,
)
"""Environment variables that change what a card does."""


@dataclass(frozen=True)
class Tried:
    """One route in one dtype: "passed", "failed", or "not meant" for it."""

    route: str
    dtype: str
    outcome: str
    reason: str
    seconds: float


@dataclass(frozen=True)
class Diagnosis:
    """Everything that the doctor says.

    Attributes:
        version: of this package.
        verdict: the worst of the findings.
        cards: architectures of AMD's cards, by the kernel driver.
        system: the operating system, its release, and the card's driver.
        device: what the routes were tried on, "cuda" or "cpu".
        switches: the variables of :data:`SWITCHES` that are set.
        install: the command that installs a PyTorch for the card; "" where none is needed or known.
    """

    version: str
    verdict: Verdict
    cards: tuple[str, ...]
    system: str
    device: str
    runtime: Runtime
    switches: dict[str, str]
    tried: tuple[Tried, ...]
    findings: tuple[Finding, ...]
    install: str

    def as_json(self) -> str:
        """The fields by name, for a program."""
        return json.dumps({**asdict(self), "verdict": self.verdict.words}, indent=1)

    def __str__(self) -> str:
        rows = [(each.subject, each.verdict.words, each.found) for each in self.findings]
        widths = [max(len(row[n]) for row in rows) for n in (0, 1)]
        lines = []
        for (subject, verdict, found), each in zip(rows, self.findings, strict=True):
            lines.append(f"{subject:<{widths[0]}}  {verdict:<{widths[1]}}  {found}")
            if each.advice:
                lines.append(f"{'':<{widths[0]}}  {'':<{widths[1]}}  -> {each.advice}")
        return "\n".join([*lines, f"verdict: {self.verdict.words}"])


def examine(
    dtypes: Sequence[str] = selftest.DTYPES, timeout: float = selftest.TIMEOUT, nodes: Path = KFD_NODES
) -> Diagnosis:
    """Examine this machine.

    Args:
        dtypes: which to try; names of :data:`selftest.DTYPES`.
        timeout: seconds that each child process may take.
        nodes: the kernel driver's topology.
    """
    cards, nvidia = amd_architectures(nodes), install.has_nvidia()
    found = runtime.ask(timeout)
    if not cards and found.hip:  # Windows, where no kernel driver speaks
        cards = [each.arch for each in found.devices]
    switches = {name: os.environ[name] for name in SWITCHES if name in os.environ}
    copies = startup.other_versions()
    device = "cuda" if found.devices else "cpu"
    tried = () if found.error else tuple(_try_all(found, device, dtypes, timeout))
    return diagnose(cards, nvidia, found, switches, tried, copies, cache.size(cache.cache_folder()))


def _try_all(found: Runtime, device: str, dtypes: Sequence[str], timeout: float) -> Iterator[Tried]:
    """All routes of one dtype at once: each test is a process that mostly waits."""
    names = serving(device, found)
    for dtype in dtypes:
        with ThreadPoolExecutor(len(names)) as pool:
            for result in pool.map(lambda name: selftest.run(name, device, dtype, timeout), names):  # noqa: B023 - awaited inside
                outcome = "passed" if result.passed else "failed"
                if result.reason == selftest.NOT_MEANT:
                    outcome = "not meant"
                yield Tried(result.route, dtype, outcome, result.reason, round(result.seconds, 1))


def diagnose(
    cards: Sequence[str],
    nvidia: bool,
    found: Runtime,
    switches: Mapping[str, str],
    tried: Sequence[Tried],
    copies: Sequence[tuple[Path, str]] = (),
    kept: int = 0,
) -> Diagnosis:
    """Draw the conclusions from what was found.

    Args:
        copies: folders of other versions of this package that are on the path, and their versions.
        kept: bytes in the cache folder.
    """
    covered = any(each.outcome == "passed" and each.route not in OWN for each in tried)
    line = _install_line(cards, nvidia, found)
    said = [
        *_card(cards, nvidia, found),
        *([findings.architecture(cards, found, switches)] if cards else []),
        _torch(found, line),
        *findings.packages(found, bool(cards or found.devices)),
        *findings.buffer_operations(cards, switches),
        *findings.vendor_library(cards, found, switches, covered),
        *_switches(switches),
        *_copies(copies),
        *_kept(kept),
        *_routes(tried, line),
    ]
    return Diagnosis(
        __version__,
        max(each.verdict for each in said),
        tuple(cards),
        _system(),
        "cuda" if found.devices else "cpu",
        found,
        dict(switches),
        tuple(tried),
        tuple(said),
        line,
    )


def _card(cards: Sequence[str], nvidia: bool, found: Runtime) -> Iterator[Finding]:
    names = ", ".join(f"{device.name} ({device.arch})" for device in found.devices)
    if names:
        yield Finding("card", Verdict.FINE, names)
    elif cards or nvidia:
        yield Finding("card", Verdict.LIMITS, ", ".join(cards) or "NVIDIA", "PyTorch sees no GPU: see torch")
    else:
        yield Finding("card", Verdict.LIMITS, "no GPU that this system's drivers name")


def _install_line(cards: Sequence[str], nvidia: bool, found: Runtime) -> str:
    """How to install PyTorch, where none is there or one for other cards."""
    if found.error.startswith(runtime.NO_ANSWER):  # nothing is known of the one that is there
        return ""
    missing = not found.torch
    other = (bool(cards) and not found.hip) or (nvidia and not cards and not found.cuda)
    unserved = bool(cards) and bool(found.blas_databases) and not set(cards) & set(found.blas_databases)
    return install.command(cards, nvidia) if missing or other or unserved else ""


def _torch(found: Runtime, line: str) -> Finding:
    if found.error.startswith(runtime.NO_ANSWER):
        advice = "a driver that hangs, or a slow disk: try a longer --timeout"
        return Finding("torch", Verdict.FAILS, found.error, advice)
    if found.error or not found.torch:
        return Finding("torch", Verdict.FAILS, found.error or "missing", line)
    words = f"{found.torch} built for {findings.built_for(found)}"
    return Finding("torch", Verdict.LIMITS if line else Verdict.FINE, words, line)


def _switches(switches: Mapping[str, str]) -> Iterator[Finding]:
    """A row a variable; what a program would refuse is said here too."""
    choices: dict[str, Sequence[str]] = {
        startup.VARIABLE: (*NAMES, *startup.ON, *startup.OFF),
        startup.DEVICE_VARIABLE: ("cuda", "cpu"),
        **dict.fromkeys(variables.ROUTE, ("auto", *NAMES)),
        **dict.fromkeys(variables.NORMALIZATION, variables.NORMALIZATIONS),
        variables.VENDOR.name: variables.VENDORS,
        variables.GRAPH.name: variables.GRAPHS,
        variables.RECOMPUTE.name: variables.RECOMPUTES,
    }
    for name, value in switches.items():
        expected = [each for each in choices.get(name, ()) if each]
        word = value.partition(":")[0] if name == startup.DEVICE_VARIABLE else value
        of_any_case = name == startup.VARIABLE and value.lower() in (*startup.ON, *startup.OFF)
        known = not expected or not value or word in expected or of_any_case
        verdict = Verdict.FINE if known else Verdict.LIMITS
        yield Finding(
            "switch", verdict, f"{name}={value}", "" if known else f"expected one of {', '.join(expected)}"
        )


def _copies(copies: Sequence[tuple[Path, str]]) -> Iterator[Finding]:
    for folder, version in copies:
        words = f"{__version__} in {startup.HOME}; {version} is on the path too, in {folder}"
        yield Finding("versions", Verdict.LIMITS, words, "the first serves: remove one of them")


def _kept(kept: int) -> Iterator[Finding]:
    if kept:
        words = f"{kept / 1e6:,.1f} MB in {cache.cache_folder()}, which may be deleted"
        yield Finding("cache", Verdict.FINE, words)


def _routes(tried: Sequence[Tried], line: str) -> Iterator[Finding]:
    """A row a route; a card that no route serves in fp32 will not work."""
    for name in dict.fromkeys(each.route for each in tried):
        of = [each for each in tried if each.route == name]
        words = [f"{each.dtype} {each.outcome} ({each.seconds:.0f} s)" for each in of]
        failed = [f"{each.dtype}: {each.reason}" for each in of if each.outcome == "failed"]
        verdict = Verdict.LIMITS if failed else Verdict.FINE
        yield Finding(f"route {name}", verdict, ", ".join(words), "; ".join(failed))
    fp32 = [each.outcome for each in tried if each.dtype == "float32"]
    if fp32 and "passed" not in fp32:
        advice = line or "use another build of PyTorch, or the CPU"
        yield Finding("convolutions", Verdict.FAILS, "no route computes in float32 on this card", advice)


def _system() -> str:
    """The system and the numbers of its release: what follows them may be somebody's own words."""
    numbers = re.match(r"[0-9.]*[0-9]", platform.release())
    parts = [platform.system(), numbers.group() if numbers else "", platform.machine()]
    for module in ("amdgpu", "nvidia"):
        with suppress(OSError):
            parts.append(f"{module} {Path('/sys/module', module, 'version').read_text().strip()}")
    return " ".join(filter(None, parts))


def shareable(diagnosis: Diagnosis) -> str:
    """The diagnosis as JSON without what belongs to a person: paths, and names of users and machines."""
    content = json.loads(diagnosis.as_json())
    return json.dumps(_scrubbed(content, _private_names(), _private_folders()), indent=1)


def _private_names() -> set[str]:
    names = {os.environ.get(name, "") for name in ("USER", "LOGNAME", "USERNAME", "HOSTNAME", "COMPUTERNAME")}
    with suppress(RuntimeError):
        names.add(Path.home().name)
    names |= {socket.gethostname(), socket.gethostname().partition(".")[0]}
    return {name for name in names if len(name) > 1 and name.lower() not in ("root", "localhost")}


def _private_folders() -> set[str]:
    """Folders whose names may hold spaces, at which :data:`_PATH` would end."""
    found = {tempfile.gettempdir(), sys.prefix, *sys.path}
    for where in (Path.cwd, Path.home):
        with suppress(OSError, RuntimeError):
            found.add(str(where()))
    return {each for each in found if len(each) > 1 and Path(each).is_absolute()}


_PATH = re.compile(
    "|".join(re.escape(address) for address in (install.AMD_INDEX, install.CPU_INDEX))
    + r"""|(?<![\w<.])(?:[A-Za-z]:[\\/]|~?/|\\\\)[^\s"',;:()\[\]]+"""
)
"""An index of packages, which stays, or a path."""


def _scrubbed(value: Any, names: set[str], folders: set[str]) -> Any:
    """A value of JSON, with the private parts of its texts replaced; the keys are this package's own."""
    if isinstance(value, dict):
        return {key: _scrubbed(each, names, folders) for key, each in value.items()}
    if isinstance(value, list):
        return [_scrubbed(each, names, folders) for each in value]
    if not isinstance(value, str):
        return value
    for folder in sorted(folders, key=len, reverse=True):
        value = value.replace(folder, "/<folder>")
    value = _PATH.sub(lambda found: found[0] if found[0].startswith("https:") else "<path>", value)
    for name in sorted(names, key=len, reverse=True):
        value = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", "<name>", value, flags=re.IGNORECASE)
    return value
