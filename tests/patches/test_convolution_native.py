"""PyTorch's own kernels as routes, and the switch of the vendor's library around them."""

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
import torch
from convolution_cases import KINDS, assert_correct, problems
from hypothesis import given, settings
from test_convolution_gemm import LAYER

from patches.convolution import native
from patches.convolution.native import Native
from patches.convolution.problem import ConvProblem


@settings(max_examples=40, derandomize=True)
@given(problem=problems())
def test_pytorchs_own_kernels_are_correct(problem: ConvProblem) -> None:
    assert_correct(Native(library=False), problem)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_convolution_is_correct(name: str) -> None:
    assert_correct(Native(library=False), KINDS[name])


def test_the_library_is_no_route_on_the_cpu() -> None:
    assert not Native(library=True).supports(LAYER)
    assert Native(library=True).supports(replace(LAYER, device="cuda"))


@pytest.mark.parametrize("library", [False, True])
def test_the_library_is_switched_for_the_call_alone(library: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", not library)
    seen: list[bool] = []
    monkeypatch.setattr(native, "_forward", lambda *_: seen.append(torch.backends.cudnn.enabled))
    monkeypatch.setattr(native, "_backward", lambda *_: seen.append(torch.backends.cudnn.enabled))
    native.call_forward(library)
    native.call_backward(library)
    native.call_forward(None)
    assert seen == [library, library, not library]
    assert torch.backends.cudnn.enabled is not library


@pytest.mark.parametrize("benchmark", [False, True])
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("tf32", [False, True])
@pytest.mark.parametrize("library", [None, False, True])
def test_pytorchs_kernels_get_the_switches_that_pytorch_gives_them(
    benchmark: bool, deterministic: bool, tf32: bool, library: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", benchmark)
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", deterministic)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    x, weight = torch.ones(1, 1, 3, 3), torch.ones(1, 1, 2, 2)
    settings = (None, [1, 1], [0, 0], [1, 1], False, [0, 0], 1)
    given: list[tuple[object, ...]] = []
    inner = torch.library.Library("aten", "IMPL")
    inner.impl("_convolution", lambda *args: given.append(args[-4:]) or x.clone(), "CPU")
    native._call(library, native._outer, (x, weight, *settings))
    del inner
    assert given == [(benchmark, deterministic, library is not False, tf32)]
    monkeypatch.setattr(native, "_inner", lambda *args: given.append(args[-4:]))
    native.call_forward(library, x, weight, *settings)
    assert given[1] == given[0]


def test_the_switch_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)

    def fail(*_: object) -> None:
        raise RuntimeError("miopenStatusUnknownError")

    monkeypatch.setattr(native, "_forward", fail)
    with pytest.raises(RuntimeError, match="miopenStatusUnknownError"):
        native.call_forward(False)
    assert torch.backends.cudnn.enabled


def test_two_threads_do_not_leave_the_switch_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    inside, leave = threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        inside.set()
        leave.wait(10)

    monkeypatch.setattr(native, "_forward", slow)
    first = threading.Thread(target=native.call_forward, args=(False,))
    first.start()
    assert inside.wait(10)
    second = threading.Thread(target=native.call_forward, args=(False,))
    second.start()
    leave.set()
    first.join()
    second.join()
    assert torch.backends.cudnn.enabled


def test_the_switch_does_not_change_under_a_call_that_found_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "enabled", False)
    inside, switched, looked = threading.Event(), threading.Event(), threading.Event()
    seen: dict[str, bool] = {}

    def operator(_: object, name: str) -> None:
        if name == "native":
            inside.set()
            switched.wait(0.3)
        else:
            switched.set()
            looked.wait(10)
        seen[name] = torch.backends.cudnn.enabled
        looked.set()

    monkeypatch.setattr(native, "_forward", operator)
    first = threading.Thread(target=native.call_forward, args=(False, "native"))
    second = threading.Thread(target=native.call_forward, args=(True, "library"))
    first.start()
    assert inside.wait(10)
    second.start()
    first.join()
    second.join()
    assert seen == {"native": False, "library": True}
