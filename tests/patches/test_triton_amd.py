"""The compile check for AMD cards finds each fault that it is there for."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton", minversion="3.6", reason="Triton's AMD backend needs Triton")

from amdgcn import audit

import patches
from patches import dispatch
from patches.convolution import selftest
from patches.convolution.blank import Blank
from patches.convolution.gemm import Gemm
from patches.convolution.problem import ConvProblem, Gradients, Route
from patches.convolution.triton_kernels import route, tiles, transformed
from patches.convolution.triton_kernels.ahead import Recorder, variant
from patches.normalization import blocks
from patches.normalization.launches import Kernels
from patches.normalization.problem import NormProblem, Parameters
from toolkit.training.steps import DetectorStep, random_batch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "check_amd_isa.py"
LAYER = ConvProblem(8, 64, 80, 80, 64, (3, 3), (1, 1), (1, 1), (1, 1), 1, False, torch.float32, "cuda", False)


@pytest.fixture(scope="module")
def check() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("check_amd_isa", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["check_amd_isa"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels with a plant are nobody else's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def planted(monkeypatch: pytest.MonkeyPatch, tile: tiles.Tile) -> None:
    """A table with one bad tile in it."""
    monkeypatch.setattr(tiles, "PLANTED", tiles.RDNA._replace(gather=(tile,) * 4), raising=False)


def test_a_sound_kernel_passes_and_is_described(check: ModuleType) -> None:
    kernel = check.compile_kernel(check.Job("gfx1010", LAYER))
    assert kernel.faults == ()
    assert kernel.name == "gather_gemm"
    assert 0 < kernel.registers <= 256 and 0 < kernel.lds <= 65536 and kernel.waves >= 4


def test_a_spill_is_found(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, tiles.Tile(128, 128, 16, 2, 1))
    kernel = check.compile_kernel(check.Job("gfx1010", LAYER, table="PLANTED"))
    assert any("spilled" in fault for fault in kernel.faults)


def test_too_much_lds_is_found(check: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    planted(monkeypatch, tiles.Tile(64, 256, 64, 8, 2))
    kernel = check.compile_kernel(check.Job("gfx1100", LAYER, table="PLANTED"))
    assert any("bytes of LDS" in fault for fault in kernel.faults), kernel


def test_a_buffer_store_is_a_fault_on_gfx101x_alone() -> None:
    counts = ".vgpr_count: 8\n.vgpr_spill_count: 0\n.sgpr_spill_count: 0\n"
    assembly = f"buffer_store_dword v0, v1, s[0:3], 0 offen\n{counts}"
    assert audit.read("gfx1012", "k", "", assembly, 0, 4).faults == (
        "a buffer store, which gfx101x drops silently",
    )
    assert audit.read("gfx1030", "k", "", assembly, 0, 4).faults == ()


def test_buffer_operations_that_are_not_switched_off_are_found(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = "aligned activations, and no access of more than one element"
    monkeypatch.setattr(check, "BUFFER_OPS", True)
    # Loads with offsets in bytes stay wide: the others move one by one.
    monkeypatch.setattr(tiles, "PLANTED", tiles.RDNA._replace(in_bytes=False), raising=False)
    pointwise = dataclasses.replace(LAYER, kernel=(1, 1), padding=(0, 0))
    assert check.compile_kernel(check.Job("gfx1030", pointwise, table="PLANTED")).faults == (single,)
    found = check.compile_kernel(check.Job("gfx1010", pointwise, table="PLANTED")).faults
    assert found == ("a buffer store, which gfx101x drops silently", single)


@pytest.mark.parametrize(
    ("assembly", "bytes_at_once"),
    [
        ("global_load_dword v1, v[2:3], off\nglobal_load_dwordx3 v[1:3], v[2:3], off", 12),
        ("global_store_b128 v1, v[2:5], off\nglobal_load_u16 v1, v[2:3], off", 16),
        ("buffer_load_ushort v1\nglobal_load_short_d16_hi v1", 2),
        ("ds_read_b128 v[1:4], v5", 0),
    ],
)
def test_the_widest_access_is_read_from_the_assembly(assembly: str, bytes_at_once: int) -> None:
    assert audit.widest(assembly) == bytes_at_once


def test_a_compiler_that_dies_costs_its_kernel_alone(
    check: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """gfx1010 has no packed dot product of fp16, and the compiler aborts the process over it."""
    monkeypatch.setattr(check, "WITHOUT_PACKED_DOT", ())
    deadly = check.Job("gfx1010", dataclasses.replace(LAYER, dtype=torch.float16))
    sound = dataclasses.replace(deadly, problem=LAYER)
    kernels = list(check.check([sound, deadly, sound], 1))
    assert [kernel.faults for kernel in kernels] == [(), ("the compiler died",), ()]


def test_every_architecture_and_both_layouts_are_covered(check: ModuleType) -> None:
    work = check.jobs(check.ARCHITECTURES)
    assert {job.architecture for job in work} == set(check.ARCHITECTURES)
    for architecture in check.ARCHITECTURES:
        names = {
            check.launches(job)[job.index].kernel.__name__ for job in work if job.architecture == architecture
        }
        assert names == {
            "gather_gemm",
            "weight_gradient",
            "reduce_partials",
            "grouped_gather",
            "grouped_weight_gradient",
            "winograd_weight",
            "winograd_gather",
        }


@pytest.mark.parametrize(("batch", "units"), [(2, 20), (16, 48)])
def test_no_batch_and_no_card_needs_a_kernel_that_was_not_compiled(
    check: ModuleType, batch: int, units: int
) -> None:
    known = compiled(check, "gfx1030")
    for problem in check.problems("gfx1030"):
        if problem.batch == 1:
            job = check.Job("gfx1030", dataclasses.replace(problem, batch=batch), units)
            needed = check.launches(job)
            if check.suits(problem):
                needed += check.launches(dataclasses.replace(job, winograd=True))
            assert {(problem.dtype, variant(launch)) for launch in needed} <= known


class Listing:
    """A route that computes by another one, and keeps what kernels of both routes it would launch."""

    name = "listing"

    def __init__(self, by: Route, units: int = 36) -> None:
        self.by, self.tiles = by, tiles.Tiles(units, tiles.RDNA)
        self.found: set[tuple[object, ...]] = set()

    def supports(self, problem: ConvProblem) -> bool:
        return not route.spills_on_amd(problem)

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        self._list(problem, "forward", x, weight, bias)
        return self.by.forward(problem, x, weight, bias)

    def backward(
        self, problem: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        self._list(problem, "backward", grad, x, weight, needs)
        return self.by.backward(problem, grad, x, weight, needs)

    def _list(self, problem: ConvProblem, call: str, *args: object) -> None:
        for winograd in {False, transformed.suits(problem)} if self.supports(problem) else ():
            recorder = Recorder(0, self.tiles, upcast=True, winograd=winograd)
            getattr(recorder, call)(problem, *args)
            self.found |= {(problem.dtype, variant(launch)) for launch in recorder.made}


def compiled(check: ModuleType, architecture: str) -> set[tuple[object, ...]]:
    """Every variant of a convolution's kernels that the check compiles for a card."""
    return {
        (job.problem.dtype, variant(check.launches(job)[job.index])) for job in check.jobs([architecture])
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_self_test_launches_nothing_that_was_not_compiled(check: ModuleType, dtype: torch.dtype) -> None:
    by = Listing(Gemm())  # which widens fp16 on a processor, where PyTorch's own kernels are slow
    for problem in filter(by.supports, selftest.problems_of("cpu", dtype)):
        assert selftest._compare(by, problem, "cpu") == ""
    assert len(by.found) > 50
    assert by.found <= compiled(check, "gfx1010")


def detector(name: str, channels: int, classes: int, layout: torch.memory_format) -> Any:
    """A new one of Ultralytics', in training mode."""
    from ultralytics.cfg import get_cfg
    from ultralytics.nn.tasks import DetectionModel

    model: Any = DetectionModel(f"{name}.yaml", ch=channels, nc=classes, verbose=False).train()
    model.to(memory_format=layout).args = get_cfg()
    return model


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "channels", "classes"), [("yolov8n", 3, 80), ("yolo11n", 1, 4)])
def test_a_training_launches_nothing_that_was_not_compiled(
    check: ModuleType,
    name: str,
    channels: int,
    classes: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "LEAST", 0)
    model = detector(name, channels, classes, layout)
    by = Listing(Blank())
    with patches.enabled("cpu", normalization="torch"):
        session = dispatch.current()
        assert session is not None
        session.native = by  # type: ignore[assignment]
        session.norms._choose = lambda problem, _: ListingNorm(problem, set())
        amp = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        DetectorStep(model, random_batch((1, channels, 640), "cpu"), amp)()
    assert len(by.found) > 30
    assert {found for found, _ in by.found} == {dtype}
    assert by.found <= compiled(check, "gfx1010")


