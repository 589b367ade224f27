"""The wheel of ``patches``, in an environment with nothing else of this project, serves unedited programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

pytest.importorskip("hatchling", reason="hatchling builds the wheel")

ROOT = Path(__file__).parents[2]

PROGRAM = """
import sys
import torch
from torch import nn

torch.manual_seed(0)
net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, stride=2))
net(torch.randn(2, 3, 16, 16)).square().mean().backward()
print(round(float(sum(p.grad.abs().sum() for p in net.parameters())), 4))
print(*sorted(name for name in sys.modules if name.partition(".")[0] in ("patches", "toolkit", "submission")))
sys.exit(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment that holds torch and the wheel, and an empty folder to work in."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the environment in its working folder."""
        ours = ("CONVROUTES", "PYTHON", "TOOLKIT")
        clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.run(
            list(map(str, command)),
            cwd=self.folder / "work",
            env={**clean, **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    def served(self, *program: str | Path, **options: str) -> subprocess.CompletedProcess[str]:
        """Run a program through the route gemm on the CPU."""
        command = (self.python, "-m", "convroutes", "run", "--route=gemm", "--device=cpu", "--report", "--")
        return self.run(*command, *program, **options)


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Environment:
    from hatchling.builders.wheel import WheelBuilder

    folder = tmp_path_factory.mktemp("outside")
    (wheel,) = WheelBuilder(str(ROOT / "patches")).build(
        directory=str(folder / "dist"), versions=["standard"]
    )
    venv.create(folder, with_pip=True)
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "torch-of-the-tests.pth").write_text(str(Path(torch.__file__).parents[1]))
    install = [folder / "bin" / "python", "-m", "pip", "install", "-q", "--no-index", "--no-deps", wheel]
    subprocess.run(install, check=True)
    (folder / "work").mkdir()
    (folder / "work" / "program.py").write_text(PROGRAM)
    return Environment(folder, Path(wheel))


def test_the_wheel_holds_every_module_of_the_folder(outside: Environment) -> None:
    with zipfile.ZipFile(outside.wheel) as wheel:
        names = {name.removeprefix("convroutes/") for name in wheel.namelist() if name.endswith(".py")}
        assert wheel.read("convroutes/LICENSE") == (ROOT / "LICENSE").read_bytes()
    assert names == {str(path.relative_to(ROOT / "patches")) for path in (ROOT / "patches").rglob("*.py")}


def test_what_the_self_test_loads_by_name_is_in_the_wheel(outside: Environment) -> None:
    code = (
        "import importlib\n"
        "from convroutes.convolution import selftest\n"
        "names = selftest.EXAMINERS.values()\n"
        "modules = [importlib.import_module(name, selftest.__package__) for name in names]\n"
        "print(*sorted({module.__name__.partition('.')[0] for module in modules if module.examine}))\n"
    )
    assert outside.run(outside.python, "-c", code).stdout.split() == ["convroutes"]


def test_a_program_is_served_unedited_and_computes_the_same(outside: Environment) -> None:
    plain = outside.run(outside.python, "program.py")
    served = outside.served("program.py")
    assert plain.returncode == served.returncode == 0, served.stderr
    assert float(served.stdout.split()[0]) == pytest.approx(float(plain.stdout.split()[0]), rel=1e-4)
    assert plain.stdout.split()[1:] == served.stdout.split()[1:] == []
    assert "gemm" in served.stderr and "4 calls" in served.stderr
    assert plain.stderr == ""


@pytest.mark.parametrize("value", ["", "off"])
def test_without_the_variable_nothing_is_switched_on(outside: Environment, value: str) -> None:
    code = "import sys, torch; sys.exit('convroutes.dispatch' in sys.modules)"
    done = outside.run(outside.python, "-c", code, CONVROUTES=value, CONVROUTES_REPORT="1")
    assert (done.returncode, done.stderr) == (0, "")


def test_a_python_without_torch_imports_nothing_for_it(outside: Environment) -> None:
    code = "import sys; sys.exit(any(name.startswith(('convroutes', 'torch')) for name in sys.modules))"
    assert outside.run(outside.python, "-c", code).returncode == 0


def test_the_variable_alone_serves_children_too(outside: Environment) -> None:
    code = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, 'program.py', '3']))"
    variables = {"CONVROUTES": "gemm", "CONVROUTES_DEVICE": "cpu", "CONVROUTES_REPORT": "1"}
    done = outside.run(outside.python, "-c", code, **variables)
    assert done.returncode == 3
    assert "4 calls" in done.stderr


