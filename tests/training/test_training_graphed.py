"""A loss whose shapes do not follow the boxes is Ultralytics' own, and trains the same from a graph."""

from __future__ import annotations

import sys
from copy import deepcopy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from called_again import CalledAgain
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils import _pytree as trees

from toolkit.training import graphed, replay
from toolkit.training.dense_loss import LEAST, DenseLoss, padded, places
from toolkit.training.graphed import TARGETS, Recorder, add_targets
from toolkit.training.settling import Settled

pytest.importorskip("ultralytics", minversion="8.4.100", reason="losses of older releases are not known")

from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

MODELS = ("yolov8n.yaml", "yolo26n.yaml")
"""Of distributions of distances, and of distances with two heads."""

SIZE, IMAGES, CLASSES = 96, 3, 4


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    found = DetectionModel(request.param, ch=1, nc=CLASSES, verbose=False).train()
    found.args = get_cfg()
    found.criterion = found.init_criterion()
    return found


def a_batch(counts: list[int], seed: int = 0) -> dict[str, Any]:
    """Images with so many boxes, from tiny ones to some that leave the image, as loaders give them."""
    draw = torch.Generator().manual_seed(seed)
    count = sum(counts)
    sides = torch.rand(count, 2, generator=draw) ** 3 * 0.8 + 0.01
    return {
        "img": torch.rand(len(counts), 1, SIZE, SIZE, generator=draw),
        "cls": torch.randint(0, CLASSES, (count, 1), generator=draw).float(),
        "bboxes": torch.cat((torch.rand(count, 2, generator=draw), sides), 1),
        "batch_idx": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).float(),
    }


def leaves_of(outputs: Any) -> Any:
    return trees.tree_map(
        lambda each: each.detach().requires_grad_() if isinstance(each, Tensor) else each, outputs
    )


def gradients(outputs: Any) -> list[Tensor]:
    return [each.grad for each in trees.tree_leaves(outputs) if each.grad is not None]


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 20), min_size=IMAGES, max_size=IMAGES), st.integers(0, 10), st.booleans())
def test_the_dense_loss_and_its_gradients_are_ultralytics_own(
    model: Any, counts: list[int], seed: int, mixed: bool
) -> None:
    batch = a_batch(counts, seed)
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        outputs = model(batch["img"])
        one, other = leaves_of(outputs), leaves_of(outputs)
        wanted, shown = model.loss(batch, one)
        dense = DenseLoss(model.criterion)
        found, components = dense(other, padded(batch, places(batch)), torch.tensor(dense.gains()))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
    assert dense.names == tuple(shown)
    torch.testing.assert_close(components, torch.stack(list(shown.values())), rtol=1e-5, atol=1e-6)
    wanted.sum().backward()
    found.sum().backward()
    for mine, own in zip(gradients(other), gradients(one), strict=True):
        torch.testing.assert_close(mine, own, rtol=1e-5, atol=1e-7)


def test_boxes_lie_in_the_places_of_their_image_and_the_rest_is_zero() -> None:
    batch = a_batch([0, 9, 2])
    assert places(batch) == 16 and places(a_batch([0, 0])) == LEAST
    found = padded(batch, 16)
    assert found.shape == (3, 16, 5)
    assert torch.equal(found[1, :9, 1:], batch["bboxes"][:9])
    assert torch.equal(found[2, :2, 0], batch["cls"][9:, 0])
    assert not found[0].any() and not found[1, 9:].any() and not found[2, 2:].any()
    assert add_targets(batch, 64) == 64 and batch[TARGETS].shape == (3, 64, 5)


