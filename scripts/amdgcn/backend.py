"""Triton kernels of the project, compiled for a card and executed here, in the place of a launch.

``EmulatedBuilder`` builds the calls of the convolution route, ``EmulatedNorm`` those of batch norm and
activation; ``Emulated`` is one launch, which needs nothing but the kernel, its arguments and its constants.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patches.convolution.problem import ConvProblem, Gradients
from patches.convolution.statistics import TileStatistics
from patches.convolution.triton_kernels import tiles
from patches.convolution.triton_kernels.route import Builder, TritonRoute
from patches.normalization.launches import Cut, Kernels, Shape
from patches.normalization.problem import NormProblem

from .counters import Counters
from .launch import Grid, Kernel, launch, pack_arguments
from .memory import Span

POINTERS = {
    torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.int32: "*i32",
    torch.int64: "*i64",
    torch.uint8: "*u8", torch.bool: "*i1",
}  # fmt: skip
# No packed dot product of fp16: the route multiplies in fp32 there.
WITHOUT_PACKED_DOT = ("gfx1010", "gfx1013")
_KERNELS: dict[tuple[Any, ...], tuple[Kernel, int]] = {}
DECODED = 64
"""Decoded kernels that a process keeps, the newest: each takes some 3 MB, and there are thousands."""


class Launched(NamedTuple):
    """One launch: waves and bytes of LDS of a workgroup, vector registers of a lane, what was counted."""

    name: str
    grid: Grid
    waves: int
    lds: int
    registers: int
    counters: Counters | None


@dataclass
class Settings:
    """How launches are compiled and executed.

    Attributes:
        architecture: "gfx1010"; buffer_operations: as Triton's AMDGCN_USE_BUFFER_OPS.
        addresses: false addresses by argument name, for offsets beyond 2^31.
        counting: whether counters are kept.
        chosen: the workgroups of a grid to execute (numbers, x fastest); None: all.
        rewrite: called with each kernel before it executes; returns the one to execute.
        log: what was launched.
    """

    architecture: str = "gfx1010"
    buffer_operations: bool = False
    addresses: dict[str, int] = field(default_factory=dict)
    rewrite: Any = None
    counting: bool = False
    chosen: Callable[[Grid], Sequence[int]] | None = None
    log: list[Launched] = field(default_factory=list)


def compile_kernel(
    kernel: Any, signature: dict[str, str], constants: dict[str, Any], attributes: Any, options: dict[str,
    int], settings: Settings,
) -> tuple[Kernel, int]:  # fmt: skip
    """The kernel for a card, decoded, and the bytes of LDS that its launch asks for."""
    key = (
        settings.architecture, settings.buffer_operations, kernel.__name__, tuple(signature.items()),
        tuple(constants.items()), repr(attributes), tuple(options.items()),
    )  # fmt: skip
    if key not in _KERNELS:
        from triton.compiler import ASTSource

        from .compiling import compile_for

        names = list(kernel.arg_names)
        indexed = {(names.index(name),): value for name, value in constants.items()}
        source = ASTSource(kernel, signature, indexed, attributes)
        compiled = compile_for(settings.architecture, source, options, settings.buffer_operations)
        if len(_KERNELS) >= DECODED:
            del _KERNELS[next(iter(_KERNELS))]
        _KERNELS[key] = Kernel.from_assembly(compiled.asm["amdgcn"]), compiled.metadata.shared
    return _KERNELS[key]


class Emulated:
    """One launch on CPU tensors; called as ``patches.convolution.triton_kernels.launch.Launch`` is."""

    def __init__(
        self, settings: Settings, kernel: Any, grid: Grid, scalars: Mapping[str, float],
        constants: dict[str, Any], warps: int = 4, stages: int = 1,
    ) -> None:  # fmt: skip
        self.settings, self.kernel, self.grid, self.scalars = settings, kernel, grid, scalars
        self.constants, self.options = constants, {"num_warps": warps, "num_stages": stages}

    def __call__(self, *tensors: Tensor | None) -> None:
        signature: dict[str, str] = {}
        constants: dict[str, Any] = {}
        attributes: dict[tuple[int, ...], list[list[object]]] = {}
        values: list[tuple[str, int | float]] = []
        spans: dict[int, Span] = {}
        given = {**self.scalars, **self.constants}
        assert [*given] == self.kernel.arg_names[len(tensors) :], "names as the kernel has them"
        for index, name in enumerate(self.kernel.arg_names):
            value = given[name] if name in given else tensors[index]
            if name in self.constants or value is None:
                signature[name], constants[name] = "constexpr", value
            elif isinstance(value, Tensor):
                signature[name] = POINTERS[value.dtype]
                address = self._span(name, value, spans)
                if address % 16 == 0:
                    wide = self.constants.get("WIDE") or name in self.settings.addresses
                    attributes[(index,)] = [
                        ["tt.divisibility", 16], *([] if wide else [["tt.pointer_range", 32]])
                    ]  # fmt: skip
                values.append((signature[name], address))
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
                values.append((signature[name], value))
        kernel, lds = compile_kernel(
            self.kernel, signature, constants, attributes, self.options, self.settings
        )
        if self.settings.rewrite is not None:
            kernel = self.settings.rewrite(kernel)
        # Triton appends the addresses of its scratch memory and of its profiler's.
        waves = self.options["num_warps"]
        packed = pack_arguments(kernel.program, [*values, ("*u8", 0), ("*u8", 0)], self.grid, 32 * waves)
        counters = Counters(kernel.steps) if self.settings.counting else None
        launch(kernel, self.grid, waves, lds, packed, list(spans.values()), counters, self._chosen())
        registers = kernel.program.metadata["next_free_vgpr"]
        name = self.kernel.__name__
        self.settings.log.append(Launched(name, self.grid, waves, lds, registers, counters))

    def _chosen(self) -> Sequence[int] | None:
        return None if self.settings.chosen is None else self.settings.chosen(self.grid)

    def _span(self, name: str, tensor: Tensor, spans: dict[int, Span]) -> int:
        """The tensor's address; its storage becomes a span once, whole, since views share it."""
        storage = tensor.untyped_storage()
        base = storage.data_ptr()
        moved = self.settings.addresses.get(name, base)
        if base not in spans:
            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            spans[base] = Span(moved, flat.numpy(), name)
        return moved + tensor.data_ptr() - base


