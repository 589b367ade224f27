"""What a training asks of the machine: looked at before it starts, and again when its trainer dies."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import msgspec

from patches.findings import Finding, Verdict
from patches.runtime import built_for_nvidia
from toolkit.dataset.loader import loader_bytes
from toolkit.errors import ToolkitError
from toolkit.machine import checks
from toolkit.machine.checks import SHARED


class Needs(msgspec.Struct, frozen=True):
    """What a training asks of the machine.

    Attributes:
        run: folder that it writes.
        device: "cpu", or numbers of GPUs.
        batch, workers, imgsz, channels: as :func:`loader_bytes` takes them.
    """

    run: Path
    device: str
    batch: int
    workers: int
    imgsz: int
    channels: int = 1

    @property
    def loading(self) -> tuple[int, int, int, int]:
        """What :func:`loader_bytes` takes."""
        return self.batch, self.workers, self.imgsz, self.channels


def refuse_at_start(needs: Needs) -> None:
    """Stop what could not train, before anything starts.

    Raises:
        ToolkitError: the folder cannot be written, the devices cannot be opened, or shared memory does not
            hold the first batches.
    """
    checks.writable(needs.run)
    for finding in _devices(needs):
        raise ToolkitError(f"{finding.subject} cannot be used", found=finding.found, fix=finding.advice)
    free = checks.free_bytes(SHARED)
    if free is not None and free < loader_bytes(*needs.loading, validating=False):
        finding = shared_memory(free, *needs.loading)
        raise ToolkitError("shared memory is too small to train", found=finding.found, fix=finding.advice)


def after_a_death(needs: Needs) -> list[Finding]:
    """What is wrong with the machine now that a trainer has died: each may be why, whatever the data are."""
    found = list(_devices(needs))
    free = checks.free_bytes(SHARED)
    if free is not None and needs.workers:
        found.append(shared_memory(free, *needs.loading))
    try:
        checks.writable(needs.run)
    except ToolkitError as error:
        found.append(Finding("runs", Verdict.FAILS, error.found, error.fix))
    return [finding for finding in found if finding.verdict is not Verdict.FINE]


def shared_memory(free: int, batch: int, workers: int, imgsz: int, channels: int = 1) -> Finding:
    """Whether ``/dev/shm`` holds what the loader's workers put there."""
    return checks.enough(
        "shared memory",
        free,
        loader_bytes(batch, workers, imgsz, channels),
        f"{workers} loader workers with batches of {batch} at {imgsz} px"
        + (f" and {channels} channels" if channels > 1 else ""),
        "give the container --shm-size 2g or --ipc host, or train with --workers 0",
    )


def _devices(needs: Needs) -> Iterator[Finding]:
    if needs.device != "cpu" and not built_for_nvidia():
        yield from checks.closed_devices()
