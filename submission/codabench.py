"""Sending a zip to Codabench, with nothing but the standard library.

The five calls of Codabench's web page (codalab/codabench, ``submission_upload.tag`` and ``client.js``): ask
whether the phase takes a submission, announce a file, send its bytes to the storage address that comes back,
report the file as complete, and make the submission. The account's API token goes to Codabench alone: not to
the storage address, not along a redirect, not into a message.

What a server answers is held against a type before it is used; an answer of another shape is one
:class:`SubmissionError`.
"""

from __future__ import annotations

import re
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPException, HTTPResponse, IncompleteRead
from typing import Any, TypeVar, get_origin

import msgspec

from submission.answers import Allowed, Competition, Dataset, Details, Made, MadeNumber, Phase
from submission.competitions import DEFAULT, phase_of
from submission.errors import NO_JSON, SubmissionError

URL = "https://www.codabench.org"
ATTEMPTS = 5
TIMEOUT = 60.0
"""Seconds without an answer."""

LARGEST_ANSWER = 64 << 20
"""Bytes; a longer answer is none of Codabench's."""

LONGEST_NAME = 35
"""Characters of a file's name, before ``.zip``, that Codabench keeps; above 64 in all it refuses the file."""

TRANSIENT = (
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)

MAY_HAVE_ARRIVED = "it may have arrived all the same: look at your submissions before you try again"

Answer = TypeVar("Answer")


class RefusedError(SubmissionError):
    """The server answered, and said no: asking again changes nothing."""


class UncertainError(SubmissionError):
    """The one request that makes a submission was sent, and what came of it is not known."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would carry the token along to wherever it is sent."""

    def redirect_request(self, *_: Any) -> None:
        return None


