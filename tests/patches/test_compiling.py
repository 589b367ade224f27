"""Kernels are compiled on all processors, without a device, into the cache where a launch looks."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_convolution_gemm import LAYER

from patches import compiling
from patches.convolution.planfile import Card
from patches.convolution.selftest import SelfTestResult
from patches.convolution.tuning import Planner

ROOT = Path(__file__).resolve().parents[2]

COMPILE = """
import os, sys, torch
from pathlib import Path
from types import SimpleNamespace
from patches.compiling import Target, compile_all
from patches.normalization.selftest import jobs, problems
work = jobs(problems(torch.float32)[:1], 132)
def die():
    os.kill(os.getpid(), 9)
compile_all([*work, lambda: 1 / 0], Target("cuda", 90, 32, 132))
print(len(work), len(list(Path(sys.argv[1]).rglob("*.cubin"))), torch.cuda.is_initialized())
compile_all([die], Target("cuda", 90, 32, 132))
print("alive")
"""


ABORT = """
import ctypes, os
from patches.compiling import Target, compile_all
libc = ctypes.CDLL(None)
again = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: getattr(libc, "raise")(number))
libc.signal(6, again)
compile_all([os.abort], Target("cuda", 90, 32, 132))
print("alive")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="handlers of C, as Linux numbers them")
def test_an_abort_ends_a_process_that_inherits_handlers_which_never_end() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    command = [sys.executable, "-c", ABORT]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            assert process.communicate(timeout=60)[0] == "alive\n"
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


@pytest.mark.slow
def test_a_cache_is_filled_without_a_device_whatever_fails(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", COMPILE, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.stdout.splitlines() == ["5 5 False", "alive"], done.stderr[-2000:]


CHILD = """
import json, os, sys, torch
from pathlib import Path
from types import SimpleNamespace
from patches.compiling import HANDED_DOWN, Target
from patches.convolution import selftest
from patches.convolution.triton_kernels.route import TritonRoute
os.environ[HANDED_DOWN] = json.dumps(Target("cuda", 90, 32, 132))
some, seen, opened = selftest.problems_of("cuda", torch.float32)[1:4], [], []
def compare(route, problem, device):
    seen.append((len(opened), len(list(Path(sys.argv[1]).rglob("*.cubin")))))
    return "wrong" * (len(seen) == 2)
TritonRoute.supports = lambda self, problem: True
selftest.problems_of = lambda device, dtype: some
selftest.open_device, selftest._compare = opened.append, compare
print(selftest._examine("triton", "cuda:0", "float32"))
from patches.convolution.triton_kernels.ahead import jobs_of_each
counts = list(jobs_of_each(some, 132, ("triton",))[1].values())
enough = all(device == 1 and found >= count for (device, found), count in zip(seen, counts))
print(len(seen), enough, counts == sorted(set(counts)), torch.cuda.is_initialized())
"""


@pytest.mark.slow
def test_a_problem_is_tested_when_its_kernels_are_there_and_the_device_is_opened_meanwhile(
    tmp_path: Path,
) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.stdout.splitlines() == ["try: compiling", "wrong", "2 True True False"], done.stderr[-2000:]


WITHOUT_SYMPY = """
import sys, torch
from patches.convolution.selftest import problems_of
from patches.convolution.triton_kernels.ahead import jobs
from patches.normalization import selftest as norms
problems = [each for each in problems_of("cuda", torch.float32) if not each.transposed]
assert jobs(problems[:8], 132) and norms.jobs(norms.problems(torch.float32), 132)
assert "sympy" not in sys.modules
"""


def test_nothing_that_is_compiled_asks_for_sympy_which_takes_a_second_to_import() -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", WITHOUT_SYMPY], env=environment, check=True, timeout=300)


DEATH = """
import os, sys
from pathlib import Path
from patches import compiling
def die():
    os.kill(os.getpid(), 9)
os.cpu_count = lambda: 2
jobs = [die, *[Path(sys.argv[1], str(number)).touch for number in range(3)]]
with compiling.beside(jobs, compiling.Target("cuda", 90, 32, 132)) as wait:
    wait(len(jobs))
"""


def test_a_job_that_kills_its_process_takes_no_other_with_it(tmp_path: Path) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", DEATH, str(tmp_path)], env=environment, check=True, timeout=300)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["0", "1", "2"]


def test_what_a_device_is_is_handed_down_by_who_has_opened_it(monkeypatch: pytest.MonkeyPatch) -> None:
    known = compiling.Target("cuda", 90, 32, 132)
    monkeypatch.setattr(compiling, "_ask", lambda device: known)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    assert compiling.handed_down("cuda:1") == {}
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    assert compiling.handed_down("cpu") == {}
    for name, value in compiling.handed_down("cuda:1").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(compiling, "_ask", None)
    assert compiling.target_of("cuda:1") == known


@pytest.mark.parametrize("architecture", ["gfx1010", "gfx1201"])
def test_jobs_ask_nothing_of_a_device(architecture: str) -> None:
    pytest.importorskip("triton", reason="Triton has no wheel for this platform")
    from patches.convolution.selftest import problems_of
    from patches.convolution.triton_kernels.ahead import jobs, launches, variant
    from patches.convolution.triton_kernels.route import tiles_for

    problems = problems_of("cuda", torch.float32)
    tiles = tiles_for(36, torch.float32)
    needed = {
        variant(each) for p in problems for formats in p.formats for each in launches(p, tiles, formats)
    }
    assert len(jobs(problems, 36)) == len(needed) > 50
    assert not torch.cuda.is_initialized()


def test_all_tests_of_a_card_run_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_CONV_PLAN", str(tmp_path / "plan.json"))
    together = threading.Barrier(3, timeout=60)
    asked: list[str] = []

    def examine(name: str, device: str, dtype: str) -> SelfTestResult:
        asked.append(name)
        together.wait()
        return SelfTestResult(name, True, "", 0.1)

    from patches.convolution.gemm import Gemm
    from patches.convolution.native import Native

    routes = {"native": Native(library=False), "gemm": Gemm()}
    planner = Planner("cpu", routes, print, Card.here("cpu"), examine)
    planner.beside = ("fused batch norm",)
    planner.choose(LAYER)
    assert sorted(asked) == ["fused batch norm", "gemm", "native"]
    assert planner.trusted("fused batch norm", torch.float32)
    assert len(asked) == 3


def test_what_a_launch_builds_in_c_is_built_once_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[object] = []
    driver = SimpleNamespace(
        CudaUtils=lambda: built.append("utils"), CudaLauncher=lambda src, _: built.append(src.signature)
    )
    monkeypatch.setitem(sys.modules, "triton.backends.nvidia.driver", driver)
    monkeypatch.setattr(compiling, "_claims", bytearray(256))
    for signature in ({"x": "*fp32"}, {"x": "*fp32"}, {"x": "constexpr"}):
        metadata = SimpleNamespace(target=SimpleNamespace(backend="cuda"), name="kernel")
        compiling._build_launcher(
            SimpleNamespace(metadata=metadata, src=SimpleNamespace(signature=signature))
        )
    assert built == ["utils", {"x": "*fp32"}, {"x": "constexpr"}]
