"""What ends a command: a line for what a person can mend, three for a fault of the toolkit, never a page."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
from command import Command
from test_command_line import VERBS

from toolkit import NAME, workspace
from toolkit.cli import border

TOOLKIT = [sys.executable, "-m", "toolkit"]


@pytest.fixture(autouse=True)
def caches(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder / NAME


def fails_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(workspace, "current", fail)


@pytest.mark.usefixtures("workspace")
class TestAFaultOfTheToolkit:
    """An exception that nobody expected."""

    def test_it_is_three_lines_and_its_trace_a_file(
        self, toolkit: Command, caches: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fails_with(ZeroDivisionError("division\nby zero"), monkeypatch)
        result = toolkit("runs", "--json")
        assert (result.status, result.out) == (1, "")
        what, exception, where = result.err.splitlines()
        assert what == "error: a fault of the toolkit ended `toolkit runs --json`"
        assert exception == "ZeroDivisionError: division by zero"
        (trace,) = (caches / "traces").iterdir()
        assert str(trace) in where
        assert "report" in where
        assert "raise error\nZeroDivisionError: division\nby zero" in trace.read_text()

    def test_debug_prints_the_trace(self, toolkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        fails_with(RuntimeError("odd"), monkeypatch)
        assert "Traceback" in toolkit("--debug", "runs").err
        assert "Traceback" not in toolkit("runs").err

    def test_a_cache_that_cannot_be_written_costs_the_file_alone(
        self, toolkit: Command, caches: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        caches.write_text("in the way")
        fails_with(RuntimeError("odd"), monkeypatch)
        result = toolkit("runs")
        assert len(result.err.splitlines()) == 3
        assert "could not be written" in result.err
        assert "--debug" in result.err

    def test_old_traces_are_dropped(
        self, toolkit: Command, caches: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (caches / "traces").mkdir(parents=True)
        for number in range(border.KEPT_TRACES + 5):
            (caches / "traces" / f"20200101-{number:06}-1.txt").touch()
        fails_with(RuntimeError("odd"), monkeypatch)
        toolkit("runs")
        kept = sorted(path.name for path in (caches / "traces").iterdir())
        assert len(kept) == border.KEPT_TRACES
        assert not kept[-1].startswith("2020")

    def test_a_long_message_is_cut(self, toolkit: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        fails_with(RuntimeError("frame\n" * 10_000), monkeypatch)
        assert max(map(len, toolkit("runs").err.splitlines()[:2])) <= 400

    def test_ctrl_c_and_the_end_of_the_process_are_no_faults(
        self, toolkit: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        fails_with(KeyboardInterrupt(), monkeypatch)
        assert (toolkit("runs").status, toolkit("runs").err) == (130, f"{border.INTERRUPTED}\n")
        fails_with(SystemExit(7), monkeypatch)
        assert toolkit("runs").status == 7


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x/y"),
            "cannot use /x/y; found permission denied",
        ),
        (
            OSError(errno.ELOOP, "Too many levels of symbolic links", "a"),
            "cannot use a; found too many",
        ),
        (OSError(errno.ESTALE, "Stale file handle", b"a"), "cannot use a; found stale file handle"),
        (OSError(errno.EROFS, "Read-only file system", "a"), "cannot use a; found read"),
        (
            OSError(errno.EMFILE, "Too many open files"),
            "the system refused to go on; found too many open",
        ),
    ],
)
@pytest.mark.usefixtures("workspace")
def test_what_the_machine_refuses_is_one_line(
    toolkit: Command, monkeypatch: pytest.MonkeyPatch, error: OSError, line: str
) -> None:
    fails_with(error, monkeypatch)
    result = toolkit("runs")
    assert result.status == 1
    assert result.err.startswith(f"error: {line}")
    assert len(result.err.splitlines()) == 1


@pytest.mark.parametrize("name", ["x" * 300, "å" * 128, "", "..", "a/b", "a\nb", "\x1b[2J", "a\0b"])
def test_a_name_that_no_folder_can_have_is_refused_before_anything_starts(
    toolkit: Command, workspace: Path, name: str
) -> None:
    toolkit("dataset", "sample", "data", "--train", 2, "--val", 2, "--test", 2)
    toolkit("dataset", "prepare", "data")
    (workspace / "toolkit.toml").write_text(f"name = {json.dumps(name)}\n")
    by_file, by_flag = toolkit("train"), toolkit("train", "--name", name) if "\0" not in name else None
    for result, status in ((by_file, 1), (by_flag, 2)):
        if result is not None:
            assert result.status == status
            assert "is no name for a run; expected" in result.err
            assert len(result.err.splitlines()) == 1
            assert "\x1b" not in result.err
    assert not (workspace / "runs").exists()


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_h_is_help_everywhere(toolkit: Command, verb: tuple[str, ...]) -> None:
    short, long = toolkit(*verb, "-h"), toolkit(*verb, "--help")
    assert (short.status, short.out) == (0, long.out)


class TestOutput:
    """Where the output goes is not the toolkit's to choose."""

    def test_a_reader_that_has_gone_costs_no_word(self, tmp_path: Path) -> None:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run([*TOOLKIT, "--help"], stdout=write, stderr=subprocess.PIPE, cwd=tmp_path)
        os.close(write)
        assert (done.returncode, done.stderr) == (1, b"")

    @pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
    def test_a_result_that_a_full_disk_swallowed_is_no_success(self, tmp_path: Path) -> None:
        with Path("/dev/full").open("w") as full:
            done = subprocess.run([*TOOLKIT, "--version"], stdout=full, stderr=subprocess.PIPE, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr == b"error: cannot write standard output; found no space left on device\n"

    @pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
    def test_a_name_that_is_no_text_can_be_said_in_any_encoding(self, tmp_path: Path, encoding: str) -> None:
        name = os.fsdecode(b"\xff\xe2\x82\xac.json")
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        done = subprocess.run([*TOOLKIT, "submit", name], capture_output=True, env=environment, cwd=tmp_path)
        assert done.returncode == 1
        assert done.stderr.count(b"\n") == 1
        assert done.stderr.startswith(b"error: ")


NOBODY = """
import os, pwd, sys
def unknown(*_):
    raise KeyError("getpwuid(): uid not found: 12345")
pwd.getpwuid = unknown
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME"):
    os.environ.pop(name, None)
from toolkit.cli import main
main()
"""


@pytest.mark.slow
def test_a_user_without_home_and_passwd_entry_goes_from_sample_to_scores(tmp_path: Path) -> None:
    """As under ``docker run --user 12345``."""
    environment = {**os.environ, "TMPDIR": str(tmp_path)}

    def toolkit(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", NOBODY, *words]
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    for words in (
        ("dataset", "sample", "data", "--train", "2", "--val", "2", "--test", "2"),
        ("dataset", "prepare", "data"),
        ("train", "--data", "data", "--device", "cpu", "--preset", "smoke", "--dry-run"),
    ):
        done = toolkit(*words)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "~").exists()


def test_broken_settings_of_other_programs_do_not_reach_the_user(
    toolkit: Command, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these ends the program that reads it with an exception."""
    home = workspace / "home"
    for name, content in {
        ".docker/config.json": b"{",
        ".config/matplotlib/matplotlibrc": b"\xff\xfe: nonsense",
        ".gitconfig": b"[core\n",
    }.items():
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(content)
    for name, value in {
        "HOME": str(home),
        "DOCKER_HOST": "nonsense://nowhere",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
        "OMP_NUM_THREADS": "many",
        "COLUMNS": "wide",
        "TERM": "nonsense",
        "LC_ALL": "xx_YY",
    }.items():
        monkeypatch.setenv(name, value)
    box = {"boxes": [[1, 2, 30, 40]], "scores": [0.5], "labels": [1]}
    toolkit("dataset", "sample", "data", "--train", 2, "--val", 2, "--test", 2)
    assert toolkit("dataset", "prepare", "data").status == 0
    ids = [image["id"] for image in json.loads((workspace / "data" / "Valid.json").read_text())["images"]]
    (workspace / "p.json").write_text(json.dumps({str(each): box for each in ids}))
    assert toolkit("runs").status == 0
    scored = toolkit("evaluate", "p.json", "--data", "data", "--out", "scores", "--report")
    assert scored.status == 0, scored.err
    built = toolkit("container", "build", "--profile", "cpu")
    assert built.status == 1
    assert built.err.startswith("error: ")
    assert len(built.err.splitlines()) == 1