class _ToStorage(urllib.request.HTTPRedirectHandler):
    """For requests without a token: on to an address where nobody on the way can change what comes."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if not _is_address(newurl):
            raise SubmissionError(
                f"{req.full_url} leads to an address that cannot be used",
                found=repr(newurl[:80]),
                expected="an address that begins with https://",
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


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
        if not _is_private(self.url):
            raise SubmissionError(
                f"{self.url} would see the token in clear", expected="an address that begins with https://"
            )

    def competition(self, number: int = DEFAULT) -> Competition:
        """A competition and its phases.

        Raises:
            SubmissionError: there is no such competition, or the token may not see it.
        """
        return self._call("GET", f"/api/competitions/{number}/", kind=Competition)

    def phase_id(self, phase: str, competition: int = DEFAULT) -> int:
        """The number of a competition's phase, by the name that it has here.

        Raises:
            SubmissionError: no phase, or more than one, has such a name.
        """
        return find_phase(self.competition(competition), phase, competition).id

    def submit(
        self,
        archive: bytes,
        phase_id: int,
        name: str = "submission.zip",
        competition: int = DEFAULT,
    ) -> int:
        """Send a zip to a phase; this uses up one submission of the day.

        Returns:
            The number of the submission.

        Raises:
            SubmissionError: the token or the submission is refused, the quota is used up, or the server
                does not answer properly after :data:`ATTEMPTS` attempts.
        """
        self.check_quota(phase_id)
        return self.make(self.store(archive, name, competition), phase_id)

    def check_quota(self, phase_id: int) -> None:
        """Ask whether a phase takes one more submission of this account.

        Raises:
            SubmissionError: it does not.
        """
        allowed = self._call("GET", f"/api/can_make_submission/{phase_id}/", kind=Allowed)
        if not allowed.can:
            why = plain(allowed.reason or "no reason given")
            used_up = "maximum" in why
            raise SubmissionError(
                f"Codabench takes no submission for phase {phase_id}",
                found=why,
                fix="the quota renews at midnight, server time" if used_up and "today" in why else "",
            )

    def store(self, archive: bytes, name: str, competition: int = DEFAULT) -> str:
        """Send a file to Codabench's storage; it is no submission yet.

        Args:
            archive: the zip.
            name: the file's name; the server keeps the first :data:`LONGEST_NAME` characters before ``.zip``.
            competition: that it is for. A file of none is deleted with the account's "unused submissions".

        Returns:
            The key of the file.
        """
        self.note(f"announcing {name}, {len(archive):,} bytes")
        announced = {
            "type": "submission",
            "competition": competition,
            "request_sassy_file_name": name,
            "file_name": name,
            "file_size": len(archive),
        }
        dataset = self._call("POST", "/api/datasets/", announced, kind=Dataset)
        if not _is_address(dataset.sassy_url):
            raise SubmissionError(
                "POST /api/datasets/: the storage address cannot be used",
                found=repr(dataset.sassy_url[:80]),
                expected="an address that begins with https://",
            )
        self.note("sending it")
        self._send(dataset.sassy_url, archive)
        # Until then the file counts as empty and unfinished.
        key = urllib.parse.quote(dataset.key, safe="")
        self._call("PUT", f"/api/datasets/completed/{key}/", {}, kind=dict[str, Any])
        return dataset.key

    def make(self, key: str, phase_id: int) -> int:
        """Make a stored file a submission; asked once, because a second one could use up a second submission.

        Returns:
            The number of the submission.

        Raises:
            UncertainError: the server may have made it all the same.
            SubmissionError: it was refused.
        """
        form = {"phase": phase_id, "data": key}
        return self._call("POST", "/api/submissions/", form, attempts=1, kind=MadeNumber).id

    def status(self, submission: int) -> str:
        """``Submitted``, ``Running``, ``Finished``, ``Failed`` and so on."""
        return self.submission(submission).status

    def submission(self, number: int) -> Made:
        """One submission of this account.

        Raises:
            SubmissionError: there is none of this number, or the answer is none.
        """
        found = self._call("GET", f"/api/submissions/{number}/", kind=Made)
        if found.id != number:
            raise SubmissionError(
                f"GET /api/submissions/{number}/: an unexpected answer", found=f"submission {found.id}"
            )
        return found

    def submissions(self, phase_id: int) -> list[Made]:
        """This account's submissions in a phase, the newest first."""
        found = self._call("GET", f"/api/submissions/?phase={phase_id}", kind=list[Made])
        return sorted((s for s in found if s.phase in (phase_id, None)), key=lambda s: -s.id)

    def log(self, number: int, characters: int = 600) -> str:
        """The end of what the scoring of a submission wrote to its error stream, in one line; may be empty.

        Raises:
            SubmissionError: the phase hides it, or the server does not answer.
        """
        details = self._call("GET", f"/api/submissions/{number}/get_details/", kind=Details)
        texts = []
        for log in details.logs:
            if log.name.endswith("scoring_stderr") and _is_address(log.data_file or ""):
                request = urllib.request.Request(log.data_file or "")
                texts.append(self._attempt(request, "reading the log", ATTEMPTS).decode(errors="replace"))
        return plain(" ".join(texts))[-characters:]

    def file(self, key: str) -> bytes:
        """A file that the organisers give, such as a starting kit; the token is not needed, and stays here.

        Raises:
            SubmissionError: there is none, it is larger than :data:`LARGEST_ANSWER`, or the way to it leads
                over an address that others can read.
        """
        path = f"/datasets/download/{urllib.parse.quote(key, safe='')}/"
        request = urllib.request.Request(urllib.parse.urljoin(self.url, path))
        return self._attempt(request, f"GET {path}", ATTEMPTS, _ToStorage)

    def _call(
        self,
        method: str,
        path: str,
        form: dict[str, Any] | None = None,
        attempts: int = ATTEMPTS,
        *,
        kind: type[Answer],
    ) -> Answer:
        data = urllib.parse.urlencode(form).encode() if form is not None else None
        headers = {"Authorization": f"Token {self.token}", "Accept": "application/json"}
        request = urllib.request.Request(urllib.parse.urljoin(self.url, path), data, headers, method=method)
        answer = self._attempt(request, f"{method} {path}", attempts)
        error = UncertainError if attempts == 1 else SubmissionError
        fix = MAY_HAVE_ARRIVED if attempts == 1 else ""
        try:
            return msgspec.json.decode(answer, type=kind)
        except msgspec.ValidationError as wrong:
            raise error(
                f"{method} {path}: an unexpected answer",
                found=f"{answer[:80]!r} ({wrong})",
                expected=_shape(kind),
                fix=fix,
            ) from wrong
        except NO_JSON as wrong:
            raise error(
                f"{method} {path}: the answer is no JSON", found=repr(answer[:80]), fix=fix
            ) from wrong

    def _send(self, url: str, archive: bytes) -> None:
        headers = {"Content-Type": "application/zip"}
        request = urllib.request.Request(url, archive, headers, method="PUT")
        self._attempt(request, "sending the archive to Codabench's storage", ATTEMPTS)

    def _attempt(
        self,
        request: urllib.request.Request,
        what: str,
        attempts: int,
        redirects: type[urllib.request.HTTPRedirectHandler] = _NoRedirect,
    ) -> bytes:
        opener = urllib.request.build_opener(redirects)
        trouble = ""
        for attempt in range(attempts):
            if attempt:
                delay = 2.0 ** (attempt - 1)
                self.note(f"{what}: {trouble}; again in {delay:g} s")
                self.sleep(delay)
            try:
                with opener.open(request, timeout=self.timeout) as response:
                    return _body(response, what)
            except urllib.error.HTTPError as error:
                detail = ""
                with error, suppress(OSError, HTTPException):
                    detail = error.read(300).decode(errors="replace").strip()
                if error.code not in TRANSIENT:
                    raise _refusal(request, what, error.code, detail) from None
                trouble = f"status {error.code}"
            except TimeoutError:
                trouble = f"no answer within {self.timeout:g} s"
            except OSError as error:
                trouble = str(getattr(error, "reason", error))
            except HTTPException as error:
                trouble = f"a broken answer, {error!r:.80}"
        kind = UncertainError if attempts == 1 else SubmissionError
        raise kind(
            f"{what} failed after {attempts} attempt{'s' if attempts > 1 else ''}",
            found=trouble,
            fix=MAY_HAVE_ARRIVED if attempts == 1 else "try again later",
        )


