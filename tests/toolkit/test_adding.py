"""What CONTRIBUTING.md says of adding a thing: one is added, and comes up wherever it should.

A red flag is added in tests/runs/test_runs_health.py.
"""

from __future__ import annotations

import gzip
import importlib.util
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from datetime import date
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from patches.convolution import registry, routes
from patches.runtime import Runtime
from submission import competitions
from toolkit import doctor, settings
from toolkit.cli import bench
from toolkit.cli.train import train
from toolkit.dataset.prepare import prepare
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError
from toolkit.runs.plan import TrainingPlan
from toolkit.training import deciding, preset
from toolkit.training.options import Options
from toolkit.workspace import Workspace

# What a person would write into a copy of the class, and what is asked there of it.
LINE = """
    patience: Annotated[
        Annotated[int, Meta(ge=1, le=500)] | None, Option("Epochs without a gain.", argument=True)
    ] = None
"""

PROGRAM = """
import sys
from pathlib import Path
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.errors import ToolkitError
from toolkit.runs import reproduction
from toolkit.training import deciding, estimate
from toolkit.training.options import Options
from toolkit.workspace import Workspace

root = Path(sys.argv[1])
place = Workspace(root)


def told(options, resume=False):
    plan = deciding.plan_resume(place, options) if resume else deciding.plan(place, options)
    sources = estimate._sources(options, place.defaults(plan.data), resume)
    topics = estimate._settings(plan, sources, "preset").values()
    shown = {each.name: each for topic in topics for each in topic}
    return plan, (plan.arguments["patience"], shown["patience"].value, shown["patience"].source)


print("--patience" in CliRunner().invoke(app, ["train", "--help"]).output)
print(CliRunner().invoke(app, ["train", "--patience", "501"]).exit_code)
given = {"preset": "thermal", "device": "cpu", "workers": 0}
print(told(Options(**given))[1])
(root / "toolkit.toml").write_text("patience = 7")
print(told(Options(**given))[1])
plan, found = told(Options(**given, patience=3))
print(found)
(root / "toolkit.toml").write_text("patience = 0")
try:
    told(Options(**given))
except ToolkitError as error:
    print("patience = 0" in error.line())
(root / "toolkit.toml").unlink()
reproduction.record(plan)
print(told(Options(), resume=True)[1][:2], told(Options(patience=3), resume=True)[1])
try:
    told(Options(patience=4), resume=True)
except ToolkitError as error:
    print("begun with another --patience" in error.line())
"""

# A setting of our own and a choice of frames, as somebody adds them, and what is asked then.
SETTING = """
    stride_of_day: Annotated[
        Annotated[int, Meta(ge=1, le=24)] | None,
        Option("H.", resume="RESUME", preset=True, becomes="stride_of_day")
    ] = None
"""
CHOICE = """
    first: Annotated[Annotated[int, Meta(ge=1)] | None, Option("Frames.", becomes="subsets")] = None
"""
SETTINGS = """
import sys
from pathlib import Path
from typer.testing import CliRunner

from toolkit.cli import app
from toolkit.errors import ToolkitError
from toolkit.runs import reproduction
from toolkit.runs.folder import RunFiles
from toolkit.dataset import index
from toolkit.runs.plan import count_images, read_plan
from toolkit.training import choices, deciding, estimate
from toolkit.training.options import Options
from toolkit.workspace import Workspace

root = Path(sys.argv[1])
place = Workspace(root)
given = {"preset": str(root / "hourly.yaml"), "device": "cpu", "workers": 0}


def shown(options):
    plan = deciding.plan(place, options)
    return plan, choices.lines(plan, estimate._sources(options, place.defaults(plan.data), False))


help = CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
print("--stride-of-day" in help, "--first" in help)
print(CliRunner().invoke(app, ["train", "--stride-of-day", "25"]).exit_code)
print(shown(Options(**given))[1])
(root / "toolkit.toml").write_text("stride_of_day = 7")
print(shown(Options(**given))[1])
print(shown(Options(**given, stride_of_day=1))[1])
plan, lines = shown(Options(**given, stride_of_day=3, first=3))
print(plan.stride_of_day, count_images(plan, index.load(plan.data)), lines)
reproduction.record(plan)
kept = read_plan(RunFiles(plan.run))
print(kept == plan, deciding.plan_resume(place, Options(stride_of_day=3, first=3)).subsets == plan.subsets)
for other in (Options(stride_of_day=4), Options(first=4)):
    try:
        print(deciding.plan_resume(place, other).stride_of_day)
    except ToolkitError as error:
        print(error.line().partition(plan.run.name)[2])
"""

