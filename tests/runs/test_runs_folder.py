"""The folder of a run: docs/runs.md has a row for every file of it."""

from __future__ import annotations

from pathlib import Path

from run_page import rows, unnamed

from toolkit.runs.folder import RunFiles


def test_every_file_of_a_run_is_on_the_page() -> None:
    files = RunFiles(Path("run"))
    kinds = (name for name, value in vars(RunFiles).items() if isinstance(value, property))
    named = {str(getattr(files, name).relative_to(files.run)) for name in kinds}
    assert "plan.json" in named
    assert not named - {name.rstrip("/") for name in rows()}


def test_a_property_is_called_as_its_file_or_says_which_that_is() -> None:
    files = RunFiles(Path("run"))
    for name, value in vars(RunFiles).items():
        if isinstance(value, property):
            path = getattr(files, name).relative_to(files.run)
            assert path.name.partition(".")[0] == name or f"``{path}``" in str(value.__doc__), name


def test_every_row_says_who_writes_and_reads_a_file() -> None:
    assert all(len(cells) == 4 and all(cells) for cells in rows().values())


def test_a_file_that_no_row_names_is_found(tmp_path: Path) -> None:
    named = (
        *("plan.json", "weights/epoch12.pt", "checkpoints/image-1.damaged", "predict-3/a/b.txt"),
        *("evaluation-test/scores.json", "predictions-val.json.origin", "labels.jpg", ".plan.json.x.tmp"),
    )
    new = ("notes.txt", "weights/epoch.onnx", "weights/first.pt")
    for name in (*named, *new):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert unnamed(tmp_path) == sorted(new)
