"""What the kernel says about this machine: cards, their true architecture, devices, groups, memory.

Nothing here asks the GPU runtime, whose answer ``HSA_OVERRIDE_GFX_VERSION`` changes. The sources are the
KFD topology (``/sys/class/kfd/kfd/topology/nodes/*``; the meaning of its fields is in the kernel's
``drivers/gpu/drm/amd/amdkfd/kfd_topology.c``) and the DRM nodes of amdgpu. A machine can be recorded into
a folder and examined elsewhere: :func:`record` copies the files that :func:`read` looks at.
"""

from __future__ import annotations

import os
import shutil
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import msgspec

from patches import variables
from patches.findings import BUFFER_OPS, OVERRIDE, VISIBILITY
from patches.runtime import Runtime
from toolkit import console
from toolkit.errors import ToolkitError, reason
from toolkit.files import replacing

SYSFS = Path("/sys")
RECORDED = "recorded.json"
"""The file of a recorded tree that holds what the kernel's files do not: :class:`Surroundings`."""

VARIABLES = (
    *VISIBILITY,
    OVERRIDE,
    BUFFER_OPS,
    "TRITON_CACHE_DIR",
    "MIOPEN_USER_DB_PATH",
    *variables.KERNELS,
    "TOOLKIT_PROFILE",
)
"""Environment variables that change what a GPU does."""

INTEGRATED = frozenset(
    {"gfx902", "gfx90c", "gfx1033", "gfx1035", "gfx1036", "gfx1103"}
    | {"gfx1150", "gfx1151", "gfx1152", "gfx1153"}
)
"""Architectures of processors with graphics (LLVM's AMDGPU processor table): they use the system's memory."""

_CARD_FILES = ("mem_info_vram_total", "mem_info_vram_used", "mem_info_gtt_total")
_PCI_FILES = ("vendor", "device")
_PROPERTIES = "class/kfd/kfd/topology/nodes/*/properties"


class DeviceNode(msgspec.Struct, frozen=True):
    """A device file: its path, permission bits and owner.

    Attributes:
        usable: whether this process may read and write it, lists of access rights included; None in
            recordings older than this field.
    """

    path: str
    mode: int
    uid: int
    gid: int
    usable: bool | None = None

    def allows(self, uid: int, groups: frozenset[int]) -> bool:
        """Whether this process, or what is the same one with this user and these groups, may use it."""
        if self.usable is not None:
            return self.usable
        if uid == 0:
            return True
        if uid == self.uid:
            return self.mode & 0o600 == 0o600
        if self.gid in groups:
            return self.mode & 0o060 == 0o060
        return self.mode & 0o006 == 0o006


class Surroundings(msgspec.Struct, frozen=True):
    """What is not in ``/sys``.

    Attributes:
        devices: ``/dev/kfd`` and what exists in ``/dev/dri``.
        uid, groups: of this process.
        group_names: names of the groups that own the devices, by number.
        environment: those of :data:`VARIABLES` that are set.
        cpus: processors that this process may use.
        memory_bytes, memory_free_bytes: RAM, within the limit of the container if there is one.
        shared_memory_bytes: free in ``/dev/shm``.
        dataset_bytes: of the dataset's files that are there already.
        disk_free_bytes: free where the dataset is or will be; None in recordings older than this field.
        kernel: release of the kernel.
        rocm: version of a ROCm installed under ``/opt/rocm``, or "".
        runtime: what PyTorch reported when the machine was recorded, or None.
    """

    devices: tuple[DeviceNode, ...] = ()
    uid: int = 1000
    groups: tuple[int, ...] = ()
    group_names: dict[int, str] = {}
    environment: dict[str, str] = {}
    cpus: int = 1
    memory_bytes: int = 0
    memory_free_bytes: int = 0
    shared_memory_bytes: int = 0
    disk_free_bytes: int | None = None
    dataset_bytes: int = 0
    kernel: str = ""
    rocm: str = ""
    runtime: Runtime | None = None


