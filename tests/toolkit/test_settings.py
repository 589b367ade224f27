"""toolkit.toml: two files become one, key by key, and a value that cannot be meant is refused by name."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from command import Command
from hypothesis import given
from hypothesis import strategies as st

from toolkit import configuration, settings
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.runs import health
from toolkit.training import deciding, preset
from toolkit.training.options import Options
from toolkit.training.preset import load_preset
from toolkit.workspace import Workspace


def place(root: Path, own: str, beside: str, data: Path) -> Workspace:
    data.mkdir(parents=True)
    root.mkdir(exist_ok=True)
    (root / "toolkit.toml").write_text(own)
    (data / "toolkit.toml").write_text(beside)
    return Workspace(root)


OWN = 'preset = "smoke"\nepochs = 3\nbatch = 16\n[health.hang]\nlimit = 60\n[saving]\nbatches = 9\n'
BESIDE = 'batch = 4\n[health.hang]\naction = "note"\n[health.hot]\nlimit = 70\n[saving]\nseconds = 30\n'


def test_a_file_beside_the_data_leaves_what_it_does_not_name_to_the_workspaces(tmp_path: Path) -> None:
    data = tmp_path / "data" / "ltdv2"
    merged = place(tmp_path, OWN, BESIDE, data).defaults(data)
    assert (merged.preset, merged.epochs, merged.batch) == ("smoke", 3, 4)
    assert merged.saving == settings.Saving(seconds=30, batches=9)
    assert merged.health == {"hang": {"limit": 60, "action": "note"}, "hot": {"limit": 70}}


def test_a_file_on_a_shared_disk_gives_way_to_the_users_own(tmp_path: Path) -> None:
    data = tmp_path / "shared" / "ltdv2"
    here = place(tmp_path / "mine", OWN, BESIDE, data)
    assert (here.defaults(data).batch, here.defaults(data).saving.seconds) == (16, 30)
    assert here.settings_files(data) == (data / "toolkit.toml", here.root / "toolkit.toml")


def test_a_link_into_a_shared_disk_is_on_the_shared_disk(tmp_path: Path) -> None:
    data = tmp_path / "shared" / "ltdv2"
    here = place(tmp_path / "mine", OWN, BESIDE, data)
    (here.root / "data").symlink_to(data)
    assert here.defaults(here.root / "data").batch == 16


def test_a_workspace_that_is_the_data_folder_has_one_file(tmp_path: Path) -> None:
    (tmp_path / "toolkit.toml").write_text("batch = 4")
    assert Workspace(tmp_path).settings_files(tmp_path) == (tmp_path / "toolkit.toml",)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("batch = 0", "batch = 0"),
        ("seed = -1", "seed = -1"),
        ("seed = 4294967296", "seed = 4294967296"),  # NumPy takes 32 bits
        ("workers = -5", "workers = -5"),
        ("epochs = 0", "epochs = 0"),
        ("imgsz = 0", "imgsz = 0"),
        ("channels = 2", "channels = 2"),
        ("batch = true", "batch = True"),
        ("epochs = 2.5", "epochs = 2.5"),
        ("[saving]\nseconds = nan", r"saving\.seconds = nan"),
        ("[saving]\nseconds = inf", r"saving\.seconds = inf"),
        ("[saving]\nbatches = -1", r"saving\.batches = -1"),
        ("[restarts]\nan_hour = -1", r"restarts\.an_hour = -1"),
        ("[restarts]\nroll_backs = 1e3", r"restarts\.roll_backs = 1000\.0"),
    ],
)
def test_a_number_that_cannot_be_meant_is_refused_with_its_key(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "toolkit.toml").write_text(text)
    with pytest.raises(
        ToolkitError, match=rf"toolkit\.toml cannot be used; found {found}; expected"
    ) as refused:
        Workspace(tmp_path).defaults()
    assert "`" not in refused.value.line()


@pytest.mark.parametrize(
    ("rule", "values"),
    [
        ("hang", {"limit": -5}),
        ("hang", {"limit": 0}),
        ("hang_starting", {"limit": float("nan")}),
        ("hot", {"limit": -5}),
        ("not_finite", {"limit": 0}),
        ("loss_jump", {"limit": 0.5}),
        ("starving", {"limit": 50}),  # percent
        ("slow", {"seconds": -1}),
        ("memory_growth", {"limit": "4 GiB"}),
    ],
)
def test_a_red_flag_that_would_end_a_healthy_trainer_is_refused(rule: str, values: dict[str, object]) -> None:
    with pytest.raises(ToolkitError, match="a health rule cannot be used"):
        health.load({rule: values})


def test_a_refused_red_flag_is_named_with_its_value_and_what_it_may_be() -> None:
    with pytest.raises(ToolkitError) as refused:
        health.load({"hang": {"limit": -1}})
    assert "[health] in toolkit.toml" in refused.value.line()
    assert "hang.limit = -1" in refused.value.line() and "float >= 0.0" in refused.value.line()


def test_infinity_switches_a_red_flag_off() -> None:
    assert health.load({"hang": {"limit": float("inf")}}).hang.limit == float("inf")


@pytest.mark.parametrize("name", preset.presets())
def test_the_presets_keep_the_bounds(name: str) -> None:
    settings.check(load_preset(name).arguments, name)


@given(st.sampled_from([n for n in settings.Numbers.__struct_fields__ if n != "channels"]), st.integers())
def test_flags_and_the_file_have_the_same_bounds(name: str, value: int) -> None:
    low, high = settings.bounds(name)
    try:
        settings.check({name: value}, "a flag")
    except ToolkitError as error:
        assert not low <= value <= high
        assert error.found == f"{name} = {value}"
    else:
        assert low <= value <= high


@pytest.mark.parametrize(
    "value", [{"every": 0}, {"score_every": -1}, {"select_by": "luck"}, {"channels": 2}, {"frames": 3}]
)
def test_every_declared_option_is_held_against_its_declaration(value: dict[str, object]) -> None:
    ((name, wrong),) = value.items()
    with pytest.raises(ToolkitError, match=f"a plan cannot be used; found {name} = {wrong}"):
        settings.check(value, "a plan")
    settings.check({"every": 2, "select_by": "cells", "lr0": -1, "data": 7}, "a plan")  # others pass


@pytest.mark.parametrize("options", [Options(batch=0), Options(workers=-5), Options(seed=2**32)])
def test_options_that_came_by_no_flag_are_checked_too(tmp_path: Path, options: Options) -> None:
    write_sample(tmp_path / "data", train=4, val=2, test=2, seed=0, scene="street")
    with pytest.raises(ToolkitError, match="cannot be used"):
        deciding.plan(Workspace(tmp_path), options)
    assert not (tmp_path / "runs").exists()


def test_a_mark_that_windows_editors_write_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "toolkit.toml").write_bytes(b"\xef\xbb\xbfbatch = 4\r\n")
    assert Workspace(tmp_path).defaults().batch == 4


@pytest.mark.parametrize("content", [b'name = "caf\xe9"', b"\xff\xfeb\0"])
def test_a_file_in_another_encoding_is_one_line(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "toolkit.toml").write_bytes(content)
    with pytest.raises(ToolkitError, match=r"toolkit\.toml cannot be used.*UTF-8"):
        Workspace(tmp_path).defaults()


@pytest.mark.parametrize(
    ("word", "hint"),
    [("lrO=0.1", "did you mean lrf or lr0"), ("seeds=3", "did you mean seed"), ("first", "--resume first")],
)
def test_a_word_that_is_no_option_gets_the_hint_that_fits_it(
    toolkit: Command, workspace: Path, word: str, hint: str
) -> None:
    result = toolkit("train", word)
    assert result.status == 2
    assert hint in result.err
    assert ("--resume" in result.err) is (word == "first")


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("[health]\nhang = 3\n", "found health.hang = 3; expected object"),
        ('[logging]\nwandb = true\ntensorboard = "yes"\n', "found logging.tensorboard = yes; expected bool"),
        ("[health.hot]\nlimit = 70\n[health.hang]\nlimit = [1]\n", "found health.hang.limit = .1.; expected"),
        ("[health.hang]\nlimit = 60\naction = true\n", "found health.hang.action = True; expected"),
    ],
)
def test_a_value_of_a_table_with_free_names_is_named(tmp_path: Path, content: str, found: str) -> None:
    file = tmp_path / "toolkit.toml"
    file.write_text(content)
    with pytest.raises(ToolkitError, match=found):
        settings.read([file])


@pytest.mark.parametrize("make, kind", [(Path.mkdir, "a folder"), (os.mkfifo, "no file")])
def test_something_else_in_the_place_of_the_file_is_said(
    tmp_path: Path, make: Callable[[Path], None], kind: str
) -> None:
    make(tmp_path / "toolkit.toml")
    with pytest.raises(ToolkitError, match=rf"toolkit\.toml cannot be used; found .*{kind}"):
        Workspace(tmp_path).defaults()


def test_a_number_where_text_belongs_is_shown_in_quotes(tmp_path: Path) -> None:
    (tmp_path / "toolkit.toml").write_text("device = 7")
    with pytest.raises(ToolkitError, match='found device = 7; expected text in quotes: device = "7"'):
        Workspace(tmp_path).defaults()


def test_a_choice_that_is_none_is_refused_with_its_file_and_all_choices(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    place = Workspace(tmp_path)
    (tmp_path / "toolkit.toml").write_text('[health.hot]\naction = "stop"\n')
    with pytest.raises(ToolkitError) as refused:
        health.of(place, tmp_path / "data")
    assert str(tmp_path / "toolkit.toml") in refused.value.what
    assert refused.value.found == "hot.action = stop"
    assert refused.value.expected == "note, restart, roll back or give up"
    (tmp_path / "toolkit.toml").write_text('select_by = "luck"\n')
    with pytest.raises(ToolkitError, match="expected fitness, global_map_bal or cells"):
        place.defaults()
    (tmp_path / "toolkit.toml").write_text("channels = 2\n")
    with pytest.raises(ToolkitError, match="expected 1 or 3"):
        place.defaults()


def test_config_shows_what_counts_where_nothing_is_set(tmp_path: Path) -> None:
    place = Workspace(tmp_path)
    shown = {each.key: (each.value, each.source) for each in configuration.values(place)}
    assert shown["preset"] == ("thermal", "default")
    assert shown["codabench.competition"] == (place.competition(), "default")
    assert shown["epochs"] == (None, "default")  # the preset says it
    (tmp_path / "toolkit.toml").write_text('preset = "smoke"\n')
    shown = {each.key: (each.value, each.source) for each in configuration.values(place)}
    assert shown["preset"] == ("smoke", str(tmp_path / "toolkit.toml"))


def test_config_refuses_a_tracker_that_is_none_and_lists_those_that_are(tmp_path: Path) -> None:
    path = tmp_path / "toolkit.toml"
    path.write_text("[logging]\nwandbb = true\n")
    with pytest.raises(
        ToolkitError, match=r"no \[logging\] to wandbb; found .*toolkit\.toml; expected .*wandb"
    ):
        configuration.values(Workspace(tmp_path))
    path.write_text("[logging]\nwandb = true\n")
    shown = {each.key: (each.value, each.source) for each in configuration.values(Workspace(tmp_path))}
    assert shown["logging.wandb"] == (True, str(path))
    assert shown["logging.mlflow"] == (False, "default")
    assert shown["arguments"] == (None, "default")
    path.write_text("[arguments]\nmosaic = 0.5\n")
    shown = {each.key: (each.value, each.source) for each in configuration.values(Workspace(tmp_path))}
    assert shown["arguments.mosaic"] == (0.5, str(path))
