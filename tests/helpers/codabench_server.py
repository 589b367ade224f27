"""A server on loopback that answers like the part of Codabench that a submission needs."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

TOKEN = "0123456789abcdef"


@dataclass
class Server:
    """What the server is told to do, and what it has seen.

    Attributes:
        trouble: path prefix -> statuses to answer with first, one a request; 0 lets the request wait.
        silent: paths that are answered with an empty object.
        raw: path prefix -> bytes sent as they are instead of the next answers, one a request.
        quota: whether submissions are still allowed.
        requests: (method, path, token or None) of every request.
        archives: bodies that were stored.
        submissions: forms that made a submission.
    """

    url: str = ""
    trouble: dict[str, list[int]] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    raw: dict[str, list[bytes]] = field(default_factory=dict)
    quota: bool = True
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    archives: list[bytes] = field(default_factory=list)
    submissions: list[dict[str, list[str]]] = field(default_factory=list)

    def count(self, prefix: str) -> int:
        """Requests whose path begins so."""
        return sum(path.startswith(prefix) for _, path, _ in self.requests)


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

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            state.requests.append((self.command, self.path, self.headers.get("Authorization")))
            for prefix, statuses in state.trouble.items():
                if self.path.startswith(prefix) and statuses:
                    status = statuses.pop(0)
                    if status == 0:
                        time.sleep(1.0)
                        return
                    self.send_response(status)
                    self.send_header("Location", "/elsewhere/")
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            for prefix, answers in state.raw.items():
                if self.path.startswith(prefix) and answers:
                    self.wfile.write(answers.pop(0))
                    return
            if self.path in state.silent:
                self.answer(200, {})
            elif self.path.startswith("/storage/"):
                state.archives.append(body)
                self.answer(200)
            elif self.headers.get("Authorization") != f"Token {TOKEN}":
                self.answer(401, {"detail": "Invalid token."})
            elif self.path.startswith("/api/competitions/"):
                phases = [{"id": 71, "name": "Development Phase"}, {"id": 72, "name": "Testing Phase"}]
                self.answer(200, {"phases": phases})
            elif self.path.startswith("/api/can_make_submission/"):
                reason = "" if state.quota else "Reached maximum allowed submissions for today"
                self.answer(200, {"can": state.quota, "reason": reason})
            elif self.path == "/api/datasets/":
                form = parse_qs(body.decode())
                assert form["type"] == ["submission"]
                self.answer(201, {"key": "the-key", "sassy_url": f"{state.url}/storage/x?signature=1"})
            elif self.path == "/api/submissions/":
                state.submissions.append(parse_qs(body.decode()))
                self.answer(201, {"id": 4711, "status": "Submitting"})
            elif self.path.startswith("/api/submissions/"):
                self.answer(200, {"id": 4711, "status": "Finished"})
            else:
                self.answer(404, {"detail": "Not found."})

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
