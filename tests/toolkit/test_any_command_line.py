"""Whatever a person types: no traceback, one line for an error, status 0 only where the result can be used.

Command lines are drawn from the application itself, so that a verb or a flag is tried from the day it exists.
``TOOLKIT_COMMAND_LINES`` draws more of them.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import inspect
import json
import os
import shutil
import socket
import threading
import time
import typing
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import pytest
import torch
from command import Command
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st
from test_command_line import VERBS
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import DEFAULT_CFG_DICT

from patches import runtime
from patches.convolution import selftest
from submission.validate import LABELS
from toolkit import doctor, drift
from toolkit.benchmark import commands
from toolkit.benchmark import data as loading
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.supervision import supervisor
from toolkit.training import probe

COUNT = int(os.environ.get("TOOLKIT_COMMAND_LINES", "500"))

TINY = Path(__file__).resolve().parents[1] / "helpers" / "tiny.yaml"

ALWAYS = {
    "workers": "0",
    "train": "2",
    "val": "2",
    "test": "2",
    "resamples": "100",
    "batch": "2",
    "imgsz": "64",
    "iterations": "10",
    "device": "cpu",
    "interval": "0.1",
}
"""What is said of the options that decide how long a command takes, where nothing else is drawn for them."""

MINUTES = (
    (supervisor, "supervise"),
    (drift, "train_in_child"),
    (probe, "run"),
    (probe, "loading_seconds"),
    (commands, "_measured"),
    (commands, "_run"),
    (commands, "timed_training"),
    (loading, "measure"),
)
"""What takes minutes, where everything that could be wrong with a command has been looked at."""

NAPS: list[float] = []
"""Seconds that the command in hand would have waited; after some of them it is interrupted."""

SAID = ("error: ", "interrupted")
"""How the last word on a command that failed begins."""

ANSWERS_BY_STATUS = {"doctor", "reproduce", "dataset verify"}
"""Verbs whose status says what they found; what they found stands in the output."""

NUMBERS = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "-7",
    "1.5",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "0x10",
    "",
    " ",
    "two",
    "9" * 30,
    "٣",
)

VARIABLES = ("TOOLKIT_DATA", "TOOLKIT_WORKSPACE", "TOOLKIT_CONV_ROUTE", "CODABENCH_TOKEN", "HF_ENDPOINT")

WORDS = (
    *(
        "",
        " ",
        ".",
        "..",
        "-",
        "--",
        "/",
        "~",
        "*",
        "[bold]x[/bold]",
        "[/]",
        "a\nb",
        "\x1b[31mred",
        "é",
        "💥",
    ),
    *(
        "\udcff",
        "x" * 300,
        "../out",
        "a/b",
        "best.pt",
        "last.pt",
        "first",
        "cpu",
        "0",
        "0,1",
        "cuda:0",
        "cuda:x",
    ),
    *(
        "10%",
        "0%",
        "nan%",
        "jan,feb",
        "feb",
        "13",
        "triton",
        "gemm",
        "1:2",
        "a:b",
        "cpu/gpu",
        "%s",
        "{}",
        "None",
    ),
    *("coco128.yaml", "yolov8n-seg.yaml", "rtdetr-l.yaml", "https://example.invalid/x.pt", "s3://x/y"),
)

GOOD = (
    "data/sample",
    "data/sample/Valid.json",
    "runs/first",
    "first",
    "best.pt",
    "runs/first/weights/best.pt",
    "runs/first/predictions-val.json",
    "runs/first/predictions-test.json",
    "val.json",
    "coco.json",
    "good.zip",
    "new/out.json",
)

FILES = (
    *("data/sample", "data/empty", "data", "runs", "runs/first", "runs/broken", "runs/first/weights/best.pt"),
    *(
        "runs/first/predictions-val.json",
        "runs/first/predictions-test.json",
        "val.json",
        "coco.json",
        "good.zip",
    ),
    *("empty.json", "null.json", "list.json", "deep.json", "nan.json", "latin.json", "binary.bin", "junk.pt"),
    *("empty.pt", "zip.pt", "cut.zip", "dangling", "loop", "folder.json", "closed.json", "closed/x.json"),
    *(
        "missing.json",
        "missing/x.json",
        "empty.json/x.json",
        "n" * 250,
        "n" * 300,
        "m" * 100 + "/" + "m" * 300,
    ),
    *(
        "/dev/null",
        "/dev/full",
        "/proc/self/mem",
        "/proc/x",
        "/",
        "out.json",
        "out.zip",
        "out.csv",
        "out.png",
    ),
    *("\udcff.json", "a\nb.json", "[bold].json"),
)

SETTINGS = (
    None,
    b"",
    b"\xff\xfe\x00",
    b"= nonsense",
    b"[health]\nhang = 3\n",
    b"[health.hang]\nlimit = nan\n",
    b"[health.nonsense]\nlimit = 1\n",
    b"[logging]\nnonsense = true\n",
    b'data = "nowhere"\n',
    b'data = "\\u0000"\n',
    b'name = "\\u0000"\n',
    b'name = ""\n',
    b'name = ".."\n',
    b'name = "' + b"x" * 300 + b'"\n',
    b'model = "/"\n',
    b'preset = "../x"\n',
    b'device = "gpu"\n',
    b"batch = 99999999999999999999999999\n",
    b"seed = 1979-05-27\n",
)


@dataclass(frozen=True)
class Line:
    """A command line with the settings and variables that it meets."""

    verb: tuple[str, ...]
    words: tuple[str, ...]
    options: dict[str, str | None]
    settings: bytes | None
    variables: dict[str, str]


def annotations(command: Any) -> dict[str, Any]:
    """The type that each parameter of a verb is declared with."""
    hints = typing.get_type_hints(inspect.unwrap(command.callback))
    return {
        name: next((t for t in typing.get_args(hint) if t is not type(None)), hint)
        for name, hint in hints.items()
    }


def value(kind: Any, name: str, chance: Random) -> str:
    """A word for a parameter of such a type: a right one, a wrong one, or one of another type."""
    members = [str(each.value) for each in kind] if isinstance(kind, type) and issubclass(kind, Enum) else []
    members = members or [each for each in typing.get_args(kind) if isinstance(each, str)]
    if members:
        return chance.choice([*members * 4, "nonsense", ""])
    if name in ALWAYS and chance.random() < 0.5:
        return ALWAYS[name]
    if kind in (int, float):
        return chance.choice(NUMBERS)
    if chance.random() < 0.6:
        return chance.choice(GOOD)
    return chance.choice(FILES if kind is Path else FILES + WORDS)


def command_line(number: int) -> Line:
    """The command line of that number."""
    chance = Random(number)
    verb = chance.choice(sorted(VERBS))
    command: Any = VERBS[verb]
    kinds = annotations(command)
    words, options = list[str](), dict[str, str | None]()
    often = chance.choice([0.05, 0.2, 0.4])
    for parameter in command.params:
        name, kind = parameter.name, kinds.get(parameter.name, str)
        if name in ("help", "version"):
            continue
        if parameter.param_type_name == "argument":
            if parameter.required or chance.random() < 0.6:
                many = 1 if parameter.nargs == 1 else chance.randint(1, 3)
                words += [value(kind, name, chance) for _ in range(many)]
        elif getattr(parameter, "is_flag", False):
            if chance.random() < often:
                options[chance.choice([*parameter.opts, *parameter.secondary_opts])] = None
        elif parameter.required or chance.random() < often:
            options[parameter.opts[-1]] = value(kind, name, chance)
        elif name in ALWAYS:
            options[parameter.opts[-1]] = ALWAYS[name]
    if chance.random() < 0.04:
        options[chance.choice(["--nonsense", "-x", "--out", "--data"])] = chance.choice(WORDS)
    variables = {}
    if chance.random() < 0.08:
        variables[chance.choice(VARIABLES)] = chance.choice(FILES + WORDS)
    return Line(verb, tuple(words), options, chance.choice(SETTINGS[:1] * 40 + SETTINGS), variables)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace: a small dataset, a run with weights and predictions, and broken files of every kind."""
    root = tmp_path_factory.mktemp("stage")
    data, run = root / "data" / "sample", root / "runs" / "first"
    write_sample(data, train=2, val=2, test=2, seed=0, scene="street")
    prepare(data)
    (root / "data" / "empty").mkdir()
    (run / "weights").mkdir(parents=True)
    record = {"model": "yolov8n.yaml", "preset": "smoke", "channels": 1, "patches": True, "command": []}
    (run / "run.json").write_text(json.dumps({**record, "data": str(data), "version": "0"}))
    torch.manual_seed(0)
    model = DetectionModel(str(TINY), ch=1, nc=4, verbose=False)
    model.names = {label - 1: name for label, name in LABELS.items()}
    torch.save({"model": model, "train_args": {**DEFAULT_CFG_DICT, "imgsz": 64}}, run / "weights" / "best.pt")
    for split, name in (("val", "Valid.json"), ("test", "TestNoLabels.json")):
        ids = [image["id"] for image in json.loads((data / name).read_text())["images"]]
        boxes = {"boxes": [[10, 10, 30.5, 40]], "scores": [0.9], "labels": [1]}
        (run / f"predictions-{split}.json").write_text(json.dumps({str(each): boxes for each in ids}))
    shutil.copy(run / "predictions-val.json", root / "val.json")
    (root / "coco.json").write_text(
        json.dumps([{"image_id": ids[0], "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}])
    )
    with zipfile.ZipFile(root / "good.zip", "w") as archive:
        archive.write(root / "val.json", "predictions.json")
    broken = root / "runs" / "broken"
    broken.mkdir()
    for name in ("run.json", "plan.json", "summary.json", "heartbeat.json"):
        (broken / name).write_bytes(b'{"data": \xff')
    (root / "empty.json").write_bytes(b"")
    (root / "null.json").write_bytes(b"null")
    (root / "list.json").write_bytes(b'[1, {"a": []}]')
    (root / "deep.json").write_bytes(b"[" * 100_000)
    (root / "nan.json").write_bytes(
        b'{"20200504118182600": {"boxes": [[NaN, 1, 2, 3]], "scores": [1], "labels": [1]}}'
    )
    (root / "latin.json").write_bytes('{"name": "Ærø"}'.encode("latin-1"))
    (root / "binary.bin").write_bytes(bytes(range(256)) * 8)
    (root / "junk.pt").write_bytes(b"\x80\x04junk")
    (root / "empty.pt").write_bytes(b"")
    shutil.copy(root / "good.zip", root / "zip.pt")
    (root / "cut.zip").write_bytes((root / "good.zip").read_bytes()[:-30])
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    (root / "folder.json").mkdir()
    (root / "closed").mkdir()
    for name in ("closed/x.json", "closed.json"):
        shutil.copy(root / "val.json", root / name)
    return root


@pytest.fixture(scope="module", autouse=True)
def nothing_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No network, no Docker, no trainer, no minutes of measuring, no waiting."""
    patch = pytest.MonkeyPatch()
    answer = runtime.Runtime(torch=str(torch.__version__))

    def unreachable(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    def not_here(*_: object, **__: object) -> NoReturn:
        raise ToolkitError("this is as far as a test goes")

    sleep = time.sleep

    def waits(seconds: float) -> None:
        if threading.current_thread() is not threading.main_thread():
            sleep(seconds)
            return
        NAPS.append(seconds)
        if len(NAPS) > 50:
            raise KeyboardInterrupt

    patch.setattr(socket.socket, "connect", unreachable)
    patch.setattr(socket, "getaddrinfo", unreachable)
    patch.setattr(time, "sleep", waits)
    passed = selftest.SelfTestResult("gemm", True, "", 1.0)
    patch.setattr(doctor, "ask", lambda timeout=0.0: answer)
    patch.setattr(selftest, "run", lambda *_, **__: passed)
    for module, name in MINUTES:
        patch.setattr(module, name, not_here)
    patch.setenv("DOCKER_HOST", "unix:///nowhere/docker.sock")
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    for name in ("HF_TOKEN", *VARIABLES):
        patch.delenv(name, raising=False)
    yield
    patch.undo()


def contents(root: Path) -> dict[str, str]:
    """Digests of all files below a folder."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not path.is_symlink():
                found[os.fspath(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def check_usable(line: Line, out: str) -> None:
    """What a command that ended with status 0 said it made is there and can be read."""
    if "--json" in line.options:
        json.loads(out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    readers = {
        ".json": lambda path: json.loads(path.read_bytes()),
        ".csv": lambda path: list(csv.reader(path.read_text().splitlines()))[1],
        ".zip": lambda path: json.loads(zipfile.ZipFile(path).read("predictions.json")),
        ".png": lambda path: path.read_bytes().index(b"PNG"),
    }
    said = [line.options[name] for name in ("--out", "--csv", "--plot") if line.options.get(name)]
    printed = [word for word in out.splitlines()[-1:] if word.endswith((".json", ".zip", ".pt"))]
    for name in (*said, *printed):
        path = Path(str(name))
        if path.is_dir():
            assert any(path.iterdir()), f"{name} is empty"
        else:
            assert path.stat().st_size, f"{name} is empty"
            readers.get(path.suffix, lambda path: None)(path)


def run(line: Line, stage: Path, place: Path, monkeypatch: pytest.MonkeyPatch, toolkit: Command) -> None:
    shutil.copytree(stage, place, symlinks=True)
    (place / "closed").chmod(0)
    (place / "closed.json").chmod(0)
    if line.settings is not None:
        (place / "toolkit.toml").write_bytes(line.settings)
    monkeypatch.chdir(place)
    for name, value in line.variables.items():
        monkeypatch.setenv(name, value)
    NAPS.clear()
    before = contents(place)
    flags = [
        word for name, value in line.options.items() for word in ([name] if value is None else [name, value])
    ]
    result = toolkit(*line.verb, *flags, *line.words)
    note(f"status {result.status}\n{result.out}\n{result.err}")
    assert "Traceback" not in result.out + result.err
    assert "a fault of the toolkit" not in result.err
    if result.status == 0:
        check_usable(line, result.out)
        return
    after = contents(place)
    assert {name: after.get(name) for name in before} == before, "a command that failed changed files"
    assert not [name for name in after if name.endswith(".tmp")]
    assert result.status in (1, 2, 75, 130)
    if " ".join(line.verb) not in ANSWERS_BY_STATUS:
        last = result.err.strip().splitlines()[-1:]
        assert last and last[0].startswith(SAID), "no word on why"


@settings(max_examples=COUNT, derandomize=True, database=None, phases=[Phase.generate])
@given(line=st.integers(0, 2**32).map(command_line))
@pytest.mark.slow
@pytest.mark.timeout(2400)  # 500 commands in one test
def test_no_command_line_ends_in_a_traceback_or_a_result_that_cannot_be_used(
    line: Line, stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.MonkeyPatch.context() as monkeypatch:
        place = tmp_path / "here"
        try:
            run(line, stage, place, monkeypatch, Command(monkeypatch, capsys))
        finally:
            monkeypatch.undo()
            if place.exists():
                (place / "closed").chmod(0o700)
                shutil.rmtree(place)
