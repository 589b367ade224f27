"""Ultralytics' arguments from the command line, toolkit.toml and preset files: named, typed, explained."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tiny_run import MODEL, plan, train
from ultralytics.cfg import DEFAULT_CFG_DICT, get_cfg
from ultralytics.nn.tasks import DetectionModel

from toolkit.errors import ToolkitError
from toolkit.runs import reproduction
from toolkit.runs.folder import RunFiles
from toolkit.runs.plan import TrainingPlan, read_plan
from toolkit.training import autobatch, deciding, estimate
from toolkit.training.arguments import OPTIMIZERS, check, in_training, parse
from toolkit.training.options import Options
from toolkit.training.preset import load_preset
from toolkit.training.trainer import LTDv2Trainer
from toolkit.workspace import Workspace


@pytest.fixture
def tiny(data: Path) -> Options:
    return Options(data=data, model=str(MODEL), preset="thermal", device="cpu", name="one")


def test_words_are_read_in_ultralytics_own_grammar() -> None:
    words = [
        "lr0=0.005",
        "cos_lr=True",
        "amp=fp32",
        "freeze=[0, 1]",
        "scale=(0.5, 1.5)",
        "time=none",
        "--box=7",
    ]
    assert parse(words) == {
        "lr0": 0.005,
        "cos_lr": True,
        "amp": "fp32",
        "freeze": [0, 1],
        "scale": [0.5, 1.5],
        "time": None,
        "box": 7,
    }


@pytest.mark.parametrize(
    ("words", "found"), [(["lr0="], "'lr0='"), (["=1"], "'=1'"), (["box=1", "box=2"], "twice")]
)
def test_words_that_say_nothing_are_refused(words: list[str], found: str) -> None:
    with pytest.raises(ToolkitError, match=found):
        parse(words)


def test_every_default_of_ultralytics_may_be_given() -> None:
    check({name: DEFAULT_CFG_DICT[name] for name in in_training()}, "a test")


@given(st.sampled_from(in_training()), st.sampled_from(["maybe", [], [None], {}, float("nan"), -7.5]))
def test_what_is_accepted_is_what_ultralytics_takes(name: str, value: object) -> None:
    """Nothing that Ultralytics refuses gets past; what it refuses is named, with what it may be."""
    try:
        check({name: value}, "a test")  # type: ignore[dict-item]
    except ToolkitError as error:
        assert error.what == f"{name} cannot be {value!r}" or name == "pretrained"
        assert error.expected
    else:
        get_cfg(overrides={name: value})


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("lrO=0.1", "no training argument lrO.*did you mean.*lr0"),
        ("mosiac=0.5", "did you mean mosaic"),
        ("qwertz=1", "no training argument qwertz.*--dry-run"),
        ("mosaic=2", "mosaic cannot be 2.*between 0.0 and 1.0"),
        ("lr0=true", "lr0 cannot be True.*a number"),
        ("cos_lr=1", "cos_lr cannot be 1.*bool"),
        ("nbs=0", "nbs cannot be 0"),
        ("optimizer=Sdg", "optimizer cannot be 'Sdg'.*AdamW"),
        ("classes=[4]", "classes cannot be .4.*2 motorcycle"),
        ("batch=0", "batch cannot be 0.*-1 for what fits"),
        ("time=-1", "time cannot be -1.*hours"),
        ("data=coco.yaml", "decided by the toolkit; use --data"),
        ("resume=true", "use --resume"),
        ("project=x", "toolkit; leave it out: runs lie in"),
        ("cache=ram", "toolkit dataset cache"),
        ("channels=1", "use --channels"),
        ("dropout=0.1", "no part in training a detector"),
        ("pretrained=yolo11n.pt", "no checkpoint yolo11n.pt.*never downloaded"),
    ],
)
def test_what_cannot_be_set_is_said_with_what_was_meant(word: str, message: str) -> None:
    with pytest.raises(ToolkitError, match=message):
        check(parse([word]), "the command line")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimiser_that_is_offered_is_built(name: str) -> None:
    stands_in = SimpleNamespace(args=get_cfg(), data={"nc": 4})
    model = DetectionModel(str(MODEL), ch=1, nc=4, verbose=False)
    assert LTDv2Trainer.build_optimizer(stands_in, model, name=name) is not None


def test_arguments_win_in_the_order_of_their_places_and_the_dry_run_says_which(
    place: Workspace, tiny: Options, tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").write_text("base: thermal\narguments: {lr0: 0.02, box: 8, cls: 1.5}\n")
    (place.root / "toolkit.toml").write_text("batch = 4\n[arguments]\nbox = 9.0\nmixup = 0.2\n")
    options = structs.replace(
        tiny, preset=str(tmp_path / "mine.yaml"), imgsz=64, arguments={"mixup": 0.3, "epochs": 2}
    )
    found = estimate.dry_run(place, options)
    told = {s.name: (s.value, s.source) for topic in found.settings.values() for s in topic}
    assert told["scale"] == (0.4, "preset thermal")
    assert told["cls"] == (1.5, "preset")
    assert told["box"] == (9.0, "toolkit.toml")
    assert told["batch"] == (4, "toolkit.toml")
    assert told["mixup"] == (0.3, "flag")
    assert told["epochs"] == (2, "flag")
    assert told["dfl"] == (1.5, "default")
    assert found.sources["channels"] == "preset thermal"


def test_a_value_given_twice_in_one_place_is_refused(place: Workspace, tiny: Options) -> None:
    with pytest.raises(ToolkitError, match="epochs is given twice; found 3 and 4"):
        deciding.plan(place, structs.replace(tiny, epochs=3, arguments={"epochs": 4}))
    assert not place.runs.exists()


def test_toolkit_toml_is_checked_as_the_command_line_is(place: Workspace, tiny: Options) -> None:
    (place.root / "toolkit.toml").write_text("[arguments]\nmosiac = 0.5\n")
    with pytest.raises(ToolkitError, match=r"\[arguments\] of toolkit.toml.*did you mean mosaic"):
        deciding.plan(place, tiny)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("base: mine.yaml\n", "builds on itself"),
        ("base: fast\n", "no preset fast"),
        ("channels: 1\n", "names no model"),
        ("model: yolo11n.yaml\nchannels: 2\n", "cannot be used"),
        ("modle: yolo11n.yaml\n", "cannot be used.*modle"),
        ("base: thermal\narguments: {mosiac: 1}\n", "mosiac in preset .*mine.yaml.*did you mean mosaic"),
        ("base: [\n", "cannot be used"),
        ("base: thermal\narguments: {data: x}\n", "use --data"),
    ],
)
def test_a_preset_file_that_is_none_is_refused(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "mine.yaml").write_text(content)
    with pytest.raises(ToolkitError, match=message):
        load_preset(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "1.e-3", ".1e-2", "1.0e-3", "0.001", "+1e-03"])
def test_numbers_of_a_preset_are_read_as_everywhere_else(tmp_path: Path, number: str) -> None:
    (tmp_path / "a.yaml").write_text(f"base: thermal\narguments: {{lr0: {number}, box: 7}}\n")
    arguments = load_preset(str(tmp_path / "a.yaml")).arguments
    assert (arguments["lr0"], arguments["box"]) == (0.001, 7)
    (tmp_path / "b.yaml").write_text("base: thermal\narguments: {lr0: '1e-3'}\n")
    with pytest.raises(ToolkitError, match="lr0 cannot be '1e-3'"):
        load_preset(str(tmp_path / "b.yaml"))


def test_a_preset_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"none\.yaml cannot be used; found no such file"):
        load_preset(str(tmp_path / "none.yaml"))


def test_a_preset_builds_on_a_file_beside_it_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below.yaml").write_text("base: smoke\narguments: {imgsz: 320}\n")
    (tmp_path / "mine.yaml").write_text("base: below.yaml\nmodel: yolo11n.yaml\n")
    monkeypatch.chdir(tmp_path.parent)
    made = load_preset(str(tmp_path / "mine.yaml"))
    smoke = load_preset("smoke")
    assert made.arguments == {**smoke.arguments, "imgsz": 320}
    assert (made.model, made.channels) == ("yolo11n.yaml", smoke.channels)
    assert made.sources["imgsz"] == "preset below"
    assert made.sources["lr0"] == "preset smoke"
    assert "model" not in made.sources


def test_a_run_goes_on_with_its_arguments_and_refuses_others(place: Workspace, tiny: Options) -> None:
    begun = deciding.plan(place, structs.replace(tiny, arguments={"lr0": 0.02, "mosaic": 0.5}))
    reproduction.record(begun)
    again = deciding.plan_resume(place, Options(arguments={"lr0": 0.02, "box": 7.5, "batch": 2}))
    assert (again.arguments["lr0"], again.arguments["batch"]) == (0.02, 2)
    assert read_plan(RunFiles(begun.run)).arguments["mosaic"] == 0.5
    with pytest.raises(ToolkitError, match=r"begun with another lr0; found lr0=0\.01; expected lr0=0\.02"):
        deciding.plan_resume(place, Options(arguments={"lr0": 0.01}))


def test_a_batch_that_fits_is_found_by_trying_and_was_tried() -> None:
    for fits in (0, 1, 3, 16, 100, 5000):
        tried: list[int] = []

        def memory(images: int, fits: int = fits, tried: list[int] = tried) -> int | None:
            tried.append(images)
            return None if images > 2 * fits else images

        found = autobatch.largest(memory, limit=fits)
        assert found <= fits
        assert found >= min(fits, autobatch.LARGEST) * 15 // 16
        assert found in tried or not found


def test_a_batch_to_be_measured_is_ultralytics_on_a_cpu_and_refused_on_several_gpus(
    place: Workspace, tiny: Options
) -> None:
    planned = deciding.plan(place, structs.replace(tiny, arguments={"batch": -1}))
    assert planned.arguments["batch"] == get_cfg().batch
    several = replace(planned, device="0,1", arguments={**planned.arguments, "batch": -1})
    with pytest.raises(ToolkitError, match="measures one GPU; found device 0,1"):
        autobatch.settle(several)


def test_a_trial_that_fails_is_one_line(
    place: Workspace, tiny: Options, capfd: pytest.CaptureFixture[str]
) -> None:
    """There is no GPU behind this device: the child ends with an error."""
    planned = replace(deciding.plan(place, tiny), device="63")
    unsettled = replace(planned, arguments={**planned.arguments, "batch": 0.5})
    with pytest.raises(ToolkitError, match=r"batch=0\.5 could not be measured; found status 1"):
        autobatch.settle(unsettled)


def timed(data: Path, run: Path) -> TrainingPlan:
    return plan(data, run, time=1.0, epochs=100, close_mosaic=0, cos_lr=True)


def test_a_time_decides_the_epochs_over_the_whole_run(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An hour, on a clock that takes 100 seconds a batch: six epochs of six batches, cut and continued."""
    clock = {"now": 1e9}
    monkeypatch.setattr(time, "time", lambda: clock["now"])

    def slowly(trainer: LTDv2Trainer) -> None:
        trainer.add_callback("on_train_batch_start", lambda _: clock.update(now=clock["now"] + 100))

    cut = train(timed(data, tmp_path / "run"), stop_after=21, prepare=slowly)
    assert cut.stopped
    rest = train(timed(data, tmp_path / "run"), prepare=slowly)
    assert rest.trainer is not None
    assert rest.trainer.epochs == 6
    batches = len(cut.steps) + len(rest.steps)
    assert 34 <= batches <= 37
    whole = train(timed(data, tmp_path / "whole"), prepare=slowly)
    rates = [step.rate for step in cut.steps + rest.steps]
    assert rates[:21] == [step.rate for step in whole.steps][:21]
    assert rates[30] == pytest.approx(whole.steps[30].rate)


