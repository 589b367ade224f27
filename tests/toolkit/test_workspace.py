"""A workspace finds what a person means by `best.pt`, by no data folder at all, and by toolkit.toml."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.workspace import Workspace


@pytest.fixture
def place(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def make_dataset(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "Train.json").write_text("{}")
    return folder


def make_run(place: Workspace, name: str, *, age: int, data: Path) -> Path:
    run = place.runs / name
    (run / "weights").mkdir(parents=True)
    (run / "weights" / "environment.json").write_text(json.dumps({"plan": {"data": str(data)}}))
    for file in (run / "weights" / "best.pt", run / "predictions-test.json"):
        file.write_text("")
        os.utime(file, (1_000_000 - age, 1_000_000 - age))
    return run


def test_a_bare_best_pt_is_the_newest_runs(place: Workspace) -> None:
    data = make_dataset(place.root / "data" / "a")
    make_run(place, "old", age=100, data=data)
    new = make_run(place, "new", age=1, data=data)
    assert place.weights("best.pt") == new / "weights" / "best.pt"


def test_a_best_pt_that_is_a_file_is_taken_as_it_is(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place.root)
    make_run(place, "new", age=1, data=make_dataset(place.root / "data"))
    Path("best.pt").write_text("")
    assert place.weights("best.pt") == Path("best.pt")


def test_another_name_is_never_guessed(place: Workspace) -> None:
    make_run(place, "new", age=1, data=make_dataset(place.root / "data"))
    with pytest.raises(ToolkitError, match=r"no file or run bset\.pt"):
        place.weights("bset.pt")


def test_a_run_is_meant_by_its_name_or_its_folder(place: Workspace) -> None:
    run = make_run(place, "one", age=100, data=make_dataset(place.root / "data"))
    make_run(place, "newer", age=1, data=place.root / "data")
    for name in ("one", str(run)):
        assert place.weights(name) == run / "weights" / "best.pt"
        assert place.predictions(name, "test") == run / "predictions-test.json"


def test_a_run_without_weights_is_said(place: Workspace) -> None:
    run = make_run(place, "one", age=0, data=make_dataset(place.root / "data"))
    (run / "weights" / "best.pt").unlink()
    with pytest.raises(ToolkitError, match=r"no .*runs/one/weights/best\.pt"):
        place.weights("one")


def test_no_run_at_all_says_what_to_do(place: Workspace) -> None:
    with pytest.raises(ToolkitError, match="toolkit train"):
        place.weights("best.pt")
    with pytest.raises(ToolkitError, match="toolkit predict"):
        place.newest_predictions()


def test_the_newest_predictions_are_found(place: Workspace) -> None:
    data = make_dataset(place.root / "data")
    make_run(place, "old", age=100, data=data)
    new = make_run(place, "new", age=1, data=data)
    assert place.newest_predictions() == new / "predictions-test.json"


@pytest.mark.parametrize("where", [".", "data", "data/ltdv2"])
def test_the_only_dataset_needs_no_flag(place: Workspace, where: str) -> None:
    folder = place.root / where
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "Valid.json").write_text("{}")
    assert place.data_dir() == folder


def test_two_datasets_need_a_flag(place: Workspace) -> None:
    first, second = (make_dataset(place.root / "data" / name) for name in ("a", "b"))
    with pytest.raises(ToolkitError, match=r"data/a.*data/b.*--data"):
        place.data_dir()
    assert place.data_dir(second) == second
    (place.root / "toolkit.toml").write_text('data = "data/a"')
    assert place.data_dir() == first


def test_a_file_of_a_run_brings_the_runs_data(place: Workspace) -> None:
    first = make_dataset(place.root / "data" / "a")
    make_dataset(place.root / "data" / "b")
    run = make_run(place, "one", age=0, data=first)
    assert place.data_of(run / "weights" / "best.pt") == first
    assert place.data_of(run / "predictions-test.json") == first
    assert place.data_of(run / "weights" / "best.pt", place.root / "data" / "b").name == "b"


def test_of_several_files_the_one_of_a_run_says_which_data(place: Workspace) -> None:
    best = make_run(place, "one", age=0, data=make_dataset(place.root / "data" / "a")) / "weights" / "best.pt"
    free, other = place.root / "soup.pt", place.root / "ensemble.json"
    assert place.of_a_run([free, best]) == place.of_a_run([best, free]) == best
    assert place.of_a_run([other, free]) == other


def test_a_run_whose_data_is_gone_is_named_with_its_folder(place: Workspace) -> None:
    run = make_run(place, "run", age=1, data=place.root / "moved" / "away")
    with pytest.raises(ToolkitError, match="the data of run run is not here") as refused:
        place.data_of(run / "weights" / "best.pt")
    assert str(place.root / "moved" / "away") in refused.value.found
    assert place.data_of(run / "weights" / "best.pt", make_dataset(place.root / "here")).name == "here"


def test_defaults_beside_the_data_win_over_the_workspaces(place: Workspace) -> None:
    data = make_dataset(place.root / "data")
    (place.root / "toolkit.toml").write_text("epochs = 1")
    assert place.defaults(data).epochs == 1
    (data / "toolkit.toml").write_text("epochs = 2")
    assert place.defaults(data).epochs == 2


@pytest.mark.parametrize("text", ["epohcs = 3", 'epochs = "three"', "epochs =", "[saving]\nhours = 1"])
def test_a_toolkit_toml_with_a_mistake_is_refused_by_name(place: Workspace, text: str) -> None:
    (place.root / "toolkit.toml").write_text(text)
    with pytest.raises(ToolkitError, match=r"toolkit\.toml cannot be used"):
        place.defaults()


def test_where_the_data_is_inside_a_container_wins_over_toolkit_toml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "toolkit.toml").write_text('data = "outside"\n')
    (tmp_path / "inside").mkdir()
    monkeypatch.setenv("TOOLKIT_DATA", str(tmp_path / "inside"))
    assert Workspace(tmp_path).data_dir() == tmp_path / "inside"


def test_a_name_of_no_run_lists_the_runs_that_are_there(place: Workspace) -> None:
    with pytest.raises(ToolkitError, match="no runs in"):
        place.weights("hit")
    for n in range(10):
        make_run(place, f"run{n}", age=n, data=place.root)
    for find in (place.weights, lambda name: place.predictions(name, "val")):
        with pytest.raises(ToolkitError, match=r"found runs run0, .*run7 and 2 more"):
            find("hit")


def test_whoever_asks_for_more_is_told_whose_data_is_used_and_once(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    make_dataset(place.root / "data" / "b")
    run = make_run(place, "one", age=0, data=make_dataset(place.root / "data" / "a"))
    console.speak(console.Level.VERBOSE)
    try:
        for _ in range(2):
            place.data_of(run / "weights" / "best.pt")
            place.data_of(run, place.root / "data" / "b")
    finally:
        console.speak(console.Level.NORMAL)
    said = capsys.readouterr().err.splitlines()
    assert said == [f"the data is {place.root}/data/a, of run one", f"the data is {place.root}/data/b"]
