"""Compiling a kernel for a card that is not here, into a cache that stays small.

Triton keeps every stage of every kernel that it ever compiled. Here the assembly, the code object and what is
known of them are kept, which is all that anything reads again, and not for ever.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.compiler import compile as compile_source
from triton.runtime.cache import FileCacheManager

from patches.cache import cache_folder, trim

DAYS = 7
"""What no compilation asked for in so many days goes."""
LIMIT = 1_000_000_000
"""Bytes that stay: two of every variant that `make isa` compiles, so that two branches share the folder."""
STAGES = (".source", ".ttir", ".ttgir", ".llir")
"""Of the files of a kernel, those that nothing reads again: two thirds of the bytes."""


class Kept(FileCacheManager):  # type: ignore[misc]  # Triton has no types
    """Triton's cache on disk without the stages between source and assembly."""

    def put(self, data: Any, filename: str, binary: bool = True) -> str:
        """Write one file of a kernel; a stage is nowhere, and read back as nothing."""
        if filename.endswith(STAGES):
            return os.devnull
        return str(super().put(data, filename, binary))

    def put_group(self, filename: str, group: Mapping[str, str]) -> str:
        """Say which files belong together."""
        return str(super().put_group(filename, {n: path for n, path in group.items() if path != os.devnull}))

    def get_group(self, filename: str) -> dict[str, str] | None:
        """The files that belong together; who asks uses them, by which ``trim`` goes."""
        with suppress(OSError):
            os.utime(self.cache_dir)
        found: dict[str, str] | None = super().get_group(filename)
        return found


def compile_for(
    architecture: str, source: ASTSource, options: Mapping[str, int], buffer_operations: bool = False
) -> Any:
    """Compile for a card down to the code object.

    Args:
        architecture: "gfx1010"; options: warps and stages; buffer_operations: as AMDGCN_USE_BUFFER_OPS.

    Returns:
        Triton's compiled kernel: ``asm["amdgcn"]`` is its assembly, ``metadata.shared`` its bytes of LDS.
    """
    with _settings(buffer_operations):
        return compile_source(source, target=GPUTarget("hip", architecture, 32), options=dict(options))


@contextmanager
def _settings(buffer_operations: bool) -> Iterator[None]:
    """Triton's settings, put back afterwards."""
    with knobs.cache.scope(), knobs.amd.scope():
        knobs.cache.manager_class = Kept
        # Triton's key of a kernel ignores whether buffer operations are on.
        place = cache_folder() / ("isa-buffer-ops" if buffer_operations else "isa")
        knobs.cache.dir = str(_trimmed(place))
        knobs.amd.use_buffer_ops = buffer_operations
        yield


@functools.cache
def _trimmed(place: Path) -> Path:
    """The folder, bounded once a process."""
    trim(place, DAYS, LIMIT)
    return place
