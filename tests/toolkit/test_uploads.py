"""``toolkit submit``: what is looked at before an upload, and that none is lost or made twice."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codabench_server import Server, phase
from command import Command, Result

from submission import Detections, archive, templates
from toolkit import uploads

IDS = templates.template("testing")[:40]


def plausible(seed: int = 0) -> Detections:
    rng = np.random.default_rng(seed)
    n = 8 * len(IDS)
    first = rng.uniform((0, 0), (350, 250), (n, 2))
    corners = np.hstack([first, first + rng.uniform(3, 30, (n, 2))])
    labels = rng.choice(4, n, p=[0.85, 0.04, 0.01, 0.1]) + 1
    return Detections(IDS, np.arange(len(IDS) + 1) * 8, corners, rng.random(n), labels)


@pytest.fixture
def entry(workspace: Path) -> Path:
    """A workspace with plausible predictions of the ids of a small template."""
    (workspace / "ids.json").write_text(json.dumps({str(i): {} for i in IDS.tolist()}))
    plausible().write(workspace / "p.json")
    return workspace


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "LOOKS", (0.0, 0.0))


def upload(toolkit: Command, *options: str, file: str = "p.json") -> Result:
    return toolkit("submit", file, "--template", "ids.json", "--phase-id", "72", "--upload", *options)


def receipts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "submissions").glob("*.json"))]


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        ([], "not one box in 40 images"),
        ([[0.1, 0.2, 0.3, 0.4]], "smaller than a pixel: they are parts of the frame"),
        ([[500, 400, 520, 420]], "more than half outside"),
    ],
)
def test_what_would_score_nothing_is_uploaded_only_when_that_is_meant(
    entry: Path, toolkit: Command, codabench_server: Server, boxes: list[Any], message: str
) -> None:
    one = {"boxes": boxes, "scores": [0.5] * len(boxes), "labels": [1] * len(boxes)}
    (entry / "bad.json").write_text(json.dumps({str(i): one for i in IDS.tolist()}))
    refused = upload(toolkit, file="bad.json")
    assert (refused.status, message in refused.err, "--upload-sparse" in refused.err) == (1, True, True)
    assert codabench_server.requests == []
    assert not list(entry.rglob("*.zip"))
    assert upload(toolkit, "--upload-sparse", file="bad.json").status == 0
    assert len(codabench_server.submissions) == 1


def test_a_check_without_upload_says_what_would_score_nothing(entry: Path, toolkit: Command) -> None:
    nothing = {"boxes": [], "scores": [], "labels": []}
    (entry / "bad.json").write_text(json.dumps({str(i): nothing for i in IDS.tolist()}))
    result = toolkit("submit", "bad.json", "--template", "ids.json", "--json")
    assert json.loads(result.out)["objections"] == ["not one box in 40 images"]
    assert "not one box" in result.err


def test_the_same_archive_is_sent_once_unless_forced(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    assert upload(toolkit).status == 0
    again = upload(toolkit, "--out", "another.zip")
    assert (again.status, "uploaded before; found submission 4711" in again.err) == (1, True)
    assert len(codabench_server.archives) == 1
    assert upload(toolkit, "--upload-again").status == 0
    assert [kept["codabench"]["submission"] for kept in receipts(entry)] == [4711, 4712]


def test_the_same_archive_is_recognised_by_the_server_from_another_machine(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    assert upload(toolkit).status == 0
    for path in (entry / "submissions").glob("*.json"):
        path.unlink()
    assert "uploaded before; found submission 4711" in upload(toolkit).err
    assert len(codabench_server.submissions) == 1


@pytest.mark.parametrize("state", ["Failed", "Cancelled"])
def test_an_archive_whose_submission_failed_may_be_sent_again(
    entry: Path, toolkit: Command, codabench_server: Server, state: str
) -> None:
    codabench_server.states = ["Submitting", state]
    assert upload(toolkit).status == 0
    codabench_server.made[4711]["status"] = state
    assert upload(toolkit).status == 0


def test_an_archive_of_a_long_name_is_sent_under_one_that_codabench_keeps(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    assert upload(toolkit, "--out", f"{'our best entry so far ' * 5}.zip").status == 0
    assert len(codabench_server.datasets["the-key"].file_name) <= 39
    for path in (entry / "submissions").glob("*.json"):
        path.unlink()
    assert "uploaded before" in upload(toolkit, "--out", f"{'our best entry so far ' * 5}.zip").err


def test_other_predictions_are_another_archive(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    assert upload(toolkit).status == 0
    plausible(seed=1).write(entry / "p.json")
    assert upload(toolkit).status == 0


LOST = {
    "no answer": b"",
    "a broken answer": b"HTTP/1.0 201 Created\r\nContent-Length: 99\r\n\r\n{",
    "a page": b"HTTP/1.0 201 Created\r\n\r\n<html>",
    "an answer without a number": b"HTTP/1.0 201 Created\r\n\r\n{}",
    "an error": b"HTTP/1.0 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n",
}


@pytest.mark.parametrize("answer", LOST.values(), ids=LOST)
def test_a_submission_whose_answer_was_lost_is_found(
    entry: Path, toolkit: Command, codabench_server: Server, answer: bytes
) -> None:
    codabench_server.after["/api/submissions/"] = [b"HTTP/1.0 200 OK\r\n\r\n[]", answer]
    result = upload(toolkit)
    assert (result.status, "looking whether it was made all the same" in result.err) == (0, True)
    assert [kept["codabench"]["submission"] for kept in receipts(entry)] == [4711]
    assert len(codabench_server.submissions) == 1


def test_a_server_that_is_slow_to_show_a_submission_is_looked_at_again(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    empty = b"HTTP/1.0 200 OK\r\n\r\n[]"
    codabench_server.after["/api/submissions/"] = [empty, b"", empty]
    assert upload(toolkit).status == 0
    assert len(codabench_server.submissions) == 1


def test_a_forced_upload_whose_answer_was_lost_is_not_taken_for_the_one_before(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    assert upload(toolkit).status == 0
    codabench_server.quota = True
    listed = json.dumps([codabench_server.made[4711]]).encode()
    found = b"HTTP/1.0 200 OK\r\n\r\n" + listed
    codabench_server.raw["/api/submissions/"] = [found, b"HTTP/1.0 502 Bad\r\n\r\n", found, found]
    result = upload(toolkit, "--upload-again")
    assert (result.status, "may have arrived" in result.err) == (1, True)
    assert len(codabench_server.submissions) == 1


def test_a_server_that_hides_its_list_does_not_get_an_archive_twice(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    assert upload(toolkit).status == 0
    codabench_server.raw["/api/submissions/?"] = [b"HTTP/1.0 200 OK\r\n\r\n[]"]
    assert "uploaded before; found submission 4711" in upload(toolkit).err
    assert len(codabench_server.submissions) == 1


def test_a_submission_that_was_not_made_is_said_to_be_uncertain_and_can_be_made_later(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    empty = b"HTTP/1.0 200 OK\r\n\r\n[]"
    codabench_server.raw["/api/submissions/"] = [empty, b"HTTP/1.0 502 Bad\r\n\r\n"]
    result = upload(toolkit)
    assert (result.status, "may have arrived" in result.err) == (1, True)
    assert [kept["codabench"]["submission"] for kept in receipts(entry)] == [None]
    assert upload(toolkit).status == 0
    assert len(codabench_server.submissions) == 1


def test_a_refused_submission_leaves_no_receipt_of_an_upload(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    codabench_server.raw["/api/submissions/"] = [
        b"HTTP/1.0 200 OK\r\n\r\n[]",
        b'HTTP/1.0 400 Bad\r\nContent-Length: 18\r\n\r\n{"data": ["odd"]}\r\n',
    ]
    assert upload(toolkit).status == 1
    assert receipts(entry) == []


@pytest.mark.parametrize(("state", "word"), [("Previous", "ended"), ("Next", "begins")])
def test_a_phase_that_takes_nothing_is_said_before_anything_is_sent(
    entry: Path, toolkit: Command, codabench_server: Server, state: str, word: str
) -> None:
    codabench_server.competitions[10954] = [
        phase(71, "Development Phase"),
        phase(72, "Testing Phase", status=state, end="2025-12-07T23:59:00Z", start="2027-01-01T00:00:00Z"),
    ]
    result = upload(toolkit)
    assert (result.status, f"'Testing Phase' of competition 10954 {word}" in result.err) == (1, True)
    assert "71 'Development Phase'" in result.err
    assert codabench_server.datasets == {}


def test_a_phase_of_another_competition_is_refused(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    result = upload(toolkit, "--phase-id", "99")
    assert "no phase 99; found 71 'Development Phase', 72 'Testing Phase'" in result.err


def test_a_folder_for_receipts_that_cannot_be_written_stops_before_anything_is_sent(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    (entry / "submissions").write_text("a file")
    result = upload(toolkit)
    assert (result.status, result.err.count("Traceback"), "submissions" in result.err) == (1, 0, True)
    assert codabench_server.requests == []


def test_a_zip_is_looked_into_and_what_is_in_it_is_said(entry: Path, toolkit: Command) -> None:
    with zipfile.ZipFile(entry / "theirs.zip", "w") as opened:
        opened.writestr("results/predictions.json", (entry / "p.json").read_bytes())
        opened.writestr("__MACOSX/results/._predictions.json", b"x")
    result = toolkit("submit", "theirs.zip", "--template", "ids.json")
    assert result.status == 0
    assert "holds results/predictions.json" in result.err
    assert "the organisers open predictions.json at the top of a zip" in result.err
    written = toolkit("submit", "theirs.zip", "--template", "ids.json", "--zip", "--out", "ours.zip")
    assert written.status == 0
    assert archive.unpack(entry / "ours.zip")[0] == "predictions.json"
    refused = toolkit("submit", "theirs.zip", "--template", "ids.json", "--zip")
    assert (refused.status, "--out" in refused.err) == (1, True)


def test_our_own_zip_is_uploaded_as_it_is_with_the_receipt_that_it_has(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    toolkit("submit", "p.json", "--template", "ids.json", "--zip", "--out", "entry.zip")
    before = json.loads((entry / "entry.json").read_text())
    sent = (entry / "entry.zip").read_bytes()
    assert upload(toolkit, file="entry.zip").status == 0
    after = json.loads((entry / "entry.json").read_text())
    assert codabench_server.archives == [sent]
    assert after.pop("codabench")["submission"] == 4711
    assert after == before


@pytest.mark.parametrize("out", ["n" * 300 + ".zip", "p.json/entry.zip"])
def test_an_archive_that_cannot_be_there_is_one_line(entry: Path, toolkit: Command, out: str) -> None:
    result = toolkit("submit", "p.json", "--template", "ids.json", "--out", out)
    assert (result.status, result.err.splitlines()[-1][:7], "Traceback" in result.err) == (
        1,
        "error: ",
        False,
    )
    assert not list(entry.rglob("*.zip"))


def test_predictions_that_may_not_be_read_are_one_line(
    entry: Path, toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    result = toolkit("submit", "p.json")
    assert (result.status, result.err.count("\n"), "Permission denied" in result.err) == (1, 1, True)


def test_a_folder_for_predictions_is_one_line(entry: Path, toolkit: Command) -> None:
    result = toolkit("submit", str(entry))
    assert (result.status, result.err.count("\n"), "is a folder" in result.err) == (1, 1, True)