@dataclass(frozen=True)
class Card:
    """An AMD GPU as the kernel describes it.

    Attributes:
        node: number of its KFD topology node.
        arch: LLVM's name of its architecture ("gfx1010"), from ``gfx_target_version``.
        name: the kernel's name of the chip ("navi10"), or "".
        render_node: path of its DRM render node.
        memory_bytes: VRAM; for integrated graphics the larger of the carve-out and the GTT.
        memory_used_bytes: VRAM in use, 0 when unknown.
        compute_units: number of compute units.
        integrated: whether it is part of the processor.
        shared: whether its memory is the system's RAM: what is free of that is the RAM's to say.
        uuid: what the runtime calls it ("GPU-0123456789abcdef"), or "" where it has no number of its own.
    """

    node: int
    arch: str
    name: str
    render_node: str
    memory_bytes: int
    memory_used_bytes: int
    compute_units: int
    integrated: bool
    shared: bool
    uuid: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A card that amdgpu drives and KFD has no node for: no runtime can compute on it.

    Attributes:
        pci: vendor and device, "1002:731f"; "" when unknown.
        render_node: path of its DRM render node.
        memory_bytes: VRAM.
    """

    pci: str
    render_node: str
    memory_bytes: int


@dataclass(frozen=True)
class Machine:
    """What the kernel says of this machine.

    Attributes:
        cards: that KFD serves.
        hidden_nodes: numbers of KFD's nodes that this process may not read.
        driver: version of amdgpu.
        surroundings: what is not in ``/sys``.
        left_out: cards that KFD does not serve.
        kfd: whether this kernel has KFD at all.
    """

    cards: tuple[Card, ...]
    hidden_nodes: tuple[int, ...]
    driver: str
    surroundings: Surroundings
    left_out: tuple[LeftOut, ...] = ()
    kfd: bool = True

    @property
    def visible(self) -> tuple[Card, ...]:
        """The cards that the environment leaves to PyTorch, in PyTorch's order.

        ``ROCR_VISIBLE_DEVICES`` chooses among the cards, ``HIP_VISIBLE_DEVICES`` among what that leaves, and
        where it is not set ``CUDA_VISIBLE_DEVICES`` does. The first one hides every card when it is empty,
        the others none.
        """
        rocr, hip, cuda = (self.surroundings.environment.get(name) for name in VISIBILITY)
        return _choose(_choose(self.cards, rocr), hip or cuda or None)

    def may_use(self, path: str) -> bool:
        """Whether this process may open the device file ``path`` for reading and writing."""
        here = self.surroundings
        found = self.device(path)
        return found is not None and found.allows(here.uid, frozenset(here.groups))

    def device(self, path: str) -> DeviceNode | None:
        """The device file ``path``, or None when it does not exist."""
        return next((node for node in self.surroundings.devices if node.path == path), None)


def arch_name(version: int) -> str:
    """LLVM's name for a ``gfx_target_version``: 100100 is "gfx1010", 90010 is "gfx90a"."""
    major, minor, step = version // 10000, version // 100 % 100, version % 100
    return f"gfx{major}{minor:x}{step:x}"


