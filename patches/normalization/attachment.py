"""Replacing ``forward`` in the classes that are served, and putting the original ones back."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from .blocks import KNOWN, Blocks, is_known
from .modules import Server


class Attachment:
    """The replaced ``forward`` methods, and how to put the original ones back.

    Args:
        serve: who is asked at every batch norm with an activation behind it.
        wanted: whether anything is replaced at all.
    """

    def __init__(self, serve: Server, wanted: bool) -> None:
        self._serve, self._wanted = serve, wanted
        self._replaced: dict[type, tuple[Callable[..., Any], Callable[..., Any]]] = {}
        self._blocks = Blocks(serve)

    def attach(self) -> None:
        """Replace what can be replaced by now."""
        self._serve.attached = self._wanted
        self.follow()

    def follow(self) -> None:
        """Replace what was imported since, as Ultralytics may be, while the rest is replaced; cheap."""
        if not self._serve.attached:
            return
        for name, (home, _) in KNOWN.items():
            owner = vars(sys.modules[home]).get(name) if home in sys.modules else None
            if owner is not None and owner not in self._replaced:
                self._replace(name, owner)

    def _replace(self, name: str, owner: Any) -> None:
        original = vars(owner).get("forward")
        if not is_known(name, original):
            return  # it does something else, or somebody else replaced it: theirs stays
        ours = owner.forward = self._blocks.replaced(name, original)
        self._replaced[owner] = ours, original
        self._blocks.learn(name, ours)

    def detach(self) -> None:
        """Put the original methods back, where nobody else has replaced ours since."""
        for owner, (ours, original) in self._replaced.items():
            if vars(owner)["forward"] is ours:
                owner.forward = original  # type: ignore[attr-defined]
        self._replaced.clear()
        self._blocks.forget()
        self._serve.attached = False
