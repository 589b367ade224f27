"""The Triton route without a graphics card: its arithmetic by interpretation, its decisions on tensors
without data.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels import amd_architectures, prepare, route, tiles

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Python in a process of its own, with this checkout first on its path."""
    settings = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], env=settings, cwd=ROOT, capture_output=True, text=True, timeout=560
    )


@pytest.mark.slow
def test_the_kernels_agree_with_float64_under_the_interpreter() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    file = str(HERE / "interpreted_triton.py")
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", file, TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


def test_without_triton_nothing_is_supported_and_nothing_breaks() -> None:
    script = """
import importlib.util, sys
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "triton" else find(name, *rest)
sys.modules["triton"] = None
import torch
from patches.convolution.problem import ConvProblem
from patches.convolution.triton_kernels import TritonRoute
p = ConvProblem(1, 1, 8, 8, 1, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, torch.float32, "cuda", False)
print(TritonRoute().supports(p))
"""
    assert run("-c", script).stdout == "False\n"


def test_without_triton_the_check_for_amd_says_so_in_one_line() -> None:
    script = """
import runpy, sys
sys.modules["triton"] = None
sys.argv = ["check_amd_isa.py"]
runpy.run_path("scripts/check_amd_isa.py", run_name="__main__")
"""
    done = run("-c", script)
    assert done.returncode == 2
    assert done.stderr == "check_amd_isa: found no Triton, expected 3.6 or later: pip install triton\n"


def test_importing_the_route_imports_no_triton() -> None:
    script = "import sys, patches.convolution.triton_kernels; print('triton' in sys.modules)"
    assert run("-c", script).stdout == "False\n"


def kernel_driver(folder: Path, *versions: int) -> Path:
    """A topology as the kernel driver writes it; node 0 is the processor."""
    for node, version in enumerate((0, *versions)):
        (folder / str(node)).mkdir(parents=True)
        (folder / str(node) / "properties").write_text(
            f"simd_count 72\ngfx_target_version {version}\nvendor_id 4098\n"
        )
    return folder


def test_the_kernel_driver_names_the_architectures(tmp_path: Path) -> None:
    nodes = kernel_driver(tmp_path, 100100, 100300, 90010, 110501, 120001)
    assert amd_architectures(nodes) == ["gfx1010", "gfx1030", "gfx90a", "gfx1151", "gfx1201"]
    assert amd_architectures(tmp_path / "absent") == []


PREPARE = """
import os, sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from patches.convolution.triton_kernels import prepare
{before}
print(prepare(Path(sys.argv[1])), os.environ.get("AMDGCN_USE_BUFFER_OPS"), os.environ.get("TRITON_CACHE_DIR"))
"""


@pytest.mark.parametrize("version", [100100, 100300, 120001])
def test_an_amd_card_gets_no_buffer_operations_and_a_cache_of_its_own(tmp_path: Path, version: int) -> None:
    nodes = kernel_driver(tmp_path / "nodes", version)
    done = run("-c", PREPARE.format(before=""), str(nodes), XDG_CACHE_HOME=str(tmp_path))
    cache = tmp_path / "convroutes" / "triton-no-buffer-ops"
    assert done.stdout == f"['AMDGCN_USE_BUFFER_OPS', 'TRITON_CACHE_DIR'] 0 {cache}\n"


def test_a_machine_without_amd_cards_keeps_its_settings(tmp_path: Path) -> None:
    before = dict(os.environ)
    assert prepare(tmp_path) == []
    assert dict(os.environ) == before


def test_triton_imported_too_early_on_gfx101x_is_an_error(tmp_path: Path) -> None:
    nodes = kernel_driver(tmp_path / "nodes", 100100)
    early = PREPARE.format(before="sys.modules['triton'] = sys")
    done = run("-c", early, str(nodes), AMDGCN_USE_BUFFER_OPS="1")
    assert "Triton is already imported with buffer operations on" in done.stderr


def test_triton_imported_too_early_is_no_error_where_it_is_only_slower(tmp_path: Path) -> None:
    nodes = kernel_driver(tmp_path / "nodes", 100300)
    early = PREPARE.format(before="sys.modules['triton'] = sys")
    assert run("-c", early, str(nodes), AMDGCN_USE_BUFFER_OPS="1").stdout.startswith("[] 1 ")


