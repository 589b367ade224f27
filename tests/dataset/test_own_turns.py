"""Several processes that prepare one folder of other data at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from test_own_sources import coco

from toolkit import console
from toolkit.dataset.own import origin
from toolkit.dataset.own.writing import bring
from toolkit.errors import ToolkitError
from toolkit.files import turn_to_make


class Bringing(threading.Thread):
    """Brings data in a thread of its own: a lock is one of the open file, not of the process."""

    def __init__(self, source: Path, data: Path, classes: str | None = None) -> None:
        super().__init__()
        self.bring = lambda: bring(source, data, classes=classes)
        self.error: ToolkitError | None = None

    def run(self) -> None:
        try:
            self.bring()
        except ToolkitError as error:
            self.error = error


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Returns once so many say that they wait."""
    said = threading.Semaphore(0)
    note = console.note

    def heard(text: str) -> None:
        note(text)
        if text.startswith("waiting for another process"):
            said.release()

    monkeypatch.setattr(console, "note", heard)

    def wait(count: int) -> None:
        for _ in range(count):
            assert said.acquire(timeout=60)

    return wait


@pytest.fixture
def source(tmp_path: Path) -> Path:
    coco(tmp_path / "source", "{split}", "{split}.json", sized=True, named="{name}")
    return tmp_path / "source"


def test_who_prepares_the_same_waits_and_finds_it_done(
    source: Path, tmp_path: Path, waiting: Callable[[int], None]
) -> None:
    data = tmp_path / "data" / "mine"
    threads = [Bringing(source, data) for _ in range(3)]
    with turn_to_make(data):
        for thread in threads:
            thread.start()
        waiting(3)
        assert not list(data.iterdir())
    for thread in threads:
        thread.join()
    assert [thread.error for thread in threads] == [None] * 3
    assert {path.name for path in data.iterdir()} == {"Train.json", "Valid.json", "dataset.json", "frames"}


def test_who_prepares_something_else_is_refused_after_the_other(
    source: Path, tmp_path: Path, waiting: Callable[[int], None]
) -> None:
    data = tmp_path / "mine"
    threads = [Bringing(source, data, classes) for classes in (None, "Car=vehicle")]
    with turn_to_make(data):
        for thread in threads:
            thread.start()
        waiting(2)
    for thread in threads:
        thread.join()
    (refused,) = (thread for thread in threads if thread.error is not None)
    made_of = origin.read(data)
    assert "is prepared already, and differently" in str(refused.error)
    assert made_of is not None
    assert (made_of.classes == "") == (refused is threads[1])


def test_a_folder_that_a_failure_leaves_empty_goes_and_who_waited_makes_it(
    source: Path, tmp_path: Path, waiting: Callable[[int], None]
) -> None:
    data = tmp_path / "deep" / "mine"
    thread = Bringing(source, data)
    with turn_to_make(data):
        thread.start()
        waiting(1)
    thread.join()
    assert thread.error is None
    assert origin.read(data) is not None
    with pytest.raises(ToolkitError), turn_to_make(tmp_path / "other" / "mine"):
        raise ToolkitError("it failed")
    assert not (tmp_path / "other").exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ToolkitError, match="cannot write"), turn_to_make(tmp_path / "file" / "mine"):
        pass
