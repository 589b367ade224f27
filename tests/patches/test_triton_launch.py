"""What a launch hands to the function below Triton's launcher is what the launcher itself would hand on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.backends.amd.driver import HIPLauncher
from triton.backends.nvidia.driver import CudaLauncher
from triton.runtime import driver

import patches
from patches.compiling import Deviceless, Target
from patches.convolution.triton_kernels.launch import Launch, Way

GRID = (3, 2, 1)
NUMBERS = (7, 7, 1.5, True, "none")
COUNT = 3


@pytest.fixture(autouse=True)
def driver_without_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_active", Deviceless(Target("cuda", 90, 32, 132)))


def launcher(kind: type, launch: Callable[..., object], **other: Any) -> Any:
    """A launcher of Triton's as its constructor leaves it, without the driver that this asks for."""
    made = object.__new__(kind)
    attributes: dict[str, Any] = {
        "launch": launch,
        "global_scratch_size": 0,
        "global_scratch_align": 1,
        "profile_scratch_size": 0,
        "profile_scratch_align": 1,
        "launch_cooperative_grid": False,
        "launch_pdl": False,
        "num_ctas": 1,
        "warp_size": 32,
        "gsan_enabled": False,
        "arg_annotations": b"annotations",
        "kernel_signature": b"signature",
        **other,
    }
    for name, value in attributes.items():
        setattr(made, name, value)
    return made


def compiled(run: Any) -> Any:
    return SimpleNamespace(run=run, function=1234, packed_metadata=(4, 1, 0))


def handed(way: Way, stream: int, addresses: list[int | None]) -> None:
    """As ``Launch.__call__`` does."""
    call, before, between, numbers, packed, after = way
    if packed:
        call(*before, stream, *between, (*addresses, *numbers), *after)
    else:
        call(*before, stream, *between, *addresses, *numbers)


@pytest.mark.parametrize("kind", [CudaLauncher, HIPLauncher])
def test_the_launcher_is_passed_by_with_what_it_would_hand_on(kind: type) -> None:
    seen: list[tuple[Any, ...]] = []
    whole = compiled(launcher(kind, lambda *given: seen.append(given)))
    way = Way.over(whole, GRID, COUNT, NUMBERS)
    assert way.call is whole.run.launch and not seen, "finding the way launches nothing"
    for stream, addresses in ((0, [16, None, 48]), (99, [1, 2, 3]), (7, [7, 7, 7])):
        seen.clear()
        whole.run(
            *GRID, stream, whole.function, whole.packed_metadata, None, None, None, *addresses, *NUMBERS
        )
        handed(way, stream, addresses)
        through, by = seen
        assert by == through


@pytest.mark.parametrize("kind", [CudaLauncher, HIPLauncher])
@pytest.mark.parametrize("scratch", ["global_scratch_size", "profile_scratch_size"])
def test_a_kernel_that_needs_a_buffer_a_call_keeps_its_launcher(kind: type, scratch: str) -> None:
    whole = compiled(launcher(kind, print, **{scratch: 128}))
    assert Way.over(whole, GRID, COUNT, NUMBERS).call is whole.run


class Flat:
    """A launcher that hands everything on in a row, with something of its own behind it."""

    def __init__(self, launch: Callable[..., object]) -> None:
        self.launch = launch

    def __call__(self, x: int, y: int, z: int, stream: int, function: int, *others: Any) -> None:
        self.launch(x, y, z, stream, function, False, *others, "behind")


class Twice(Flat):
    def __call__(self, *given: Any) -> None:
        self.launch(*given)
        self.launch(*given)


class Shuffling(Flat):
    def __call__(self, *given: Any) -> None:
        self.launch(*given[::-1])


class Looking(Flat):
    def __call__(self, *given: Any) -> None:
        self.launch(*given[:9], *(each.data_ptr() for each in given[9:12]), *given[12:])


def test_another_launcher_is_passed_by_where_it_tells_enough() -> None:
    seen: list[tuple[Any, ...]] = []
    whole = compiled(Flat(lambda *given: seen.append(given)))
    way = Way.over(whole, GRID, COUNT, NUMBERS)
    whole.run(*GRID, 5, whole.function, whole.packed_metadata, None, None, None, 16, None, 48, *NUMBERS)
    handed(way, 5, [16, None, 48])
    assert way.call is whole.run.launch and seen[0] == seen[1]


@pytest.mark.parametrize("kind", [Twice, Shuffling, Looking])
def test_another_launcher_is_called_itself_where_it_does_not(kind: type[Flat]) -> None:
    whole = compiled(kind(print))
    assert Way.over(whole, GRID, COUNT, NUMBERS).call is whole.run


def test_a_launch_reads_addresses_at_every_call(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Any, ...]] = []
    whole = compiled(Flat(lambda *given: seen.append(given)))
    monkeypatch.setattr(Launch, "compiled", lambda self, tensors: whole)
    kernel = SimpleNamespace(arg_names=["src", "bias", "out", "size"], warmup=None)
    launch = Launch(kernel, GRID, {"size": 9}, {})
    for _ in range(2):
        src, out = torch.zeros(4), torch.zeros(4)
        launch(src, None, out)
        assert seen.pop()[-5:] == (src.data_ptr(), None, out.data_ptr(), 9, "behind")


def test_a_block_enters_few_functions_on_its_way_to_the_launches() -> None:
    """Counts, which no load changes: 37 and 66 when this was written; a habit of one more a launch adds 8."""
    spec = importlib.util.spec_from_file_location(
        "bench_host_path", Path(__file__).parents[2] / "scripts" / "bench_host_path.py"
    )
    assert spec is not None and spec.loader is not None
    bench = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(bench)
    most = {"forward": 41, "forward + backward": 72}
    for name, chain in bench.blocks(1, 1, "cpu").items():
        with bench.patched("cpu"):
            for _ in range(2):
                chain()
            assert patches.report().normalizations > 0
            assert {use.route for use in patches.report().problems} == {"triton"}
            python, _ = bench.entered(chain)
        assert python / bench.BLOCKS <= most[name]