@pytest.mark.parametrize("arguments", [{"epochs": 1}, {"epochs": 2, "val": False}])
def test_a_time_wins_over_epochs(
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: dict[str, Any],
) -> None:
    """An hour is 36 batches of 100 seconds, however few epochs were asked for: six, of which one is over."""
    clock = {"now": 1e9}
    monkeypatch.setattr(time, "time", lambda: clock["now"])

    def slowly(trainer: LTDv2Trainer) -> None:
        trainer.add_callback("on_train_batch_start", lambda _: clock.update(now=clock["now"] + 100))

    planned = plan(data, tmp_path / "run", **{"time": 1.0, "close_mosaic": 5, "mosaic": 1.0, **arguments})
    assert 34 <= len(train(planned, prepare=slowly).steps) <= 37
    assert (planned.run / "weights" / "best.pt").is_file()
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("close_mosaic=5 leaves all 5 further epochs without mosaic") == 1


def test_plans_of_lists_and_none_are_written_and_read(data: Path, tmp_path: Path) -> None:
    planned = plan(data, tmp_path / "run", freeze=[0, 1], scale=[0.5, 1.5], time=None)
    reproduction.record(planned)
    assert read_plan(RunFiles(planned.run)) == planned
    assert msgspec.json.decode(RunFiles(planned.run).plan.read_bytes())["arguments"]["freeze"] == [0, 1]
