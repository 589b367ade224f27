"""On a ROCm build the vendor's library is off while the patches are on, for every layer."""

from __future__ import annotations

import pytest
import torch

import patches
from patches import dispatch, miopen


@pytest.fixture
def rocm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", "5.2.21151")
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)


@pytest.mark.usefixtures("rocm")
def test_a_rocm_build_trains_without_miopen_and_gets_it_back() -> None:
    with patches.enabled("cuda"):
        assert not torch.backends.cudnn.enabled
        with patches.enabled("cuda", route="gemm"):
            assert not torch.backends.cudnn.enabled
        assert not torch.backends.cudnn.enabled
    assert torch.backends.cudnn.enabled


@pytest.mark.usefixtures("rocm")
def test_patching_the_cpu_leaves_the_library_alone() -> None:
    with patches.enabled("cpu"):
        assert torch.backends.cudnn.enabled


def test_a_cuda_build_keeps_cudnn_for_batch_normalisation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    with patches.enabled("cuda"):
        assert torch.backends.cudnn.enabled


@pytest.mark.parametrize(
    ("vendor", "hip", "cards", "may"),
    [
        ("auto", "7.14.0", ["gfx1010"], False),
        ("auto", "7.14.0", ["gfx1032"], False),
        ("auto", "7.14.0", ["gfx1151"], True),
        ("auto", "7.14.0", ["gfx1201"], True),
        ("auto", "7.14.0", ["gfx90a"], True),
        ("auto", "7.14.0", ["gfx1151", "gfx1010"], False),
        ("auto", "7.14.0", [], False),
        ("auto", "5.7.1", ["gfx1100"], False),
        ("auto", None, [], True),
        ("on", "5.2", ["gfx1010"], True),
        ("off", "7.14.0", ["gfx1201"], False),
    ],
)
def test_where_miopen_may_be_tried(
    vendor: str, hip: str | None, cards: list[str], may: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.version, "hip", hip)
    assert miopen.may_serve(vendor, cards) is may


@pytest.mark.usefixtures("rocm")
def test_on_is_as_pytorch_does() -> None:
    with patches.enabled("cuda", vendor="on"):
        assert torch.backends.cudnn.enabled


def test_off_is_off_for_cudnn_too_and_leaves_no_route_of_its(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cudnn, "enabled", True)
    with patches.enabled("cuda", vendor="off"):
        assert not torch.backends.cudnn.enabled
        session = dispatch.current()
        assert session is not None
        assert "library" not in session.routes
    assert torch.backends.cudnn.enabled


@pytest.mark.usefixtures("rocm")
def test_on_rdna1_its_route_is_not_even_tested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(miopen, "amd_architectures", lambda: ["gfx1010"])
    assert "library" not in dispatch.Session("cuda", "auto", 2**20).routes


@pytest.mark.usefixtures("rocm")
@pytest.mark.parametrize("passes", [True, False])
def test_batch_norm_goes_back_to_miopen_where_it_passes_its_self_test(
    passes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Judged:
        def __init__(self, *_: object) -> None:
            self.device = "cuda"

        def trusted(self, test: str, dtype: torch.dtype) -> bool:
            assert (test, dtype) == (miopen.SELF_TEST, torch.float32)
            return passes

    monkeypatch.setattr(torch.version, "hip", "7.14.0")
    monkeypatch.setattr(miopen, "amd_architectures", lambda: ["gfx1151"])
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(dispatch, "Planner", Judged)
    with patches.enabled("cuda"):
        session = dispatch.current()
        assert session is not None
        assert "library" in session.routes
        assert not torch.backends.cudnn.enabled
        assert session.planner.device == "cuda"
        assert torch.backends.cudnn.enabled is passes
    assert torch.backends.cudnn.enabled


@pytest.mark.parametrize("dtype", miopen.TOLERANCE, ids=str)
def test_the_self_test_of_batch_norm_refuses_what_is_wrong(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if dtype == torch.float16 and torch.__version__.startswith("1."):
        pytest.skip("PyTorch 1 has no batch norm in half precision on a CPU")
    assert miopen.examine("cpu", dtype) == ""
    norm = torch.nn.functional.batch_norm

    def wrong(x: torch.Tensor, *args: object) -> torch.Tensor:
        return norm(x, *args) * (1.0 if x.dtype == torch.float64 else 1.1)  # type: ignore[arg-type]

    monkeypatch.setattr(miopen.F, "batch_norm", wrong)
    assert "output in training mode is wrong" in miopen.examine("cpu", dtype)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"vendor": "maybe"}, "vendor 'maybe': expected one of auto"),
        ({"route": "library", "vendor": "off"}, "leave one of them out"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, str], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        patches.enable("cuda", **settings)  # type: ignore[arg-type]


def test_the_environment_overrules_a_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVROUTES_VENDOR", "off")
    assert miopen.setting("on") == "off"
    monkeypatch.setenv("CONVROUTES_VENDOR", "perhaps")
    with pytest.raises(ValueError, match="CONVROUTES_VENDOR=perhaps"):
        miopen.setting("on")
