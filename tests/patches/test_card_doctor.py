"""The doctor of the package: what it concludes, what it hands on, and the PyTorch that it names."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import patches
from patches import __main__ as command
from patches import doctor, environment, install, startup
from patches.convolution import selftest
from patches.doctor import Tried, diagnose
from patches.findings import Verdict
from patches.runtime import NO_ANSWER, Runtime, RuntimeDevice
from toolkit.machine.cards import PROFILES

ROOT = Path(__file__).parents[2]
RDNA1 = Runtime(
    torch="2.11.0+rocm7.14.0",
    triton="3.6.0",
    hip="7.14",
    devices=(RuntimeDevice("Radeon RX 5600 XT", "gfx1010", 6 << 30),),
    blas_databases=("gfx1010",),
)
SERVED = (
    Tried("library", "float32", "failed", "miopenStatusUnknownError", 3.0),
    Tried("triton", "float32", "passed", "", 20.0),
    Tried("triton", "bfloat16", "not meant", selftest.NOT_MEANT, 4.0),
)


def said(found: doctor.Diagnosis, subject: str) -> str:
    return next(f"{each.found} | {each.advice}" for each in found.findings if each.subject == subject)


def test_a_card_that_its_library_left_is_told_what_serves() -> None:
    found = diagnose(["gfx1010"], False, RDNA1, {}, SERVED)
    assert found.verdict == Verdict.LIMITS
    assert found.install == ""
    assert "miopenStatusUnknownError" in said(found, "route library")
    assert said(found, "route triton") == "float32 passed (20 s), bfloat16 not meant (4 s) | "
    assert said(found, "MIOpen").startswith("no kernels for gfx1010")
    assert "switched off" in said(found, "buffer operations")


def test_a_card_that_no_route_serves_will_not_work() -> None:
    found = diagnose(["gfx1010"], False, RDNA1, {}, SERVED[:1])
    assert found.verdict == Verdict.FAILS
    assert "no route computes" in said(found, "convolutions")


@pytest.mark.parametrize(
    ("cards", "nvidia", "found"),
    [
        (["gfx1032"], False, Runtime(error="No module named 'torch'")),
        (["gfx1032"], False, Runtime(torch="2.14.1", cuda="13.0")),
        (["gfx1032"], False, dataclasses.replace(RDNA1, devices=())),
    ],
    ids=["no torch", "a torch for NVIDIA", "a torch for another card of AMD's"],
)
def test_a_torch_that_cannot_use_the_card_is_answered_by_a_command(
    cards: list[str], nvidia: bool, found: Runtime
) -> None:
    line = diagnose(cards, nvidia, found, {}, ()).install
    assert 'torch[device-gfx1032]==2.11.0+rocm7.14.0"' in line


def test_every_card_of_the_profiles_has_the_pins_of_its_profile() -> None:
    for arch, profile in PROFILES.items():
        text = (ROOT / "docker" / "profiles" / f"{profile}.env").read_text()
        pins = dict(line.split("=", 1) for line in text.splitlines() if re.match(r"[A-Z_]+=", line))
        words = shlex.split(install.command([arch], False))
        assert words[words.index("--extra-index-url") + 1] == pins["TORCH_INDEX"]
        assert f"torch[device-{arch}]=={pins['TORCH']}" in words
        assert f"torchvision=={pins['TORCHVISION']}" in words
    assert set(PROFILES) == install.AMD_CARDS
    assert install.command(["gfx803"], False) == ""
    assert install.command([], True) == "pip install torch torchvision"
    assert (ROOT / "docker/profiles/cpu.env").read_text().count(f"TORCH_INDEX={install.CPU_INDEX}\n") == 1


def test_what_is_shared_holds_no_path_and_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "magdalena")
    monkeypatch.setattr("socket.gethostname", lambda: "thunderbox.example")
    reason = (
        "OSError: '/home/magdalena/.cache/x.hsaco' on thunderbox, ~/venv/lib, C:\\Users\\Magdalena\\t.dll, "
        "\\\\server\\share\\x"
    )
    switches = {"TRITON_CACHE_DIR": "/data/magdalena/cache", "AMDGCN_USE_BUFFER_OPS": "0"}
    tried = (Tried("triton", "float32", "failed", reason, 1.0),)
    text = doctor.shareable(diagnose(["gfx1010"], False, RDNA1, switches, tried))
    content = json.loads(text)
    assert content["cards"] == ["gfx1010"]
    assert content["switches"] == {"TRITON_CACHE_DIR": "<path>", "AMDGCN_USE_BUFFER_OPS": "0"}
    lowered = text.lower()
    for private in ("magdalena", "thunderbox", "/home", "/data", "users", "venv", "server", "t.dll"):
        assert private not in lowered, text
    assert "OSError" in content["tried"][0]["reason"]


def test_what_is_shared_keeps_the_index_of_packages_and_the_names_of_its_fields(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("USER", "torch")
    found = Runtime(error=f"OSError:{tmp_path}/libtorch.so")
    content = json.loads(doctor.shareable(diagnose(["gfx1032"], False, found, {}, ())))
    assert f"--extra-index-url {install.AMD_INDEX} " in content["install"]
    assert content["runtime"] == {**dataclasses.asdict(Runtime()), "error": "OSError:<path>"} | {
        name: [] for name in ("devices", "kernel_databases", "blas_databases")
    }


@pytest.mark.parametrize("name", ["José", "Anna Maria", "björn-7"])
def test_a_name_of_any_letters_is_not_shared(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv("USER", name)
    monkeypatch.setattr(Path, "home", lambda: Path("/Users", name))
    reason = f"OSError: /Users/{name}/venv of {name}/lib/x.so, '/Users/{name}'"
    tried = (Tried("triton", "float32", "failed", reason, 1.0),)
    text = doctor.shareable(diagnose(["gfx1010"], False, RDNA1, {}, tried))
    shown = json.loads(text)["tried"][0]["reason"]
    assert shown == "OSError: <path> of <name>/lib/x.so, '<path>'"
    assert name not in text and json.dumps(name)[1:-1] not in text


def test_a_time_limit_is_no_reason_to_install_another_torch() -> None:
    found = diagnose([], True, Runtime(error=f"{NO_ANSWER} 5 s"), {}, ())
    assert (found.verdict, found.install) == (Verdict.FAILS, "")
    assert "longer --timeout" in said(found, "torch")


@pytest.mark.parametrize(
    ("name", "value", "verdict"),
    [
        ("CONVROUTES", "gemm", Verdict.FINE),
        ("CONVROUTES", "on", Verdict.FINE),
        ("CONVROUTES", "OFF", Verdict.FINE),
        ("CONVROUTES", "quick", Verdict.LIMITS),
        ("CONVROUTES", "GEMM", Verdict.LIMITS),
        ("CONVROUTES_DEVICE", "cuda:0", Verdict.FINE),
        ("CONVROUTES_DEVICE", "hip", Verdict.LIMITS),
        ("CONVROUTES_VENDOR", "off", Verdict.FINE),
        ("CONVROUTES_VENDOR", "never", Verdict.LIMITS),
        ("CONVROUTES_GRAPH", "off", Verdict.FINE),
        ("CONVROUTES_GRAPH", "on", Verdict.LIMITS),
        ("CONVROUTES_RECOMPUTE", "on", Verdict.FINE),
        ("CONVROUTES_RECOMPUTE", "yes", Verdict.LIMITS),
        ("TOOLKIT_CONV_ROUTE", "never", Verdict.LIMITS),
        ("TRITON_CACHE_DIR", "never", Verdict.FINE),
    ],
)
def test_a_variable_that_a_program_would_refuse_is_said(name: str, value: str, verdict: Verdict) -> None:
    assert name in doctor.SWITCHES
    findings = diagnose([], False, RDNA1, {name: value}, ()).findings
    (found,) = (each for each in findings if each.subject == "switch")
    assert (found.verdict, found.found) == (verdict, f"{name}={value}")
    assert ("expected one of" in found.advice) == (verdict is Verdict.LIMITS)


def test_another_version_on_the_path_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for folder, version in (("older", "0.0.1"), ("same", patches.__version__), ("empty", "")):
        home = tmp_path / folder / "patches"
        home.mkdir(parents=True)
        if version:
            (home / "__init__.py").write_text(f'"""A copy."""\n__version__ = "{version}"\n')
            (home / "startup.py").touch()
    paths = [*sys.path, *(str(tmp_path / each) for each in ("older", "same", "empty", "older", "missing"))]
    monkeypatch.setattr(sys, "path", paths)
    copies = startup.other_versions()
    assert copies == [((tmp_path / "older" / "patches").resolve(), "0.0.1")]
    found = diagnose([], False, RDNA1, {}, (), copies)
    assert "0.0.1 is on the path too" in said(found, "versions")


def test_the_doctor_tries_every_route_in_every_dtype_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def run(route: str, device: str, dtype: str, timeout: float) -> selftest.SelfTestResult:
        return selftest.SelfTestResult(route, dtype != "float16", "wrong", 1.0)

    monkeypatch.setattr(selftest, "run", run)
    monkeypatch.setattr("patches.runtime.ask", lambda timeout: Runtime(torch="2.14.1", triton="3.8.0"))
    monkeypatch.setattr(install, "has_nvidia", lambda: False)
    file = tmp_path / "card.json"
    status = command.main(["--json", "--dtype", "float16", "--dtype", "float32", "--share", str(file)])
    shown = json.loads(capsys.readouterr().out)
    assert [(each["route"], each["dtype"], each["outcome"]) for each in shown["tried"]] == [
        ("native", "float16", "failed"),
        ("gemm", "float16", "failed"),
        ("native", "float32", "passed"),
        ("gemm", "float32", "passed"),
    ]
    assert status == Verdict.LIMITS
    assert json.loads(file.read_text())["tried"] == shown["tried"]


def test_the_exports_can_be_evaluated_by_a_shell(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "it's here"))
    assert command.main(["env"]) == 0
    assert capsys.readouterr().out.startswith("#")
    nodes = tmp_path / "nodes"
    (nodes / "1").mkdir(parents=True)
    (nodes / "1" / "properties").write_text("gfx_target_version 100100\n")
    wanted = environment.exports(nodes)
    monkeypatch.setattr(environment, "exports", lambda: wanted)
    assert command.main(["env"]) == 0
    script = f'{capsys.readouterr().out}\necho "$AMDGCN_USE_BUFFER_OPS $TRITON_CACHE_DIR"'
    shown = subprocess.run(
        ["sh", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, text=True
    )
    assert shown.stdout == f"0 {wanted['TRITON_CACHE_DIR']}\n"


def test_the_doctor_needs_no_torch_to_speak() -> None:
    code = "import sys, patches.doctor, patches.__main__; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