def test_a_spawned_worker_is_served(outside: Environment) -> None:
    (outside.folder / "work" / "spawns.py").write_text(
        "import multiprocessing, torch\n"
        "def work(_):\n"
        "    torch.nn.Conv2d(1, 1, 3)(torch.ones(1, 1, 8, 8))\n"
        "    import convroutes\n"
        "    return convroutes.report().calls\n"
        "if __name__ == '__main__':\n"
        "    with multiprocessing.get_context('spawn').Pool(1) as pool:\n"
        "        print(pool.map(work, [0]))\n"
    )
    done = outside.served("spawns.py")
    assert done.stdout.split() == ["[1]"], done.stderr


def test_a_module_and_a_command_are_programs_as_well(outside: Environment) -> None:
    assert "4 calls" in outside.served("-m", "program").stderr
    command = outside.folder / "bin" / "some-command"
    command.write_text(f"#!{outside.python}\n{PROGRAM}")
    command.chmod(0o755)
    assert "4 calls" in outside.served("some-command").stderr


def test_the_status_of_a_program_comes_through(outside: Environment) -> None:
    assert outside.served("program.py", "7").returncode == 7
    assert outside.served("-m", "no_such_module").returncode == 1
    killed = outside.served(sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGTERM)")
    assert killed.returncode == -15


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["run"], 2, "no program was given"),
        (["run", "--"], 2, "no program was given"),
        (["run", "--", "no-such-command"], 127, "no-such-command: found no such command"),
        (["run", "--", "missing.py"], 127, "missing.py: found no such command"),
        (["run", "--", "-m"], 127, "found no such command"),
        (
            ["run", "-r", "gemm", "--", "program.py"],
            2,
            "unrecognized arguments: -r (python -m convroutes run",
        ),
        (["run", "--route", "quick", "--", "program.py"], 2, "invalid choice: 'quick'"),
        (["quick"], 2, "invalid choice: 'quick'"),
        (["--dtype", "int8"], 2, "invalid choice: 'int8'"),
        (["doctor", "--timeout", "0"], 2, "expected 1 to 86400"),
        (["--timeout", "long"], 2, "long seconds: expected 1 to 86400"),
        (["--share", "no/such/folder/file", "--dtype", "float32"], 2, "cannot write no/such/folder/file"),
    ],
)
def test_a_wrong_call_is_one_line(outside: Environment, arguments: list[str], status: int, says: str) -> None:
    done = outside.run(outside.python, "-m", "convroutes", *arguments)
    assert done.returncode == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"CONVROUTES": "quick"}, "CONVROUTES=quick"),
        ({"CONVROUTES": "gemm", "CONVROUTES_DEVICE": "tpu"}, "device 'tpu'"),
        ({"CONVROUTES": "gemm", "CONVROUTES_VENDOR": "never"}, "CONVROUTES_VENDOR=never"),
    ],
)
def test_a_wrong_variable_is_said_and_the_program_runs(
    outside: Environment, variables: dict[str, str], says: str
) -> None:
    done = outside.run(outside.python, "program.py", **variables)
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("convroutes: not switched on: ") and says in done.stderr


def test_a_gpu_that_is_not_there_is_said(outside: Environment) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    done = outside.run(outside.python, "program.py", CONVROUTES="gemm", CONVROUTES_DEVICE="cuda")
    assert (done.returncode, done.stderr.count("\n")) == (0, 1)
    assert done.stderr.startswith("convroutes: CONVROUTES_DEVICE=cuda: found no GPU")


def test_a_note_says_who_speaks_unless_the_program_has_set_up_logging(outside: Environment) -> None:
    variables = {"CONVROUTES": "native", "CONVROUTES_ROUTE": "gemm", "CONVROUTES_DEVICE": "cpu"}
    code = "import torch"
    done = outside.run(outside.python, "-c", code, **variables)
    assert done.stderr == "convroutes: CONVROUTES_ROUTE=gemm overrules route 'native'\n"
    done = outside.run(outside.python, "-c", f"import logging; logging.basicConfig(); {code}", **variables)
    assert done.stderr == "WARNING:convroutes:CONVROUTES_ROUTE=gemm overrules route 'native'\n"


def test_the_version_is_said(outside: Environment) -> None:
    assert outside.run(outside.python, "-m", "convroutes", "--version").stdout.startswith("convroutes ")


