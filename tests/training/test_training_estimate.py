"""``toolkit train --dry-run``: everything that will be used, where it comes from, and what to expect."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from msgspec import structs
from tiny_run import MODEL
from ultralytics.cfg import DEFAULT_CFG_DICT

from toolkit.cli import main
from toolkit.dataset import shared
from toolkit.runs import heartbeat, reproduction
from toolkit.runs.folder import RunFiles, Summary, write_json
from toolkit.runs.heartbeat import Beat
from toolkit.runs.plan import TrainingPlan
from toolkit.settings import Defaults, declared
from toolkit.training import deciding, estimate, probe
from toolkit.training.arguments import TOPICS
from toolkit.training.options import Options
from toolkit.workspace import Workspace

SET_BY_THE_TOOLKIT = (
    "task mode model data device project name exist_ok resume save cache verbose split cfg profile"
)
OF_OTHER_TASKS = (
    "overlap_mask mask_ratio dropout pose kobj rle angle dlog dgrad dlam auto_augment erasing copy_paste "
    "copy_paste_mode distill_model dis retina_masks"
)
NOT_OF_TRAINING = (
    "save_json dnn nms source vid_stride stream_buffer visualize augment embed show save_frames save_txt "
    "save_conf save_crop show_labels show_conf show_boxes line_width format optimize dynamic simplify opset "
    "workspace tracker"
)


@pytest.fixture
def tiny(data: Path) -> Options:
    return Options(data=data, model=str(MODEL), preset="thermal", imgsz=64, batch=8, epochs=3, device="cpu")


def test_every_argument_of_ultralytics_is_shown_or_known_to_change_no_training() -> None:
    shown = " ".join(TOPICS.values()).split()
    left_out = " ".join((SET_BY_THE_TOOLKIT, OF_OTHER_TASKS, NOT_OF_TRAINING)).split()
    assert sorted(shown + left_out) == sorted(DEFAULT_CFG_DICT)


def test_each_setting_says_where_it_comes_from(place: Workspace, tiny: Options) -> None:
    (place.root / "toolkit.toml").write_text("batch = 4\nseed = 7\n[health.hang]\nlimit = 60\n")
    planned = estimate.dry_run(place, tiny)
    found = {s.name: (s.value, s.source) for topic in planned.settings.values() for s in topic}
    assert found["batch"] == (8, "flag")
    assert found["seed"] == (7, "toolkit.toml")
    assert found["cos_lr"] == (True, "preset")
    assert found["momentum"] == (0.937, "default")
    lines = list(planned.lines())
    assert "  hang               60: restart; toolkit.toml" in lines
    assert "  nbs                64         default; an update every 8 batches" in lines
    assert "  amp                True       default; off on a CPU" in lines


def test_what_an_epoch_shows_says_where_it_comes_from(place: Workspace, tiny: Options) -> None:
    (place.root / "mine.yaml").write_text("base: thermal\nevery: 2\n")
    (place.root / "toolkit.toml").write_text('paste = "person=0.5"\nrepeat = "person=2"\n')
    asked = structs.replace(tiny, preset=str(place.root / "mine.yaml"))
    lines = list(estimate.dry_run(place, asked).lines())
    (frequency,) = (line for line in lines if line.startswith("frequency"))
    assert frequency.endswith("(preset, toolkit.toml)")
    (paste,) = (line for line in lines if line.startswith("paste"))
    assert paste.endswith("(toolkit.toml)")


def test_what_nobody_says_comes_from_where_its_declaration_says(place: Workspace) -> None:
    words = {name: option.otherwise for name, option in declared(Options).items() if option.otherwise}
    assert words.keys() >= {"data", "model", "channels", "device", "preset"}
    found = estimate._sources(Options(preset="smoke"), Defaults(), resume=False)
    assert found["preset"] == "flag"
    assert {name: found[name] for name in ("data", "device", "frames")} == {
        name: words[name] for name in ("data", "device", "frames")
    }
    assert found["model"].startswith("preset")
    of_run = estimate._sources(Options(), Defaults(), resume=True)
    assert {of_run[name] for name in words} == {"run"}


def test_a_run_that_goes_on_keeps_what_it_was_begun_with(place: Workspace, tiny: Options) -> None:
    reproduction.record(deciding.plan(place, structs.replace(tiny, name="begun")))
    found = estimate.dry_run(place, Options(batch=4), resume=True)
    sources = {s.name: s.source for topic in found.settings.values() for s in topic}
    assert (sources["batch"], sources["epochs"], sources["nbs"]) == ("flag", "run", "default")
    assert found.sources["model"] == "run"


def test_without_an_earlier_run_a_few_batches_are_tried_and_nothing_is_made(
    place: Workspace,
    tiny: Options,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = sorted(place.root.rglob("*"))
    words = f"train --dry-run --data {data} --model {MODEL} --imgsz 64 --batch 8 --epochs 3 --device cpu"
    monkeypatch.setattr(sys, "argv", ["toolkit", *words.split()])
    with pytest.raises(SystemExit) as ended:
        main()
    shown = capsys.readouterr().out
    assert not ended.value.code
    assert sorted(place.root.rglob("*")) == before
    assert "unknown" not in shown
    for part in (
        "44 train, 8 val",
        "6 an epoch, 18 in all",
        "measured now: ",
        "loading an image",
        "GiB: RAM of",
    ):
        assert part in shown


def test_the_memory_of_decoded_frames_is_said_for_all_ranks(
    place: Workspace, tiny: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every image that the run shows in some epoch."""
    monkeypatch.setattr(estimate, "_of_earlier_run", lambda *_: (estimate.Estimate(1.0, ""),) * 2)
    monkeypatch.setattr(shared, "memory", lambda: (10**9, 4 * 10**7))
    monkeypatch.setattr(TrainingPlan, "ranks", 2)
    asked = structs.replace(tiny, every=2)
    for share, words in (
        (0.5, "each once: 0.0 GB in 2 ranks fit into memory"),
        (0.2, "in 2 ranks are more than the 0.0 that frames may take"),
    ):
        monkeypatch.setattr(shared, "SHARE", share)
        (line,) = (line for line in estimate.dry_run(place, asked).lines() if line.startswith("pixels"))
        assert words in line, line


