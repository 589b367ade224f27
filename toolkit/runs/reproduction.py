"""What a run was made with, and whether machine and code are the same here: ``environment.json``."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from patches import variables
from patches.runtime import installed, version_of
from toolkit import __version__, vocabulary
from toolkit.dataset import index
from toolkit.errors import ToolkitError, reason
from toolkit.machine import kernel
from toolkit.provenance import commit, sha256
from toolkit.runs.folder import Instructions, RunFiles, encode_json, write_json
from toolkit.runs.plan import TrainingPlan, describe
from toolkit.workspace import ENVIRONMENT, is_run

PACKAGES = ("torch", "torchvision", "ultralytics-opencv-headless", "numpy", "polars", "hotcoco")
"""Packages that compute, beside Triton, which has several names."""

VARIABLES = (
    *variables.KERNELS,
    "HSA_OVERRIDE_GFX_VERSION",
    "AMDGCN_USE_BUFFER_OPS",
    "ATEN_CPU_CAPABILITY",
    "ONEDNN_MAX_CPU_ISA",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_CBWR",
)
"""Environment variables that choose the kernels."""


UNCOMPARED = ("plan", "labels", "command", "digests", "versions", "variables", "resumed", "job", "begun")
"""Fields of :class:`Environment` that say when and how, or whose parts are compared one by one."""


class Environment(msgspec.Struct, frozen=True):
    """Everything that a run's weights depend on.

    Attributes:
        plan: of the run as it was begun, as JSON has it: it begins again from this.
        image: id of the container's image, "" outside a container.
        profile: of the image.
        commit: of the source, with "-dirty-" and a hash of what differs from it; "" when unknown.
        versions: of Python, this project and the packages that compute.
        cards: AMD GPUs by their true architecture, NVIDIA's by the driver's name for them.
        driver: of the kernel.
        data: SHA-256 of the dataset's index.
        cpu: model and widest vectors of the processor.
        model: SHA-256 of the file that training starts from, "" for an architecture of Ultralytics' own.
        seed: of the run.
        command: what was typed.
        labels: SHA-256 of images and boxes of the splits that train, wherever the frames are; "" in files
            older than this field.
        images: which of each split were used.
        digests: names under which registries serve the image; they say where to get it and are not compared.
        variables: those of :data:`VARIABLES` that are set.
        threads: of the trainer on the CPU; sums depend on it.
        resumed: what was different when the run was continued, a line each.
        job: the rendezvous id, where torchrun began the run.
        begun: seconds since 1970.
    """

    plan: dict[str, Any]
    image: str
    profile: str
    commit: str
    versions: dict[str, str]
    cards: tuple[str, ...]
    driver: str
    cpu: str
    data: str
    model: str
    seed: int
    command: tuple[str, ...]
    labels: str = ""
    images: str = "all images"
    digests: tuple[str, ...] = ()
    variables: dict[str, str] = {}
    threads: str = "1"
    resumed: tuple[str, ...] = ()
    job: str = ""
    begun: float = 0.0


def here(plan: TrainingPlan, opened: index.Opener = index.load) -> Environment:
    """What a run of this plan would be made with, if it started now.

    Args:
        plan: of the run.
        opened: gives the index of its data; a command that has it open already gives that.

    Raises:
        ToolkitError: the data is not prepared.
    """
    found, frames = kernel.read(), opened(plan.data)
    return Environment(
        plan=msgspec.json.decode(encode_json(plan)),
        image=os.environ.get("TOOLKIT_IMAGE", ""),
        profile=os.environ.get("TOOLKIT_PROFILE", ""),
        commit=commit(),
        versions={
            "python": platform.python_version(),
            "ltdv2-toolkit": __version__,
            "triton": version_of("triton"),
            **{name: installed(name) for name in PACKAGES},
        },
        cards=(*(card.arch for card in found.cards), *kernel.nvidia_cards()),
        driver=found.driver,
        cpu=kernel.processor(),
        data=sha256(frames.path),
        labels=labels(frames),
        model=sha256(Path(plan.model)) if Path(plan.model).is_file() else "",
        seed=plan.number("seed"),
        command=tuple(sys.argv[1:]),
        images=_images(plan),
        digests=tuple(os.environ.get("TOOLKIT_IMAGE_DIGESTS", "").split()),
        variables={name: os.environ[name] for name in VARIABLES if os.environ.get(name)},
        threads=os.environ.get("OMP_NUM_THREADS") or "1",
        job=os.environ.get("TORCHELASTIC_RUN_ID", ""),
        begun=time.time(),
    )


def _images(plan: TrainingPlan) -> str:
    """Which images are used, and how often, in words."""
    classes = vocabulary.of_data(plan.data).classes
    often = "" if plan.frequency.is_plain else f"; {plan.frequency.words(classes)}"
    often += f"; {plan.paste.words(classes)}" if plan.paste.chances else ""
    often += "" if plan.chooses else "; train and val are trained on"
    return describe(plan.subsets, plan.data) + often


def labels(frames: index.DatasetIndex) -> str:
    """SHA-256 of ids and boxes of the training and the validation split, in their order."""
    digest = hashlib.sha256()
    for name in ("train", "val"):
        if frames.manifest.images.get(name):
            split = frames.split(name)
            digest.update(split.image_ids.tobytes())
            digest.update(split.training.boxes.tobytes())
    return digest.hexdigest()


def write(environment: Environment, weights: Path) -> None:
    """Write ``environment.json`` into a run's folder of weights, made if it is missing."""
    write_json(weights / ENVIRONMENT.name, environment)