def test_the_long_tensors_of_the_check_need_64_bit_offsets(check: ModuleType) -> None:
    for shape in check.WIDE:
        launches = check.launches(check.Job("gfx1010", check.layer(check.WIDE_BATCH, *shape)))
        assert all(launch.constants.get("WIDE", True) for launch in launches)


@pytest.mark.slow
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (5, 1), (5, 2), (7, 1)])
def test_the_route_refuses_what_spills_on_amd_and_nothing_else(
    check: ModuleType, kernel: int, stride: int
) -> None:
    problem = check.layer(1, 64, 64, kernel, stride, 64, False)
    work = [check.Job("gfx1010", problem, index=index) for index in range(4)]
    found = [check.compile_kernel(job).faults for job in work]
    assert any(found) is route.spills_on_amd(problem), found


def test_the_kernels_of_batch_norm_are_checked_in_every_dtype_and_layout(check: ModuleType) -> None:
    work = check.norm_jobs(check.ARCHITECTURES)
    assert {job.architecture for job in work} == set(check.ARCHITECTURES)
    for architecture in check.GENERATIONS:
        found = {
            (job.problem.dtype, job.problem.channels_last, job.problem.activation)
            for job in work
            if job.architecture == architecture
        }
        for dtype in (torch.float32, torch.float16):
            for channels_last in (False, True):
                assert {(dtype, channels_last, each) for each in ("silu", "relu", "hardswish")} <= found


