"""Fetch LTDv2's four files: resumed after any interruption, checked against the hub's sizes and hashes.

The hub serves each file at an address of its own and lists sizes and hashes, so plain HTTP with range
requests is all it takes. Its own client keeps nothing of an interrupted file (ARCHITECTURE.md, Dependencies).
"""

from __future__ import annotations

import hashlib
import http.client
import os
import random
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, cast

import msgspec

from submission.errors import NO_JSON, remedy
from toolkit import console
from toolkit.dataset.annotations import read_annotations
from toolkit.dataset.archive import read_directory
from toolkit.errors import ToolkitError
from toolkit.files import replacing
from toolkit.ltdv2 import ARCHIVE, FILES, REPOSITORY, REVISION

ENDPOINT = "https://huggingface.co"
"""Address of the hub; the environment's HF_ENDPOINT names a mirror."""

CHUNK = 1 << 20
TIMEOUT = 60.0
"""Seconds without a byte after which a connection is taken for dead."""

ATTEMPTS = 8
"""Requests in a row that may bring nothing new; one that gets further starts the count again."""

TRIES = 2
"""Times that a whole file is fetched before its hash is believed to be wrong at the source."""

LONGEST_PAUSE = 120.0
LONGEST_ASKED = 3600.0
"""Seconds between two requests: what the pause grows to, and the most that a server may ask for."""

SPARE_BYTES = 1 << 30
"""Space left on the disk beyond the files, for the index."""


class _Lfs(msgspec.Struct):
    oid: str


class _Entry(msgspec.Struct):
    path: str
    size: int
    oid: str = ""
    lfs: _Lfs | None = None


class Verified(msgspec.Struct, frozen=True):
    """A file whose hash was compared (a value of ``download.json``): not hashed again while it stays so."""

    size: int
    modified: int
    digest: str


class _Retry(Exception):
    """A request failed in a way that may pass. ``pause``: seconds that the server asks to wait."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


_MAY_PASS = (_Retry, *NO_JSON, http.client.HTTPException, OSError)


def download(folder: Path, *, revision: str = REVISION, source: Path | None = None) -> list[str]:
    """Fetch the four files into ``folder``. Files that are there and sound stay; partial ones are continued.

    Args:
        folder: where they go.
        revision: of the dataset on the hub; the default is the one that this package was written for.
        source: an existing copy: its files are checked as well, and linked instead of fetched; annotation
            files that it lacks are fetched. Where the hub cannot be reached they are held against the copy's
            own ``download.json``, or else against themselves, and it is said what that leaves open.

    Returns:
        Files that are still missing: TestNoLabels.json, where the copy lacks it and the hub is out of reach.

    Raises:
        ToolkitError: no access, no space, another file than the hub lists in ``folder`` or ``source``, or the
            server keeps sending something else than it lists.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if source is None:
            entries = _listing(revision)
            _check_space(folder, entries)
        else:
            source = _copy_in(Path(source))
            try:
                entries = _ask(revision)
            except _MAY_PASS as error:
                console.warn(f"the hub cannot be asked for sizes and hashes: {error}")
                entries = _recorded(source)
                if not entries:
                    return _look_at(folder, _link_unlisted(source, folder))
            _check_sizes(source, entries)
        for name in FILES:
            entry, final = entries[name], folder / name
            if final.exists():
                _require_sound(final, entry)
                console.note(f"{name} is there and sound")
            elif source is None or not (source / name).is_file():
                _fetch(folder, name, entry, revision)
            else:
                _require_sound(source / name, entry)
                _link(source / name, final)
            _record(folder, name, entry)
        return _look_at(folder)
    except OSError as error:
        raise ToolkitError(
            f"cannot write to {folder}",
            found=error.strerror or str(error),
            fix=f"{remedy(error)}; the next run continues where this one stopped",
        ) from error


def is_the_hubs(file: Path) -> bool:
    """Whether a file is, by size and time, one whose hash was right, as ``download.json`` beside it says."""
    known, stat = _receipt(file.parent).get(file.name), file.stat()
    return known is not None and (known.size, known.modified) == (stat.st_size, stat.st_mtime_ns)