def write_resumed(environment: Environment, weights: Path) -> None:
    """Add to ``environment.json`` what is different now that the run is continued."""
    try:
        begun = read(weights)
    except ToolkitError:  # of an older version: the run can go on, though not begin again
        return
    if begun.model and not environment.model:  # the file is gone: the run goes on from its checkpoint
        environment = msgspec.structs.replace(environment, model=begun.model)
    lines = (f"continued with another {line}" for line in differences(begun, environment))
    resumed = tuple(dict.fromkeys((*begun.resumed, *lines)))
    if resumed != begun.resumed:
        write(msgspec.structs.replace(begun, resumed=resumed), weights)


def read(weights: Path) -> Environment:
    """Read ``environment.json`` of a run's folder of weights.

    Raises:
        ToolkitError: it is missing or damaged.
    """
    path = weights / ENVIRONMENT.name
    try:
        return msgspec.json.decode(path.read_bytes(), type=Environment)
    except (OSError, ValueError) as error:
        expected = "what `toolkit train` wrote beside the weights"
        raise ToolkitError(f"cannot read {path}", reason(error), expected) from error


def differences(then: Environment, now: Environment) -> list[str]:
    """What is not as it was, a line each; what was typed and where an image is served do not count."""
    before, after = _flat(then), _flat(now)
    return [
        f"{name}: then {before.get(name) or 'none'}, now {after.get(name) or 'none'}"
        for name in dict.fromkeys((*before, *after))
        if before.get(name) != after.get(name)
    ]


def _flat(environment: Environment) -> Mapping[str, str]:
    fields = msgspec.structs.asdict(environment)
    for name in UNCOMPARED:
        del fields[name]
    fields["cards"] = ", ".join(environment.cards)
    plan = environment.plan
    fields |= {"device": plan["device"], "patches": plan["patches"], **plan["arguments"]}
    plain = {name: str(value) for name, value in fields.items()}
    return {**plain, **environment.versions, **environment.variables}


def record(plan: TrainingPlan, opened: index.Opener = index.load) -> None:
    """Make the folder of the run, with what it is started with in it; for ``opened`` see :func:`here`."""
    files = RunFiles(plan.run)
    if is_run(plan.run):
        write_resumed(here(plan, opened), files.best.parent)
    else:
        write(here(plan, opened), files.best.parent)
    write_json(files.plan, plan)
    if not files.instructions.exists():
        write_json(files.instructions, Instructions())
