"""What a run will use is decided before anything starts: flags, then toolkit.toml, then the preset."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from command import Command
from msgspec import structs
from ultralytics.cfg import get_cfg

from toolkit import doctor
from toolkit.dataset.frequency import Frequency, Paste
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.machine import checks, kernel
from toolkit.machine.device import resolve_device
from toolkit.runs import reproduction
from toolkit.runs.folder import RunFiles, Summary, write_json
from toolkit.runs.plan import ULTRALYTICS, TrainingPlan
from toolkit.supervision import status, supervisor
from toolkit.supervision.supervisor import claim
from toolkit.training import deciding, preset
from toolkit.training.options import Options
from toolkit.training.preset import load_preset
from toolkit.training.state import save_state
from toolkit.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    write_sample(tmp_path / "data", train=4, val=2, test=2, seed=0, scene="street")
    prepare(tmp_path / "data")
    return Workspace(tmp_path)


def test_the_device_auto_takes_the_doctors_batch_and_workers_unless_somebody_says_others(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def fitting(imgsz: int) -> dict[str, int]:
        asked.append(imgsz)
        return {"batch": 6, "workers": 3}

    monkeypatch.setattr(doctor, "fitting", fitting)
    planned = deciding.plan(place, Options(preset="smoke", device="auto", imgsz=96))
    assert (planned.arguments["batch"], planned.arguments["workers"]) == (6, 3)
    assert planned.device == resolve_device(None)
    assert asked == [96]
    (place.root / "toolkit.toml").write_text('device = "auto"\nworkers = 1\n')
    planned = deciding.plan(place, Options(preset="smoke", batch=2))
    assert (planned.arguments["batch"], planned.arguments["workers"]) == (2, 1)
    sources = dict(deciding.layers(Options(device="auto"), place.defaults(), load_preset("smoke")))
    assert sources["doctor"] == {"batch": 6, "workers": 3}


def test_what_the_doctor_finds_fitting_is_what_it_recommends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "ask", lambda timeout: doctor.Runtime(torch="2.0"))
    doctor.fitting.cache_clear()
    here = doctor.fitting(640)
    doctor.fitting.cache_clear()
    advice = doctor.diagnose(kernel.read(), doctor.Runtime(torch="2.0"), ()).recommendation
    assert here["batch"] == int(advice.batch.value)
    assert here["workers"] == int(advice.workers.value)


@pytest.mark.parametrize("name", preset.presets())
def test_every_preset_speaks_ultralytics_words(name: str) -> None:
    get_cfg(overrides=dict(load_preset(name).arguments))


def test_a_flag_wins_over_the_file_and_the_file_over_the_preset(place: Workspace) -> None:
    (place.root / "data" / "toolkit.toml").write_text(
        'preset = "smoke"\nepochs = 7\nimgsz = 96\nmodel = "yolo11n.yaml"'
    )
    plan = deciding.plan(place, Options(epochs=2, device="cpu"))
    assert plan.arguments["epochs"] == 2
    assert plan.arguments["imgsz"] == 96
    assert plan.arguments["batch"] == load_preset("smoke").arguments["batch"]
    assert (plan.preset, plan.model, plan.device) == ("smoke", "yolo11n.yaml", "cpu")


def test_what_an_epoch_shows_is_said_by_a_preset_the_file_or_a_flag(place: Workspace) -> None:
    below = place.root / "below.yaml"
    below.write_text("base: thermal\nevery: 10\nrepeat: motorcycle=8\nscore_every: 4\n")
    (place.root / "mine.yaml").write_text(f"base: {below}\nevery: 5\npaste: bicycle=0.1\n")
    (place.root / "data" / "toolkit.toml").write_text('repeat = "bicycle=2"\nevery = 3\n')
    plan = deciding.plan(place, Options(every=2, preset=str(place.root / "mine.yaml")))
    assert (plan.frequency, plan.paste) == (Frequency(2, {2: 2}), Paste({2: 0.1}))
    assert plan.score_every == 4
    plain = deciding.plan(place, Options(repeat="none", paste="none"))
    assert (plain.frequency, plain.paste) == (Frequency(3, {}), Paste({}))


def test_a_lever_in_a_file_is_held_to_the_bounds_of_its_flag(place: Workspace) -> None:
    (place.root / "mine.yaml").write_text("base: thermal\nevery: 0\n")
    with pytest.raises(ToolkitError, match=r"preset .*mine.yaml cannot be used.*every"):
        deciding.plan(place, Options(preset=str(place.root / "mine.yaml")))
    (place.root / "mine.yaml").write_text("base: thermal\nhsv_v: 0.2\n")
    with pytest.raises(ToolkitError, match=r"hsv_v.*Ultralytics' own below arguments:"):
        deciding.plan(place, Options(preset=str(place.root / "mine.yaml")))
    (place.root / "data" / "toolkit.toml").write_text('select_by = "luck"\n')
    with pytest.raises(ToolkitError, match=r"select_by"):
        deciding.plan(place, Options())


def test_the_file_may_set_seed_name_and_saving(place: Workspace) -> None:
    (place.root / "data" / "toolkit.toml").write_text('seed = 5\nname = "night"\n[saving]\nbatches = 20\n')
    plan = deciding.plan(place, Options(device="cpu"))
    assert (plan.arguments["seed"], plan.run.name, plan.saving.batches) == (5, "night", 20)


def test_runs_without_a_name_are_numbered(place: Workspace) -> None:
    assert deciding.plan(place, Options(device="cpu")).run.name == "train-1"
    (place.runs / "train-1").mkdir(parents=True)
    assert deciding.plan(place, Options(device="cpu")).run.name == "train-2"


def test_trainings_that_start_together_never_share_a_folder(place: Workspace) -> None:
    plans = [deciding.plan(place, Options(device="cpu")) for _ in range(8)]
    assert {plan.run.name for plan in plans} == {"train-1"}
    with ThreadPoolExecutor(len(plans)) as pool:
        claimed = list(pool.map(claim, plans))
    assert sorted(plan.run.name for plan in claimed) == [f"train-{number}" for number in range(1, 9)]
    assert all(plan.run.is_dir() for plan in claimed)


def test_a_name_that_is_taken_is_refused(place: Workspace) -> None:
    (place.runs / "first").mkdir(parents=True)
    (place.runs / "first" / "run.json").write_text("{}")
    with pytest.raises(ToolkitError, match=r"first exists already.*--resume"):
        deciding.plan(place, Options(name="first", device="cpu"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (Options(model="yolo11n.pt"), r"no checkpoint yolo11n\.pt.*never downloaded.*yolo11n\.yaml"),
        (Options(model="yolo99z.yaml"), r"no model yolo99z\.yaml"),
        (Options(model="yolo11n.onnx"), r"no model yolo11n\.onnx"),
        (Options(preset="fast"), r"no preset fast.*rx5600xt, smoke, thermal"),
        (Options(name="a/b"), "no name for a run"),
        (Options(device="7"), r"no device 7.*toolkit doctor"),
        (Options(channels=0), r"0 channels.*1 or 3"),
        (Options(channels=2), r"2 channels.*1 or 3"),
    ],
)
def test_what_is_not_there_is_named(place: Workspace, options: Options, message: str) -> None:
    if options.device is None:
        options = structs.replace(options, device="cpu")
    with pytest.raises(ToolkitError, match=message):
        deciding.plan(place, options)
    assert not place.runs.exists()


@pytest.mark.parametrize("content", ["", "nc: 4", "[1", "- 1"])
def test_a_yaml_that_describes_no_model_is_refused(place: Workspace, content: str) -> None:
    (place.root / "bad.yaml").write_text(content)
    with pytest.raises(ToolkitError, match=r"bad\.yaml describes no model"):
        deciding.plan(place, Options(model=str(place.root / "bad.yaml"), device="cpu"))


def begun(place: Workspace, name: str, **options: object) -> TrainingPlan:
    """A run that was started."""
    plan = deciding.plan(place, Options(name=name, device="cpu", preset="smoke", **options))  # type: ignore[arg-type]
    plan.run.mkdir(parents=True)
    reproduction.record(plan)
    return plan


def test_resume_takes_the_newest_run_as_it_was_planned(place: Workspace) -> None:
    begun(place, "zero")
    one = begun(place, "one", epochs=7, seed=3)
    resumed = deciding.plan_resume(place, Options())
    assert resumed == one
    assert deciding.plan_resume(place, Options(name="zero")).run == place.runs / "zero"
    assert deciding.plan_resume(place, Options(name=f"{place.runs}/zero/")).run == place.runs / "zero"


def test_resume_may_change_what_does_not_change_the_run(place: Workspace) -> None:
    begun(place, "one", epochs=7)
    (place.root / "data" / "toolkit.toml").write_text(
        "epochs = 90\n[health.hang]\nlimit = 30\n[saving]\nseconds = 60"
    )
    resumed = deciding.plan_resume(place, Options(workers=3, patches=False))
    assert (resumed.arguments["workers"], resumed.arguments["epochs"], resumed.patches) == (3, 7, False)
    assert (resumed.rules.hang.limit, resumed.saving.seconds) == (30, 60)


@pytest.mark.parametrize(
    ("flag", "options"),
    [
        ("--epochs", Options(epochs=8)),
        ("--model", Options(model="yolo11n.yaml")),
        ("--seed", Options(seed=3)),
        ("--preset", Options(preset="thermal")),
    ],
)
def test_resume_refuses_what_the_run_was_not_begun_with(
    place: Workspace, flag: str, options: Options
) -> None:
    begun(place, "one", epochs=7)
    with pytest.raises(ToolkitError, match=f"begun with another {flag}"):
        deciding.plan_resume(place, options)
    assert deciding.plan_resume(place, Options(epochs=7)).arguments["epochs"] == 7


def test_resume_names_a_run_that_is_not_there_and_one_that_has_finished(place: Workspace) -> None:
    with pytest.raises(ToolkitError, match="no run to continue"):
        deciding.plan_resume(place, Options())
    with pytest.raises(ToolkitError, match="run two cannot go on"):
        deciding.plan_resume(place, Options(name="two"))
    write_json(RunFiles(begun(place, "one").run).summary, Summary(state="finished"))
    with pytest.raises(ToolkitError, match="run one has finished"):
        deciding.plan_resume(place, Options())


@pytest.mark.parametrize("device", ["0", "1", "0,1"])
def test_a_run_whose_device_is_gone_says_how_it_goes_on(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    one = begun(place, "one")
    write_json(RunFiles(one.run).plan, replace(one, device=device))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(ToolkitError, match=rf"run one trained on device {device}.*--name one --device cpu"):
        deciding.plan_resume(place, Options())
    assert deciding.plan_resume(place, Options(device="cpu")).device == "cpu"


def other_dataset(place: Workspace) -> None:
    """At the same path, prepared, of the same size."""
    shutil.rmtree(place.root / "data")
    write_sample(place.root / "data", train=4, val=2, test=2, seed=1, scene="street")
    prepare(place.root / "data")


def test_other_data_at_the_same_path_is_refused_unless_asked_for(place: Workspace) -> None:
    begun(place, "one")
    other_dataset(place)
    with pytest.raises(ToolkitError, match=r"run one was begun with other data.*4 train.*--other-data"):
        deciding.plan_resume(place, Options())
    reproduction.record(deciding.plan_resume(place, Options(other_data=True)))
    assert deciding.plan_resume(place, Options()).run.name == "one"  # asked for once is asked for


def test_the_same_data_at_another_place_is_the_same(place: Workspace) -> None:
    begun(place, "one")
    shutil.move(place.root / "data", place.root / "moved")
    assert deciding.plan_resume(place, Options(data=place.root / "moved")).data == place.root / "moved"


def test_the_same_data_prepared_from_a_folder_of_frames_is_the_same(place: Workspace) -> None:
    begun(place, "one")
    with zipfile.ZipFile(place.root / "data" / "frames.zip") as archive:
        archive.extractall(place.root / "data")
    (place.root / "data" / "frames.zip").unlink()
    prepare(place.root / "data")
    assert deciding.plan_resume(place, Options()).run.name == "one"


def test_data_of_a_run_by_an_older_version_is_known_by_its_index(place: Workspace) -> None:
    one = begun(place, "one")
    environment = reproduction.read(one.run / "weights")
    reproduction.write(msgspec.structs.replace(environment, labels=""), one.run / "weights")
    assert deciding.plan_resume(place, Options()).run.name == "one"
    other_dataset(place)
    with pytest.raises(ToolkitError, match="begun with other data"):
        deciding.plan_resume(place, Options())


def test_start_weights_that_are_gone_are_missed_only_before_the_first_checkpoint(place: Workspace) -> None:
    one = begun(place, "one")
    files = RunFiles(one.run)
    write_json(files.plan, replace(one, model=str(place.root / "start.pt")))
    with pytest.raises(ToolkitError, match=r"no checkpoint .*start\.pt"):
        deciding.plan_resume(place, Options())
    save_state(files.checkpoints, 8, {"epoch": 0})
    assert deciding.plan_resume(place, Options()).run.name == "one"


def test_a_run_of_another_task_does_not_go_on(place: Workspace) -> None:
    """An older version began such runs; damaged weights, which are not needed, stop none."""
    from ultralytics.nn.tasks import OBBModel

    one = begun(place, "one")
    files = RunFiles(one.run)
    save_state(files.checkpoints, 8, {"epoch": 0})
    write_json(files.plan, replace(one, model="yolo11n-pose.yaml"))
    with pytest.raises(ToolkitError, match=r"yolo11n-pose is no detector; found a head Pose"):
        deciding.plan_resume(place, Options())
    write_json(files.plan, replace(one, model=str(place.root / "start.pt")))
    torch.save({"model": OBBModel("yolov8n-obb.yaml", nc=4, verbose=False)}, place.root / "start.pt")
    with pytest.raises(ToolkitError, match=r"what run one trains is no detector; found a head OBB"):
        deciding.plan_resume(place, Options())
    (place.root / "start.pt").write_bytes(b"damaged")
    assert deciding.plan_resume(place, Options()).run.name == "one"


def test_a_route_that_is_none_is_refused_where_a_run_goes_on_too(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun(place, "one")
    monkeypatch.setenv("TOOLKIT_CONV_ROUTE", "bogus")
    with pytest.raises(ToolkitError, match="found bogus"):
        deciding.plan_resume(place, Options())


def test_a_plan_with_a_number_that_cannot_be_meant_does_not_go_on(place: Workspace) -> None:
    one = begun(place, "one")
    write_json(RunFiles(one.run).plan, replace(one, arguments={**one.arguments, "workers": -5}))
    with pytest.raises(ToolkitError, match=r"plan\.json cannot be used; found workers = -5"):
        deciding.plan_resume(place, Options())


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_of_runs_that_cannot_be_written_is_one_line_in_the_dry_run_too(
    toolkit: Command, place: Workspace, monkeypatch: pytest.MonkeyPatch, number: int, resume: bool
) -> None:
    begun(place, "one")
    monkeypatch.setenv("TOOLKIT_WORKSPACE", str(place.root))

    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    for flags in ((), ("--dry-run",)):
        result = toolkit("train", "--device", "cpu", *flags, *(("--resume", "one") if resume else ()))
        assert result.status == 1
        assert "cannot write in" in result.err
        assert os.strerror(number).lower() in result.err
        assert (len(result.err.splitlines()), result.out) == (1, "")
    assert [path.name for path in place.runs.iterdir()] == ["one"]


def test_a_place_that_takes_no_files_is_no_place_for_runs(place: Workspace) -> None:
    place.runs.symlink_to("/proc/self")
    with pytest.raises(ToolkitError, match="cannot write in"):
        deciding.plan(place, Options(device="cpu"))


@pytest.mark.parametrize("model", ["start.pt", "start.yaml", "x" * 300 + ".pt"])
def test_weights_that_may_not_be_read_are_one_line(
    place: Workspace, monkeypatch: pytest.MonkeyPatch, model: str
) -> None:
    path = place.root / model
    opened = Path.open

    def refuse(self: Path, *arguments: Any, **more: Any) -> Any:
        if self == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(self))
        return opened(self, *arguments, **more)

    if len(model) < 255:
        path.touch()
        monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ToolkitError, match=r"cannot read .*(permission denied|file name too long)"):
        deciding.plan(place, Options(model=str(path), device="cpu"))
    assert not place.runs.exists()


def test_shared_memory_that_holds_no_batches_is_said_before_anything_starts(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "free_bytes", lambda _: 64 << 20)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    options = Options(device="cpu", batch=16, imgsz=640, workers=8)
    with pytest.raises(ToolkitError, match=r"shared memory is too small.*--shm-size 2g.*--workers 0"):
        deciding.plan(place, options)
    assert deciding.plan(place, structs.replace(options, workers=0)).arguments["workers"] == 0
    assert deciding.plan(place, structs.replace(options, workers=1)).arguments["workers"] == 1


def test_batches_of_several_frames_want_shared_memory_for_each(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model of three colours needs no more than one of grey: its channels share their memory."""
    monkeypatch.setattr(checks, "free_bytes", lambda _: 64 << 20)
    options = Options(device="cpu", batch=16, imgsz=640, workers=1)
    for channels in (1, 3):
        assert deciding.plan(place, structs.replace(options, channels=channels)).channels == channels
    with pytest.raises(ToolkitError, match=r"shared memory is too small.* and 3 channels.*--workers 0"):
        deciding.plan(place, structs.replace(options, frames="now,before,after"))