def variants(
    batch: int, c_in: int, size: tuple[int, int], c_out: int, table: tiles.Table
) -> set[tuple[object, ...]]:
    """What Triton tells kernels apart by, for a 3 x 3 convolution."""
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    from patches.convolution.triton_kernels import ahead

    p = ConvProblem(
        batch, c_in, *size, c_out, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, torch.float32, "cuda", False
    )

    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, device="meta")

    builder = ahead.Recorder(0, tiles.Tiles(18, table))
    x, weight = empty(batch, c_in, *size), empty(c_out, c_in, 3, 3)
    builder.forward(p, x, weight, None)
    builder.backward(p, empty(batch, c_out, *p.output_size), x, weight, (True, True, False))
    return {ahead.variant(launch) for launch in builder.made}


@pytest.mark.parametrize(
    "table", [tiles.NVIDIA, tiles.NVIDIA_HALF, tiles.RDNA], ids=["NVIDIA", "NVIDIA_HALF", "RDNA"]
)
def test_neighbouring_shapes_share_their_kernels(table: tiles.Table) -> None:
    first = variants(8, 64, (80, 80), 64, table)
    for batch, c_in, size, c_out in [(5, 64, (80, 80), 64), (8, 64, (64, 52), 64), (3, 192, (100, 36), 64)]:
        assert variants(batch, c_in, size, c_out, table) == first


def test_tensors_past_the_32_bit_range_get_64_bit_offsets() -> None:
    assert not route._wide(torch.empty(64, 64, 640, 640, device="meta"))
    assert route._wide(torch.empty(90, 64, 640, 640, device="meta"))
    assert route._wide(torch.empty(1, device="meta").expand(1), torch.empty(90, 64, 640, 640, device="meta"))


@pytest.mark.parametrize(
    ("table", "dtype", "images", "found"),
    [
        (tiles.RDNA, torch.float32, 40, (False, 4)),
        (tiles.RDNA, torch.float32, 41, (True, 0)),
        (tiles.RDNA, torch.float16, 81, (False, 2)),
        (tiles.RDNA, torch.float16, 82, (True, 0)),
        (tiles.NVIDIA, torch.float32, 81, (False, 0)),
        (tiles.NVIDIA, torch.float32, 82, (True, 0)),
    ],
)
def test_offsets_in_bytes_stay_below_2_to_the_32(
    table: tiles.Table, dtype: torch.dtype, images: int, found: tuple[bool, int]
) -> None:
    image = torch.empty(1, device="meta", dtype=dtype).expand(1, 64, 640, 640)
    assert image[0].numel() * 41 * 4 > 2**32 > image[0].numel() * 40 * 4
    batch = torch.empty(images, 64, 640, 640, device="meta", dtype=dtype)
    assert route.Builder(0, tiles.Tiles(36, table))._offsets(image, batch) == found


def test_a_random_image_size_each_step_does_not_grow_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route, "MOST_CALLS", 10)
    calls: dict[object, object] = {}
    for number in range(100):
        route._remember(calls, number, None)
    assert len(calls) <= 10


