"""A server on loopback that answers like the part of Codabench that a submission needs.

Modelled on the server's source (codalab/codabench, ``src/apps/api``), not on our client: what a call needs,
what it changes, and what the next call then sees.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

TOKEN = "0123456789abcdef"

STATES = ["Submitting", "Submitted", "Preparing", "Running", "Scoring", "Finished"]
"""What a submission goes through, as long as nothing fails."""

SCORES = {"global_map_bal": "0.4480000000", "global_map_50": "0.5050000000", "global_map_con": "0.1130000000"}
"""Django writes decimals as strings."""


@dataclass
class Dataset:
    """A file: ``datasets.models.Data``.

    Attributes:
        competition: that it belongs to; a file of none is deleted by "delete unused submissions".
        size: 0 from the empty placeholder until the upload is reported complete.
        completed: ``upload_completed_successfully``.
    """

    file_name: str
    announced: int
    competition: int | None
    body: bytes = b""
    size: int = 0
    completed: bool = False

    @property
    def stored_name(self) -> str:
        """The name before its ending is cut to 35 characters in the storage's path."""
        stem, dot, ending = self.file_name.rpartition(".")
        return stem[:35] + dot + ending


def phase(number: int, name: str, **fields: Any) -> dict[str, Any]:
    """A phase as ``PhaseDetailSerializer`` writes it."""
    return {
        "id": number,
        "index": number - 71,
        "name": name,
        "description": None,
        "start": "2026-01-01T00:00:00Z",
        "end": None,
        "status": "Current",
        "has_max_submissions": True,
        "max_submissions_per_day": 5,
        "max_submissions_per_person": 100,
        "used_submissions_per_day": 0,
        "used_submissions_per_person": 0,
        **fields,
    }


