"""PyTorch's compiler is imported where it is wanted and nowhere else; all else is as without this."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import HELPERS
from training_data import data  # noqa: F401
from ultralytics.utils.torch_utils import TORCH_2_4

from toolkit.machine import eager
from toolkit.machine.eager import compiler_left_out, import_torchvision

pytestmark = pytest.mark.skipif(not TORCH_2_4, reason="older versions keep their functions otherwise")


def run(program: str, *arguments: object) -> None:
    """A program in a fresh process, which has imported nothing."""
    begin = f"import sys; sys.path.insert(0, {str(HELPERS)!r})\n"
    subprocess.run([sys.executable, "-c", begin + program, *map(str, arguments)], check=True)


def test_a_whole_training_imports_no_compiler(data: Path, tmp_path: Path) -> None:  # noqa: F811
    """From the model to the last validation, deterministic, by each kind of optimizer's own functions."""
    run(
        """
from pathlib import Path
from typing import Any
from tiny_run import plan, train
import torch
trainer = train(plan(Path(sys.argv[1]), Path(sys.argv[2]), epochs=1, deterministic=True)).trainer
assert trainer.best.is_file()
assert "torchvision" in sys.modules
assert not {"torch._dynamo", "sympy"} & sys.modules.keys()
assert not torch.are_deterministic_algorithms_enabled()
""",
        data,
        tmp_path / "run",
    )


def test_who_imports_the_compiler_has_all_of_it() -> None:
    run(
        """
import torch
from toolkit.machine.eager import compiler_left_out, import_torchvision
with compiler_left_out():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=0.5)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True)
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
    boxes = import_torchvision().ops
    assert "torch._dynamo.utils" not in sys.modules
    asked = boxes.roi_align.__globals__["is_compile_supported"]
    assert asked("cpu") in (True, False)  # it asks the compiler, which comes for that
    assert torch._dynamo.utils.counters is not None
    optimizer.zero_grad()
    optimizer.step()
    plain = torch.optim.Optimizer.zero_grad.__wrapped__.__wrapped__
    assert getattr(plain, "__dynamo_disable").__module__ == "torch._dynamo.eval_frame"
    torch.use_deterministic_algorithms(False)
    assert not torch._inductor.config.deterministic
    torch.use_deterministic_algorithms(True)
    assert torch._inductor.config.deterministic
images = torch.rand(1, 3, 8, 8)
assert boxes.roi_align(images, [torch.tensor([[0.0, 0.0, 4.0, 4.0]])], 2).shape == (1, 3, 2, 2)
"""
    )


@pytest.fixture
def no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if nobody had imported it in this process."""
    monkeypatch.setattr(eager, "COMPILER", "torch._none")


def methods() -> dict[tuple[str, str], object]:
    """Of PyTorch's optimizers, as they are without the hooks that a first step puts around them."""
    kinds = [each for each in vars(torch.optim).values() if isinstance(each, type)]
    found = {}
    for kind in kinds:
        for name, function in vars(kind).items():
            found[kind.__name__, name] = function.__wrapped__ if hasattr(function, "hooked") else function
    return found


@pytest.mark.usefixtures("no_compiler")
def test_afterwards_everything_is_as_before_also_of_one_inside_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if hasattr(step := vars(torch.optim.SGD)["step"], "hooked"):  # by another test's optimizer
        monkeypatch.setattr(torch.optim.SGD, "step", step.__wrapped__)
    before, set_deterministic = methods(), torch.use_deterministic_algorithms
    with compiler_left_out():
        outer = methods()
        changed = {key for key, function in outer.items() if function is not before[key]}
        assert {("Optimizer", "zero_grad"), ("Optimizer", "add_param_group"), ("SGD", "step")} <= changed
        with compiler_left_out():
            torch.optim.SGD([torch.zeros(1)]).step()  # puts hooks around its step
        assert methods() == outer
    assert methods() == before
    assert torch.use_deterministic_algorithms is set_deterministic


@pytest.mark.usefixtures("no_compiler")
def test_hooks_of_an_optimizer_outlive_it() -> None:
    steps: list[object] = []
    with compiler_left_out():
        optimizer = torch.optim.Adamax([torch.zeros(1)])
        optimizer.register_step_post_hook(lambda *call: steps.append(call))
        optimizer.step()
    optimizer.step()
    assert len(steps) == 2


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.NAdam])
@pytest.mark.usefixtures("no_compiler")
def test_an_optimizer_does_the_same_either_way(kind: Any) -> None:
    def weights() -> torch.Tensor:
        weight = torch.nn.Parameter(torch.arange(6.0))
        optimizer = kind([weight], lr=0.1)
        for _ in range(3):
            optimizer.zero_grad()
            (weight**2).sum().backward()
            with torch.enable_grad():
                optimizer.step()
            assert torch.is_grad_enabled()
            optimizer.load_state_dict(optimizer.state_dict())
        return weight.detach()

    with compiler_left_out():
        ours = weights()
    assert torch.equal(ours, weights())


def test_torchvision_is_the_one_that_python_imports() -> None:
    import torchvision

    assert import_torchvision() is torchvision
