"""Checks of a machine, and how bad what they find is."""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from patches.findings import Finding, Verdict
from toolkit.errors import ToolkitError, reason
from toolkit.machine import kernel
from toolkit.machine.kernel import Machine

GIB = 1 << 30

RUN_BYTES = 2 * GIB
"""Disk for a run's checkpoints and reports."""

SHARED = Path("/dev/shm")


def permissions(found: Machine) -> list[Finding]:
    """Whether this process may open the devices of the visible cards."""
    if not found.visible:
        return []
    refused = []
    for path in ("/dev/kfd", *(card.render_node for card in found.visible)):
        node = found.device(path)
        if node is None:
            advice = f"load the driver; in a container pass --device {path}"
            refused.append(Finding(path, Verdict.FAILS, "missing", advice))
        elif not found.may_use(path):
            name = found.surroundings.group_names.get(node.gid) or str(node.gid)
            words = f"mode {node.mode:04o}, group {name}"
            if node.gid and node.mode & 0o060 == 0o060:
                words += "; this process is not in that group"
                advice = (
                    f"sudo usermod -aG {name} $USER and log in again; in a container --group-add {node.gid}"
                )
            else:
                words += "; no group of users may use it"
                advice = 'on the host, a udev rule: KERNEL=="kfd|renderD*", GROUP="render", MODE="0660"'
            refused.append(Finding(path, Verdict.FAILS, words, advice))
    return refused or [Finding("devices", Verdict.FINE, "/dev/kfd and the render nodes can be opened")]


def closed_devices() -> list[Finding]:
    """Device files of this machine's AMD cards that this process may not open, or that are missing."""
    return [each for each in permissions(kernel.read()) if each.verdict is Verdict.FAILS]


def enough(subject: str, have: int, need: int, purpose: str, advice: str) -> Finding:
    """Whether there is as much of something, bytes, as is needed."""
    words = f"{_size(have)} free; {purpose}: {_size(need)}"
    if have >= need:
        return Finding(subject, Verdict.FINE, words)
    return Finding(subject, Verdict.LIMITS, words, advice)


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB // 10 or not count else f"{count / 2**20:.0f} MiB"


def writable(folder: Path) -> None:
    """Write into a folder and those in it, or into the one that it would be made in, and leave nothing.

    Raises:
        ToolkitError: that is not possible: another user's folder, a read-only file system, a full disk.
    """
    there = next((path for path in (folder, *folder.parents) if _exists(path)), Path("/"))
    inside = (there / name for name in ("weights", "checkpoints")) if there == folder else ()
    path = there
    try:
        with suppress(FileNotFoundError, NotADirectoryError):
            folder.lstat()  # a name that no file system takes
        for path in (there, *(each for each in inside if _exists(each))):
            with tempfile.TemporaryFile(dir=path):
                pass
    except OSError as error:
        owner = _owner(path)
        raise ToolkitError(
            f"cannot write in {path}",
            found=reason(error) + owner,
            expected="a folder that this user may write, with room",
            fix=f"sudo chown -R $(id -u) {path}"
            if owner
            else "work in another folder: TOOLKIT_WORKSPACE=DIR",
        ) from error


def free_bytes(folder: Path) -> int | None:
    """Free for this user where ``folder`` is; None where that cannot be told."""
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # in a folder that may not be entered
        return False


def _owner(folder: Path) -> str:
    """Whose folder it is, where it is not this user's."""
    try:
        owner = folder.stat().st_uid
    except OSError:
        return ""
    return "" if owner == os.geteuid() else f"; it belongs to user {owner}, this is user {os.geteuid()}"
