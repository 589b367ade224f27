"""``toolkit submit --upload --wait`` and ``toolkit submissions``, against a model of Codabench.

Slow, failing, odd and dishonest answers: none ends in a traceback, none loses or doubles an upload.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from codabench_server import SCORES, STATES, Server, phase
from command import Command, Result

from submission import Detections, SubmissionError, templates
from submission.answers import Made, Score
from submission.codabench import Codabench
from toolkit import submissions, uploads
from toolkit.errors import ToolkitError

IDS = templates.template("testing")[:20]


@pytest.fixture
def entry(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with predictions of a run, and no pauses between looks."""
    monkeypatch.setattr(uploads, "LOOKS", (0.0, 0.0))
    monkeypatch.setattr(submissions, "POLL", 0.001)
    rng = np.random.default_rng(0)
    first = rng.uniform((0, 0), (350, 250), (len(IDS) * 8, 2))
    corners = np.hstack([first, first + rng.uniform(3, 30, first.shape)])
    labels = rng.choice(4, len(first), p=[0.85, 0.04, 0.01, 0.1]) + 1
    offsets = np.arange(len(IDS) + 1) * 8
    Detections(IDS, offsets, corners, rng.random(len(first)), labels).write(workspace / "p.json")
    (workspace / "ids.json").write_text(json.dumps({str(i): {} for i in IDS.tolist()}))
    return workspace


def upload(toolkit: Command, *options: str) -> Result:
    return toolkit(
        *("submit", "p.json", "--template", "ids.json", "--phase-id", "72", "--out", "entry.zip", "--upload"),
        *options,
    )


def receipts(folder: Path) -> list[dict[str, Any]]:
    paths = [folder / "entry.json", *sorted((folder / "submissions").glob("*.json"))]
    return [json.loads(path.read_text())["codabench"] for path in paths]


