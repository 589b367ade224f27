"""Sending to Codabench, against a server on loopback that behaves like it."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from codabench_server import TOKEN, Server, codabench

from submission import SubmissionError
from submission.codabench import ATTEMPTS, Codabench


@pytest.fixture
def server() -> Iterator[Server]:
    with codabench() as running:
        yield running


def client(
    server: Server, token: str = TOKEN, told: list[str] | None = None, timeout: float = 5
) -> Codabench:
    """A client that does not really wait between attempts."""
    lines = [] if told is None else told
    return Codabench(token, server.url, timeout, lambda s: lines.append(f"slept {s:g}"), lines.append)


def test_an_archive_arrives_whole_and_is_submitted_to_the_phase(server: Server) -> None:
    assert client(server).submit(b"zip" * 1000, 72) == 4711
    assert server.archives == [b"zip" * 1000]
    assert server.submissions == [{"phase": ["72"], "data": ["the-key"]}]
    assert client(server).status(4711) == "Finished"


def test_the_token_goes_to_codabench_alone(server: Server) -> None:
    client(server).submit(b"zip", 72)
    for _, path, token in server.requests:
        assert (token is None) == path.startswith("/storage/")


def test_the_calls_are_those_of_codabenchs_page_in_its_order(server: Server) -> None:
    client(server).submit(b"zip", 72)
    calls = [(method, path.partition("?")[0]) for method, path, _ in server.requests]
    assert calls == [
        ("GET", "/api/can_make_submission/72/"),
        ("POST", "/api/datasets/"),
        ("PUT", "/storage/the-key"),
        ("PUT", "/api/datasets/completed/the-key/"),
        ("POST", "/api/submissions/"),
    ]


def test_a_sent_file_is_complete_has_its_size_and_is_not_deleted_as_unused(server: Server) -> None:
    client(server).submit(b"zip" * 1000, 72)
    server.delete_unused()
    stored = server.datasets["the-key"]
    assert (stored.competition, stored.size, stored.completed) == (10954, 3000, True)


def test_a_server_that_refuses_the_completion_makes_no_submission(server: Server) -> None:
    server.trouble["/api/datasets/completed/"] = [404]
    with pytest.raises(SubmissionError, match=r"datasets/completed/the-key/ failed.*404"):
        client(server).submit(b"zip", 72)
    assert not server.submissions


@pytest.mark.parametrize(
    "address", ["file:///etc/passwd", "ftp://host/x", "nonsense", "http://[", "https://\u00e9/ x"]
)
def test_a_storage_address_that_is_none_is_refused(server: Server, address: str) -> None:
    answer = json.dumps({"key": "the-key", "sassy_url": address}).encode()
    server.raw["/api/datasets/"] = [b"HTTP/1.0 201 Created\r\n\r\n" + answer]
    with pytest.raises(SubmissionError, match="storage address cannot be used"):
        client(server).submit(b"zip", 72)
    assert not server.archives


ODD = {
    "a list": b"[]",
    "null": b"null",
    "a number as text": b'{"id": "4711", "key": 5, "can": "yes", "phases": {}}',
    "other types": b'{"id": null, "key": null, "can": 1, "phases": [{"id": "x"}]}',
    "deeply nested": b"[" * 100_000,
    "no UTF-8": b'{"id": "\xff", "key": "\xff", "can": "\xff", "phases": "\xff"}',
    "an empty body": b"",
}


@pytest.mark.parametrize("body", ODD.values(), ids=ODD)
@pytest.mark.parametrize(
    "path", ["/api/competitions/", "/api/can_make_submission/", "/api/datasets/", "/api/submissions/"]
)
def test_an_answer_of_another_shape_is_one_line(server: Server, path: str, body: bytes) -> None:
    server.raw[path] = [b"HTTP/1.0 200 OK\r\n\r\n" + body]
    with pytest.raises(SubmissionError, match=path) as caught:
        client(server).phase_id("testing")
        client(server).submit(b"zip", 72)
    assert "\n" not in str(caught.value)


def test_a_full_storage_says_where_room_is_made(server: Server) -> None:
    answer = b'{"data_file": ["Insufficient space. Your available space is 0 B."]}'
    head = f"HTTP/1.0 400 Bad\r\nContent-Length: {len(answer)}\r\n\r\n".encode()
    server.raw["/api/datasets/"] = [head + answer]
    with pytest.raises(SubmissionError, match=r"Insufficient space.*Resources"):
        client(server).submit(b"zip", 72)


def test_an_account_that_does_not_take_part_is_told_so(server: Server) -> None:
    server.participant = False
    with pytest.raises(SubmissionError, match="not approved to participate"):
        client(server).submit(b"zip", 72)


def test_a_phase_is_found_by_its_name(server: Server) -> None:
    assert [client(server).phase_id(name) for name in ("development", "testing")] == [71, 72]


def test_a_phase_that_is_not_there_is_said_with_those_that_are(server: Server) -> None:
    with pytest.raises(SubmissionError, match="71 'Development Phase', 72 'Testing Phase'"):
        client(server).phase_id("final")


def test_a_wrong_token_is_refused_at_once_and_never_shown(server: Server) -> None:
    told: list[str] = []
    with pytest.raises(SubmissionError, match=r"refuses the token.*CODABENCH_TOKEN") as caught:
        client(server, "wrong-secret", told).submit(b"zip", 72)
    assert len(server.requests) == 1
    assert "wrong-secret" not in str(caught.value) + "".join(told) + repr(client(server, "wrong-secret"))


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_of_the_storage_does_not_blame_the_token(server: Server, status: int) -> None:
    server.trouble["/storage/"] = [status]
    with pytest.raises(SubmissionError, match=f"storage failed; status {status}; try again") as caught:
        client(server).submit(b"zip", 72)
    assert "token" not in str(caught.value).lower()
    assert not server.submissions


def test_a_used_up_quota_is_said_before_anything_is_sent(server: Server) -> None:
    server.quota = False
    with pytest.raises(SubmissionError, match="maximum allowed submissions"):
        client(server).submit(b"zip", 72)
    assert server.archives == server.submissions == []


@pytest.mark.parametrize("path", ["/api/can_make_submission/", "/api/datasets/", "/storage/"])
@pytest.mark.parametrize("status", [429, 500, 502, 503])
def test_a_server_in_trouble_is_asked_again_with_growing_pauses(
    server: Server, path: str, status: int
) -> None:
    told: list[str] = []
    server.trouble[path] = [status] * 3
    assert client(server, told=told).submit(b"zip", 72) == 4711
    assert [line for line in told if line.startswith("slept")] == ["slept 1", "slept 2", "slept 4"]
    assert len(server.submissions) == 1


def test_patience_ends(server: Server) -> None:
    server.trouble["/storage/"] = [503] * 99
    with pytest.raises(SubmissionError, match=f"after {ATTEMPTS} attempts.*status 503"):
        client(server).submit(b"zip", 72)
    assert server.count("/storage/") == ATTEMPTS
    assert not server.submissions


def test_a_server_that_does_not_answer_is_asked_again(server: Server) -> None:
    server.trouble["/api/datasets/"] = [0]
    assert client(server, timeout=0.3).submit(b"zip", 72) == 4711
    assert server.count("/api/datasets/") == 2


@pytest.mark.parametrize("trouble", [503, 0])
def test_a_submission_is_made_at_most_once(server: Server, trouble: int) -> None:
    server.trouble["/api/submissions/"] = [trouble]
    with pytest.raises(SubmissionError, match="may have arrived"):
        client(server, timeout=0.3).submit(b"zip", 72)
    assert server.count("/api/submissions/") == 1


BROKEN = {
    "a body cut short": b"HTTP/1.0 200 OK\r\nContent-Length: 999\r\n\r\n{",
    "no status line": b"garbage\r\n\r\n",
    "no answer at all": b"",
    "an error cut short": b"HTTP/1.0 503 Busy\r\nContent-Length: 999\r\n\r\n{",
}


@pytest.mark.parametrize("answer", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("path", ["/api/can_make_submission/", "/api/datasets/", "/storage/"])
def test_a_broken_answer_is_asked_for_again(server: Server, path: str, answer: bytes) -> None:
    server.raw[path] = [answer]
    assert client(server).submit(b"zip", 72) == 4711
    assert server.count(path) == 2


@pytest.mark.parametrize(
    "answer",
    [*BROKEN.values(), b"HTTP/1.0 201 Created\r\n\r\n<html>", b"HTTP/1.0 201 Created\r\n\r\n{}"],
    ids=[*BROKEN, "no JSON", "no number"],
)
def test_whatever_a_submission_is_answered_with_it_may_have_arrived(server: Server, answer: bytes) -> None:
    server.raw["/api/submissions/"] = [answer]
    with pytest.raises(SubmissionError, match="may have arrived"):
        client(server).submit(b"zip", 72)
    assert server.count("/api/submissions/") == 1


def test_a_refusal_is_passed_on(server: Server) -> None:
    server.trouble["/api/datasets/"] = [400]
    with pytest.raises(SubmissionError, match="status 400"):
        client(server).submit(b"zip", 72)


@pytest.mark.parametrize(("path", "needed"), [("datasets", "key and sassy_url"), ("submissions", "id")])
def test_an_answer_that_lacks_what_is_needed_is_said(server: Server, path: str, needed: str) -> None:
    server.silent.add(f"/api/{path}/")
    with pytest.raises(SubmissionError, match=f"/api/{path}/: an unexpected answer.*with {needed}"):
        client(server).submit(b"zip", 72)


def test_a_redirect_is_not_followed(server: Server) -> None:
    server.trouble["/api/can_make_submission/"] = [302]
    with pytest.raises(SubmissionError, match="status 302"):
        client(server).submit(b"zip", 72)
    assert server.count("/elsewhere/") == 0


def test_a_machine_that_is_not_there_is_said(server: Server) -> None:
    with pytest.raises(SubmissionError, match="refused"):
        Codabench(TOKEN, "http://127.0.0.1:9", sleep=lambda _: None).submit(b"zip", 72)


def test_a_token_is_not_sent_in_clear() -> None:
    with pytest.raises(SubmissionError, match="https"):
        Codabench(TOKEN, "http://www.example.org")


def test_white_space_around_a_token_is_not_part_of_it(server: Server) -> None:
    assert client(server, f" {TOKEN}\r\n").submit(b"zip", 72) == 4711


@pytest.mark.parametrize("token", ["secret\nhalf", "secret half", "secret\u2019s", "secret\x7f", " "])
def test_what_cannot_be_a_token_is_refused_without_showing_it(server: Server, token: str) -> None:
    with pytest.raises(SubmissionError, match="CODABENCH_TOKEN holds no token") as caught:
        client(server, token).submit(b"zip", 72)
    assert "secret" not in str(caught.value)
    assert not server.requests
