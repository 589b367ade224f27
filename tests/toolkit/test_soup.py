"""Weights averaged greedily, by a score that is given."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from ultralytics.nn.tasks import DetectionModel

from toolkit.errors import ToolkitError
from toolkit.soup import average, checkpoints_of, files_of, make
from toolkit.weights import load_model, read_checkpoint

TINY = str(Path(__file__).parents[1] / "helpers" / "tiny.yaml")
NAMES = {0: "person", 1: "bicycle", 2: "motorcycle", 3: "vehicle"}


def checkpoint(path: Path, value: float, channels: int = 1) -> Path:
    """A tiny detector whose weights are all ``value``."""
    model = DetectionModel(TINY, ch=channels, nc=4, verbose=False)
    model.names = NAMES
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": model.half(), "train_args": {"imgsz": 64}}, path)
    return path


def value_of(path: Path) -> float:
    return float(next(read_checkpoint(path).parameters()).detach().flatten()[0])


def test_what_makes_the_average_worse_stays_out(tmp_path: Path) -> None:
    """The score is best at 1: 0.5 is best alone, 1.75 brings the average nearer, 8 takes it away."""
    paths = [checkpoint(tmp_path / f"{i}.pt", v) for i, v in enumerate((8.0, 1.75, 0.5))]
    seen = []

    def judge(path: Path) -> float:
        seen.append(value_of(path))
        return -abs(seen[-1] - 1)

    made = make(paths, judge, tmp_path / "out" / "soup.pt")
    assert made.members == [paths[2], paths[1]]
    assert value_of(tmp_path / "out" / "soup.pt") == pytest.approx(1.125)
    assert made.score == pytest.approx(-0.125)
    assert list(made.alone) == [paths[2], paths[1], paths[0]]
    assert seen == pytest.approx([8, 1.75, 0.5, 1.125, (0.5 + 1.75 + 8) / 3], abs=0.01)
    # It is a checkpoint like any other, of the size that its members were trained with.
    assert load_model(tmp_path / "out" / "soup.pt", torch.device("cpu")).args["imgsz"] == 64


def test_a_score_that_is_no_number_is_the_worst(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{i}.pt", v) for i, v in enumerate((2.0, 1.0))]
    made = make(paths, lambda path: 0.3 if value_of(path) == 1.0 else float("nan"), tmp_path / "soup.pt")
    assert (made.members, made.score) == ([paths[1]], 0.3)


def test_the_same_weights_count_once_whatever_else_their_files_hold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that ended with its best epoch, best.pt, last.pt and epoch50.pt differ in the rest alone."""
    weights = tmp_path / "weights"
    best = checkpoint(weights / "best.pt", 1.0)
    content = torch.load(best, weights_only=False)
    for name, epoch in (("last.pt", 49), ("epoch50.pt", 49)):
        torch.save({**content, "epoch": epoch, "model": None, "ema": content["model"]}, weights / name)
    other = checkpoint(weights / "epoch40.pt", 2.0)
    assert checkpoints_of(tmp_path) == [best, other]
    made = make([best, weights / "last.pt", other], value_of, tmp_path / "soup.pt")
    assert made.members == [other]
    assert list(made.alone) == [other, best]
    assert f"last.pt: the weights of {best}; left out" in capsys.readouterr().err
    with pytest.raises(ToolkitError, match="found 2 checkpoints of the same weights"):
        make([best, weights / "epoch50.pt"], value_of, tmp_path / "none.pt")


def test_scores_that_are_no_numbers_choose_nothing(tmp_path: Path) -> None:
    """Where every month has 0, global_map_bal is NaN for each checkpoint."""
    paths = [checkpoint(tmp_path / f"{i}.pt", v) for i, v in enumerate((2.0, 1.0))]
    with pytest.raises(ToolkitError, match="nothing to choose by; found a score of NaN of each of 2"):
        make(paths, lambda _: float("nan"), tmp_path / "soup.pt")
    with pytest.raises(ToolkitError, match="found a score of 0 or NaN of each of 2"):
        make(paths, lambda path: 0.0 if value_of(path) == 2 else float("nan"), tmp_path / "soup.pt")
    assert not (tmp_path / "soup.pt").exists()


def test_an_older_average_is_replaced_and_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [checkpoint(tmp_path / f"{i}.pt", v) for i, v in enumerate((2.0, 1.0))]
    for times in range(2):
        make(paths, value_of, tmp_path / "soup.pt")
        assert capsys.readouterr().err.count("soup.pt is there already and will be replaced") == times


def test_what_finds_nothing_is_left_out_untried(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / f"{i}.pt", v) for i, v in enumerate((3.0, 1.0, 2.0))]
    seen = []

    def judge(path: Path) -> float:
        seen.append(value_of(path))
        return 0.0 if seen[-1] == 3 else seen[-1]

    made = make(paths, judge, tmp_path / "soup.pt")
    assert (made.members, made.alone[paths[0]]) == ([paths[2]], 0)
    assert seen == [3, 1, 2, 1.5]
    with pytest.raises(ToolkitError, match="nothing to choose by; found a score of 0 of each of 2"):
        make(paths[:2], lambda path: 0.0, tmp_path / "none.pt")
    assert not (tmp_path / "none.pt").exists()


def test_the_average_is_that_of_float64_and_leaves_counters_alone() -> None:
    models = [DetectionModel(TINY, ch=1, nc=4, verbose=False) for _ in range(3)]
    mean = average(models).state_dict()
    for name, value in mean.items():
        given = [model.state_dict()[name] for model in models]
        wanted = sum(v.double() for v in given) / 3 if value.is_floating_point() else given[0]
        torch.testing.assert_close(value.double(), torch.as_tensor(wanted).double(), rtol=1e-6, atol=1e-7)


def test_different_architectures_are_refused_before_anything_is_scored(tmp_path: Path) -> None:
    paths = [checkpoint(tmp_path / "a.pt", 1.0), checkpoint(tmp_path / "b.pt", 1.0, channels=3)]

    def never(path: Path) -> float:
        raise AssertionError(path)

    with pytest.raises(
        ToolkitError, match=r"different architectures; found .* x 1 x .* and .* x 3 x .*ensemble"
    ):
        make(paths, never, tmp_path / "soup.pt")
    with pytest.raises(ToolkitError, match="nothing to average; found 1 checkpoint"):
        make([paths[0], paths[0]], never, tmp_path / "soup.pt")
    assert not (tmp_path / "soup.pt").exists()


def test_a_run_stands_for_its_checkpoints_each_once(tmp_path: Path) -> None:
    best = checkpoint(tmp_path / "weights" / "best.pt", 1.0)
    (tmp_path / "weights" / "last.pt").write_bytes(best.read_bytes())
    later = checkpoint(tmp_path / "weights" / "epoch10.pt", 2.0)
    assert checkpoints_of(tmp_path) == [best, later]
    assert files_of(tmp_path) == [best, tmp_path / "weights" / "last.pt", later]
    earlier = checkpoint(tmp_path / "weights" / "epoch9.pt", 3.0)
    assert checkpoints_of(tmp_path) == [best, earlier, later]
    with pytest.raises(ToolkitError, match="no checkpoints"):
        checkpoints_of(tmp_path / "weights")
