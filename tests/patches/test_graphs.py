"""A module as CUDA graphs trains bit for bit as the module; what it cannot stand for, it refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from called_again import CalledAgain
from torch import Tensor, nn

import patches
from patches.graphs import GraphedModule, UnexpectedGradient, available, failures, recording

pytestmark = pytest.mark.skipif(not hasattr(torch, "_foreach_copy_"), reason="needs PyTorch 2.1")

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not available(), reason="needs a card of NVIDIA's")),
]


def graphed(module: nn.Module, example: Tensor, loss: Callable[[Any], Tensor]) -> GraphedModule:
    return (GraphedModule if example.is_cuda else CalledAgain)(module, example.clone(), loss)


class Net(nn.Module):
    """Outputs in a dictionary: one for the loss, a feature that the loss does not read, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.SiLU())
        self.second = nn.Conv2d(4, 3, 1)
        self.idle = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        features = self.first(x)
        return {"boxes": self.second(features), "features": [features, features.detach()]}


def loss_of(found: dict[str, Any]) -> Tensor:
    assert found["features"][0].shape[1] == 4
    return found["boxes"].square().mean()


def pair(device: str) -> tuple[Net, Net, list[Tensor]]:
    torch.manual_seed(0)
    net = Net().to(device).train()
    return net, deepcopy(net), [torch.randn(2, 2, 8, 8, device=device) for _ in range(9)]


def trained(
    net: nn.Module,
    call: Callable[[Tensor], Any],
    loss: Callable[[Any], Tensor],
    images: list[Tensor],
    every: int,
) -> list[Tensor]:
    """Losses of a training whose updates add up the gradients of so many batches."""
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    losses = []
    for number, each in enumerate(images, 1):
        found = loss(call(each))
        found.backward()
        losses.append(found.detach().clone())
        if number % every == 0:
            optimizer.step()
            optimizer.zero_grad(set_to_none=number % 2 == 0)
    return losses


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("every", [1, 3])
def test_training_is_the_same_bit_for_bit(device: str, every: int) -> None:
    net, twin, images = pair(device)
    graph = graphed(net, images[0], loss_of)
    assert all(
        torch.equal(a, b) for a, b in zip(net.state_dict().values(), twin.state_dict().values(), strict=True)
    )
    assert all(each.grad is None for each in net.parameters())
    for each in images:
        assert graph.accepts(each)
    found = trained(net, graph, loss_of, images, every)
    wanted = trained(twin, twin, loss_of, images, every)
    assert all(map(torch.equal, found, wanted)), (found, wanted)
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    assert net.idle.weight.grad is None, "a parameter that nothing depends on has no gradient"


@pytest.mark.parametrize("device", DEVICES)
def test_what_was_written_where_the_graph_reads_is_computed_as_what_is_copied_there(device: str) -> None:
    net, twin, images = pair(device)
    place = images[0].clone()
    graph = (GraphedModule if place.is_cuda else CalledAgain)(net, place, loss_of)
    assert graph.inputs[0].data_ptr() == place.data_ptr()
    for number, each in enumerate(images):
        found = graph(place.copy_(each) if number % 2 else each)["boxes"]
        assert torch.equal(found, twin(each)["boxes"])
        assert torch.equal(place, each)


@pytest.mark.parametrize("device", DEVICES)
def test_gradients_of_what_was_put_back_are_added_to(device: str) -> None:
    net, twin, images = pair(device)
    graph = graphed(net, images[0], loss_of)
    for each in (net, twin):
        each.second.weight.grad = torch.full_like(each.second.weight, 5.0)
    loss_of(graph(images[1])).backward()
    loss_of(twin(images[1])).backward()
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad)


@pytest.mark.parametrize("device", DEVICES)
def test_recording_leaves_random_generators_and_frozen_parameters(device: str) -> None:
    net, _, images = pair(device)
    net.first[0].weight.requires_grad_(False)
    before = torch.random.get_rng_state(), torch.rand(1, device=device)
    torch.manual_seed(3)
    wanted = torch.rand(4, device=device)
    torch.manual_seed(3)
    graph = graphed(net, images[0], loss_of)
    assert torch.equal(torch.rand(4, device=device), wanted)
    loss_of(graph(images[1])).backward()
    assert net.first[0].weight.grad is None and net.second.weight.grad is not None
    assert before is not None and not recording()


class Fails(CalledAgain):
    """A recording that ends in an error."""

    def _record(self, call: Callable[[], Any]) -> tuple[Any, Callable[[], object]]:
        call()
        raise RuntimeError("operation not permitted when stream is capturing")


def test_a_recording_that_fails_leaves_statistics_and_random_generators() -> None:
    net, twin, images = pair("cpu")
    torch.manual_seed(3)
    wanted = torch.rand(4)
    torch.manual_seed(3)
    with pytest.raises(RuntimeError, match="not permitted"):
        Fails(net, images[0], loss_of)
    assert torch.equal(torch.rand(4), wanted)
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name


@pytest.mark.parametrize("device", DEVICES)
def test_what_it_was_not_recorded_for_is_not_accepted(device: str) -> None:
    net, _, images = pair(device)
    graph = graphed(net, images[0], loss_of)
    like = images[0]
    others = [
        like[:1],
        like.double(),
        like.clone().requires_grad_(),
        like.to(memory_format=torch.channels_last),
        torch.zeros(2, 2, 8, 9, device=device),
    ]
    assert not any(map(graph.accepts, others))
    with torch.no_grad():
        assert not graph.accepts(like)
    net.eval()
    assert not graph.accepts(like)