# A route as somebody adds it: its entry, its branch, and what is asked of both doctors and of the plan then.
ENTRY = '    RouteKind("sums", devices=("cuda",), package="numpy"),\n'
BRANCH = '    if name == "sums":\n        return Native(library=False)\n'
ASKED = """
import torch
from patches import doctor as small, settling
from patches.convolution import planfile, routes, selftest
from patches.runtime import Runtime, RuntimeDevice
from toolkit import doctor as large

selftest.run = lambda name, device, *rest, **named: selftest.SelfTestResult(name, True, "", 1.0)
gpu = (RuntimeDevice("a card", "sm_90", 2**34),)
for there in ("1.0", ""):
    found = Runtime(torch="2.11", torchvision="0.26", triton="3.6", numpy=there, cuda="13", devices=gpu)
    large.ask = lambda timeout: found
    print([each.route for each in large.examine().self_tests][-1])
    print([each.route for each in small._try_all(found, "cuda", ["float32"], 1.0)][-1])
    said = small.diagnose([], True, found, {}, ())
    print([each.verdict.name for each in said.findings if each.subject == "numpy"])
print(sorted(planfile.Card.here("cpu").packages))
print(type(routes.make("sums")).__name__)


class Session:
    routes = {name: routes.make(name) for name in ("gemm", "sums", "library")}

    class planner:
        trusted = staticmethod(lambda name, dtype: True)


problem = selftest.problems_of("cpu", torch.float32)[0]
torch.backends.cudnn.enabled = False
print(list(settling.ways(Session, [problem])))
"""


# A competition with a phase of new ids and one of known ids by another name, and what is asked then.
SEASON = """
    Known(
        20000,
        "next-season",
        "Next Season",
        date(2027, 1, 1),
        None,
        "a test",
        (
            KnownPhase("final", "test", "final.json.gz", ("grand",)),
            KnownPhase("testing", "test", TESTING.template, ("warm-up",)),
        ),
    ),
"""
PHASES = """
import json

from typer.testing import CliRunner

from submission import Detections, codabench, templates
from submission.answers import Competition, Phase
from submission.competitions import number_of
from toolkit import entry, ltdv2
from toolkit.cli import app
from toolkit.errors import ToolkitError
from toolkit.evaluation import sequences

help = CliRunner().invoke(app, ["submit", "--help"], env={"COLUMNS": "200"}).output
print("development|testing|final" in help, "20000 next-season" in help, number_of("next-season"))
ids = templates.template("final")
print(ids.tolist(), entry.guess_phase(ids, "predictions"), ltdv2.SPLITS["final"])
told = Competition([Phase(1, "Warm-up"), Phase(2, "Grand finale"), Phase(3, "Testing")])
for number in (20000, 10954):
    print(number, codabench.find_phase(told, "testing", number).name)
print(codabench.find_phase(told, "final", 20000).id)
both = [*ids.tolist(), int(templates.template("development")[0])]
none = {"boxes": [], "scores": [], "labels": []}
try:
    sequences.check_one_split(Detections.loads(json.dumps(dict.fromkeys(both, none)).encode()), "p.json")
except ToolkitError as error:
    print(error.found)
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with prepared data."""
    folder = tmp_path_factory.mktemp("workspace")
    write_sample(folder / "data", train=4, val=2, test=2, seed=0, scene="street")
    prepare(folder / "data")
    return folder


def flags(verb: Callable[..., None]) -> dict[str, Any]:
    """What is declared of each option of a verb, by name."""
    hints = get_type_hints(verb, include_extras=True)
    return {name: kind.__metadata__[0] for name, kind in hints.items() if name != "return"}


