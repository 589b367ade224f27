"""What in LTDv2's files is not as it should be: counted in ``discrepancies.jsonl``, or refused."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec

from toolkit.files import replacing


class Discrepancy(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing in the inputs that is not as it should be (a line of ``discrepancies.jsonl``)."""

    kind: str
    file: str
    frame: str = ""
    image_id: str = ""
    annotation_id: str = ""
    detail: str = ""


REFUSED = ("duplicate image id", "duplicate frame", "duplicate member", "unknown image", "unknown category")
"""Kinds that mean a wrong or damaged file: ``prepare`` refuses them unless told to drop them."""


class Discrepancies:
    """Those of one ``prepare``, counted and kept."""

    def __init__(self) -> None:
        self.items: list[Discrepancy] = []
        self.counts: dict[str, int] = {}

    def add(self, items: Iterable[Discrepancy]) -> None:
        for item in items:
            self.items.append(item)
            self.counts[item.kind] = self.counts.get(item.kind, 0) + 1

    def write(self, path: Path) -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(msgspec.json.Encoder().encode_lines(self.items))
