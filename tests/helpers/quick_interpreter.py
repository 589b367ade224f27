"""Triton's interpreter without what it repeats: the language is patched once for each function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from triton.runtime.interpreter import InterpretedFunction


@pytest.fixture(scope="session", autouse=True)
def quick_interpreter() -> Iterator[None]:
    """A launch patches ``triton.language`` and takes that back; each call of a function within it patches it
    again, which changes nothing after the function's first call and takes two fifths of the time.
    """
    plain = InterpretedFunction.__call__
    called: set[Callable[..., Any]] = set()

    def call(self: InterpretedFunction[Any], *args: Any, **kwargs: Any) -> Any:
        if self.fn in called:
            return self.rewrite()(*args, **kwargs)
        called.add(self.fn)
        return plain(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(InterpretedFunction, "__call__", call)
        yield