def test_another_version_in_front_of_the_installed_one_serves_and_says_so(outside: Environment) -> None:
    folder = outside.folder / "newer"
    with zipfile.ZipFile(outside.wheel) as wheel:
        wheel.extractall(folder)
    first = folder / "convroutes" / "__init__.py"
    first.write_text(re.sub(r'(?m)^__version__ = ".*"', '__version__ = "9.9"', first.read_text()))
    for program in (
        ["program.py"],
        ["-c", "import subprocess, sys; subprocess.call([sys.executable, 'program.py'])"],
    ):
        done = outside.run(outside.python, *program, CONVROUTES="gemm", PYTHONPATH=str(folder))
        assert done.returncode == 0
        assert done.stderr.count("\n") == 1
        assert "two versions are on the path: 9.9 in " in done.stderr


def test_an_older_torch_reads_no_hook_beside_the_environment(outside: Environment) -> None:
    folder = outside.folder / "target"
    with zipfile.ZipFile(outside.wheel) as wheel:
        wheel.extractall(folder)
    (folder / "torch-1.13.1.dist-info").mkdir()
    (folder / "torch-1.13.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 1.13.1\n")
    run = [outside.python, "-m", "convroutes", "run", "--", "program.py"]
    done = outside.run(*run, PYTHONPATH=str(folder))
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "PyTorch 1.13.1 needs the wheel's .pth file" in done.stderr
    assert outside.run(*run).returncode == 0


def test_a_checkout_without_its_wheel_says_so() -> None:
    command = [sys.executable, "-m", "patches", "run", "--", sys.executable]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "found this package outside an installed wheel" in done.stderr


def test_two_copies_on_the_path_switch_on_once(outside: Environment) -> None:
    code = (
        "import torch, convroutes.startup as first, importlib.util\n"
        "spec = importlib.util.spec_from_file_location('other.startup', first.__file__)\n"
        "second = importlib.util.module_from_spec(spec)\n"
        "spec.loader.exec_module(second)\n"
        "second.__file__ = '/elsewhere/startup.py'\n"
        "second.autoload()\n"
    )
    done = outside.run(outside.python, "-c", code, CONVROUTES="gemm", CONVROUTES_DEVICE="cpu")
    assert "not switched on a second time" in done.stderr


YOLO = """
import sys
from ultralytics.cfg import entrypoint

sys.exit(entrypoint())
"""


@pytest.fixture
def pictures(outside: Environment) -> Path:
    """Four pictures with a box each, in Ultralytics' own layout, and their data.yaml."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV comes with Ultralytics")
    numpy = pytest.importorskip("numpy", reason="NumPy comes with Ultralytics")
    data = outside.folder / "work" / "pictures"
    random = numpy.random.default_rng(0)
    for folder in ("images", "labels"):
        (data / folder).mkdir(parents=True)
    for n in range(4):
        cv2.imwrite(str(data / "images" / f"{n}.png"), random.integers(0, 255, (64, 64, 3), numpy.uint8))
        (data / "labels" / f"{n}.txt").write_text("0 0.5 0.5 0.4 0.3\n")
    (data / "data.yaml").write_text(f"path: {data}\ntrain: images\nval: images\nnames: [thing]\n")
    return data / "data.yaml"


@pytest.mark.slow
def test_yolo_trains_and_predicts_unedited(outside: Environment, pictures: Path) -> None:
    pytest.importorskip("ultralytics", reason="the program of this test")
    command = outside.folder / "bin" / "yolo-of-the-tests"
    command.write_text(f"#!{outside.python}{YOLO}")
    command.chmod(0o755)
    quiet = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_CONFIG_DIR": str(outside.folder)}
    settings = ["imgsz=32", "device=cpu", f"project={outside.folder}", "exist_ok=True", "plots=False"]
    train = ["detect", "train", "model=yolov8n.yaml", f"data={pictures}", "epochs=1", "batch=2", "workers=1"]
    trained = outside.served("yolo-of-the-tests", *train, *settings, "name=trained", **quiet)
    assert trained.returncode == 0, trained.stderr[-2000:]
    served = re.search(r"route gemm, ([\d,]+) calls", trained.stderr)
    assert served is not None
    assert int(served[1].replace(",", "")) > 2 * 64 * 2  # two batches, every layer, forward and backward
    weights = outside.folder / "trained" / "weights" / "best.pt"
    predict = [
        "detect",
        "predict",
        f"model={weights}",
        f"source={pictures.parent / 'images'}",
        "save_txt=True",
    ]
    predicted = outside.served("yolo-of-the-tests", *predict, *settings, "name=predicted", **quiet)
    assert predicted.returncode == 0, predicted.stderr[-2000:]
    assert "route gemm" in predicted.stderr
    plain = outside.run(command, *predict, *settings, "name=plain", **quiet)
    assert (plain.returncode, "route gemm" in plain.stderr) == (0, False)
