"""The challenge's JSON in and out: exact, deterministic, and clear about what is wrong."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from submission import Detections, SubmissionError, templates

A, B = 20210114222307015, 20200514222307016
ENTRY = {"boxes": [[1.5, 2, 3, 4.25]], "scores": [0.5], "labels": [1]}

coordinates = st.floats(-1e4, 1e4)
entries = st.lists(
    st.tuples(coordinates, coordinates, coordinates, coordinates, st.floats(0, 1), st.integers(1, 4)),
    max_size=4,
)


def columns(rows: dict[int, list[tuple[float, ...]]]) -> Detections:
    flat = np.array([row for image in rows.values() for row in image], np.float64).reshape(-1, 6)
    counts = [len(image) for image in rows.values()]
    return Detections(
        np.array(list(rows), np.int64),
        np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        flat[:, :4],
        flat[:, 4],
        flat[:, 5].astype(np.int64),
    )


def write(folder: Path, value: Any) -> Path:
    path = folder / "predictions.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


@given(st.dictionaries(st.integers(10**16, 10**17 - 1), entries, max_size=5))
def test_what_is_written_reads_back_exactly(rows: dict[int, list[tuple[float, ...]]]) -> None:
    made = columns(rows)
    again = Detections.loads(made.dumps())
    made = made.select(np.sort(made.image_ids))
    for name in ("image_ids", "offsets", "boxes", "scores", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(made, name))
        assert getattr(again, name).dtype == getattr(made, name).dtype


@given(st.dictionaries(st.integers(10**16, 10**17 - 1), entries, min_size=2, max_size=5), st.randoms())
def test_the_order_of_images_leaves_no_trace_in_the_file(
    rows: dict[int, list[tuple[float, ...]]], random: Any
) -> None:
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert columns({i: rows[i] for i in shuffled}).dumps() == columns(rows).dumps()


def test_the_file_is_what_the_organisers_read(tmp_path: Path) -> None:
    columns({A: [(1.5, 2, 3, 4.25, 0.5, 1)], B: []}).write(tmp_path / "predictions.json")
    assert json.loads((tmp_path / "predictions.json").read_text()) == {
        str(A): ENTRY,
        str(B): {"boxes": [], "scores": [], "labels": []},
    }


def test_ids_beyond_a_double_are_kept(tmp_path: Path) -> None:
    assert float(A) == float(A + 1)
    found = Detections.read(write(tmp_path, {str(A): ENTRY, str(A + 1): ENTRY}))
    assert found.image_ids.tolist() == [A, A + 1]


def test_selecting_orders_drops_and_fills() -> None:
    made = columns({A: [(1, 2, 3, 4, 0.5, 1), (5, 6, 7, 8, 0.25, 2)], B: [(9, 9, 9, 9, 1, 4)]})
    chosen = made.select(np.array([7, B, A]))
    assert chosen.image_ids.tolist() == [7, B, A]
    assert chosen.counts.tolist() == [0, 1, 2]
    assert chosen.scores.tolist() == [1, 0.5, 0.25]


def test_selecting_from_nothing_gives_empty_images() -> None:
    chosen = columns({}).select(np.array([A, B]))
    assert (len(chosen), len(chosen.scores)) == (2, 0)


def test_coco_results_become_corners_in_the_order_of_the_file(tmp_path: Path) -> None:
    results = [
        {"image_id": A, "category_id": 4, "bbox": [10, 20, 5, 6.5], "score": 0.5},
        {"image_id": B, "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.25},
        {"image_id": A, "category_id": 2, "bbox": [1, 2, 3, 4], "score": 0.75},
    ]
    found = Detections.read_coco(write(tmp_path, results))
    assert found.image_ids.tolist() == [A, B]
    assert found.offsets.tolist() == [0, 2, 3]
    assert found.boxes.tolist() == [[10, 20, 15, 26.5], [1, 2, 4, 6], [0, 0, 1, 1]]
    assert found.labels.tolist() == [4, 2, 1]


def test_an_empty_list_of_coco_results_is_no_detections(tmp_path: Path) -> None:
    assert len(Detections.read_coco(write(tmp_path, []))) == 0


def twice(entry: Any, inner: str = "") -> str:
    """A file that has image A twice, the second time with its first digit as ``inner`` has it."""
    first, value = str(A), json.dumps(entry)
    return f'{{"{first}": {value}, "{B}": {value}, "{inner or first[0]}{first[1:]}" : {value}}}'


def test_keys_of_digits_inside_an_entry_are_no_ids(tmp_path: Path) -> None:
    named = {**ENTRY, "names": {"1": "person", "2": "bicycle"}}
    assert len(Detections.read(write(tmp_path, {str(A): named, str(B): named}))) == 2


BAD_FILES = {
    "an id twice": (twice(ENTRY), f"1 offence; id {A} twice"),
    "an id twice, once escaped": (twice(ENTRY, "\\u0032"), f"id {A} twice"),
    "an id twice and a NaN": (twice({**ENTRY, "scores": [float("nan")]}), f"id {A} twice"),
    "cut off": ('{"20210114222307015": {"boxes": [[1, 2', "cut off"),
    "no JSON": ("hello", "no JSON"),
    "empty": ("", "no JSON"),
    "a number": ("5", "found int|int"),
    "a COCO list": (
        [{"image_id": A, "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}],
        "--from-coco",
    ),
    "a COCO dataset": ({"images": [], "annotations": []}, "COCO dataset.*swapped"),
    "a truth file": ({str(A): {"boxes": [[1, 2, 3, 4]], "labels": [1]}}, "truth file.*swapped"),
    "an entry without scores": (
        {str(A): ENTRY, str(B): {"boxes": [], "labels": []}},
        f"id {B}: .*scores",
    ),
    "an entry that is null": ({str(A): ENTRY, str(B): None}, f"id {B}: .*null"),
    "a box of three numbers": (
        {str(A): ENTRY, str(B): {**ENTRY, "boxes": [[1, 2, 3]]}},
        f"id {B}: .*length 4",
    ),
    "a score in words": (
        {str(A): ENTRY, str(B): {**ENTRY, "scores": ["high"]}},
        f"id {B}: .*float.*scores",
    ),
    "a label that is no whole number": (
        {str(A): ENTRY, str(B): {**ENTRY, "labels": [1.5]}},
        f"id {B}: .*int.*labels",
    ),
    "a label beyond 64 bits": ({str(A): {**ENTRY, "labels": [2**70]}}, "label"),
    "more scores than boxes": (
        {str(A): ENTRY, str(B): {**ENTRY, "scores": [0.5, 0.5]}},
        f"id {B} has 1 boxes, 2 scores, 1 labels",
    ),
    "fewer labels than boxes": (
        {str(A): ENTRY, str(B): {**ENTRY, "labels": []}},
        f"id {B} has 1 boxes, 1 scores, 0 labels",
    ),
    "a file name for an id": ({"image_0015.jpg": ENTRY}, "key 'image_0015.jpg'"),
    "an id with leading zeros": ({"020210114222307": ENTRY}, "key '020210114222307'"),
    "an id that went through a double": ({"2.0210114222307e+16": ENTRY}, "key '2.02"),
    "an id of twenty digits": ({"2" * 20: ENTRY}, "key '2222"),
}


NO_JSON = {
    "Latin-1": b'{"\xff": 1}',
    "UTF-16": b"\xff\xfe{",
    "lists": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
}


@pytest.mark.parametrize("data", NO_JSON.values(), ids=NO_JSON)
@pytest.mark.parametrize("read", [Detections.loads, Detections.loads_coco, templates.loads])
def test_bytes_that_are_no_json_are_one_line(read: Callable[[bytes, str], object], data: bytes) -> None:
    with pytest.raises(SubmissionError, match="the file") as caught:
        read(data, "the file")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_file_is_refused_with_what_was_found(name: str, tmp_path: Path) -> None:
    value, message = BAD_FILES[name]
    with pytest.raises(SubmissionError, match=message):
        Detections.read(write(tmp_path, value))


@pytest.mark.parametrize("labels", [[1.0], [True], [1.5], ["1"]])
def test_labels_are_taken_as_the_organisers_evaluator_takes_whole_numbers(labels: list[Any]) -> None:
    data = json.dumps({str(A): {**ENTRY, "labels": labels}}).encode()
    if labels == [1.0] and type(labels[0]) is float:
        assert Detections.loads(data).labels.tolist() == [1]
    else:
        with pytest.raises(SubmissionError, match="expected `int`"):
            Detections.loads(data)


@pytest.mark.parametrize("name", ["entry.zip", "frames.json", "found"])
def test_a_whole_zip_is_told_to_be_unpacked_whatever_its_name(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("predictions.json", "{}")
    with pytest.raises(SubmissionError, match=r"is a zip archive; the predictions\.json in it; unpack it"):
        Detections.read(tmp_path / name)


@pytest.mark.parametrize(
    ("value", "keys"),
    [
        ({"epochs": 3}, "the key 'epochs';"),
        ({f"k{n}": [n] for n in range(9)}, "the keys 'k0', 'k1', 'k2', 'k3', 'k4', ...;"),
    ],
)
def test_an_object_without_an_id_is_told_by_its_keys(value: dict[str, Any], keys: str) -> None:
    with pytest.raises(SubmissionError) as refused:
        Detections.loads(json.dumps(value).encode(), "plan.json")
    assert f"plan.json is no file of predictions; {keys}" in str(refused.value)


def test_text_that_is_called_a_zip_is_told_that_it_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    path.write_bytes(b"<html>Please log in</html>")
    with pytest.raises(SubmissionError, match=r"zip is no zip archive, and no JSON.*zip with predictions"):
        Detections.read(path)


@pytest.mark.parametrize("kept", [30, 0.5, -1])
def test_a_zip_that_is_cut_off_is_told_so_and_not_to_be_unpacked(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("predictions.json", json.dumps({str(A): ENTRY}))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(SubmissionError, match=r"x\.zip is a zip archive that is cut off") as refused:
        Detections.read(path)
    assert "unpack" not in str(refused.value)


def test_a_number_that_nobody_can_read_is_said_without_advice_to_programmers() -> None:
    with pytest.raises(SubmissionError, match="; a number with thousands of digits; one JSON"):
        Detections.loads(b'{"1": {"boxes": [[%b, 1, 2, 3]], "scores": [1], "labels": [1]}}' % (b"9" * 5000))


@pytest.mark.parametrize(("start", "kind"), [(b"PK\x03\x04", "a zip archive"), (b"\x1f\x8b\x08", "gzip")])
def test_a_packed_file_is_named_as_such(start: bytes, kind: str) -> None:
    with pytest.raises(SubmissionError, match=rf"{kind}.*unpack it"):
        Detections.loads(start + b"\x00\xff" * 9)


RESULT = {"category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5}


def test_file_stems_in_a_coco_list_are_looked_up_and_digits_are_ids(tmp_path: Path) -> None:
    results = [{**RESULT, "image_id": i} for i in ("20200514-clip_22-image_0015", str(A), A)]
    found = Detections.read_coco(write(tmp_path, results), lambda: {"20200514-clip_22-image_0015": B})
    assert found.image_ids.tolist() == [B, A]
    assert found.counts.tolist() == [1, 2]


def test_file_stems_that_nobody_knows_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, [{**RESULT, "image_id": "image_0015"}])
    with pytest.raises(SubmissionError, match=r"1 offence; image_id 'image_0015'.*file stems.*--data"):
        Detections.read_coco(path, dict)
    with pytest.raises(SubmissionError, match="image_id 'image_0015'"):
        Detections.read_coco(path)


def test_ids_of_a_coco_list_that_went_through_a_double_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="no list of COCO results"):
        Detections.read_coco(write(tmp_path, [{**RESULT, "image_id": 2.0200514222307016e16}]))


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="No such file"):
        Detections.read(tmp_path / "none.json")


def test_a_coco_list_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SubmissionError, match="no list of COCO results"):
        Detections.read_coco(write(tmp_path, {str(A): ENTRY}))


@pytest.mark.parametrize("key", ["image_id", "category_id"])
def test_a_number_beyond_64_bits_in_a_coco_list_is_refused(key: str, tmp_path: Path) -> None:
    result = {"image_id": A, "category_id": 4, "bbox": [1, 2, 3, 4], "score": 0.5, key: 10**30}
    with pytest.raises(SubmissionError, match="too large"):
        Detections.read_coco(write(tmp_path, [result]))


def test_the_first_ten_offences_are_named_and_all_are_counted(tmp_path: Path) -> None:
    bad = {str(A + n): {**ENTRY, "labels": []} for n in range(1234)}
    with pytest.raises(SubmissionError) as caught:
        Detections.read(write(tmp_path, bad))
    assert "1,234 offences" in str(caught.value)
    assert "and 1,224 more" in str(caught.value)
    assert caught.value.found.count("id ") == 10


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "predictions.json"
    path.write_text("old")

    def no_space(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(SubmissionError, match="No space left"):
        columns({A: []}).write(path)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        columns({A: []}).write(tmp_path / "predictions.json")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/full", "/dev/null"])
def test_a_device_is_no_file_of_predictions(device: str) -> None:
    with pytest.raises(SubmissionError, match=f"cannot read {device}; a device; a file"):
        Detections.read(Path(device))


def test_a_pipe_is_read_as_a_file_is() -> None:
    read, write = os.pipe()
    os.write(write, b'{"20200514222307015": {"boxes": [[1, 2, 3, 4]], "scores": [0.5], "labels": [1]}}')
    os.close(write)
    try:
        assert len(Detections.read(Path(f"/dev/fd/{read}")).scores) == 1
    finally:
        os.close(read)


@pytest.mark.parametrize("name", ["soup.pt", "soup.json", "weights"])
def test_weights_are_no_predictions_and_the_message_says_how_to_make_some(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("soup/data.pkl", b"")
    with pytest.raises(SubmissionError, match=r"holds weights.*toolkit predict .* --split val"):
        Detections.read(tmp_path / name)
