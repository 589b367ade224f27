"""Files with a byte that is no UTF-8 end in one line, in every verb that reads them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command import Command

import toolkit as package
from toolkit.dataset.annotations import read_annotations
from toolkit.dataset.sample import write_sample
from toolkit.errors import ToolkitError

LATIN = "Kai f\xfcr K\xe4hne"


@pytest.fixture
def data(workspace: Path) -> Path:
    folder = workspace / "data"
    write_sample(folder, train=4, val=2, test=2, seed=0, scene="street")
    return folder


def latin(path: Path, **more: object) -> Path:
    """Write the file again in Latin-1, with a word that has letters beyond ASCII in it."""
    content = json.loads(path.read_text()) if path.exists() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps({**content, **more}, ensure_ascii=False).encode("latin-1"))
    return path


def entry() -> dict[str, object]:
    return {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1]}


@pytest.mark.parametrize(
    "words, names",
    [
        (("dataset", "prepare", "data"), "Train.json"),
        (("evaluate", "predictions.json", "--truth", "data/Valid.json"), "predictions.json"),
        (("evaluate", "whole.json", "--truth", "truth.json"), "truth.json"),
        (("submit", "predictions.json", "--phase", "testing", "--zip"), "predictions.json"),
        (("submit", "whole.json", "--template", "truth.json", "--zip"), "truth.json"),
        (("submit", "coco.json", "--from-coco", "--phase", "testing", "--zip"), "coco.json"),
        (("compare", "predictions.json", "whole.json", "--truth", "data/Valid.json"), "predictions.json"),
        (("ensemble", "predictions.json", "whole.json", "--out", "both.json"), "predictions.json"),
        (("train", "--model", "own.yaml", "--dry-run", "--data", "data"), "own.yaml"),
    ],
)
def test_a_byte_that_is_no_utf_8_is_one_line(
    workspace: Path, toolkit: Command, data: Path, words: tuple[str, ...], names: str
) -> None:
    latin(data / "Train.json", info={"contributor": LATIN}, images=[{"id": 1, "file_name": LATIN}])
    ids = [image["id"] for image in json.loads((data / "Valid.json").read_text())["images"]]
    latin(workspace / "predictions.json", **{str(i): entry() | {"labels": [LATIN]} for i in ids})
    (workspace / "whole.json").write_text(json.dumps({str(i): entry() for i in ids}))
    latin(workspace / "truth.json", images=[{"id": LATIN, "file_name": LATIN} for _ in ids])
    coco = [{"image_id": 1, "category_id": 1, "bbox": [0, 0, 1, 1], "score": LATIN}]
    (workspace / "coco.json").write_bytes(json.dumps(coco, ensure_ascii=False).encode("latin-1"))
    (workspace / "own.yaml").write_bytes(b"# K\xe4hne\nnc: 4\n\xe4: {")
    result = toolkit(*words)
    assert result.status == 1
    assert "Traceback" not in result.err
    assert names in result.err.splitlines()[-1]


@pytest.mark.parametrize("key", ["file_name", "date_captured", "meta"])
def test_a_byte_that_is_no_utf_8_anywhere_in_an_image_is_named(data: Path, key: str) -> None:
    content = json.loads((data / "Valid.json").read_text())
    content["images"][0][key] = {"station": LATIN} if key == "meta" else LATIN
    (data / "Valid.json").write_bytes(json.dumps(content, ensure_ascii=False).encode("latin-1"))
    with pytest.raises(ToolkitError, match=r"found the byte 0xfc in .*, which is no UTF-8"):
        read_annotations(data / "Valid.json")


def test_nobody_expects_bad_json_without_expecting_bad_text() -> None:
    """msgspec raises another exception for bytes that are no UTF-8: both have one name."""
    root = Path(package.__file__).parent.parent
    habit = re.compile(r"(except|suppress)[^\n]*msgspec\.DecodeError")
    files = [path for name in ("toolkit", "submission") for path in (root / name).rglob("*.py")]
    assert len(files) > 50
    assert [path.name for path in files if habit.search(path.read_text())] == []