class EmulatedBuilder(Builder):
    """The convolution route's builder, with launches that execute AMD machine code on this processor."""

    def __init__(
        self, settings: Settings, units: int = 4, table: tiles.Table = tiles.RDNA, winograd: bool = False
    ) -> None:
        upcast = settings.architecture in WITHOUT_PACKED_DOT
        super().__init__(0, tiles.Tiles(units, table), upcast=upcast, winograd=winograd)
        self.settings = settings

    def upcasts(self, p: ConvProblem) -> bool:
        """As on the card, though the tensors are on a processor."""
        return self.upcast and p.dtype == torch.float16

    def launch(
        self, kernel: Any, grid: Grid, scalars: Mapping[str, int], constants: dict[str, Any], warps: int = 4,
        stages: int = 1,
    ) -> Any:  # fmt: skip
        return Emulated(self.settings, kernel, grid, scalars, constants, warps, stages)


class EmulatedRoute:
    """The convolution route as machine code of a card; implements ``Route`` for tensors on the CPU.

    Args:
        winograd: the route "winograd" instead of "triton".
    """

    name = "amdgcn"

    def __init__(
        self,
        settings: Settings | None = None,
        units: int = 4,
        table: tiles.Table = tiles.RDNA,
        winograd: bool = False,
    ) -> None:
        self.settings = settings or Settings()
        self._builder = EmulatedBuilder(self.settings, units, table, winograd)

    def supports(self, problem: ConvProblem) -> bool:
        return problem.dtype in (torch.float32, torch.float16, torch.bfloat16)

    def forward(self, problem: ConvProblem, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._builder.forward(problem, x, weight, bias)(x, weight, bias)

    def sums(self, problem: ConvProblem) -> bool:
        return not self._builder.winograd and TritonRoute().sums(problem)

    def forward_with_statistics(
        self, problem: ConvProblem, x: Tensor, weight: Tensor
    ) -> tuple[Tensor, TileStatistics]:
        return self._builder.forward_with_statistics(problem, x, weight)(x, weight)

    def backward(
        self, problem: ConvProblem, grad: Tensor, x: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> Gradients:
        return self._builder.backward(problem, grad, x, weight, needs)(grad, x, weight)


class EmulatedNorm(Kernels):
    """The launches of a batch norm with its activation, as machine code of a card, for tensors on the CPU."""

    def __init__(self, problem: NormProblem, settings: Settings, units: int = 4) -> None:
        super().__init__(problem, 0, units)
        self.settings = settings

    def _launch(
        self, kernel: Any, c: Cut, shape: Shape, scalars: Mapping[str, float], constants: dict[str, Any]
    ) -> Any:
        constants = {**constants, "BLOCK_A": c.a, "BLOCK_B": c.b}
        return Emulated(self.settings, kernel, (c.groups, c.splits, 1), scalars, constants, shape.warps)
