"""Launching a compiled kernel with as little Python as possible.

``kernel[grid](...)`` looks at every argument to decide which compiled variant it needs, 20 to 40 microseconds
a call for kernels with this many. The variant is decided by the problem alone, so it is looked up once and
the function below the compiled kernel's own launcher is called from then on (:class:`Way`), with addresses:
of a tensor it would ask the driver where it lives, once a tensor and call.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from triton.runtime import driver


def interpreted(kernel: Any) -> bool:
    """Whether Triton runs kernels on the CPU in this process (``TRITON_INTERPRET=1``)."""
    return not hasattr(kernel, "warmup") or type(kernel).__name__ == "InterpretedFunction"


class Way(NamedTuple):
    """What is called to launch a compiled kernel, and with what around the stream and the tensors.

    Called as ``call(*before, stream, *between, *addresses, *numbers)``; where ``packed``, addresses and
    numbers are one tuple, and ``after`` follows it.
    """

    call: Callable[..., object]
    before: tuple[Any, ...]
    between: tuple[Any, ...]
    numbers: tuple[Any, ...]
    packed: bool = False
    after: tuple[Any, ...] = ()

    @classmethod
    def over(cls, compiled: Any, grid: tuple[int, int, int], tensors: int, numbers: tuple[Any, ...]) -> Way:
        """The way to launch a kernel of so many tensors, followed by these numbers.

        Triton's launcher is Python around a C function: it asks at every call for buffers that these kernels
        do not have. What it hands to that function for other tensors and streams is found by a call of a copy
        that notes it instead. Where that tells nothing, the launcher itself is the way.
        """
        run = compiled.run
        whole = cls(run, grid, (compiled.function, compiled.packed_metadata, None, None, None), numbers)
        below = getattr(run, "launch", None)
        if below is None or any(getattr(run, f"{each}_scratch_size", 0) for each in ("global", "profile")):
            return whole
        noted: list[tuple[Any, ...]] = []
        probe = copy.copy(run)
        probe.launch = lambda *given: noted.append(given)
        stream, places = object(), [object() for _ in range(tensors)]
        try:
            probe(*grid, stream, *whole.between, *places, *numbers)
        except (AttributeError, TypeError):  # another Triton, whose launcher looks into its arguments
            return whole
        return cls._split(below, noted, stream, places) or whole

    @classmethod
    def _split(
        cls, below: Callable[..., object], noted: list[tuple[Any, ...]], stream: object, places: list[object]
    ) -> Way | None:
        if len(noted) != 1 or (at := _position(noted[0], [stream])) is None:
            return None
        before, behind = noted[0][:at], noted[0][at + 1 :]
        if (first := _position(behind, places)) is not None:
            return cls(below, before, behind[:first], behind[first + len(places) :])
        for index, each in enumerate(behind):
            if isinstance(each, tuple) and _position(each, places) == 0:
                return cls(
                    below, before, behind[:index], each[len(places) :], packed=True, after=behind[index + 1 :]
                )
        return None


def _position(values: tuple[Any, ...], wanted: list[object]) -> int | None:
    """Where the very objects wanted stand in a row; None where they do not."""
    found = [index for index, value in enumerate(values) if any(value is each for each in wanted)]
    if len(found) != len(wanted) or any(values[found[0] + n] is not each for n, each in enumerate(wanted)):
        return None
    return found[0]


class Launch:
    """One kernel with everything but its tensors bound: the grid, the numbers, the constants.

    Args:
        kernel: a compiled function of tensors, numbers and constants, in this order.
        grid: programs along the three axes.
        scalars, constants: by the names that the kernel gives them, in its order.
        warps, stages: how it is compiled.
        device: number of the GPU.

    Raises:
        TypeError: they are not the kernel's: two strides that change places would be silent on the device.
    """

    __slots__ = (
        "_device",
        "_stream",
        "_way",
        "arguments",
        "constants",
        "grid",
        "kernel",
        "options",
    )

    def __init__(
        self,
        kernel: Any,
        grid: tuple[int, int, int],
        scalars: Mapping[str, float],
        constants: dict[str, Any],
        *,
        warps: int = 4,
        stages: int = 1,
        device: int = 0,
    ) -> None:
        self.kernel = kernel
        self.grid = grid
        self.constants = constants
        self.arguments = (*scalars.values(), *constants.values())
        self.options = {"num_warps": warps, "num_stages": stages}
        self._device = device
        self._way: Way | None = None
        given = (*scalars, *constants)
        names = tuple(kernel.arg_names[-len(given) :])
        if names != given:
            raise TypeError(f"{given} are not the kernel's {names}")

    def __call__(self, *tensors: Tensor | None) -> None:
        way = self._way
        if way is None:
            if interpreted(self.kernel):
                self.kernel[self.grid](*tensors, *self.arguments)
                return
            way = self._prepare(tensors)
        call, before, between, numbers, packed, after = way
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in tensors]
        if packed:
            call(*before, self._stream(self._device), *between, (*addresses, *numbers), *after)
        else:
            call(*before, self._stream(self._device), *between, *addresses, *numbers)

    def compile_ahead(self, dtype: torch.dtype) -> Any:
        """Compile into Triton's cache on disk, for aligned tensors of a dtype, without running anything.

        Returns:
            What Triton calls a compiled kernel.
        """
        constants = len(self.kernel.arg_names) - len(self.arguments)
        absent = () if self.constants.get("HAS_BIAS") else ("bias", "bias_grad")
        empty, sums = (torch.empty(0, dtype=each, device="meta") for each in (dtype, torch.float32))
        tensors = [
            None if name in absent else sums if name == "partial" else empty
            for name in self.kernel.arg_names[:constants]
        ]
        return self.kernel.warmup(*tensors, *self.arguments, grid=self.grid, **self.options)

    def _prepare(self, tensors: tuple[Tensor | None, ...]) -> Way:
        compiled = self.compiled(tensors)
        self._stream = driver.active.get_current_stream
        self._way = Way.over(compiled, self.grid, len(tensors), self.arguments)
        return self._way

    def compiled(self, tensors: tuple[Tensor | None, ...]) -> Any:
        """The kernel as Triton compiles it for such tensors, loaded into the device."""
        with torch.cuda.device(self._device):
            compiled = self.kernel.warmup(*tensors, *self.arguments, grid=self.grid, **self.options)
            compiled.run  # noqa: B018 - loads it
        return compiled
