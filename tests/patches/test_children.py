"""Child processes take their code from where the parent's is, whatever lies in the user's folder."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest

from patches import cache, children, runtime
from patches.convolution import selftest
from toolkit.dataset.loader import start_server
from toolkit.supervision.supervisor import trainer_command

SHADOWS = ("patches", "submission", "toolkit", "torch", "numpy", "runpy", "random", "tempfile", "msgspec")


@pytest.fixture(params=["files", "packages"])
def users_folder(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder whose files or packages have the names of what the children import."""
    for name in SHADOWS:
        path = tmp_path / (f"{name}.py" if request.param == "files" else f"{name}/__init__.py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"raise SystemExit('the user has a {name} of his own')\n")
    monkeypatch.chdir(tmp_path)
    # As for a user of the installed command: nothing of the interpreter's doing names the folder.
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    return tmp_path


@pytest.mark.usefixtures("users_folder")
def test_the_self_test_passes_in_a_folder_that_shadows_what_it_imports() -> None:
    result = selftest.run("gemm", "cpu")
    assert (result.passed, result.reason) == (True, "")


@pytest.mark.usefixtures("users_folder")
def test_pytorch_is_asked_in_a_folder_that_shadows_what_it_imports() -> None:
    found = runtime.ask()
    assert found.error == ""
    assert found.torch.partition("+")[0] == version("torch").partition("+")[0]


@pytest.mark.parametrize("safe_path", [True, False], ids=["python 3.11", "python 3.10"])
@pytest.mark.usefixtures("users_folder")
def test_a_module_is_run_as_by_python_m(
    safe_path: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if safe_path and sys.version_info < (3, 11):
        pytest.skip("this Python has no -P")
    monkeypatch.setattr(children, "_SAFE_PATH", safe_path)
    if not safe_path:
        monkeypatch.setattr(children, "paths", lambda: {"PYTHONPATH": os.pathsep.join(sys.path)})
    place = tmp_path / "elsewhere"
    place.mkdir()
    (place / "spoken.py").write_text(
        textwrap.dedent("""
        import os, sys, random
        if __name__ == "__main__":
            print(sys.argv[1:], __spec__.name, os.getcwd() in map(os.path.abspath, sys.path))
        """)
    )
    monkeypatch.syspath_prepend(place)
    done = subprocess.run(
        children.command("spoken", "a b", "-m"), env=children.environment(), capture_output=True, text=True
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "['a b', '-m'] spoken False"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="this Python has no safe path for grandchildren")
@pytest.mark.usefixtures("users_folder")
def test_the_loaders_workers_import_the_parents_toolkit() -> None:
    with start_server().Pool(1) as pool:
        where = pool.apply(runtime.installed, ("torch",))
    assert where == runtime.installed("torch")


def test_the_trainer_and_its_ranks_are_started_without_the_users_folder() -> None:
    class Plan:
        run, ranks = Path("runs/x"), 1

    assert trainer_command(Plan()) == children.command("toolkit.training.worker", "runs/x")  # type: ignore[arg-type]
    Plan.ranks = 2
    command = trainer_command(Plan())  # type: ignore[arg-type]
    assert command[:-5] == children.command("torch.distributed.run")
    assert command[-2:] == ["toolkit.training.worker", "runs/x"]


def _broken_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("raise ImportError('libcudart.so.12: cannot open shared object file')")


def _dying_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("import os; os.kill(os.getpid(), 11)")


def _silent_torch(folder: Path) -> None:
    (folder / "torch.py").write_text("raise SystemExit(0)")


@pytest.mark.parametrize("breaks", [_broken_torch, _dying_torch, _silent_torch])
def test_a_child_that_could_not_start_says_nothing_of_the_route(
    breaks: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    result = selftest.run("gemm", "cpu")
    assert not result.passed
    assert result.transient
    assert "before the first problem" in result.reason


def test_a_child_that_the_system_does_not_start_is_a_result_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    result = selftest.run("gemm", "cpu")
    assert (result.passed, result.transient) == (False, True)
    assert result.reason.startswith("could not start")
    assert runtime.ask().error.startswith("PyTorch could not be asked")


def test_a_route_that_the_child_alone_cannot_make_is_tested_again_at_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "absent.py").write_text("raise ImportError('libtriton.so: GLIBCXX_3.4.30 not found')")
    monkeypatch.syspath_prepend(tmp_path)
    result = selftest.run("absent:Route", "cpu")
    assert (result.passed, result.transient) == (False, True)
    assert result.reason == "not available: libtriton.so: GLIBCXX_3.4.30 not found"


def test_importing_the_packages_changes_no_environment_variable() -> None:
    code = (
        "import os; before = dict(os.environ); import patches, submission, toolkit, toolkit.cli, "
        "toolkit.workspace, toolkit.settings; assert dict(os.environ) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "YOLO_OFFLINE": "false"})


class TestCacheFolder:
    """Where the cache is for users of every kind."""

    def test_it_follows_the_xdg_variable_and_no_relative_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "x"))
        assert cache.cache_folder() == tmp_path / "x" / cache.NAME
        for without in ("", "cache", "./cache"):
            monkeypatch.setenv("XDG_CACHE_HOME", without)
            assert cache.cache_folder() == tmp_path / ".cache" / cache.NAME

    def test_a_user_without_home_and_passwd_entry_has_one_of_his_own(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        homeless(monkeypatch, tmp_path)
        folder = cache.cache_folder()
        assert folder == tmp_path / f"{cache.NAME}-{os.getuid()}" == cache.cache_folder()
        assert folder.stat().st_mode & 0o077 == 0

    def test_a_folder_that_others_may_write_is_not_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        homeless(monkeypatch, tmp_path)
        trap = tmp_path / f"{cache.NAME}-{os.getuid()}"
        trap.mkdir()
        trap.chmod(0o777)
        assert cache.cache_folder() != trap
        assert cache.cache_folder().stat().st_mode & 0o077 == 0

    def test_nor_is_a_link_to_another_place(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        homeless(monkeypatch, tmp_path)
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        (tmp_path / f"{cache.NAME}-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
        assert "elsewhere" not in str(cache.cache_folder().resolve())


def homeless(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    """As under ``docker run --user 12345``: no HOME, no entry in the passwd file."""

    def nobody() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(cache.Path, "home", nobody)
    monkeypatch.setattr(cache.tempfile, "tempdir", str(temporary))
    cache._temporary.cache_clear()
