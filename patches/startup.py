"""Switching the routes on in a program that nobody edits, by one environment variable.

PyTorch 2.5 and newer call :func:`autoload` at the end of ``import torch``, through the entry point of the
group ``torch.backends`` that the wheel declares. Under an older PyTorch a line of the wheel's ``.pth`` file
calls :func:`watch` when Python starts. Without the variable neither does anything. Importing this module
imports no torch.
"""

from __future__ import annotations

import atexit
import importlib.abc
import importlib.machinery
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType

VARIABLE = "CONVROUTES"
"""Names the route, as in a flag; "1" and "on" mean "auto"; nothing, "0" and "off" leave PyTorch as it is.

A program's children inherit it: ranks, loader workers, what ``subprocess`` starts are served too."""

DEVICE_VARIABLE = "CONVROUTES_DEVICE"
"""The device, "cuda" or "cpu"; unset: see :func:`default_device`."""

HOME = Path(__file__).resolve().parent
"""The folder of this copy."""

REPORT_VARIABLE = "CONVROUTES_REPORT"
"""If it is set, a process that made convolutions ends with its report on standard error."""

ON = ("1", "on", "auto")
"""Values that mean the route "auto", in any case of letters."""

OFF = ("", "0", "off")
"""Values that leave PyTorch as it is."""

_NAME = __name__.partition(".")[0]
_OWNER = "_convolutions_routed_by"
_KFD = Path("/dev/kfd")


def wanted() -> str | None:
    """The route that the environment asks for; None when it asks for none."""
    value = os.environ.get(VARIABLE, "").strip()
    if value.lower() in OFF:
        return None
    return "auto" if value.lower() in ON else value


def default_device() -> str:
    """ "cuda" where this PyTorch was built for a GPU and the machine has one, else "cpu"; initialises no GPU.

    Under ROCm the kernel driver is asked, because the runtime, once asked, cannot be forked from.
    """
    import torch

    if torch.version.hip is not None:
        return "cuda" if _KFD.exists() or sys.platform == "win32" else "cpu"
    return "cuda" if torch.version.cuda is not None and torch.cuda.device_count() else "cpu"


def autoload() -> None:
    """Enable the route that the environment names; does nothing without the variable, and never raises.

    A program that was not written for this must not die of it: what prevents the start is said in one line.
    """
    route = wanted()
    if route is None:
        return
    import torch

    owner = switched_on_by()
    if owner:
        if owner != __file__:
            _say(f"not switched on a second time: {owner} has done it, and {__file__} is on the path too")
        return
    from . import __version__, enable

    device = os.environ.get(DEVICE_VARIABLE) or None
    notes = logging.getLogger(_NAME)
    notes.addHandler(_SPEAKER)
    try:
        enable(device, route)
    except ValueError as error:
        notes.removeHandler(_SPEAKER)
        _say(f"not switched on: {VARIABLE}={os.environ[VARIABLE]}: {error}")
        return
    setattr(torch, _OWNER, __file__)
    for folder, version in other_versions():
        _say(f"two versions are on the path: {__version__} in {HOME} serves, {version} in {folder} does not")
    if device and device.startswith("cuda") and default_device() == "cpu":
        _say(f"{DEVICE_VARIABLE}={device}: found no GPU that this PyTorch can use; nothing will be served")
    _after_import("ultralytics.data.build", _mend_ultralytics)
    if os.environ.get(REPORT_VARIABLE):
        atexit.register(_print_report)


def switched_on_by() -> str:
    """The file of the copy of this package that :func:`autoload` switched on; "" where none is."""
    return getattr(sys.modules.get("torch"), _OWNER, "")


def other_versions() -> list[tuple[Path, str]]:
    """Folders on the path that hold another version of this package, which is not the one that serves."""
    from . import __version__

    found = {}
    for entry in sys.path:
        home = Path(entry) / _NAME
        with suppress(OSError):
            version = re.search(r'^__version__ = "(.+)"', (home / "__init__.py").read_text(), re.MULTILINE)
            if version is not None and (home / Path(__file__).name).is_file():
                found[home.resolve()] = version[1]
    return [(home, version) for home, version in found.items() if home != HOME and version != __version__]


def loads_backends(torch_version: str) -> bool:
    """Whether a PyTorch calls the entry points of ``torch.backends`` when it is imported."""
    return tuple(int(part) for part in torch_version.split(".")[:2]) >= (2, 5)


def watch() -> None:
    """Call :func:`autoload` once torch has been imported, if that torch does not do so itself."""
    waits = any(isinstance(each, _Watcher) and each.name == "torch" for each in sys.meta_path)
    if wanted() is not None and "torch" not in sys.modules and not waits:  # .pth files may be read twice
        _after_import("torch", _autoload_under_older_torch)


def _autoload_under_older_torch() -> None:
    import torch

    if not loads_backends(torch.__version__):
        autoload()


def _mend_ultralytics() -> None:
    from . import ultralytics

    ultralytics.apply()


def _print_report() -> None:
    from . import report

    done = report()
    if done.calls:
        _say(f"process {os.getpid()}\n{done}")


def _say(message: str) -> None:
    with suppress(OSError):
        sys.stderr.write(f"{_NAME}: {message}\n")


class _Speaker(logging.Handler):
    """Says who speaks, in a program that has set up no logging: Python's last resort prints bare words."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a note, unless the program's own handlers do."""
        if not logging.getLogger().handlers:
            _say(record.getMessage())


_SPEAKER = _Speaker(logging.WARNING)


def _after_import(name: str, call: Callable[[], None]) -> None:
    """Call ``call`` when the module ``name`` has been imported; at once if it has been."""
    if name in sys.modules:
        call()
    else:
        sys.meta_path.insert(0, _Watcher(name, call))


class _Watcher(importlib.abc.MetaPathFinder):
    """Finds nothing itself: it lets the others find one module, and wraps its loader."""

    def __init__(self, name: str, call: Callable[[], None]) -> None:
        self.name, self.call = name, call

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's spec with a loader that calls back; None for every other module."""
        if name != self.name:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _CallsBack(spec.loader, self.call)
        return spec


class _CallsBack(importlib.abc.Loader):
    """Calls back once its module has run; in everything else it is the loader that it wraps."""

    def __init__(self, loader: importlib.abc.Loader, call: Callable[[], None]) -> None:
        self._loader, self._call = loader, call

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """The wrapped loader's module."""
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        """Run the module with its own loader in place, then call back."""
        if module.__spec__ is not None:
            module.__spec__.loader = self._loader
        module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._call()

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)