def test_a_preset_is_a_file(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = "model: yolo11n.yaml\nchannels: 1\narguments:\n  epochs: 3\n  lr0: 0.004\n"
    (tmp_path / "brisk.yaml").write_text(recipe)
    monkeypatch.setattr(settings, "PRESETS", tmp_path)
    plan = deciding.plan(Workspace(root), Options(preset="brisk", device="cpu"))
    assert (plan.preset, plan.model, plan.arguments["epochs"], plan.arguments["lr0"]) == (
        "brisk",
        "yolo11n.yaml",
        3,
        0.004,
    )
    with pytest.raises(ToolkitError, match=r"no preset brisker.*brisk"):
        deciding.plan(Workspace(root), Options(preset="brisker", device="cpu"))


def test_every_preset_that_ships_is_named_by_the_flag() -> None:
    assert not [name for name in preset.presets() if name not in flags(train)["preset"].help]


def test_an_option_of_a_training_is_one_edit(root: Path, tmp_path: Path) -> None:
    """Flag, help and bounds, toolkit.toml's key, the plan, the dry run, and what a resumed run keeps."""
    ours = Path(settings.__file__).parent
    shutil.copytree(ours, tmp_path / "code" / "toolkit", ignore=shutil.ignore_patterns("__pycache__"))
    file = tmp_path / "code" / "toolkit" / "settings.py"
    text = file.read_text()
    place = text.index("\n\nclass TrainingOptions(")
    file.write_text(text[:place].rstrip() + LINE + text[place:])
    (tmp_path / "data").symlink_to(root / "data")
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path], cwd=tmp_path / "code", capture_output=True, text=True
    )
    assert result.stdout.splitlines() == [
        "True",
        "2",
        "(30, 30, 'preset')",
        "(7, 7, 'toolkit.toml')",
        "(3, 3, 'flag')",
        "True",
        "(3, 3) (3, 3, 'flag')",
        "True",
    ], result.stderr


EDITS = (
    ("settings.py", "    def overrides(", SETTING.lstrip("\n") + "\n    def overrides("),
    ("runs/plan.py", "    def subset(self", "    stride_of_day: int = 1\n\n    def subset(self"),
    ("training/options.py", "    # Of ``name=value``", CHOICE.lstrip("\n") + "    # Of ``name=value``"),
    ("training/choices.py", "options.subset, words)", "options.subset, words, options.first or 0)"),
    ("dataset/subset.py", "    part: float = 1.0\n", "    part: float = 1.0\n    first: int = 0\n"),
    ("dataset/subset.py", "= LTDV2) -> Subset:", "= LTDV2, first: int = 0) -> Subset:"),
    ("dataset/subset.py", "is not None else 1.0)", "is not None else 1.0, first)"),
    ("dataset/subset.py", 'or "all months"', 'or f"the first {self.first}"'),
    ("dataset/subset.py", "part=self.part)", "part=self.part)[: self.first]"),
)
"""What both take: the file, what stands there once, and what shall stand there."""


