"""Training on several frames at once: weights remember which, predict with them, and begin from others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import MODEL, plan, train
from ultralytics.nn.tasks import DetectionModel

from submission.validate import LABELS
from toolkit import soup
from toolkit.dataset import index
from toolkit.dataset.views import Views
from toolkit.errors import ToolkitError
from toolkit.prediction import PredictionOptions, predict
from toolkit.runs import reproduction
from toolkit.runs.plan import TrainingPlan
from toolkit.training import deciding, estimate
from toolkit.training.options import Options
from toolkit.weights import carry_first_layer, load_model, read_checkpoint, remember_views, views_of
from toolkit.workspace import Workspace

VIEWS = Views.parse("now,before,background")


def seeing(data: Path, run: Path, **arguments: object) -> TrainingPlan:
    return replace(plan(data, run, **arguments), views=VIEWS, channels=3)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The weights of a run, cut off in its second epoch and continued, that plots what it sees."""
    planned = seeing(data, tmp_path_factory.mktemp("runs") / "seeing", plots=True)
    assert train(planned, stop_after=8).stopped
    train(planned)
    return planned.run / "weights" / "best.pt"


def test_weights_remember_their_frames_and_predict_with_them(trained: Path, data: Path) -> None:
    assert views_of(read_checkpoint(trained)) == VIEWS
    found = predict(trained, data, "val", PredictionOptions(device="cpu", conf=0.0001))
    assert len(found) == len(index.load(data).split("val"))


def test_each_channel_reaches_the_network(trained: Path, data: Path) -> None:
    """The same weights that are told of other frames find something else."""
    seen = predict(trained, data, "train", PredictionOptions(device="cpu", conf=0.0001))
    model = torch.load(trained, weights_only=False)
    model["model"].yaml["frames"] = ["now", "after", "after2"]
    torch.save(model, trained.with_name("other.pt"))
    other = predict(
        trained.with_name("other.pt"), data, "train", PredictionOptions(device="cpu", conf=0.0001)
    )
    assert len(other.scores) != len(seen.scores) or not np.array_equal(other.scores, seen.scores)


def test_a_run_that_is_cut_goes_on_exactly(data: Path, tmp_path: Path) -> None:
    whole = train(seeing(data, tmp_path / "whole"))
    first = train(seeing(data, tmp_path / "cut"), stop_after=7)
    assert first.steps + train(seeing(data, tmp_path / "cut")).steps == whole.steps


def network(channels: int, views: Views | None = None) -> DetectionModel:
    torch.manual_seed(channels)
    model = DetectionModel(str(MODEL), ch=channels, nc=len(LABELS), verbose=False)
    if views is not None:
        remember_views(model, views)
    return model.eval()


@pytest.mark.parametrize("colours", [1, 3])
def test_a_network_begins_as_the_one_of_the_frame_alone(colours: int) -> None:
    """Whatever the other channels show: it finds what the source finds in the frame."""
    source, model = network(colours), network(3, VIEWS)
    model.load(source, verbose=False)
    carry_first_layer(model, source, VIEWS)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(
        model(images)[0], source(images[:, :1].expand(-1, colours, -1, -1))[0], rtol=1e-4, atol=1e-3
    )


def test_channels_that_both_have_keep_their_kernels() -> None:
    source = network(2, Views.parse("before,now"))
    model = network(3, VIEWS)
    before = model.model[0].conv.weight.clone()
    carry_first_layer(model, source, VIEWS)
    kernel, old = model.model[0].conv.weight, source.model[0].conv.weight
    torch.testing.assert_close(kernel[:, 0], old[:, 1])
    torch.testing.assert_close(kernel[:, 1], old[:, 0])
    assert not kernel[:, 2].any()
    same = network(3, VIEWS)
    carry_first_layer(same, network(3, VIEWS), VIEWS)
    torch.testing.assert_close(same.model[0].conv.weight, before)


def options(data: Path, **more: object) -> Options:
    return Options(
        **{"data": data, "model": str(MODEL), "preset": "smoke", "imgsz": 64, "device": "cpu", "name": "one"}
        | more
    )  # type: ignore[arg-type]


def test_weights_bring_their_frames_and_refuse_others(data: Path, place: Workspace, trained: Path) -> None:
    planned = deciding.plan(place, options(data, model=str(trained)))
    assert (planned.views, planned.channels) == (VIEWS, 3)
    with pytest.raises(
        ToolkitError, match=r"was trained with other --frames; found --frames now,before; expected"
    ):
        deciding.plan(place, options(data, model=str(trained), frames="now,before"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"frames": "now,past"}, "'past' is no channel"),
        ({"frames": "before"}, "makes no sample"),
        ({"frames": "now,before", "channels": 3}, "makes 2 channels; found --channels 3"),
    ],
)
def test_frames_that_cannot_be_are_refused_before_a_run_begins(
    data: Path, place: Workspace, more: dict[str, object], message: str
) -> None:
    with pytest.raises(ToolkitError, match=message):
        deciding.plan(place, options(data, **more))
    assert not place.runs.exists()


def test_a_resumed_run_keeps_its_frames(data: Path, place: Workspace) -> None:
    reproduction.record(deciding.plan(place, options(data, frames="now,before")))
    again = deciding.plan_resume(place, Options(frames="now, before"))
    assert (again.views, again.channels) == (Views.parse("now,before"), 2)
    with pytest.raises(
        ToolkitError, match="begun with another --frames; found now,after; expected now,before"
    ):
        deciding.plan_resume(place, Options(frames="now,after"))


def test_a_dry_run_shows_the_frames(data: Path, place: Workspace) -> None:
    lines = list(estimate.dry_run(place, options(data, frames="now,background")).lines())
    assert "frames       now,background (flag)" in lines
    # No preset has two channels.
    assert [line for line in lines if line.endswith(", 2 channels (as many as frames)")]


def test_a_soup_of_other_frames_is_refused(trained: Path, tmp_path: Path) -> None:
    content = torch.load(trained, weights_only=False)
    content["model"].yaml["frames"] = ["now", "after", "after2"]
    torch.save(content, tmp_path / "other.pt")
    with pytest.raises(
        ToolkitError, match="see different frames; found --frames now,before,background and now,after"
    ):
        soup.make([trained, tmp_path / "other.pt"], lambda _: 1.0, tmp_path / "soup.pt")
    assert not (tmp_path / "soup.pt").exists()


def test_weights_of_several_frames_load_as_any_detector(trained: Path) -> None:
    model = load_model(trained, torch.device("cpu"))
    assert model.yaml["frames"] == list(VIEWS.words)
    assert model.names == {label - 1: name for label, name in LABELS.items()}