def _body(response: HTTPResponse, what: str) -> bytes:
    """The whole of an answer.

    Raises:
        SubmissionError: it is longer than an answer can be.
        IncompleteRead: it broke off.
    """
    if (response.length or 0) > LARGEST_ANSWER:
        raise SubmissionError(
            f"{what}: the answer is too long",
            found=f"{response.length:,} bytes",
            expected=f"at most {LARGEST_ANSWER:,}",
        )
    body = response.read(LARGEST_ANSWER)
    if response.length:
        raise IncompleteRead(body, response.length)
    return body


def find_phase(competition: Competition, phase: str, number: int) -> Phase:
    """The phase of a competition that a name of ours stands for, by the words of ``competitions.KNOWN``.

    Raises:
        SubmissionError: no phase, or more than one, has such a name.
    """
    known = phase_of(number, phase)
    wanted = [each for each in competition.phases if known is not None and known.is_called(each.name)]
    if len(wanted) != 1:
        raise SubmissionError(
            f"cannot tell which phase of competition {number} is {phase}",
            found=competition.listed(),
            fix="name its number: --phase-id",
        )
    return wanted[0]


def _shape(kind: type) -> str:
    """A kind of answer in words."""
    if not (isinstance(kind, type) and issubclass(kind, msgspec.Struct)):
        return "a list of objects" if get_origin(kind) is list else "an object"
    needed = [each.name for each in msgspec.structs.fields(kind) if each.required]
    return "an object" + (" with " + " and ".join(needed) if needed else "")


def _is_private(url: str) -> bool:
    """Whether nobody on the way can read what is sent there."""
    try:
        parts = urllib.parse.urlsplit(url)
        local = parts.scheme == "http" and parts.hostname in ("localhost", "127.0.0.1", "::1")
        return local or (parts.scheme == "https" and bool(parts.hostname))
    except ValueError:
        return False


def _is_address(url: str) -> bool:
    return _is_private(url) and bool(re.fullmatch("[!-~]+", url))


def plain(text: str) -> str:
    """Foreign text as one line without control characters, which a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _refusal(request: urllib.request.Request, what: str, status: int, detail: str) -> SubmissionError:
    found = f"status {status}" + (f": {plain(detail)}" if detail else "")
    refused = status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    if refused and request.has_header("Authorization"):
        return RefusedError(
            f"{what}: Codabench refuses the token",
            found=found,
            fix="set CODABENCH_TOKEN to the API token of an account that takes part",
        )
    fix = "try again: each time it is sent to a new address" if refused else ""
    if "Insufficient space" in detail:
        fix = "make room on Codabench's page Resources"
    return RefusedError(f"{what} failed", found=found, fix=fix)