def read(sysfs: Path = SYSFS, data: Path = Path()) -> Machine:
    """Examine this machine, or the one recorded in the folder ``sysfs``.

    Args:
        sysfs: a folder that :func:`record` wrote, or ``/sys``.
        data: folder of this machine whose disk will hold the dataset.

    Raises:
        ToolkitError: ``sysfs`` is no recorded machine, or it is damaged.
    """
    cards, hidden = [], []
    nodes = {int(path.parent.name): path for path in sysfs.glob(_PROPERTIES) if path.parent.name.isdecimal()}
    for node, path in sorted(nodes.items()):
        try:
            properties = _properties(path)
        except PermissionError:  # a device cgroup that does not include the card
            hidden.append(node)
            continue
        except (OSError, ValueError) as error:
            raise ToolkitError(f"cannot read {path}", reason(error), "a name and a number a line") from error
        if properties.get("simd_count", 0) and properties.get("gfx_target_version", 0):
            cards.append(_card(sysfs, path.parent, node, properties))
    surroundings = _surroundings(data) if sysfs == SYSFS else _recorded(sysfs / RECORDED)
    driver = _text(sysfs / "module/amdgpu/version") or (
        f"amdgpu of Linux {surroundings.kernel}" if (sysfs / "module/amdgpu").is_dir() else ""
    )
    # Of a node that cannot be read it is not known which card it is: none is called left out then.
    left_out = () if hidden else _left_out(sysfs, {card.render_node for card in cards})
    return Machine(tuple(cards), tuple(hidden), driver, surroundings, left_out, kfd=bool(nodes))


def record(folder: Path, runtime: Runtime, data: Path = Path()) -> None:
    """Copy what :func:`read` looks at on this machine into ``folder``, for ``--sysfs`` and for tests.

    Args:
        runtime: what PyTorch reports.
        data: as for :func:`read`.

    Raises:
        ToolkitError: the folder cannot be written.
    """
    patterns = (
        _PROPERTIES,
        "class/kfd/kfd/topology/nodes/*/name",
        *(f"class/drm/renderD*/device/{name}" for name in (*_CARD_FILES, *_PCI_FILES)),
        "module/amdgpu/version",
    )
    for pattern in patterns:
        for source in SYSFS.glob(pattern):
            try:
                content = source.read_bytes()
            except OSError as error:  # of a card that this process does not get, or that sleeps
                console.note(f"not recorded: {source} ({reason(error)})")
                continue
            with replacing(folder / source.relative_to(SYSFS)) as path:
                path.write_bytes(content)
    surroundings = msgspec.structs.replace(_surroundings(data), runtime=runtime)
    with replacing(folder / RECORDED) as path:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(surroundings), indent=2) + b"\n")


def _properties(path: Path) -> dict[str, int]:
    pairs = (line.split() for line in path.read_text().splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}


def _left_out(sysfs: Path, served: set[str]) -> tuple[LeftOut, ...]:
    """Cards with the files that amdgpu alone makes, whose render node is none of ``served``."""
    found = []
    for path in sorted(sysfs.glob(f"class/drm/renderD*/device/{_CARD_FILES[0]}")):
        render_node = f"/dev/dri/{path.parents[1].name}"
        if render_node not in served:
            pci = ":".join(_text(path.with_name(name)).removeprefix("0x") for name in _PCI_FILES)
            found.append(LeftOut(pci.strip(":"), render_node, _number(path)))
    return tuple(found)


def _card(sysfs: Path, folder: Path, node: int, properties: dict[str, int]) -> Card:
    arch = arch_name(properties["gfx_target_version"])
    render = f"renderD{properties.get('drm_render_minor', 0)}"
    total, used, gtt = (_number(sysfs / "class/drm" / render / "device" / n) for n in _CARD_FILES)
    integrated = arch in INTEGRATED
    shared = integrated and gtt > total
    return Card(
        node=node,
        arch=arch,
        name=_text(folder / "name"),
        render_node=f"/dev/dri/{render}",
        memory_bytes=gtt if shared else total,
        memory_used_bytes=0 if shared else used,
        compute_units=properties["simd_count"] // max(properties.get("simd_per_cu", 2), 1),
        integrated=integrated,
        shared=shared,
        uuid=f"GPU-{properties['unique_id']:016x}" if properties.get("unique_id") else "",
    )