def _copy_in(source: Path) -> Path:
    """The folder of a copy that holds the files: itself, or the hub's layout below it."""
    for folder in (source, source / "data", *sorted(source.glob("snapshots/*/data"))):
        if any((folder / name).is_file() for name in FILES):
            return folder
    return source


def _look_at(folder: Path, missing: Sequence[str] = ()) -> list[str]:
    """The files that are known to be missing; the others must be there, behind whatever links."""
    if gone := [name for name in FILES if name not in missing and not (folder / name).is_file()]:
        raise ToolkitError(
            f"{folder} is not complete",
            found=", ".join(
                f"{name}, a link to nothing" if (folder / name).is_symlink() else f"no {name}"
                for name in gone
            ),
            fix="run this again",
        )
    return list(missing)


def _link(file: Path, final: Path) -> None:
    file = file.resolve()  # a hub cache has relative links, which mean nothing from elsewhere
    if final.is_symlink():
        final.unlink()  # it leads nowhere: whoever calls has looked
    try:
        os.link(file, final)
    except OSError:  # on another disk
        final.symlink_to(file)


def _recorded(source: Path) -> dict[str, _Entry]:
    """What the hub listed when ``source`` was fetched, as its ``download.json`` has it; empty without one."""
    receipt = _receipt(source)
    if not receipt.keys() >= set(FILES):
        return {}
    console.note(f"comparing with the hub's sizes and hashes in {source / 'download.json'}")
    return {
        name: _Entry(name, file.size, file.digest, _Lfs(file.digest) if len(file.digest) == 64 else None)
        for name, file in receipt.items()
    }


def _link_unlisted(source: Path, folder: Path) -> list[str]:
    """Link a copy after checking what its files prove by themselves: that they are whole and can be read.

    Returns:
        Files that neither has, of those that training does without.
    """
    missing = [name for name in FILES if not any((place / name).is_file() for place in (source, folder))]
    if set(missing) - {"TestNoLabels.json"}:
        raise ToolkitError(f"{source} is no copy of LTDv2", found="no " + ", no ".join(missing))
    present = [name for name in FILES if name not in missing]
    for name in present:
        file = folder / name if (folder / name).exists() else source / name
        if file.suffix == ".zip":
            console.note(f"{name} is whole: {len(read_directory(file)):,} members")
        else:
            annotations = read_annotations(file)
            images, boxes = len(annotations.image_ids), len(annotations.labels)
            console.note(f"{name} is whole: {images:,} images, {boxes:,} boxes")
    for name in present:
        if not (folder / name).exists():
            _link(source / name, folder / name)
    console.warn(
        f"not checked: whether these are the hub's files (run this again when it can be reached), and the "
        f"frames' bytes (toolkit dataset verify {folder} --deep, once it is prepared)"
    )
    if missing:
        console.warn(f"neither has {missing[0]}: the test split cannot be predicted; the hub has it")
    return missing


def _check_sizes(source: Path, entries: dict[str, _Entry]) -> None:
    """Refuse a copy of another revision, or without its frames, before anything large is read.

    Annotation files that it lacks are fetched.
    """
    sizes = {name: (source / name).stat().st_size if (source / name).is_file() else None for name in FILES}
    fetched = {name for name in FILES if sizes[name] is None} if sizes[ARCHIVE] is not None else set()
    if wrong := [name for name in FILES if name not in fetched and sizes[name] != entries[name].size]:
        raise ToolkitError(
            f"{source} is no copy of LTDv2 at this revision",
            found=", ".join(
                f"{n}: {'missing' if sizes[n] is None else f'{sizes[n]:,} bytes'}" for n in wrong
            ),
            expected=", ".join(f"{name}: {entries[name].size:,} bytes" for name in wrong),
            fix="fetch the files instead: toolkit dataset download DIR, without --from",
        )


def _address(path: str) -> str:
    return f"{os.environ.get('HF_ENDPOINT', ENDPOINT).rstrip('/')}/{path}"


