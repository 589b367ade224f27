"""Launching a compiled kernel with as little Python as possible.

``kernel[grid](...)`` looks at every argument to decide which compiled variant it needs, 20 to 40 microseconds
a call for kernels with this many. The variant is decided by the problem alone, so it is looked up once and
the compiled kernel's own launcher is called from then on, with addresses: of a tensor the launcher would ask
the driver where it lives, once a tensor and call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from triton.runtime import driver


def interpreted(kernel: Any) -> bool:
    """Whether Triton runs kernels on the CPU in this process (``TRITON_INTERPRET=1``)."""
    return not hasattr(kernel, "warmup") or type(kernel).__name__ == "InterpretedFunction"


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
        "_function",
        "_metadata",
        "_run",
        "_stream",
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
        self._run: Any = None
        given = (*scalars, *constants)
        names = tuple(kernel.arg_names[-len(given) :])
        if names != given:
            raise TypeError(f"{given} are not the kernel's {names}")

    def __call__(self, *tensors: Tensor | None) -> None:
        if self._run is None:
            if interpreted(self.kernel):
                self.kernel[self.grid](*tensors, *self.arguments)
                return
            self._compile(tensors)
        self._run(
            *self.grid,
            self._stream(self._device),
            self._function,
            self._metadata,
            None,
            None,
            None,
            *[None if tensor is None else tensor.data_ptr() for tensor in tensors],
            *self.arguments,
        )

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

    def _compile(self, tensors: tuple[Tensor | None, ...]) -> None:
        with torch.cuda.device(self._device):
            compiled = self.kernel.warmup(*tensors, *self.arguments, grid=self.grid, **self.options)
            run = compiled.run
        self._function = compiled.function
        self._metadata = compiled.packed_metadata
        self._stream = driver.active.get_current_stream
        self._run = run