def test_the_time_counts_batches_loading_and_validation(
    place: Workspace, tiny: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "run", lambda _: probe.Probe(2, (1.0, 2.0, 4.0), 0.5, 2**30))
    monkeypatch.setattr(probe, "loading_seconds", lambda *_: 0.25)
    time = estimate.dry_run(place, structs.replace(tiny, workers=0)).time
    batches, validation = 3 * 6, 3 * 8 * (0.5 + 0.25)
    expected = [batches * (step * 4 + 8 * 0.25) + validation for step in (1.0, 2.0, 4.0)]
    assert [time.low, time.value, time.high] == expected


def test_data_that_is_missing_is_named_and_the_rest_is_said_all_the_same(
    place: Workspace, tiny: Options, tmp_path: Path
) -> None:
    lines = list(estimate.dry_run(place, structs.replace(tiny, data=None)).lines())
    assert "data         missing: cannot tell where the data is" in "\n".join(lines)
    assert any(line.startswith("  cos_lr ") for line in lines)
    assert "for 1,000 training images: measured now" in lines[-2]
    raw = tmp_path / "raw"
    raw.mkdir()
    lines = list(estimate.dry_run(place, structs.replace(tiny, data=raw)).lines())
    assert f"data         missing: {raw} is not prepared" in "\n".join(lines)


def test_an_earlier_run_of_the_same_work_tells_the_time_best(place: Workspace, tiny: Options) -> None:
    begun = deciding.plan(place, structs.replace(tiny, name="first"))
    reproduction.record(begun)
    files = RunFiles(begun.run)
    heartbeat.write(
        files,
        Beat(
            pid=1, count=1, phase="finished", step_seconds=(0.1, 0.2, 0.4), validation_seconds=2, memory=2**30
        ),
    )
    write_json(files.summary, Summary(state="finished", images_per_second=4.0))
    found = estimate.dry_run(place, structs.replace(tiny, epochs=2))
    assert [found.time.low, found.time.value, found.time.high] == [22 / 2 + 4, 22 + 4, 22 * 2 + 4]
    assert "time         26 s (15 s to 48 s): run first made 4.0 images/s" in "\n".join(found.lines())
    assert found.memory.value == 2**30
    assert "measured now" in estimate.dry_run(place, structs.replace(tiny, imgsz=96)).time.source


def test_a_batch_too_large_for_the_card_is_tried_in_halves(
    tiny: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for the card."""
    tried = []

    def on_gpu(plan: TrainingPlan, images: int, planned: int) -> probe.Probe:
        assert torch.are_deterministic_algorithms_enabled(), "as Ultralytics trains"
        tried.append(images)
        if images > 2:
            raise torch.cuda.OutOfMemoryError
        return probe.Probe(images, (1.0,), 0.1, 2**30 * planned // images)

    monkeypatch.setattr(probe, "_on_gpu", on_gpu)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    plan = deciding.plan(Workspace(Path()), structs.replace(tiny, name="never"))
    found = probe.run(replace(plan, device="0", patches=False))
    assert (tried, found.images, found.memory) == ([8, 4, 2], 2, 4 * 2**30)