@contextmanager
def _open(address: str, start: int = 0) -> Iterator[http.client.HTTPResponse]:
    """Open an address. Raises _Retry for what may pass, ToolkitError for what will not."""
    request = urllib.request.Request(address, headers={"User-Agent": "ltdv2-toolkit"})
    if start:
        request.add_header("Range", f"bytes={start}-")
    if token := os.environ.get("HF_TOKEN"):
        # Not for the storage server that the hub redirects to.
        request.add_unredirected_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:
            yield cast(http.client.HTTPResponse, response)
    except urllib.error.HTTPError as error:
        if error.code in (408, 416, 429) or error.code >= 500:
            pause = _seconds(error.headers.get("Retry-After", ""))
            raise _Retry(f"HTTP {error.code} {error.reason}", pause) from error
        fixes = {
            401: "set HF_TOKEN to an access token",
            403: "accept the dataset's terms on its page and set HF_TOKEN",
            404: "check the revision",
        }
        raise ToolkitError(
            f"{address} cannot be fetched",
            found=f"HTTP {error.code} {error.reason}",
            fix=fixes.get(error.code, ""),
        ) from error
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Retry(str(getattr(error, "reason", error)) or type(error).__name__) from error


def _seconds(retry_after: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or a date (RFC 9110, 10.2.3); at least 0."""
    if retry_after.isdecimal():
        return float(retry_after)
    with suppress(ValueError):
        return max(parsedate_to_datetime(retry_after).timestamp() - time.time(), 0.0)
    return 0.0


def _listing(revision: str) -> dict[str, _Entry]:
    """:func:`_ask`, as often as it takes."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            entries = _ask(revision)
            break
        except _MAY_PASS as error:
            _pause(attempt, "the list of files", error)
    return entries


def _ask(revision: str) -> dict[str, _Entry]:
    """Sizes and hashes of the files at a revision. Raises one of _MAY_PASS, or ToolkitError."""
    address = _address(f"api/datasets/{REPOSITORY}/tree/{revision}/data")
    with _open(address) as response:
        entries = msgspec.json.decode(response.read(), type=list[_Entry])
    found = {entry.path.rpartition("/")[2]: entry for entry in entries}
    missing = [name for name in FILES if name not in found]
    if missing:
        raise ToolkitError(f"{address} does not list " + ", ".join(missing), fix="check the revision")
    return found


def _check_space(folder: Path, entries: dict[str, _Entry]) -> None:
    wanted = SPARE_BYTES
    for name in FILES:
        have = [
            p.stat().st_size for p in (folder / name, _partial(folder, name, entries[name])) if p.exists()
        ]
        wanted += max(entries[name].size - max(have, default=0), 0)
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise ToolkitError(
            f"{folder} has too little space",
            found=f"{free / 1e9:.1f} GB free",
            expected=f"{wanted / 1e9:.1f} GB",
            fix="choose a folder on another disk",
        )


def _digest_of(entry: _Entry) -> str:
    return entry.lfs.oid if entry.lfs else entry.oid


def _partial(folder: Path, name: str, entry: _Entry) -> Path:
    return folder / f".{name}.{_digest_of(entry)[:12]}.part"


def _fetch(folder: Path, name: str, entry: _Entry, revision: str) -> None:
    partial = _partial(folder, name, entry)
    address = _address(f"datasets/{REPOSITORY}/resolve/{revision}/{entry.path}")
    for _ in range(TRIES):
        _transfer(address, partial, name, entry.size)
        if _hash(partial, entry) == _digest_of(entry):
            break
        partial.unlink()
    else:
        raise ToolkitError(
            f"{name} cannot be fetched",
            found=f"{TRIES} times other bytes than the hub's hash is of",
            fix="try another network or mirror (HF_ENDPOINT)",
        )
    with partial.open("rb+") as file:
        os.fsync(file.fileno())
    partial.replace(folder / name)


def _transfer(address: str, partial: Path, name: str, size: int) -> None:
    """Fetch until ``partial`` has ``size`` bytes, through any number of broken connections."""
    partial.touch()
    failures, furthest, shown = 0, partial.stat().st_size, 0
    with console.progress(f"fetching {name}", size >> 20, "MB") as advance:
        while True:
            error: Exception = _Retry("the connection ended early")
            try:
                for done in _continue(address, partial, size):
                    advance(max((done >> 20) - shown, 0))
                    shown = max(shown, done >> 20)
                    if done > furthest:  # than in any request: one that repeats bytes could go on for ever
                        furthest, failures = done, 0
            except (_Retry, http.client.HTTPException, ConnectionError, TimeoutError) as caught:
                error = caught
            if partial.stat().st_size == size:
                return
            failures += 1
            _pause(failures, name, error)


def _continue(address: str, partial: Path, size: int) -> Iterator[int]:
    """Append to ``partial`` what is missing of ``size`` bytes; yields the bytes that are there.

    What a server sends beyond is not read: whether the file is the right one its hash says.
    """
    start = partial.stat().st_size
    if start >= size:
        return
    with _open(address, start) as response, partial.open("rb+") as file:
        if start and response.status != 206:
            start = 0  # the server ignored the range and sends all
        if start and not response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
            raise _Retry("the server sends another range than it was asked for")
        file.truncate(start)
        file.seek(start)
        done = start
        while chunk := response.read1(min(CHUNK, size - done)):
            file.write(chunk)
            done += len(chunk)
            yield done


def _pause(failures: int, what: str, error: Exception) -> None:
    """Wait before another request, longer each time; give up after :data:`ATTEMPTS`."""
    if failures >= ATTEMPTS:
        raise ToolkitError(
            f"{what} cannot be fetched",
            found=f"{ATTEMPTS} failures in a row, the last: {error}",
            fix="run the command again later: it continues where it stopped",
        ) from error
    asked = min(getattr(error, "pause", 0.0), LONGEST_ASKED)
    seconds = max(min(2.0**failures * random.uniform(0.5, 1.0), LONGEST_PAUSE), asked)
    console.note(f"{what}: {error}; trying again in {seconds:.0f} s")
    time.sleep(seconds)


def _hash(path: Path, entry: _Entry) -> str:
    """SHA-256 of a large file; of a small one git's blob hash, which is what the hub lists for it."""
    digest: Any = hashlib.sha256() if entry.lfs else hashlib.sha1(f"blob {entry.size}\0".encode())
    with (
        path.open("rb") as file,
        console.progress(f"checking {path.name}", entry.size >> 20, "MB") as advance,
    ):
        while chunk := file.read(8 * CHUNK):
            digest.update(chunk)
            advance(len(chunk) >> 20)
    return str(digest.hexdigest())


def _receipt(folder: Path) -> dict[str, Verified]:
    with suppress(OSError, *NO_JSON):
        return msgspec.json.decode((folder / "download.json").read_bytes(), type=dict[str, Verified])
    return {}


def _verified(path: Path, entry: _Entry) -> Verified:
    stat = path.stat()
    return Verified(stat.st_size, stat.st_mtime_ns, _digest_of(entry))


def _require_sound(path: Path, entry: _Entry) -> None:
    """Compare size and hash; the hash not again if ``download.json`` beside says that it was."""
    size = path.stat().st_size
    known = _receipt(path.parent).get(path.name) == _verified(path, entry)
    if size != entry.size or not (known or _hash(path, entry) == _digest_of(entry)):
        raise ToolkitError(
            f"{path} is another file than the hub lists",
            found=f"{size:,} bytes" + (" with another hash" if size == entry.size else ""),
            expected=f"{entry.size:,} bytes, hash {_digest_of(entry)[:16]}...",
            fix="move it away and run this again",
        )


def _record(folder: Path, name: str, entry: _Entry) -> None:
    receipt = _receipt(folder)
    verified = receipt | {name: _verified(folder / name, entry)}
    if verified != receipt:
        with replacing(folder / "download.json") as temporary:
            temporary.write_bytes(msgspec.json.encode(verified))
