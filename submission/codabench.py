"""Sending a zip to Codabench, with nothing but the standard library.

The four steps of Codabench's web page: ask whether the phase takes a submission, announce a file, send its
bytes to the storage address that comes back, and make the submission. The account's API token goes to
Codabench alone: not to the storage address, not along a redirect, not into a message.
"""

from __future__ import annotations

import json
import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException
from typing import Any

from submission.errors import SubmissionError

URL = "https://www.codabench.org"
COMPETITION = 10954
"""RTIOD at WACV 2026."""

ATTEMPTS = 5
TIMEOUT = 60.0
"""Seconds without an answer."""

TRANSIENT = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)


MAY_HAVE_ARRIVED = "it may have arrived all the same: look at your submissions before you try again"


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would carry the token along to wherever it is sent."""

    def redirect_request(self, *_: Any) -> None:
        return None


@dataclass(frozen=True)
class Codabench:
    """A Codabench account.

    Attributes:
        token: the account's API token; never shown; white space around it is taken off.
        url: the instance; plain http is accepted on this machine alone.
        timeout: seconds without an answer.
        sleep: waits between attempts; seconds.
        note: is told what happens, a line each.
    """

    token: str = field(repr=False)
    url: str = URL
    timeout: float = TIMEOUT
    sleep: Callable[[float], None] = time.sleep
    note: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        object.__setattr__(self, "token", self.token.strip())
        if not re.fullmatch("[!-~]+", self.token):
            raise SubmissionError(
                "CODABENCH_TOKEN holds no token", expected="visible ASCII characters without white space"
            )
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise SubmissionError(
                f"{self.url} would see the token in clear", expected="an address that begins with https://"
            )

    def phase_id(self, phase: str, competition: int = COMPETITION) -> int:
        """The number of a competition's phase, by the beginning of its name (``dev``, ``test``).

        Raises:
            SubmissionError: no phase, or more than one, has such a name.
        """
        found = self._call("GET", f"/api/competitions/{competition}/")
        phases = {int(p["id"]): str(p.get("name", "")) for p in found.get("phases", [])}
        wanted = [i for i, name in phases.items() if phase[:3] in name.lower()]
        if len(wanted) != 1:
            raise SubmissionError(
                f"cannot tell which phase of competition {competition} is {phase}",
                found=", ".join(f"{i} {name!r}" for i, name in phases.items()) or "no phases",
                fix="name its number: --phase-id",
            )
        return wanted[0]

    def submit(self, archive: bytes, phase_id: int, name: str = "submission.zip") -> int:
        """Send a zip to a phase; this uses up one submission of the day.

        Returns:
            The number of the submission.

        Raises:
            SubmissionError: the token or the submission is refused, the quota is used up, or the server
                does not answer properly after :data:`ATTEMPTS` attempts.
        """
        allowed = self._call("GET", f"/api/can_make_submission/{phase_id}/")
        if not allowed.get("can"):
            raise SubmissionError(
                f"Codabench takes no submission for phase {phase_id}",
                found=str(allowed.get("reason", "no reason given")),
                fix="the quota renews daily",
            )
        self.note(f"announcing {name}, {len(archive):,} bytes")
        announced = {"type": "submission", "request_sassy_file_name": name, "file_size": len(archive)}
        dataset = self._call("POST", "/api/datasets/", announced, needed=("key", "sassy_url"))
        self.note("sending it")
        self._send(str(dataset["sassy_url"]), archive)
        # Made once: a second attempt after a lost answer could use up a second submission.
        form = {"phase": phase_id, "data": dataset["key"]}
        made = self._call("POST", "/api/submissions/", form, attempts=1, needed=("id",))
        return int(made["id"])

    def status(self, submission: int) -> str:
        """``Submitted``, ``Running``, ``Finished``, ``Failed`` and so on."""
        return str(self._call("GET", f"/api/submissions/{submission}/").get("status", "unknown"))

    def _call(
        self,
        method: str,
        path: str,
        form: dict[str, Any] | None = None,
        attempts: int = ATTEMPTS,
        needed: Collection[str] = (),
    ) -> dict[str, Any]:
        data = urllib.parse.urlencode(form).encode() if form is not None else None
        headers = {"Authorization": f"Token {self.token}", "Accept": "application/json"}
        request = urllib.request.Request(urllib.parse.urljoin(self.url, path), data, headers, method=method)
        answer = self._attempt(request, f"{method} {path}", attempts)
        fix = MAY_HAVE_ARRIVED if attempts == 1 else ""
        try:
            value = json.loads(answer)
        except ValueError as error:
            raise SubmissionError(
                f"{method} {path}: the answer is no JSON", found=repr(answer[:80]), fix=fix
            ) from error
        if not isinstance(value, dict) or not value.keys() >= set(needed):
            raise SubmissionError(
                f"{method} {path}: an unexpected answer",
                found=repr(answer[:80]),
                expected="an object" + (" with " + " and ".join(needed) if needed else ""),
                fix=fix,
            )
        return value

    def _send(self, url: str, archive: bytes) -> None:
        headers = {"Content-Type": "application/zip"}
        request = urllib.request.Request(url, archive, headers, method="PUT")
        self._attempt(request, "sending the archive to Codabench's storage", ATTEMPTS)

    def _attempt(self, request: urllib.request.Request, what: str, attempts: int) -> bytes:
        opener = urllib.request.build_opener(_NoRedirect)
        trouble = ""
        for attempt in range(attempts):
            if attempt:
                delay = 2.0 ** (attempt - 1)
                self.note(f"{what}: {trouble}; again in {delay:g} s")
                self.sleep(delay)
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    body: bytes = response.read()
                    return body
            except urllib.error.HTTPError as error:
                detail = ""
                with error, suppress(OSError, HTTPException):
                    detail = error.read(300).decode(errors="replace").strip()
                refused = error.code in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
                if refused and request.has_header("Authorization"):
                    raise SubmissionError(
                        f"{what}: Codabench refuses the token",
                        found=f"status {error.code}",
                        fix="set CODABENCH_TOKEN to the API token of an account that takes part",
                    ) from None
                if error.code not in TRANSIENT:
                    raise SubmissionError(
                        f"{what} failed",
                        found=f"status {error.code}" + (f": {detail}" if detail else ""),
                        fix="try again: each time it is sent to a new address" if refused else "",
                    ) from None
                trouble = f"status {error.code}"
            except TimeoutError:
                trouble = f"no answer within {self.timeout:g} s"
            except OSError as error:
                trouble = str(getattr(error, "reason", error))
            except HTTPException as error:
                trouble = f"a broken answer, {error!r:.80}"
        raise SubmissionError(
            f"{what} failed after {attempts} attempt{'s' if attempts > 1 else ''}",
            found=trouble,
            fix=MAY_HAVE_ARRIVED if attempts == 1 else "try again later",
        )
