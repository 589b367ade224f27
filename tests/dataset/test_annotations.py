from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolkit.dataset import annotations
from toolkit.dataset.annotations import read_annotations
from toolkit.errors import ToolkitError

ID = 20200502114224047  # odd and above 2**53: a double cannot hold it


def coco(**changes: Any) -> dict[str, Any]:
    image = {
        "id": ID,
        "file_name": "frames/a/b/c.jpg",
        "width": 384,
        "height": 288,
        "meta": {"Wind": 3},
    }
    box = {"id": 1, "image_id": ID, "category_id": 2, "bbox": [1.5, 2, 30, 40.25]}
    categories = [{"id": 0, "name": "background"}, {"id": 1, "name": "person"}]
    return {"images": [image], "annotations": [box], "categories": categories, **changes}


def write(folder: Path, content: Any) -> Path:
    path = folder / "Train.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_ids_that_a_double_cannot_hold_stay_exact(tmp_path: Path) -> None:
    found = read_annotations(write(tmp_path, coco()))
    assert found.image_ids.tolist() == found.box_image_ids.tolist() == [ID]
    assert found.boxes.tolist() == [[1.5, 2.0, 30.0, 40.25]]
    assert found.labels.tolist() == [2]
    assert json.loads(found.metas[0]) == {"Wind": 3}


def test_a_file_without_annotations_is_a_test_split(tmp_path: Path) -> None:
    content = coco()
    del content["annotations"]
    found = read_annotations(write(tmp_path, content))
    assert len(found.image_ids) == 1
    assert found.boxes.shape == (0, 4)


@pytest.mark.parametrize("key", ["id", "image_id"])
@pytest.mark.parametrize(("value", "kind"), [("text", "text"), ("float", "decimal")])
def test_an_id_that_is_no_integer_is_refused_with_the_reason(
    tmp_path: Path, key: str, value: str, kind: str
) -> None:
    content = coco()
    wrong = str(ID) if value == "text" else float(ID)
    content["images" if key == "id" else "annotations"][0][key] = wrong
    with pytest.raises(ToolkitError, match=rf"not an integer.*{kind}.*2\*\*53"):
        read_annotations(write(tmp_path, content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"Train\.json"):
        read_annotations(tmp_path / "Train.json")


def test_a_category_that_is_no_integer_is_refused_as_what_it_is(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["category_id"] = "1"
    with pytest.raises(
        ToolkitError, match=r"a category that is not an integer.*found text.*1 person"
    ) as error:
        read_annotations(write(tmp_path, content))
    assert "17 digits" not in error.value.line()


@pytest.mark.parametrize("part", [0.0, 0.2, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_refused(tmp_path: Path, part: float) -> None:
    text = json.dumps(coco())
    with pytest.raises(ToolkitError, match="cut off or damaged"):
        read_annotations(write(tmp_path, text[: int(part * len(text))]))


@pytest.mark.parametrize("content", ["[]", '{"frames": []}', '{"images": {}}', '{"images": [3]}'])
def test_json_that_is_no_coco_file_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(ToolkitError, match="no COCO annotation file"):
        read_annotations(write(tmp_path, content))


@pytest.mark.parametrize("where", ["images", "annotations"])
@pytest.mark.parametrize("inside", [False, True])
def test_json_that_is_nested_without_end_is_refused(tmp_path: Path, where: str, inside: bool) -> None:
    nested = "[" * 200_000 + "]" * 200_000
    text = json.dumps(coco(**{where: [{"id": 1, "extra": "HERE"}] if inside else "HERE"}))
    with pytest.raises(ToolkitError, match=r"Train\.json.*recursion"):
        read_annotations(write(tmp_path, text.replace('"HERE"', nested)))


def test_a_box_beyond_any_frame_is_refused(tmp_path: Path) -> None:
    content = coco()
    content["annotations"][0]["bbox"] = [1e308] * 4
    with pytest.raises(ToolkitError, match=r"<= 1000000.0 - at `\$\[0\]\.bbox\[0\]` \(annotations\)"):
        read_annotations(write(tmp_path, content))


def test_other_category_names_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"1 car.*1 person"):
        read_annotations(write(tmp_path, coco(categories=[{"id": 1, "name": "car"}])))


def test_what_is_wrong_is_placed_in_the_file_and_not_in_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(annotations, "PIECE_BYTES", 250)
    boxes = [{"id": i, "image_id": ID, "category_id": 1, "bbox": [0, 0, 1, 1]} for i in range(40)]
    boxes[33]["category_id"] = "1"
    with pytest.raises(ToolkitError, match=r"\(annotations from 32 on, \$\[1\]\.category_id\)"):
        read_annotations(write(tmp_path, coco(annotations=boxes)))


texts = st.text(alphabet=st.sampled_from('}{,[] "\\a\n'), max_size=12)
odd = st.recursive(
    texts | st.integers(), lambda x: st.lists(x, max_size=3) | st.dictionaries(texts, x, max_size=3)
)


@settings(max_examples=60)
@given(extras=st.lists(odd, max_size=12), size=st.integers(1, 300), indent=st.sampled_from([None, 0, 1]))
def test_pieces_are_cut_only_between_objects(
    tmp_path: Path, extras: list[Any], size: int, indent: int | None
) -> None:
    """Whatever else the objects hold, strings full of braces included, every annotation arrives once."""
    box = {"image_id": ID, "category_id": 1, "bbox": [0, 0, 1, 1]}
    content = coco(annotations=[{**box, "id": i, "extra": extra} for i, extra in enumerate(extras)])
    path = tmp_path / "Train.json"
    path.write_text(json.dumps(content, indent=indent))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(annotations, "PIECE_BYTES", size)
        found = read_annotations(path)
    np.testing.assert_array_equal(found.annotation_ids, np.arange(len(extras)))