def test_an_upload_is_followed_to_its_score_which_both_receipts_keep(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    codabench_server.states = list(STATES)
    result = upload(toolkit, "--wait")
    assert result.status == 0
    assert [state for state in STATES[1:] if f"submission 4711: {state}" in result.err] == STATES[1:]
    assert "0.4480" in result.out
    for sent in receipts(entry):
        assert (sent["submission"], sent["status"]) == (4711, "Finished")
        assert sent["scores"] == {key: float(score) for key, score in SCORES.items()}


def test_the_score_as_json(entry: Path, toolkit: Command, codabench_server: Server) -> None:
    outcome = json.loads(upload(toolkit, "--wait", "--json").out)
    assert outcome["codabench"]["scores"]["global_map_bal"] == 0.448


@pytest.mark.parametrize("state", ["Failed", "Cancelled"])
def test_a_failure_comes_with_the_servers_message_and_a_status(
    entry: Path, toolkit: Command, codabench_server: Server, state: str
) -> None:
    codabench_server.states = ["Submitting", "Running", state]
    result = upload(toolkit, "--wait")
    assert (result.status, f"submission 4711 {state.lower()}" in result.err) == (1, True)
    assert "ValueError: Missing image ids" in result.err
    assert [sent["status"] for sent in receipts(entry)] == [state, state]


def test_a_phase_that_hides_its_logs_leaves_the_details(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    codabench_server.states, codabench_server.hides_output = ["Submitting", "Failed"], True
    result = upload(toolkit, "--wait")
    assert (result.status, "scoring_hostname-worker6" in result.err) == (1, True)


def test_control_characters_of_a_server_reach_no_terminal(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    codabench_server.states, codabench_server.log = ["Submitting", "Failed"], "\x1b[2J\x07[red]gone[/red]\r\n"
    result = upload(toolkit, "--wait")
    assert result.status == 1
    assert "\x1b" not in result.err
    assert "[red]gone[/red]" in result.err


def test_ctrl_c_leaves_the_submission_running_and_known(
    entry: Path, toolkit: Command, codabench_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    codabench_server.states = list(STATES)

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(submissions, "follow", interrupt)
    result = upload(toolkit, "--wait")
    assert (result.status, "goes on at Codabench" in result.err) == (130, True)
    assert [sent["submission"] for sent in receipts(entry)] == [4711, 4711]
    codabench_server.made[4711]["status"] = "Finished"
    codabench_server.look_at(4711)
    assert toolkit("submissions").status == 0
    assert [sent["scores"]["global_map_bal"] for sent in receipts(entry)] == [0.448, 0.448]


def test_waiting_without_an_upload_is_refused(entry: Path, toolkit: Command) -> None:
    result = toolkit("submit", "p.json", "--wait")
    assert (result.status, "toolkit submissions" in result.err) == (2, True)


def ok(body: bytes) -> bytes:
    return b"HTTP/1.0 200 OK\r\n\r\n" + body


ODD: dict[str, list[bytes]] = {
    "no answer": [b""],
    "no answer five times": [b""] * 5,
    "a page of an error": [b"HTTP/1.0 502 Bad\r\nContent-Length: 6\r\n\r\n<html>"] * 7,
    "too many requests": [b"HTTP/1.0 429 Slow\r\nContent-Length: 0\r\n\r\n"] * 3,
    "cut short": [b"HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\n{"],
    "a page of maintenance": [ok(b"<html>back soon</html>")],
    "an empty body": [ok(b"")],
    "null": [ok(b"null")],
    "a list": [ok(b"[]")],
    "text": [ok(b'"Finished"')],
    "an empty object": [ok(b"{}")],
    "another submission": [ok(b'{"id": 1, "status": "Finished", "scores": []}')],
    "a number as text": [ok(b'{"id": "4711", "status": "Finished"}')],
    "a status that is null": [ok(b'{"id": 4711, "status": null}')],
    "a status that is a number": [ok(b'{"id": 4711, "status": 7}')],
    "an unknown status": [ok(b'{"id": 4711, "status": "Unknown"}')],
    "no status": [ok(b'{"id": 4711}')],
    "a status with control characters": [ok(b'{"id": 4711, "status": "\\u001b[2J\\n"}')],
    "finished without scores": [ok(b'{"id": 4711, "status": "Finished", "scores": []}')],
    "scores that are null": [ok(b'{"id": 4711, "status": "Finished", "scores": null}')],
    "scores of another shape": [ok(b'{"id": 4711, "status": "Finished", "scores": {"a": 1}}')],
    "a score that is null": [
        ok(b'{"id": 4711, "status": "Finished", "scores": [{"column_key": "a", "score": null}]}')
    ],
    "a score in words": [
        ok(b'{"id": 4711, "status": "Finished", "scores": [{"column_key": "a", "score": "best"}]}')
    ],
    "a score that is NaN": [
        ok(b'{"id": 4711, "status": "Finished", "scores": [{"column_key": "a", "score": "NaN"}]}')
    ],
    "a score without a column": [ok(b'{"id": 4711, "status": "Finished", "scores": [{"score": "0.5"}]}')],
    "no UTF-8": [ok(b'{"id": 4711, "status": "\xff"}')],
    "a number beyond 64 bits": [ok(b'{"id": 47110000000000000000000000, "status": "Finished"}')],
    "a hundred thousand brackets": [ok(b"[" * 100_000)],
    "back to the beginning": [ok(b'{"id": 4711, "status": "Submitting"}')],
    "not finished after all": [
        ok(b'{"id": 4711, "status": "Scoring", "scores": [{"column_key": "global_map_bal", "score": "0.9"}]}')
    ],
    "a redirect": [b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n"],
    "a refusal of the token": [b"HTTP/1.0 403 No\r\nContent-Length: 0\r\n\r\n"],
    "gone": [b"HTTP/1.0 404 No\r\nContent-Length: 0\r\n\r\n"],
}
REFUSED = ("a redirect", "a refusal of the token", "gone")


@pytest.fixture
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    made = Codabench.__init__

    def quick(self: Codabench, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **{**options, "sleep": lambda _: None})

    monkeypatch.setattr(Codabench, "__init__", quick)
    return


@pytest.mark.usefixtures("without_pauses")
@pytest.mark.parametrize("name", ODD)
def test_an_odd_answer_while_waiting_loses_and_doubles_nothing(
    entry: Path, toolkit: Command, codabench_server: Server, name: str
) -> None:
    codabench_server.raw["/api/submissions/4711/"] = list(ODD[name])
    result = upload(toolkit, "--wait")
    assert "Traceback" not in result.err
    assert "\x1b" not in result.err
    assert len(codabench_server.submissions) == 1
    assert {sent["submission"] for sent in receipts(entry)} == {4711}
    if name in REFUSED:
        assert (result.status, result.err.splitlines()[-1][:7]) == (1, "error: ")
        assert toolkit("submissions").status == 0  # what was refused once is seen later
    else:
        assert result.status == 0
        assert {sent["scores"]["global_map_bal"] for sent in receipts(entry)} == {0.448}


class Script:
    """A client whose submission is answered from a list, and a clock that only sleeping moves."""

    def __init__(self, answers: list[Callable[[], Any]]) -> None:
        self.answers, self.now, self.pauses = answers, 0.0, list[float]()
        self.url = "https://example.org"

    def submission(self, _: int) -> Any:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        return answer()

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)

    def follow(self) -> Any:
        return submissions.follow(self, 1, sleep=self.sleep, clock=lambda: self.now)  # type: ignore[arg-type]


def running() -> Made:
    return Made(1, "Running")


def silent() -> Made:
    raise SubmissionError("GET failed after 5 attempts")


@pytest.mark.parametrize("answer", [running, silent])
def test_waiting_has_an_end_and_long_pauses(answer: Callable[[], Any]) -> None:
    script = Script([answer])
    with pytest.raises(ToolkitError, match=r"not over after 24 hours.*toolkit submissions"):
        script.follow()
    assert max(script.pauses) == submissions.LONGEST_POLL
    assert len(script.pauses) < 1500


def test_nobody_waits_in_silence(capsys: pytest.CaptureFixture[str]) -> None:
    finished = Made(1, "Finished", scores=[Score("a", "0.5")])
    script = Script([running] * 30 + [lambda: finished])
    assert script.follow() is finished
    said = capsys.readouterr().err.splitlines()
    assert len(said) > script.now / submissions.LONGEST_POLL / 2
    assert said[0] == "submission 1: Running"


def test_a_submission_that_never_gets_a_score_is_said_to_have_none() -> None:
    script = Script([lambda: Made(1, "Finished")])
    assert script.follow().values == {}
    assert len(script.pauses) == submissions.SCORELESS_LOOKS - 1


def test_submissions_are_listed_with_weights_commit_scores_and_quota(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    upload(toolkit, "--wait")
    for path in (entry / "submissions").glob("*.json"):
        kept = json.loads(path.read_text())
        kept |= {
            "weights": {"best.pt": "abcdef0123"},
            "commit": "c0ffee" * 6,
            "validation": {"global_map_bal": 0.51},
        }
        path.write_text(json.dumps(kept))
    shown = toolkit("submissions")
    row = next(line for line in shown.out.splitlines() if "4711" in line)
    for cell in ("Testing Phase", "Finished", "0.4480", "0.5100", "best.pt abcdef01", "c0ffeec0ffee"):
        assert cell in row
    assert "Testing Phase (72): open; 4 left today, 99 of the phase" in shown.err
    seen = json.loads(toolkit("submissions", "--json").out)
    assert seen["ranking_key"] == "global_map_bal"
    assert seen["quotas"][1]["left_today"] == 4
    assert seen["lines"][0]["scores"]["global_map_con"] == 0.113


def test_without_a_token_the_receipts_are_listed(
    entry: Path, toolkit: Command, codabench_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload(toolkit)
    monkeypatch.delenv("CODABENCH_TOKEN")
    shown = toolkit("submissions")
    assert (shown.status, "4711" in shown.out, "what the receipts say" in shown.err) == (0, True, True)


def test_an_upload_whose_answer_was_lost_is_listed_and_later_known(
    entry: Path, toolkit: Command, codabench_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    codabench_server.after["/api/submissions/"] = [ok(b"[]"), b"", ok(b"[]"), ok(b"[]")]
    assert upload(toolkit).status == 1
    codabench_server.raw["/api/submissions/"] = [ok(b"[]"), ok(b"[]")]
    assert "answer lost" in toolkit("submissions").out
    assert "4711" in toolkit("submissions").out
    assert "uploaded before; found submission 4711" in upload(toolkit).err
    assert len(codabench_server.submissions) == 1


def test_no_submissions_are_said_to_be_none(toolkit: Command, entry: Path, codabench_server: Server) -> None:
    shown = toolkit("submissions")
    assert (shown.status, shown.out, "toolkit submit --upload" in shown.err) == (0, "", True)


@pytest.mark.parametrize(
    "fields",
    [
        {"max_submissions_per_day": None, "max_submissions_per_person": 0},
        {"has_max_submissions": False},
    ],
)
def test_a_phase_without_a_limit_takes_any_number(
    entry: Path, toolkit: Command, codabench_server: Server, fields: dict[str, Any]
) -> None:
    codabench_server.competitions[10954] = [phase(72, "Testing Phase", **fields)]
    assert "any number left today, any number of the phase" in toolkit("submissions").err


def test_what_is_no_receipt_is_passed_over_with_a_warning(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    (entry / "submissions").mkdir()
    (entry / "submissions" / "notes.json").write_text("[1, 2")
    (entry / "submissions" / "other.json").write_bytes(b'{"created": "\xff"}')
    shown = toolkit("submissions")
    assert (shown.status, shown.err.count("is no receipt of an upload")) == (0, 2)
    assert upload(toolkit).status == 0


@pytest.mark.parametrize(
    ("body", "message"),
    [(b"[]", "unexpected answer"), (b'{"phases": 3}', "unexpected answer"), (b"<", "no JSON")],
)
def test_an_odd_answer_to_the_list_is_one_line(
    entry: Path, toolkit: Command, codabench_server: Server, body: bytes, message: str
) -> None:
    codabench_server.raw["/api/competitions/"] = [ok(body)]
    shown = toolkit("submissions")
    assert (shown.status, shown.err.count("\n"), message in shown.err) == (1, 1, True)


def test_a_competition_is_named_by_flag_file_or_name(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    codabench_server.competitions[16106] = [phase(90, "Test")]
    for name in ("16106", "seasons-in-drift", "Seasons-In-Drift"):
        assert json.loads(toolkit("submissions", "--competition", name, "--json").out)["competition"] == 16106
    (entry / "toolkit.toml").write_text("[codabench]\ncompetition = 16106\n")
    assert json.loads(toolkit("submissions", "--json").out)["competition"] == 16106
    assert json.loads(toolkit("submissions", "--competition", "10954", "--json").out)["competition"] == 10954
    refused = toolkit("submissions", "--competition", "harbour")
    assert (refused.status, "seasons-in-drift (16106)" in refused.err) == (2, True)


def test_an_upload_goes_to_the_named_competition(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    codabench_server.competitions[16106] = [phase(90, "Test")]
    assert upload(toolkit, "--competition", "16106", "--phase-id", "90").status == 0
    assert codabench_server.datasets["the-key"].competition == 16106
    assert receipts(entry)[0]["competition"] == 16106


def test_a_competition_that_the_token_may_not_see_is_one_line(
    entry: Path, toolkit: Command, codabench_server: Server
) -> None:
    result = upload(toolkit, "--competition", "99")
    assert (result.status, result.err.count("error: "), "404" in result.err) == (1, 1, True)
    assert codabench_server.datasets == {}


@pytest.fixture
def data(entry: Path) -> Path:
    """A data folder, as far as a submission needs one."""
    folder = entry / "data"
    folder.mkdir()
    (folder / "TestNoLabels.json").write_text(json.dumps({"images": [{"id": i} for i in IDS.tolist()]}))
    return folder


def test_a_competition_is_kept_beside_the_data_and_serves_without_a_token(
    entry: Path, data: Path, toolkit: Command, codabench_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert upload(toolkit).status == 0
    told = json.loads((data / "codabench-10954.json").read_text())
    assert told["competition"]["phases"][1]["name"] == "Testing Phase"
    monkeypatch.delenv("CODABENCH_TOKEN")
    seen = json.loads(toolkit("submissions", "--json").out)
    assert (seen["ranking_key"], seen["lines"][0]["phase"]) == ("global_map_bal", "Testing Phase")


@pytest.mark.parametrize(
    ("end", "warned"), [("2025-12-07T23:59:00+00:00", True), ("2999-01-01T00:00:00Z", False)]
)
def test_a_check_warns_of_a_phase_that_ended_by_what_was_told_last(
    entry: Path, data: Path, toolkit: Command, codabench_server: Server, end: str, warned: bool
) -> None:
    codabench_server.competitions[10954] = [phase(72, "Testing Phase", end=end)]
    assert toolkit("submissions").status == 0
    checked = toolkit("submit", "p.json", "--phase", "testing", "--allow-missing")
    assert (checked.status, "of competition 10954 ended 2025-12-07" in checked.err) == (0, warned)
    assert ("16106 'Seasons in Drift / LTDv2' until 2030-01-01" in checked.err) == warned


@pytest.mark.parametrize(
    "content", [b"[]", b"\xff", b'{"url": 1}', b'{"url": "", "read": "", "competition": {"phases": []}}']
)
def test_a_kept_competition_that_is_none_stops_nothing(
    entry: Path, data: Path, toolkit: Command, content: bytes
) -> None:
    (data / "codabench-10954.json").write_bytes(content)
    checked = toolkit("submit", "p.json", "--phase", "testing", "--allow-missing")
    assert checked.status == 0
    assert ("is no competition" in checked.err) == (b"phases" not in content)


def test_a_data_folder_that_cannot_be_written_stops_no_upload(
    entry: Path, data: Path, toolkit: Command, codabench_server: Server
) -> None:
    (data / "codabench-10954.json").mkdir()
    result = upload(toolkit)
    assert (result.status, "dates are not kept" in result.err) == (0, True)