class ListingNorm:
    """Computes no batch norm, and keeps what the kernels would launch for ``BATCH`` images."""

    BATCH, UNITS = 16, 36

    def __init__(self, problem: NormProblem, found: set[tuple[object, ...]]) -> None:
        self.problem, self.found = problem, found
        self.kernels = Kernels(dataclasses.replace(problem, batch=self.BATCH), 0, self.UNITS)

    def forward(
        self, x: Tensor, held: Parameters, _: object = None, out: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        to = torch.zeros_like(x) if out is None else out.zero_()
        self._list(*self.kernels._build_forward(self._of_all(x), self._of_all(to), held)[:2])
        return to, ()

    def backward(
        self, x: Tensor, grad: Tensor, held: Parameters, kept: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        self._list(*self.kernels._build_backward(self._of_all(x), self._of_all(grad))[:2])
        weight = held.weight
        assert weight is not None
        return torch.zeros_like(x), torch.zeros_like(weight), torch.zeros_like(weight)

    def _of_all(self, images: Tensor) -> Tensor:
        """As many images, stored as these are."""
        shape = (self.BATCH, *images.shape[1:])
        return torch.empty_strided(shape, images.stride(), dtype=images.dtype, device="meta")

    def _list(self, *launches: Any) -> None:
        self.found |= {(self.problem.dtype, variant(launch)) for launch in launches}


@pytest.mark.parametrize("size", [480, 640])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("name", "channels", "classes"), [("yolov8n", 3, 80), ("yolo11n", 1, 4)])
def test_a_training_launches_no_batch_norm_that_was_not_compiled(
    check: ModuleType,
    name: str,
    channels: int,
    classes: int,
    dtype: torch.dtype,
    layout: torch.memory_format,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(blocks, "LEAST", 0)
    model = detector(name, channels, classes, layout)
    found: set[tuple[object, ...]] = set()
    with patches.enabled("cpu", normalization="torch"):
        session = dispatch.current()
        assert session is not None
        session.native = Blank()  # type: ignore[assignment]
        session.norms._choose = lambda problem, _: ListingNorm(problem, found)
        amp = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
        DetectorStep(model, random_batch((1, channels, size), "cpu"), amp)()
    assert {kind for kind, _ in found} == {dtype}
    assert {kind[0] for _, kind in found} == {"statistics", "normalise", "gradient_sums", "input_gradient"}
    known = {
        (job.problem.dtype, variant(Kernels(job.problem, 0, job.units).launches()[job.index][0]))
        for job in check.norm_jobs(["gfx1010"])
    }
    assert found <= known


def test_a_kernel_of_batch_norm_passes_and_is_described(check: ModuleType) -> None:
    kernel = check.compile_kernel(check.norm_jobs(["gfx1010"])[-1])
    assert kernel.faults == ()
    assert kernel.name == "input_gradient"
    assert 0 < kernel.registers <= 256 and kernel.waves >= 4


def test_the_cache_keeps_what_is_read_again_and_compiles_nothing_twice(
    check: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = check.compile_kernel(check.Job("gfx1010", LAYER))
    kept = {path.suffix for path in (tmp_path / "convroutes" / "isa").rglob("*.*") if path.is_file()}
    assert kept == {".amdgcn", ".hsaco", ".json"}
    monkeypatch.setattr("triton.backends.amd.compiler.HIPBackend.make_amdgcn", None)
    assert check.compile_kernel(check.Job("gfx1010", LAYER)) == first


def test_a_sample_has_each_kernel_for_each_card_in_each_type_and_a_larger_one_holds_it(
    check: ModuleType,
) -> None:
    every = [*check.jobs(("gfx1010", "gfx1100")), *check.norm_jobs(("gfx1010", "gfx1100"))]

    def kinds(work: list[object]) -> set[tuple[object, ...]]:
        return {(job.architecture, check.kernel_name(job), job.problem.dtype) for job in work}  # type: ignore[attr-defined]

    few, many = check.sample(every, 100, 1), check.sample(every, 300, 1)
    assert (len(few), len(many), len(set(many))) == (100, 300, 300)
    assert kinds(few) == kinds(every)
    assert many[:100] == few
    assert set(check.sample(every, 100, 2)) != set(few)
    assert check.sample(every, len(every) + 1, 1) == check.sample(every, len(every), 1)