@pytest.mark.parametrize("resume", ["keeps", "changes"])
def test_a_setting_of_our_own_and_a_choice_of_frames_are_a_declaration_a_field_and_an_effect(
    root: Path, tmp_path: Path, resume: str
) -> None:
    """Flag and bounds, toolkit.toml's and a preset's key, plan.json, the dry run, and what a resume does."""
    ours, code = Path(settings.__file__).parent, tmp_path / "code" / "toolkit"
    shutil.copytree(ours, code, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, new in EDITS:
        text = (code / name).read_text()
        assert text.count(before) == 1, (name, before)
        (code / name).write_text(text.replace(before, new.replace("RESUME", resume)))
    (tmp_path / "data").symlink_to(root / "data")
    (tmp_path / "hourly.yaml").write_text("base: smoke\nstride_of_day: 5\n")
    result = subprocess.run(
        [sys.executable, "-c", SETTINGS, tmp_path], cwd=code.parent, capture_output=True, text=True
    )
    assert result.stdout.splitlines() == [
        "True True",
        "2",
        "{'stride of day': '5 (preset)'}",
        "{'stride of day': '7 (toolkit.toml)'}",
        "{}",
        "3 {'train': 3, 'val': 2} {'stride of day': '3 (flag)', 'subset': 'train: the first 3 (flag)'}",
        "True True",
        "4"
        if resume == "changes"
        else " was begun with another --stride-of-day; found --stride-of-day 4; "
        "expected --stride-of-day 3; leave --stride-of-day out, or start a new run",
        " keeps the images that it was started with; found train: the first 4; expected train: the first 3; "
        "leave --subset, --months, --val-months and --first out, or start a new run",
    ], result.stderr


@pytest.mark.parametrize("name", [n for n in settings.Numbers.__struct_fields__ if n != "channels"])
def test_a_number_of_a_training_is_a_flag_and_a_key_within_its_bounds(
    root: Path, tmp_path: Path, name: str
) -> None:
    low, high = settings.bounds(name)
    value = min(low + 64, high)
    flag = flags(train)[name]
    assert (flag.min, flag.max) == (low, high)
    by_flag = deciding.plan(Workspace(root), Options(device="cpu", **{name: value}))  # type: ignore[arg-type]
    (tmp_path / "data").symlink_to(root / "data")
    (tmp_path / "toolkit.toml").write_text(f"{name} = {value}\n")
    by_key = deciding.plan(Workspace(tmp_path), Options(device="cpu"))
    assert by_flag.arguments[name] == by_key.arguments[name] == value


def test_what_the_command_line_says_of_a_training_are_its_flags() -> None:
    about_the_call = {"run", "words", "settings", "arguments", "resume", "dry_run", "no_patches", "patches"}
    assert get_type_hints(Options).keys() - about_the_call == flags(train).keys() - about_the_call


def test_a_competition_with_a_phase_of_its_own_is_an_entry_and_a_template(tmp_path: Path) -> None:
    """Flag, help, the split, the phase of some ids, and what the server calls it; others keep their words."""
    copy = tmp_path / "submission"
    shutil.copytree(Path(competitions.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    file = copy / "competitions.py"
    text = file.read_text()
    assert text.count(")\n\nDEFAULT =") == 1
    file.write_text(text.replace(")\n\nDEFAULT =", SEASON.strip("\n") + "\n)\n\nDEFAULT ="))
    new = {"20280101001010101": {}, "20280101001010102": {}}
    (copy / "templates" / "final.json.gz").write_bytes(gzip.compress(json.dumps(new).encode()))
    result = subprocess.run(
        [sys.executable, "-c", PHASES], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert result.stdout.splitlines() == [
        "True True 20000",
        "[20280101001010101, 20280101001010102] final test",
        "20000 Warm-up",
        "10954 Testing",
        "2",
        "1 validation ids and 2 test ids",
    ], result.stderr


def test_a_phase_has_one_list_of_ids_in_every_competition() -> None:
    named = {(phase.name, phase.split, phase.template) for k in competitions.KNOWN for phase in k.phases}
    assert {name for name, _, _ in named} == set(competitions.PHASES)
    assert len(named) == len(competitions.PHASES)


def test_a_competition_is_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    new = competitions.Known(20000, "next-season", "Next Season", date(2027, 1, 1), None, "a test")
    monkeypatch.setattr(competitions, "KNOWN", (*competitions.KNOWN, new))
    assert competitions.number_of("next-season") == 20000
    assert "20000 'Next Season'" in competitions.others_open(10954, date(2027, 6, 1))
    assert "20000" not in competitions.others_open(10954, date(2026, 6, 1))


def test_an_option_of_our_own_has_an_effect() -> None:
    """Read by hand are those that say where the run is and what trains; others become a field of the plan."""
    by_hand = {"data", "other_data", "model", "channels", "preset", "device", "name"}
    own = {name: each for name, each in settings.declared(Options).items() if not each.argument}
    assert {name for name, each in own.items() if not each.becomes} == by_hand
    planned = {field.name for field in fields(TrainingPlan)}
    assert {each.becomes for name, each in own.items() if name not in by_hand} <= planned


@pytest.mark.parametrize("kind", registry.ROUTES, ids=lambda kind: kind.name)
def test_a_route_that_is_declared_can_be_made_and_is_named_wherever_one_chooses(
    kind: registry.RouteKind,
) -> None:
    if kind.package and importlib.util.find_spec(kind.package) is None:
        pytest.skip(f"{kind.package} is not installed")
    assert callable(routes.make(kind.name).supports)
    assert kind.there(Runtime(**dict.fromkeys(registry.PACKAGES, "1")))
    assert kind.there(Runtime()) == (not kind.package)
    assert kind.name in doctor.ROUTES
    assert kind.name in flags(bench.train)["route"].help


def test_a_route_with_a_package_of_its_own_is_an_entry_and_a_branch(tmp_path: Path) -> None:
    """Both doctors try it where its package is, the plan's key has its version, a step is timed by it."""
    ours = Path(registry.__file__).parents[1]
    copy = tmp_path / "patches"
    shutil.copytree(ours, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for name, before, new in (
        ("registry.py", ")\n\nNAMES =", ENTRY),
        ("routes.py", "    module, _,", BRANCH),
    ):
        file = copy / "convolution" / name
        text = file.read_text()
        assert text.count(before) == 1
        file.write_text(text.replace(before, new + before))
    result = subprocess.run(
        [sys.executable, "-c", ASKED], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    packages = sorted(name for name in ("numpy", "triton") if importlib.util.find_spec(name))
    assert result.stdout.splitlines() == [
        *("sums", "sums", "['FINE']"),
        *(registry.NAMES[-1], registry.NAMES[-1], "['LIMITS']"),
        str(packages),
        "Native",
        "['sums']",
    ], result.stderr