def test_a_loss_that_is_not_ultralytics_own_is_left_to_who_made_it(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = a_batch([1, 2, 3])
    add_targets(batch)
    assert graphed._agrees(model, batch)
    with monkeypatch.context() as changed:
        changed.setattr(model, "loss", lambda batch, outputs: outputs, raising=False)
        assert not graphed._agrees(model, batch)
    with monkeypatch.context() as changed:
        changed.setattr(model, "criterion", type("Own", (type(model.criterion),), {})(model))
        assert not graphed._agrees(model, batch)
    with monkeypatch.context() as changed:  # as Ultralytics 8.4.100
        for part in (
            (model.criterion.one2many, model.criterion.one2one) if ends(model) else (model.criterion,)
        ):
            changed.delattr(part, "loss_names")
        assert not graphed._agrees(model, batch)
    with monkeypatch.context() as changed:
        changed.setattr(graphed, "DenseLoss", TooMuch)
        assert not graphed._agrees(model, batch)
    with monkeypatch.context() as changed:  # as another version of Ultralytics may
        changed.setattr(graphed.DenseLoss, "__call__", slightly_off(graphed.DenseLoss.__call__))
        assert not graphed._agrees(model, batch)


def ends(model: Any) -> bool:
    return hasattr(model.criterion, "one2one")


class TooMuch(DenseLoss):
    """There is not enough memory for all pairs."""

    def __call__(self, *_: Any) -> Any:
        raise torch.cuda.OutOfMemoryError("out of memory")


def slightly_off(call: Any) -> Any:
    return lambda *given: tuple(each * 1.01 for each in call(*given))


@pytest.fixture
def recorded(model: Any, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any, replay.NetworkGraph]:
    """A twin of the model, and what trains the model by graphs with the loss in them, which are quicker."""
    monkeypatch.setattr(graphed, "GraphedModule", CalledAgain)
    monkeypatch.setattr(replay, "settle_convolutions", lambda *_, graphs: Settled(graphs, ""))
    monkeypatch.setattr(graphed, "_seconds", lambda detector, *_: 1.0 if detector.whole else 2.0)
    graph = replay.NetworkGraph(lambda *event: pytest.fail(str(event)))
    mine = deepcopy(model)
    graph.settle(mine, (IMAGES, 1, SIZE), None, True)
    return mine, deepcopy(model), graph


def normalised(batch: dict[str, Any]) -> dict[str, Any]:
    """As Ultralytics moves a batch to the device."""
    return {**batch, "img": batch["img"].float() / 255}


def test_batches_train_the_same_with_the_loss_in_the_graph(
    recorded: tuple[Any, Any, replay.NetworkGraph], monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, twin, graph = recorded
    # More boxes than there are places have another graph recorded; an image less has none, whatever it holds.
    batches: list[list[int]] = [[40, 1], [2, 0, 7], [1, 1, 1], [3, 20, 0], [0, 0, 0], [50, 50], [9, 9, 9]]
    replayed, places = [], set()
    for number, counts in enumerate(batches):
        batch = a_batch(counts, number)
        read = {**batch, "img": (batch["img"] * 255).to(torch.uint8)}
        batch = normalised(read)
        moved = graph.moved(read, normalised)
        assert torch.equal(moved["img"], batch["img"])
        loss, items = graph.loss(mine, moved)
        if len(counts) == IMAGES:
            places.add(moved["img"].data_ptr())
        replayed.append("_Replay" in str(loss.grad_fn))
        assert TARGETS not in read
        wanted, wanted_items = twin(batch)
        assert list(items) == list(wanted_items)
        torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
        if number % 2:
            for each in (mine, twin):
                nn.utils.clip_grad_norm_(each.parameters(), 10.0)
        loss.sum().backward()
        wanted.sum().backward()
        if hasattr(mine.criterion, "update"):  # the heads' shares move with the epochs
            for each in (mine, twin):
                each.criterion.update()
    assert replayed == [len(counts) == IMAGES for counts in batches]
    assert len(places) == 2, "of each graph one"
    for (name, one), other in zip(mine.named_parameters(), twin.parameters(), strict=True):
        if other.grad is not None:
            torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5, msg=name)
    for one, other in zip(mine.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(one, other)


def test_what_is_quicker_serves_and_the_model_stays_as_it_was(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphed, "GraphedModule", CalledAgain)
    seconds = {True: 1.0, False: 2.0}
    monkeypatch.setattr(graphed, "timed", lambda step: (step(), seconds[whole[-1]])[1])
    whole: list[bool] = []
    made = graphed.GraphedDetector.__init__

    def init(self: Any, model: Any, batch: Any, whole_: bool) -> None:
        whole.append(whole_)
        made(self, model, batch, whole_)

    monkeypatch.setattr(graphed.GraphedDetector, "__init__", lambda s, m, b, whole: init(s, m, b, whole))
    batch = a_batch([1, 2, 3])
    add_targets(batch)
    before = deepcopy(model.state_dict())
    record = Recorder(judge=True)
    assert record(model, batch).whole and whole == [False, True]
    assert record(model, batch).whole and whole == [False, True, True], "the other way is timed once"
    seconds[True] = 3.0
    assert not record(model, batch).whole
    assert not record(model, batch).whole and whole[-2:] == [False, False], "it is not tried again"
    assert all(each.grad is None for each in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class FailsToCompile(Exception):
    """As Triton's errors: none of PyTorch's."""


@pytest.mark.parametrize("kind", [RuntimeError, torch.cuda.OutOfMemoryError, FailsToCompile])
def test_a_loss_that_cannot_be_recorded_leaves_the_network_in_the_graph(
    model: Any, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]
) -> None:
    class FailsWithTheLoss(CalledAgain):
        def __init__(self, module: nn.Module, example: Any, loss: Any, call: Any = None) -> None:
            if call is not None:
                raise kind("shared memory")
            super().__init__(module, example, loss)

    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=FailsToCompile))
    monkeypatch.setattr(graphed, "GraphedModule", FailsWithTheLoss)
    batch = a_batch([1, 2, 3])
    add_targets(batch)
    assert not Recorder(judge=False)(model, batch).whole