def test_without_a_flag_the_device_is_what_torch_has() -> None:
    assert resolve_device(None) == ("0" if torch.cuda.is_available() else "cpu")


def test_weights_that_are_none_are_refused_before_a_run_exists(place: Workspace) -> None:
    (place.root / "junk.pt").write_text("junk")
    with pytest.raises(ToolkitError, match=r"junk\.pt is no YOLO checkpoint"):
        deciding.plan(place, Options(model=str(place.root / "junk.pt"), device="cpu"))
    assert not place.runs.exists()


def test_a_route_that_is_none_is_refused_before_a_run_exists(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_ROUTE", "bogus")
    with pytest.raises(ToolkitError, match=r"found bogus.*gemm"):
        deciding.plan(place, Options(device="cpu"))
    assert deciding.plan(place, Options(device="cpu", patches=False)).patches is False


def test_data_without_a_validation_split_cannot_be_trained_on(place: Workspace) -> None:
    (place.root / "data" / "Valid.json").unlink()
    prepare(place.root / "data")
    plan = deciding.plan(place, Options(device="cpu"))
    with pytest.raises(ToolkitError, match=r"no val images.*Valid\.json"):
        supervisor.train(plan)
    assert not place.runs.exists()


def test_an_attribute_of_a_module_is_no_route_to_train_by(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_ROUTE", "some.module:attribute")
    with pytest.raises(ToolkitError, match="names no route"):
        deciding.plan(place, Options(device="cpu"))


def test_what_a_preset_leaves_to_ultralytics_is_in_the_plan(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = load_preset("smoke")
    few = {key: value for key, value in usual.arguments.items() if key not in ("epochs", "batch")}
    preset = msgspec.structs.replace(usual, arguments=few)
    monkeypatch.setattr(deciding, "load_preset", lambda _: preset)
    one = begun(place, "one")
    assert (one.arguments["epochs"], one.arguments["batch"]) == (get_cfg().epochs, get_cfg().batch)
    assert one.arguments["imgsz"] == usual.arguments["imgsz"]
    assert status.describe(RunFiles(one.run)).state == "interrupted"


def test_a_run_of_a_version_that_left_epochs_and_batch_to_ultralytics_is_listed(place: Workspace) -> None:
    one = begun(place, "one")
    few = {key: value for key, value in one.arguments.items() if key not in ULTRALYTICS}
    reproduction.record(replace(one, arguments=few))
    line = status.describe(RunFiles(one.run))
    assert (line.state, line.epochs_planned) == ("interrupted", ULTRALYTICS["epochs"])


def test_what_ultralytics_takes_is_what_it_takes() -> None:
    assert {name: getattr(get_cfg(), name) for name in ULTRALYTICS} == ULTRALYTICS