@dataclass
class Server:
    """What the server is told to do, and what it has seen.

    Attributes:
        trouble: path prefix -> statuses to answer with first, one a request; 0 lets the request wait.
        silent: paths that are answered with an empty object.
        raw: path prefix -> bytes sent as they are instead of the next answers, one a request.
        after: path prefix -> bytes sent as they are once the request has been carried out, one a request.
        quota: whether submissions are still allowed.
        participant: whether the account takes part.
        competitions: number -> phases.
        states: what a submission goes through, a step each time that it is looked at; a quick worker's,
            unless :data:`STATES` are given.
        scores: of a submission that has finished.
        log: what the scoring of a failed submission wrote.
        hides_output: whether the phase shows no logs.
        files: key -> bytes of what organisers give, such as a starting kit.
        storage: address that a file's download leads to, where it is not the server's own.
        requests: (method, path, token or None) of every request.
        archives: bodies that were stored.
        datasets: key -> file.
        submissions: forms that made a submission.
        made: number -> submission.
    """

    url: str = ""
    trouble: dict[str, list[int]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    raw: dict[str, list[bytes]] = field(default_factory=dict)
    after: dict[str, list[bytes]] = field(default_factory=dict)
    quota: bool = True
    participant: bool = True
    competitions: dict[int, list[dict[str, Any]]] = field(
        default_factory=lambda: {10954: [phase(71, "Development Phase"), phase(72, "Testing Phase")]}
    )
    states: list[str] = field(default_factory=lambda: [STATES[0], STATES[-1]])
    scores: dict[str, str] = field(default_factory=lambda: dict(SCORES))
    log: str = "Traceback (most recent call last):\n  ...\nValueError: Missing image ids"
    hides_output: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    storage: str = ""
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    archives: list[bytes] = field(default_factory=list)
    datasets: dict[str, Dataset] = field(default_factory=dict)
    submissions: list[dict[str, list[str]]] = field(default_factory=list)
    made: dict[int, dict[str, Any]] = field(default_factory=dict)

    def count(self, prefix: str) -> int:
        """Requests whose path begins so; to report a file complete is a call of its own."""
        inner = "/api/datasets/completed/"
        paths = [path for _, path, _ in self.requests if path.startswith(prefix)]
        return sum(prefix == inner or not path.startswith(inner) for path in paths)

    def delete_unused(self) -> None:
        """What the page Resources does: ``delete_unused_submissions``."""
        self.datasets = {key: d for key, d in self.datasets.items() if d.competition is not None}

    # What the views answer: a status and a value.

    def can_submit(self, number: str) -> tuple[int, Any]:
        if not any(str(p["id"]) == number for phases in self.competitions.values() for p in phases):
            return 404, {"detail": "Not found."}
        if not self.participant:
            return 200, {"can": False, "reason": "User not approved to participate in this competition"}
        reason = None if self.quota else "Reached maximum allowed submissions for today for this phase"
        return 200, {"can": self.quota, "reason": reason}

    def create_dataset(self, form: dict[str, list[str]]) -> tuple[int, Any]:
        if not form.get("file_size"):
            return 400, {"file_size": "This field is required."}
        if form.get("type") != ["submission"]:
            return 400, {"type": ["This field is required."]}
        if "request_sassy_file_name" not in form:
            return 400, {"request_sassy_file_name": ["This field is required."]}
        name = form.get("file_name", [""])[0]
        if len(name) > 64:
            return 400, {"file_name": ["Ensure this field has no more than 64 characters."]}
        competition = int(form["competition"][0]) if "competition" in form else None
        if competition is not None and competition not in self.competitions:
            return 400, {"competition": [f'Invalid pk "{competition}" - object does not exist.']}
        key = "the-key" if not self.datasets else f"key-{len(self.datasets)}"
        requested = form["request_sassy_file_name"][0]
        self.datasets[key] = Dataset(requested, int(form["file_size"][0]), competition)
        return 201, {"key": key, "sassy_url": f"{self.url}/storage/{key}?signature=1"}

    def complete_dataset(self, key: str) -> tuple[int, Any]:
        if key not in self.datasets:
            return 404, {"detail": "Not found."}
        dataset = self.datasets[key]
        dataset.completed = True
        dataset.size = dataset.size or len(dataset.body)
        return 200, {"key": key}

    def create_submission(self, form: dict[str, list[str]]) -> tuple[int, Any]:
        if form.get("data", [""])[0] not in self.datasets:
            return 400, {"data": ["Object does not exist."]}
        if not self.participant:
            return 403, {"detail": "You do not have access to this competition to make a submission"}
        if not self.quota:
            return 500, None  # a PermissionError of Python's, not of the framework
        self.submissions.append(form)
        number = 4711 + len(self.made)
        names = {p["id"]: p["name"] for phases in self.competitions.values() for p in phases}
        chosen = int(form["phase"][0])
        self.made[number] = {
            "id": number,
            "pk": number,
            "phase": chosen,
            "phase_name": names.get(chosen, ""),
            "filename": self.datasets[form["data"][0]].stored_name,
            "created_when": datetime.now(timezone.utc).isoformat(),
            "status": self.states[0],
            "status_details": None,
            "scores": [],
            "on_leaderboard": False,
            "parent": None,
            "children": [],
        }
        created = {key: self.made[number][key] for key in ("id", "phase", "status", "status_details")}
        return 201, created

    def look_at(self, number: int) -> tuple[int, Any]:
        """One submission; its state moves on, as a worker would move it."""
        if number not in self.made:
            return 404, {"detail": "Not found."}
        found = self.made[number]
        now = self.states.index(found["status"]) if found["status"] in self.states else -1
        found["status"] = self.states[min(now + 1, len(self.states) - 1)]
        if found["status"] == "Finished":
            found["scores"] = [
                {"id": n, "index": n, "score": score, "column_key": key}
                for n, (key, score) in enumerate(self.scores.items())
            ]
            found["on_leaderboard"] = True
        if found["status"] == "Failed":
            found["status_details"] = "scoring_hostname-worker6"  # what a worker leaves there
        return 200, found

    def details(self, number: int) -> tuple[int, Any]:
        if self.hides_output:
            return 403, {"detail": "Cannot access submission details while phase marked to hide output."}
        names = ("prediction_stderr", "scoring_stdout", "scoring_stderr")
        return 200, {"logs": [{"name": n, "data_file": f"{self.url}/storage/{n}.txt?s=1"} for n in names]}

    def listed(self, query: dict[str, list[str]]) -> tuple[int, Any]:
        chosen = [s for s in self.made.values() if query.get("phase", [str(s["phase"])]) == [str(s["phase"])]]
        if "phase__competition" in query:
            phases = {p["id"] for p in self.competitions.get(int(query["phase__competition"][0]), [])}
            chosen = [s for s in chosen if s["phase"] in phases]
        return 200, sorted(chosen, key=lambda s: -s["id"])

    def competition(self, number: int) -> tuple[int, Any]:
        if number not in self.competitions:
            return 404, {"detail": "Not found."}
        for each in self.competitions[number]:
            used = sum(s["phase"] == each["id"] and s["status"] != "Failed" for s in self.made.values())
            each["used_submissions_per_day"] = each["used_submissions_per_person"] = used
        columns = [{"key": key, "index": n, "hidden": False} for n, key in enumerate(self.scores)]
        board = {"id": 1, "primary_index": 0, "key": "main", "columns": columns}
        return 200, {
            "id": number,
            "title": f"Competition {number}",
            "participant_status": "approved" if self.participant else None,
            "phases": self.competitions[number],
            "leaderboards": [board],
        }

    def answer(self, method: str, path: str, body: bytes) -> tuple[int, Any]:
        """What an account with a valid token gets."""
        parts = urlsplit(path)
        place = parts.path.removeprefix("/api/").strip("/").split("/")
        form = {key: value for key, value in parse_qs(body.decode()).items() if body}
        if place[0] == "competitions":
            return self.competition(int(place[1]))
        if place[0] == "can_make_submission":
            return self.can_submit(place[1])
        if place[:2] == ["datasets", "completed"] and method == "PUT":
            return self.complete_dataset(place[2])
        if place == ["datasets"] and method == "POST":
            return self.create_dataset(form)
        if place == ["submissions"]:
            return self.create_submission(form) if method == "POST" else self.listed(parse_qs(parts.query))
        if place[0] == "submissions" and place[2:] == ["get_details"]:
            return self.details(int(place[1]))
        if place[0] == "submissions":
            return self.look_at(int(place[1]))
        return 404, {"detail": "Not found."}


@contextmanager
def codabench() -> Iterator[Server]:
    """Run the server on a free port."""
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None:
            pass

        def answer(self, status: int, value: Any = None) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def send_text(self, text: str) -> None:
            self.send_bytes(text.encode())

        def send_bytes(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def send_file(self, key: str) -> None:
            """``datasets.views.download``: to anybody, by a redirect to a signed address of the storage."""
            self.send_response(302 if key in state.files else 404)
            self.send_header("Location", state.storage or f"{state.url}/storage/files/{key}?signature=1")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append((self.command, self.path, self.headers.get("Authorization")))
            if self.has_trouble():
                return
            if urlsplit(self.path).path in state.silent:
                self.answer(200, {})
                return
            if self.path.startswith("/datasets/download/"):
                self.send_file(self.path.split("/")[3])
                return
            if self.path.startswith("/storage/files/") and self.command == "GET":
                self.send_bytes(state.files[urlsplit(self.path).path.rpartition("/")[2]])
                return
            if self.path.startswith("/storage/") and self.command == "GET":
                self.send_text(state.log if "scoring_stderr" in self.path else "")
                return
            if self.path.startswith("/storage/"):
                state.archives.append(body)
                state.datasets[urlsplit(self.path).path.removeprefix("/storage/")].body = body
                self.answer(200)
                return
            if self.headers.get("Authorization") != f"Token {TOKEN}":
                self.answer(403, {"detail": "Invalid token."})
                return
            status, value = state.answer(self.command, self.path, body)
            for prefix, answers in state.after.items():
                if self.path.startswith(prefix) and answers:
                    self.wfile.write(answers.pop(0))
                    return
            self.answer(status, value)

        def has_trouble(self) -> bool:
            for prefix, statuses in state.trouble.items():
                if self.path.startswith(prefix) and statuses:
                    status = statuses.pop(0)
                    if status == 0:
                        time.sleep(1.0)
                        return True
                    self.send_response(status)
                    self.send_header("Location", "/elsewhere/")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return True
            for prefix, answers in state.raw.items():
                if self.path.startswith(prefix) and answers:
                    self.wfile.write(answers.pop(0))
                    return True
            return False

        do_GET = do_POST = do_PUT = handle_any

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
