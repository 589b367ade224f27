"""What is remembered of a card: verdicts of self-tests, what routes cost, and who serves.

A JSON file for each combination of card, driver, torch, packages and version of the routes, in the user's
cache folder. What a want of memory decided is known to its process alone. Processes share the file: a writer
takes a lock, merges with what others wrote, and replaces the file in one step.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .. import locks, variables
from ..cache import cache_folder, trim
from ..environment import amd_architectures
from ..runtime import version_of
from .registry import PACKAGES
from .selftest import SelfTestResult

DAYS, LIMIT = 365, 100_000_000
"""A new plan: what nothing used in so many days goes, and the oldest beyond so many bytes."""


@dataclass(frozen=True)
class Card:
    """What a measurement depends on, beside the problem.

    Attributes:
        architecture: name and true architecture, whatever an override says ("gfx1010").
        driver: version of the kernel driver, or of the kernel that brings it.
        torch: its version.
        packages: versions of what routes import beside it (:data:`PACKAGES`), where that is installed.
    """

    architecture: str
    driver: str
    torch: str
    packages: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def here(cls, device: str) -> Card:
        """The card that PyTorch uses now; initialises CUDA for a CUDA device."""
        import torch

        if device == "cpu":
            architecture = platform.processor() or platform.machine()
        else:
            name = torch.cuda.get_device_name()
            kinds = amd_architectures() if torch.version.hip else []
            kind = "-".join(sorted(set(kinds))) or "sm_{}{}".format(*torch.cuda.get_device_capability())
            architecture = f"{name} {kind}"
        packages = {name: version for name in PACKAGES if (version := version_of(name))}
        return cls(architecture, _driver(), torch.__version__, packages)

    @classmethod
    def read(cls, content: Mapping[str, str]) -> Card:
        """What :meth:`written` made; a package that it does not name was not installed."""
        versions = {name: version for name, version in content.items() if version}
        architecture, driver = versions.pop("architecture"), versions.pop("driver")
        return cls(architecture, driver, versions.pop("torch"), versions)

    def written(self) -> dict[str, str]:
        """As it stands in a file: a package beside torch by its name, "" where it is not installed."""
        named = {"architecture": self.architecture, "driver": self.driver, "torch": self.torch}
        return {**named, **dict.fromkeys(PACKAGES, ""), **self.packages}

    def path(self) -> Path:
        """Where the plan of this card is kept; ``CONVROUTES_PLAN`` names another file or folder."""
        place, is_folder = _place()
        if not is_folder:
            return place
        digest = hashlib.sha256(json.dumps([self.written(), version()]).encode()).hexdigest()[:12]
        return place / f"{digest}.json"


def _place() -> tuple[Path, bool]:
    """The folder for plans, or the only plan; and whether it is the folder."""
    setting = variables.PLAN.read()
    named = setting and setting.value
    # Path.is_dir raises where one may not look.
    return Path(named or _own_folder()), not named or os.path.isdir(named)  # noqa: PTH112


def is_known(test: str) -> bool:
    """Whether a plan of these kernels, of whatever card, has a verdict on a self-test ("triton float16").

    Asks no card and imports no torch.
    """
    place, is_folder = _place()
    for path in place.glob("*.json") if is_folder else (place,):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            content = json.loads(path.read_text())
            if content["version"] == version() and test in content["self_tests"]:
                return True
    return False


def _own_folder() -> Path:
    """Where plans are kept unless ``CONVROUTES_PLAN`` says otherwise, one for each version of everything."""
    return cache_folder() / "convolution"


@functools.cache
def version() -> str:
    """What the code of the routes is known by: a file holds for the kernels that it tested and measured."""
    digest = hashlib.sha256()
    here = Path(__file__).parent
    for folder in (here, here.parent / "normalization"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def _driver() -> str:
    for module in ("nvidia", "amdgpu"):
        with contextlib.suppress(OSError):
            return f"{module} {Path('/sys/module', module, 'version').read_text().strip()}"
    return f"kernel {platform.release()}"


@dataclass(frozen=True)
class Choice:
    """The route that serves a problem, and what forward + backward cost by every route measured.

    Attributes:
        seconds: medians.
        extra_bytes: most memory held at a time, results included; 0 on a CPU.
        family: the problem without what neighbours differ in, batch and image size.
        pixels: in all images.
        transient: whether a route was left out for want of memory.
    """

    route: str
    seconds: dict[str, float]
    extra_bytes: dict[str, int]
    family: str
    pixels: int
    transient: bool = False


class PlanFile:
    """The remembered choices and verdicts of one card. Transient ones are not written.

    Args:
        path: the file; it need not exist.
        card: what the file must have been written for.
        note: told about a file that is ignored, and about one that cannot be written.
    """

    def __init__(self, path: Path, card: Card, note: Callable[[str], None]) -> None:
        self.path, self.card, self._note = path, card, note
        self.choices: dict[str, Choice] = {}
        self.verdicts: dict[str, SelfTestResult] = {}
        self.steps: dict[str, str] = {}
        self._foreign = False
        self._read_at: tuple[int, int, int] | None = None
        self._read()

    def refresh(self) -> None:
        """Take in what other processes have written since."""
        if not self._foreign and self._stamp() != self._read_at:
            self._read()

    def remember(
        self,
        choices: Mapping[str, Choice],
        verdicts: Mapping[str, SelfTestResult],
        steps: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """Add to the plan and to its file; a file that cannot be written is a note, not an error.

        Args:
            choices: by problem; verdicts: by self-test.
            steps: by training step (see ``settling``), the way that served it best.
        """
        self.choices.update(choices)
        self.verdicts.update(verdicts)
        self.steps.update(steps)
        try:
            if not self.path.exists() and self.path.parent == _own_folder():
                trim(self.path.parent, DAYS, LIMIT)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("a") as lock:
                locks.hold(lock)
                self.refresh()
                if self._foreign:
                    return
                self.choices.update(choices)
                self.verdicts.update(verdicts)
                self.steps.update(steps)
                self._replace()
                self._read_at = self._stamp()
        except OSError as error:
            self._note(f"cannot write the convolution plan {self.path}: {error.strerror or error}")

    @contextlib.contextmanager
    def testing(self) -> Iterator[None]:
        """Inside, no other process that shares the file tests a route: they wait for what is found here.

        Several tests on one card at once slow each other down, towards the time limit.
        """
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(OSError):
                self.path.parent.mkdir(parents=True, exist_ok=True)
                lock = stack.enter_context(self.path.with_suffix(".testing").open("a"))
                locks.hold(lock)
            self.refresh()
            yield

    def _replace(self) -> None:
        content = {
            "version": version(),
            "card": self.card.written(),
            "self_tests": {name: asdict(each) for name, each in self.verdicts.items() if not each.transient},
            "problems": {name: asdict(each) for name, each in self.choices.items() if not each.transient},
            "steps": self.steps,
        }
        handle, temporary = tempfile.mkstemp(dir=self.path.parent, prefix=f".{self.path.name}.")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(content, file, indent=1)
                file.flush()
                os.fsync(file.fileno())
            Path(temporary).replace(self.path)
        except BaseException:
            Path(temporary).unlink()
            raise

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size

    def _read(self) -> None:
        self._read_at = self._stamp()
        try:
            content = json.loads(self.path.read_text())
            card = Card.read(content["card"])
            if card != self.card:
                self._foreign = True
                self._note(
                    f"the convolution plan {self.path} is of another card ({card}): it is neither used nor "
                    f"written; name another file in {variables.PLAN.name}, or delete this one"
                )
                return
            if content.get("version") != version():
                self._note(f"the convolution plan {self.path} is of other kernels: all is measured anew")
                return
            choices = {name: _choice(value) for name, value in content["problems"].items()}
            verdicts = {name: _verdict(value) for name, value in content["self_tests"].items()}
            steps = {str(name): str(way) for name, way in content.get("steps", {}).items()}
        except FileNotFoundError:
            return
        except Exception as error:
            self._note(f"the convolution plan {self.path} is damaged ({error}) and is ignored")
            return
        self.choices = {**self.choices, **choices}
        self.verdicts = {**self.verdicts, **verdicts}
        self.steps = {**self.steps, **steps}


def _choice(value: Any) -> Choice:
    seconds = {str(name): float(number) for name, number in value["seconds"].items()}
    extra_bytes = {str(name): int(number) for name, number in value["extra_bytes"].items()}
    pixels = int(value["pixels"])
    if not 1 <= pixels < 2**63:
        raise ValueError(f"{pixels} pixels")
    return Choice(str(value["route"]), seconds, extra_bytes, str(value["family"]), pixels)


def _verdict(value: Any) -> SelfTestResult:
    passed = value["passed"]
    if not isinstance(passed, bool):
        raise TypeError(f"passed is {passed!r}")
    phases = {str(what): float(seconds) for what, seconds in value.get("phases", {}).items()}
    route, reason, seconds = str(value["route"]), str(value["reason"]), float(value["seconds"])
    return SelfTestResult(route, passed, reason, seconds, phases=phases)
