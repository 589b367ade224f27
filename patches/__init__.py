"""Makes PyTorch train where the vendor's convolution library is missing. Needs torch alone.

``enable`` puts overrides into PyTorch's dispatcher; every 1-d and 2-d convolution of the process,
transposed ones too, of models that exist and of models loaded later, then goes through a route that works on
the card. A batch norm and the activation behind it become one operation. No module is replaced. The wheel
calls this package ``convroutes``, a checkout ``patches``:

    import convroutes

    convroutes.enable()
    ...
    print(convroutes.report())

Importing this package imports no torch and initialises no device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .report import FallThrough, ProblemUse, Report

if TYPE_CHECKING:
    import torch

__all__ = [
    "COLUMN_BUDGET",
    "FallThrough",
    "ProblemUse",
    "Report",
    "disable",
    "enable",
    "enabled",
    "rehearse",
    "report",
    "settle",
    "settle_graph",
]

__version__ = "0.1.0"

COLUMN_BUDGET = 256 * 2**20
"""Default limit of the column buffer of the route ``gemm``, bytes."""


def enable(
    device: str | torch.device | None = None,
    route: str = "auto",
    column_budget: int = COLUMN_BUDGET,
    normalization: str = "auto",
    vendor: str = "auto",
) -> None:
    """Send the convolutions on ``device`` through a route; what was enabled before is replaced.

    Of 1-d and 2-d ones, transposed or not, all; others stay with PyTorch's own kernels and are counted.

    The environment variable ``CONVROUTES_ROUTE`` overrules ``route`` and says so,
    ``CONVROUTES_NORMALIZATION`` overrules ``normalization`` and ``CONVROUTES_VENDOR`` overrules ``vendor``.

    What records a program keeps the convolution itself, for any size: PyTorch's own kernels serve
    ``torch.jit.trace``, and the ONNX exporter built on it, while they record. ``torch.export``, ``make_fx``
    and FakeTensor never reach a route. What ``torch.compile`` makes calls the operator when it runs, and a
    route serves it; so does a graph of TorchScript. Freezing escapes: ``torch._inductor.config.freezing`` and
    ``torch.jit.optimize_for_inference`` replace, on the CPU, the convolutions of a frozen model by operators
    of oneDNN's own, which no override sees.

    Args:
        device: "cuda" (ROCm builds say "cuda" too) or "cpu"; the GPU where there is one when None. With an
            index, as ``torch.device("cuda:1")`` has one, it means all devices of its kind.
        route: "auto" (PyTorch's own kernels on the CPU; on a GPU the fastest correct route for each problem,
            tested and measured on the card, once), or the name of the one to use for all problems that it
            supports: "native" (PyTorch's own kernels), "library" (with cuDNN or MIOpen), "gemm", "triton" or
            "winograd" (3 x 3 of stride 1 in fp32, on AMD cards).
        column_budget: limit of the column buffer of the route "gemm", bytes.
        normalization: how a batch norm and the activation behind it are computed in Ultralytics' ``Conv``
            and in ``torch.nn.Sequential``: "auto" (on a GPU as one operation that keeps half as much for the
            backward pass, by fused kernels where they passed their self-test; on the CPU as PyTorch does),
            "off", "torch" (the operation, from PyTorch's own kernels) or "triton". On a card of at most 8 GiB
            a convolution behind it computes its input again for the backward pass, instead of keeping it:
            ``CONVROUTES_RECOMPUTE`` says "on", "off" or "auto", which is this.
        vendor: whether the vendor's library may serve: "auto" (cuDNN: convolutions that it serves best,
            and the rest as PyTorch does; MIOpen: the same on RDNA3, RDNA4 and CDNA with ROCm 6 or newer,
            convolutions and batch norm each where its self-test passes, and nothing elsewhere), "off"
            (nothing, batch norm and RNNs included) or "on" (as PyTorch does, unless a route is better).

    Raises:
        ValueError: an unknown device, an unknown or missing route, the vendor's route while it is off, or a
            budget that is not positive.
    """
    from . import dispatch

    dispatch.start(device, route, column_budget, normalization, vendor)


def disable() -> None:
    """Put PyTorch back as it was; does nothing when nothing is enabled."""
    from . import dispatch

    dispatch.stop()


def settle(step: Callable[[], object]) -> str:
    """Judge the choices of the route "auto" by what a training step costs, once for each kind of step.

    The step is timed by the plan's choice for each convolution, by the Triton route alone, and by PyTorch
    without the overrides. Where batch norms are fused, the quickest, those close to it and PyTorch are timed
    with PyTorch's own batch norms as well: these serve where they save 2 % of the time and more. The quickest
    serves from now on, and is remembered beside the plan. A few seconds the first time, one step from then
    on. Does nothing for another route, and nothing on a CPU; fused norms stay where they were asked for by
    name, and where outputs are computed again because memory is short.

    Args:
        step: forward and backward of a batch like those to come. It runs many times, so it must leave the
            model's parameters and buffers as they are.

    Returns:
        Who serves: "plan", the name of a route, or "aside" (PyTorch's convolutions, the overrides are out),
        each also as in "triton with PyTorch's norms" (none is fused); empty when nothing is enabled.
    """
    from . import dispatch

    return dispatch.settle(step)


def rehearse(dtype: torch.dtype | str, device: str | torch.device | None = None) -> None:
    """Begin the self-tests that the route "auto" will want on a GPU, in the background.

    To be called before a program imports, reads and builds what takes it seconds: the tests of a card that is
    new are over the sooner, and one that is known costs nothing. Imports torch and opens the device; before
    either it starts processes that do the same, where dtype and device are given by name: best before the
    program imports torch. Does nothing on a CPU.

    Args:
        dtype: of the convolutions to come, or its name: "float16".
        device: as for :func:`enable`; its index, if it has one, is the GPU that is tested.
    """
    from . import rehearsal

    name, (kind, _, number) = str(dtype).removeprefix("torch."), str(device).partition(":")
    if kind == "cuda" and (not number or number.isdecimal()):
        rehearsal.begin(name, int(number or 0))
    from . import dispatch

    if dispatch.kind_of(device) == "cuda":
        rehearsal.rehearse(name, int(number or 0))


def settle_graph(step: Callable[[], object], record: Callable[[], Callable[[], object]]) -> bool:
    """Judge whether a training step is to be replayed from CUDA graphs, once for each kind of step.

    After :func:`settle`. The step is timed as it is, and its graph by the plan's choices, by the Triton route
    alone, by PyTorch without the overrides, and by what serves now: a graph does not wait for the host, so
    another way may be the best. Where a graph takes at most nine tenths of the time, its quickest way serves
    from now on. Does nothing where there are no graphs, or ``CONVROUTES_GRAPH=off`` is set.

    Args:
        step: forward and backward of a batch like those to come, as for :func:`settle`.
        record: makes the same step with the module behind :class:`patches.graphs.GraphedModule`, recorded
            when this is called.

    Returns:
        Whether graphs are to serve; to be recorded now.
    """
    from . import dispatch

    return dispatch.settle_graph(step, record)


@contextmanager
def enabled(
    device: str | torch.device | None = None,
    route: str = "auto",
    column_budget: int = COLUMN_BUDGET,
    normalization: str = "auto",
    vendor: str = "auto",
) -> Iterator[None]:
    """:func:`enable` for the length of a ``with``; afterwards what was enabled before is enabled again."""
    from . import dispatch

    before = dispatch.current()
    dispatch.start(device, route, column_budget, normalization, vendor)
    try:
        yield
    finally:
        dispatch.resume(before)


def report() -> Report:
    """What happened since the last ``enable``; kept after ``disable``."""
    from . import dispatch

    return dispatch.report()