@pytest.mark.parametrize(
    ("kernel", "stride", "groups", "served"),
    [(3, 2, 64, True), (5, 1, 64, True), (5, 2, 64, False), (7, 1, 64, False), (7, 1, 1, True)],
)
def test_on_amd_depthwise_kernels_that_spill_are_left_to_other_routes(
    kernel: int, stride: int, groups: int, served: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    p = ConvProblem(
        1, 64, 20, 20, 64, (kernel, kernel), (stride, stride), (0, 0), (1, 1), groups, False,
        torch.float32, "cuda", False,
    )  # fmt: skip
    monkeypatch.setattr(route, "_available", lambda device: True)
    monkeypatch.setattr(torch.version, "hip", None)
    assert route.TritonRoute().supports(p)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert route.TritonRoute().supports(p) is served


@pytest.mark.parametrize(("channels", "step"), [(16, 16), (48, 16), (96, 32), (192, 64), (80, 16), (3, 16)])
def test_a_step_does_not_run_past_the_channels(channels: int, step: int) -> None:
    half = tiles.Tiles(132, tiles.NVIDIA_HALF)
    tile = half.gather(64, 10**6, channels, 1, flat=False, wide=False, channels_last=True)
    assert tile == tiles.NVIDIA_HALF.gather[2]._replace(k=step)


def test_small_tiles_do_not_run_past_the_channels_either() -> None:
    half = tiles.Tiles(132, tiles.NVIDIA_HALF._replace(small=tiles.Tile(32, 32, 64, 4, 3)))
    tile = half.gather(64, 400, 96, 1, flat=False, wide=False, channels_last=True)
    assert tile == tiles.Tile(32, 32, 32, 4, 3)


@pytest.mark.parametrize("filters", [16, 32, 64, 128])
def test_the_weight_gradient_has_tiles_of_its_own_for_channels_last(filters: int) -> None:
    def tile(table: tiles.Table, *, last: bool) -> tiles.Tile:
        return tiles.Tiles(132, table).weight(filters, 576, 10**6, 1, wide=False, channels_last=last)[0]

    size = (16, 32, 64, 128).index(filters)
    for table in (tiles.NVIDIA, tiles.NVIDIA_HALF, tiles.RDNA):
        assert table.weight_last is not None
        assert tile(table, last=False) == table.weight[size]
        assert tile(table, last=True) == table.weight_last[size]


@pytest.mark.parametrize(
    ("filters", "m"), [(16, 16), (24, 32), (48, 16), (64, 64), (80, 16), (96, 32), (128, 64)]
)
def test_tiles_for_rdna_are_those_that_the_channels_fill(filters: int, m: int) -> None:
    rdna = tiles.Tiles(36, tiles.RDNA)
    assert rdna.gather(filters, 10**6, 64, 1, flat=False, wide=False, channels_last=False).m == m
    assert rdna.weight(filters, 576, 10**6, 1, wide=False, channels_last=False)[0].m == m
    assert tiles.Tiles(36).gather(80, 10**6, 64, 1, flat=False, wide=False, channels_last=False).m == 64


def test_unaligned_channels_last_takes_the_tile_with_room_for_addresses() -> None:
    rdna = tiles.Tiles(36, tiles.RDNA)
    aligned, unaligned = (
        rdna.gather(64, 10**6, 64, 1, flat=False, wide=False, channels_last=True, aligned=each)
        for each in (True, False)
    )
    assert (aligned.m, unaligned) == (64, tiles.RDNA.spare._replace(stages=1))


def test_the_tiles_measured_on_nvidia_depend_neither_on_offsets_nor_on_taps() -> None:
    nvidia = tiles.Tiles(132)
    narrow, wide, last = (
        nvidia.gather(64, 10**6, 4, 1, flat=False, wide=wide, channels_last=last)
        for wide, last in [(False, False), (True, False), (False, True)]
    )
    assert narrow == wide == last
    narrow_weight, wide_weight = (
        nvidia.weight(16, 27, 10**6, 1, wide=wide, channels_last=False) for wide in (False, True)
    )
    assert narrow_weight == wide_weight
    for taps in (9, 25, 49):
        assert nvidia.grouped(taps, 10**6, False) == (512, 1) and nvidia.grouped(taps, 10, False) == (64, 1)
        assert nvidia.grouped(taps, 10**6, True) == (16, 32)
        assert nvidia.grouped_weight(taps, False, True) == (16, 128, 1)


@pytest.mark.parametrize("swapped", [False, True])
def test_two_strides_that_change_places_are_refused(monkeypatch: pytest.MonkeyPatch, swapped: bool) -> None:
    """On the device they would be numbers among numbers, and the result would be wrong without a word."""
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    from patches.convolution.triton_kernels.grouped import grouped_gather

    made = []
    builder = route.Builder(0, tiles.Tiles(4, tiles.RDNA))
    launch = route.Builder.launch

    def changed(self: route.Builder, kernel: Any, grid: Any, scalars: Any, *rest: Any, **options: Any) -> Any:
        names = list(scalars)
        if swapped:
            y, x = names.index("src_y"), names.index("src_x")
            names[y], names[x] = names[x], names[y]
        made.append(kernel)
        return launch(self, kernel, grid, {name: scalars[name] for name in names}, *rest, **options)

    monkeypatch.setattr(route.Builder, "launch", changed)
    p = ConvProblem(2, 8, 9, 10, 8, (3, 3), (1, 1), (1, 1), (1, 1), 8, False, torch.float32, "cpu", False)
    x, weight = torch.empty(2, 8, 9, 10), torch.empty(8, 1, 3, 3)
    with pytest.raises(TypeError, match="src_x', 'src_y") if swapped else nullcontext():
        builder.forward(p, x, weight, None)
    assert made == [grouped_gather]