def _choose(cards: tuple[Card, ...], value: str | None) -> tuple[Card, ...]:
    """The cards that a list names, by number or UUID.

    What is no card's, or is named again, ends the list, as in the runtime (``RvdFilter`` of ROCr).
    """
    if value is None:
        return cards
    chosen: list[Card] = []
    for token in value.split(","):
        names = {token.strip()} - {""}
        card = next((card for number, card in enumerate(cards) if names & {str(number), card.uuid}), None)
        if card is None and token.strip().startswith("GPU-") and not all(one.uuid for one in cards):
            return cards  # cannot be told
        if card is None or card in chosen:
            break
        chosen.append(card)
    return tuple(chosen)


def _recorded(path: Path) -> Surroundings:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Surroundings)
    except (OSError, ValueError) as error:
        raise ToolkitError(f"cannot read {path}", reason(error), "what --record wrote") from None


def _surroundings(data: Path) -> Surroundings:
    devices = tuple(
        DeviceNode(
            str(path),
            stat.S_IMODE(info.st_mode),
            info.st_uid,
            info.st_gid,
            os.access(path, os.R_OK | os.W_OK, effective_ids=True),
        )
        for path in (Path("/dev/kfd"), *sorted(Path("/dev/dri").glob("*[dD][0-9]*")))
        if path.exists()
        for info in (path.stat(),)
    )
    total, free = memory()
    return Surroundings(
        devices=devices,
        uid=os.geteuid(),
        groups=tuple(sorted({*os.getgroups(), os.getegid()})),
        group_names={node.gid: _group_name(node.gid) for node in devices},
        environment={name: os.environ[name] for name in VARIABLES if name in os.environ},
        cpus=len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1,
        memory_bytes=total,
        memory_free_bytes=free,
        shared_memory_bytes=shutil.disk_usage("/dev/shm").free if Path("/dev/shm").is_dir() else 0,
        disk_free_bytes=shutil.disk_usage(_existing(data)).free,
        dataset_bytes=sum(path.stat().st_size for path in data.glob("*") if path.is_file()),
        kernel=os.uname().release,
        rocm=_text(Path("/opt/rocm/.info/version")),
    )


def memory(cgroup: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """RAM in total and free for use, bytes, within the cgroup's limit when there is one.

    Files that the kernel keeps in memory and can drop at once count as free.
    """
    lines = Path("/proc/meminfo").read_text().splitlines()
    sizes = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    total, free = sizes["MemTotal"], sizes["MemAvailable"]
    for limit, used, droppable in (
        ("memory.max", "memory.current", "inactive_file"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "total_inactive_file"),
    ):
        most = _number(cgroup / limit)
        if 0 < most < total:
            stat_lines = _text((cgroup / limit).with_name("memory.stat")).splitlines()
            kept = next((int(line.split()[1]) for line in stat_lines if line.startswith(f"{droppable} ")), 0)
            total, free = most, min(free, most - _number(cgroup / used) + kept)
    return total, max(free, 0)


def killed_for_memory() -> int:
    """How many processes the kernel has killed because memory ran out, on the whole machine."""
    lines = _text(Path("/proc/vmstat")).splitlines()
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def nvidia_cards(proc: Path = Path("/proc/driver/nvidia/gpus")) -> tuple[str, ...]:
    """NVIDIA's cards by the names that the driver and PyTorch give them, without asking either."""
    names = []
    for path in sorted(proc.glob("*/information")):
        lines = (line.partition(":") for line in _text(path).splitlines())
        names += [value.strip() for name, _, value in lines if name.strip() == "Model"]
    return tuple(names)


def processor() -> str:
    """Model and widest vectors of the first processor, which decide how sums are rounded; "" if unknown."""
    pairs = (line.partition(":") for line in _text(Path("/proc/cpuinfo")).partition("\n\n")[0].splitlines())
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    flags = fields.get("flags", "").split()
    vectors = next((flag for flag in ("avx512f", "avx2", "avx") if flag in flags), "")
    return f"{fields.get('model name', '')} {vectors}".strip()


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.exists())


def _group_name(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:  # a container does not know the names of the host's groups
        return ""


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdecimal() else 0