@pytest.mark.parametrize("device", DEVICES)
def test_a_backward_pass_that_comes_too_late_is_an_error(device: str) -> None:
    net, _, images = pair(device)
    graph = graphed(net, images[0], loss_of)
    first = loss_of(graph(images[1]))
    graph(images[2])
    with pytest.raises(RuntimeError, match="before its next forward pass"):
        first.backward()


@pytest.mark.parametrize("device", DEVICES)
def test_an_output_that_had_no_gradient_when_recorded_is_an_error(device: str) -> None:
    net, _, images = pair(device)
    graph = graphed(net, images[0], loss_of)
    found = graph(images[1])
    assert not found["features"][1].requires_grad
    with pytest.raises(RuntimeError, match=r"outputs \[1\] have a gradient"):
        (loss_of(found) + found["features"][0].sum()).backward()


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_that_failed_is_taken_back_and_made_again_without_the_graph(device: str) -> None:
    net, twin, images = pair(device)
    graph = graphed(net, images[0], loss_of)
    for one in images[1:3]:
        loss_of(graph(one)).backward()
        loss_of(twin(one)).backward()

    def more(found: dict[str, Any]) -> Tensor:
        return loss_of(found) + found["features"][0].sum()

    with pytest.raises(UnexpectedGradient):
        more(graph(images[3])).backward()
    graph.take_back()
    assert_alike(net, twin)
    more(net(images[3])).backward()
    more(twin(images[3])).backward()
    assert_alike(net, twin)


def assert_alike(net: Net, twin: Net) -> None:
    for name, value in net.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name]), name
    for one, other in zip(net.parameters(), twin.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None and other.grad is not None:
            assert torch.equal(one.grad, other.grad)


def test_nothing_is_taken_back_before_the_first_pass() -> None:
    net, twin, images = pair("cpu")
    graph = graphed(net, images[0], loss_of)
    graph.take_back()
    assert_alike(net, twin)


def test_errors_of_triton_are_failures_of_a_recording() -> None:
    errors = pytest.importorskip("triton.runtime.errors", reason="needs Triton")
    compiling = pytest.importorskip("triton.compiler.errors", reason="needs Triton")
    for kind in (
        errors.OutOfResources,
        errors.PTXASError,
        compiling.CompilationError,
        torch.cuda.OutOfMemoryError,
        subprocess.CalledProcessError,
    ):
        assert issubclass(kind, failures()), kind
    assert not issubclass(KeyError, failures()) and not issubclass(TypeError, failures())


@pytest.mark.parametrize("device", DEVICES)
def test_a_loss_that_leaves_an_output_out_adds_nothing(device: str) -> None:
    net, _, images = pair(device)
    graph = graphed(net, images[0], lambda found: loss_of(found) + found["features"][0].mean())
    graph(images[1])["features"][0].mean().backward()
    assert net.second.weight.grad is not None and not net.second.weight.grad.any()
    assert net.first[0].weight.grad is not None and net.first[0].weight.grad.any()


@pytest.mark.skipif(not available(), reason="needs a card of NVIDIA's")
def test_what_a_graph_cannot_hold_is_an_error_and_strikes_no_route() -> None:
    class Waits(Net):
        def forward(self, x: Tensor) -> dict[str, Any]:
            found = super().forward(x)
            found["boxes"] = found["boxes"] * (found["boxes"].sum().item() > -1e9)
            return found

    with patches.enabled("cuda", "triton"):
        net, image = Waits().cuda().train(), torch.randn(2, 2, 8, 8, device="cuda")
        with pytest.raises(RuntimeError):
            GraphedModule(net, image, loss_of)
        assert torch.randn(1, device="cuda").isfinite().all(), "random numbers are there as before"
        before = patches.report().calls
        loss_of(net(image)).backward()
        report = patches.report()
        assert report.calls > before and not any("struck off" in note for note in report.notes)


@pytest.mark.skipif(not available(), reason="needs a card of NVIDIA's")
def test_a_graph_that_leaves_less_than_it_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    net, _, images = pair("cuda")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1, 2**33))
    with pytest.raises(torch.cuda.OutOfMemoryError, match=r"0.0 GiB would be left beside the \d"):
        GraphedModule(net, images[0], loss_of)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.skipif(not available(), reason="needs a card of NVIDIA's")
def test_graphs_take_hardly_more_than_a_step_has_in_use() -> None:
    from toolkit.training.steps import TrainingStep

    step = TrainingStep("yolov8n.yaml", 8, 640, "cuda")
    with patches.enabled("cuda", "triton"):
        step()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        most = torch.cuda.max_memory_allocated() - before
        images = step.batch["img"]
        graph = GraphedModule(step.model, images, lambda found: step.model.loss(step.batch, found)[0].sum())
    assert 0.5 * most < graph.bytes < 1.1 * most


@pytest.mark.skipif(not available(), reason="needs a card of NVIDIA's")
@pytest.mark.parametrize("model", ["yolov8n.yaml", "yolo11n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize(("route", "half"), [("triton", False), ("triton", True), ("native", True)])
def test_detectors_train_the_same_bit_for_bit(model: str, route: str, half: bool) -> None:
    from toolkit.training.steps import TrainingStep, determinism

    patches.enable("cuda", route)
    try:
        with determinism(True):
            steps = [
                TrainingStep(model, 4, 256, "cuda", channels=1, amp=half, channels_last=half)
                for _ in range(2)
            ]
            recorded = steps[1].recorded()
            for _ in range(5):
                # The loss is summed over more zeros in the graph; what is learnt is the same.
                torch.testing.assert_close(recorded(), steps[0](), rtol=1e-5, atol=0)
        states = [step.model.state_dict() for step in steps]
        different = [name for name, value in states[0].items() if not torch.equal(value, states[1][name])]
        assert not different
    finally:
        patches.disable()
