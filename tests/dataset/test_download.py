"""Downloads from a server on loopback that misbehaves in a chosen way."""

from __future__ import annotations

import errno
import hashlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from toolkit.dataset import download as module
from toolkit.dataset.download import ATTEMPTS, download
from toolkit.dataset.prepare import prepare
from toolkit.errors import ToolkitError
from toolkit.ltdv2 import FILES, REPOSITORY, REVISION

CONTENT = {
    name: np.random.default_rng(i).bytes(300_000 + 7 * i) if name == "frames.zip" else b'{"x": %d}' % i
    for i, name in enumerate(FILES)
}


@dataclass
class Hub:
    """A hub with the four files. ``fault`` sees each request for a file and may answer it itself."""

    fault: Callable[[Handler, str, int], bool] = lambda *_: False
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    listing_failures: int = 0


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        hub = self.hub
        hub.requests.append((self.path, self.headers.get("Range"), self.headers.get("Authorization")))
        if self.path.startswith(f"/api/datasets/{REPOSITORY}/tree/{REVISION}/data"):
            if hub.listing_failures:
                hub.listing_failures -= 1
                self.send_error(503)
                return
            self.send(200, json.dumps([entry(name) for name in FILES]).encode())
        elif self.path.startswith(f"/datasets/{REPOSITORY}/resolve/{REVISION}/data/"):
            self.send_response(302)
            port = self.server.server_address[1]
            self.send_header("Location", f"http://localhost:{port}/storage/{self.path.rpartition('/')[2]}")
            self.end_headers()
        else:
            name = self.path.rpartition("/")[2]
            start = int((self.headers.get("Range") or "bytes=0-")[6:].rstrip("-"))
            if not hub.fault(self, name, start):
                self.send_part(name, start)

    def send_part(self, name: str, start: int) -> None:
        data = CONTENT[name]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start:])

    def send(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


def entry(name: str) -> dict[str, Any]:
    data = CONTENT[name]
    blob = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
    large = {"lfs": {"oid": hashlib.sha256(data).hexdigest(), "size": len(data)}}
    return {"type": "file", "path": f"data/{name}", "size": len(data), "oid": blob} | (
        large if name == "frames.zip" else {}
    )


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    state = Hub()
    handler = type("Bound", (Handler,), {"hub": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    for proxy in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(proxy, raising=False)
    monkeypatch.setattr(module, "CHUNK", 4_096)
    monkeypatch.setattr(module, "TIMEOUT", 0.5)
    monkeypatch.setattr(module, "SPARE_BYTES", 0)
    state.pauses = []  # type: ignore[attr-defined]
    asleep = time.sleep

    def pause(seconds: float) -> None:
        """Other threads of the process (a watch of sensors, say) sleep as ever."""
        if threading.current_thread() is threading.main_thread():
            state.pauses.append(seconds)  # type: ignore[attr-defined]
        else:
            asleep(seconds)

    monkeypatch.setattr(module.time, "sleep", pause)  # type: ignore[attr-defined]
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def complete(folder: Path) -> bool:
    return all((folder / name).read_bytes() == CONTENT[name] for name in FILES)


def test_all_files_arrive_and_a_second_run_fetches_none(hub: Hub, tmp_path: Path) -> None:
    download(tmp_path)
    assert complete(tmp_path)
    assert not list(tmp_path.glob(".*"))
    hub.requests.clear()
    download(tmp_path)
    assert len(hub.requests) == 1


def test_the_token_goes_to_the_hub_and_not_to_the_storage(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    download(tmp_path)
    for path, _, authorization in hub.requests:
        assert authorization == (None if "/storage/" in path else "Bearer secret")


def drop(handler: Handler, name: str, start: int) -> bool:
    """Promise everything, send 50,000 bytes, close."""
    data = CONTENT[name]
    if start + 50_000 >= len(data):
        return False
    handler.send_response(206 if start else 200)
    if start:
        handler.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
    handler.send_header("Content-Length", str(len(data) - start))
    handler.end_headers()
    handler.wfile.write(data[start : start + 50_000])
    handler.close_connection = True
    return True


def test_dropped_connections_are_continued_where_they_broke(hub: Hub, tmp_path: Path) -> None:
    hub.fault = drop
    download(tmp_path)
    assert complete(tmp_path)
    starts = [r for path, r, _ in hub.requests if path == "/storage/frames.zip"]
    assert starts == [None, *(f"bytes={n}-" for n in range(50_000, 300_001, 50_000))]


def test_an_interrupted_run_is_continued_by_the_next(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.fault = drop

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module.time, "sleep", interrupt)
        with pytest.raises(KeyboardInterrupt):
            download(tmp_path)
    assert not (tmp_path / "frames.zip").exists()
    hub.requests.clear()
    download(tmp_path)
    assert complete(tmp_path)
    assert hub.requests[-1][1] is not None
    assert ("/storage/frames.zip", "bytes=50000-", None) in hub.requests


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again_when_it_says(hub: Hub, tmp_path: Path, status: int) -> None:
    left = [3]

    def busy(handler: Handler, name: str, start: int) -> bool:
        if name != "frames.zip" or not left[0]:
            return False
        left[0] -= 1
        handler.send(status, b"", Retry_After="77")
        return True

    hub.fault, hub.listing_failures = busy, 2
    download(tmp_path)
    assert complete(tmp_path)
    assert [p for p in hub.pauses if p >= 77] == [77.0] * 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("asked", "pause"),
    [
        ("99999999", 3600.0),
        ("9" * 400, 3600.0),
        ("Fri, 31 Dec 9999 23:59:59 GMT", 3600.0),
        ("Mon, 01 Jan 2001 00:00:00 GMT", 2.0),
        ("tomorrow", 2.0),
        ("-5", 2.0),
    ],
)
def test_a_server_may_not_ask_for_more_than_an_hour(
    hub: Hub, tmp_path: Path, asked: str, pause: float
) -> None:
    left = [1]

    def busy(handler: Handler, name: str, start: int) -> bool:
        if not left[0]:
            return False
        left[0] = 0
        handler.send(429, b"", Retry_After=asked)
        return True

    hub.fault = busy
    download(tmp_path)
    assert hub.pauses == [pytest.approx(pause, rel=0.5)]  # type: ignore[attr-defined]


def more_than_listed(handler: Handler, name: str, start: int) -> bool:
    handler.send(200, CONTENT[name] + b"more")
    return True


def ignore_range(handler: Handler, name: str, start: int) -> bool:
    """Answer a range request with the whole file, after breaking the first connection."""
    if not start:
        return drop(handler, name, start)
    handler.send_part(name, 0)
    return True


def slow(handler: Handler, name: str, start: int) -> bool:
    """Send a part and then nothing, without closing."""
    if start:
        return False
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT[name])))
    handler.end_headers()
    handler.wfile.write(CONTENT[name][: len(CONTENT[name]) // 2])
    handler.wfile.flush()
    threading.Event().wait(1.0)
    handler.close_connection = True
    return True


@pytest.mark.parametrize("fault", [more_than_listed, ignore_range, slow])
def test_a_server_that_sends_more_ignores_ranges_or_falls_silent_is_survived(
    hub: Hub, tmp_path: Path, fault: Callable[[Handler, str, int], bool]
) -> None:
    hub.fault = fault
    download(tmp_path)
    assert complete(tmp_path)


def too_long(handler: Handler, name: str, start: int) -> bool:
    handler.send(200, bytes(len(CONTENT[name])) + b"more")
    return True


def start_again(handler: Handler, name: str, start: int) -> bool:
    """Break off in the middle every time and know no ranges: bytes arrive for ever, and never more."""
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(CONTENT[name])))
    handler.end_headers()
    handler.wfile.write(CONTENT[name][: len(CONTENT[name]) // 2])
    handler.close_connection = True
    return True


def too_short(handler: Handler, name: str, start: int) -> bool:
    """Claim that a shorter file is the whole."""
    if start:
        handler.send(416, b"")
    else:
        handler.send(200, CONTENT[name][:-5])
    return True


def other_bytes(handler: Handler, name: str, start: int) -> bool:
    handler.send(200, bytes(len(CONTENT[name])))
    return True


@pytest.mark.parametrize("fault", [too_long, too_short, other_bytes, start_again])
def test_a_server_that_sends_something_else_is_given_up_on(
    hub: Hub, tmp_path: Path, fault: Callable[[Handler, str, int], bool]
) -> None:
    hub.fault = fault
    with pytest.raises(ToolkitError, match=r"Train\.json cannot be fetched"):
        download(tmp_path)
    assert len(hub.pauses) < ATTEMPTS  # type: ignore[attr-defined]
    assert not [name for name in FILES if (tmp_path / name).exists()]


@pytest.mark.parametrize(("status", "hint"), [(401, "HF_TOKEN"), (403, "terms"), (404, "revision")])
def test_no_access_is_said_at_once(hub: Hub, tmp_path: Path, status: int, hint: str) -> None:
    def refuse(handler: Handler, name: str, start: int) -> bool:
        handler.send_error(status)
        return True

    hub.fault = refuse
    with pytest.raises(ToolkitError, match=hint):
        download(tmp_path)
    assert not hub.pauses  # type: ignore[attr-defined]


def test_too_little_space_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SPARE_BYTES", 1 << 60)
    with pytest.raises(ToolkitError, match="too little space"):
        download(tmp_path)
    assert len(hub.requests) == 1
    assert not list(tmp_path.iterdir())


def test_a_file_of_another_dataset_is_not_overwritten(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "frames.zip").write_bytes(b"mine")
    with pytest.raises(ToolkitError, match="another file than the hub lists"):
        download(tmp_path)
    assert (tmp_path / "frames.zip").read_bytes() == b"mine"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    folder = tmp_path / "copy"
    folder.mkdir()
    for name in FILES:
        (folder / name).write_bytes(CONTENT[name])
    return folder


def test_an_existing_copy_is_checked_and_linked_instead_of_fetched(
    hub: Hub, copy: Path, tmp_path: Path
) -> None:
    download(tmp_path / "new", source=copy)
    assert all((tmp_path / "new" / name).samefile(copy / name) for name in FILES)
    assert not (copy / "download.json").exists()
    download(tmp_path / "new")
    assert [path for path, *_ in hub.requests if "/tree/" not in path] == []


def test_a_copy_on_another_disk_is_linked_by_name(
    hub: Hub, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_disk(*_: Any) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(module.os, "link", other_disk)  # type: ignore[attr-defined]
    download(tmp_path / "new", source=copy)
    assert (tmp_path / "new" / "frames.zip").is_symlink()
    assert complete(tmp_path / "new")


def flip(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"is no copy of LTDv2.*frames\.zip: missing"),
        (CONTENT["frames.zip"][:-1], r"is no copy of LTDv2.*frames\.zip: 300,020 bytes.*300,021 bytes"),
        (flip(CONTENT["frames.zip"]), "another file than the hub lists.*with another hash"),
    ],
)
def test_a_copy_that_is_not_what_the_hub_lists_is_refused(
    hub: Hub, copy: Path, tmp_path: Path, content: bytes | None, message: str
) -> None:
    (copy / "frames.zip").unlink()
    if content is not None:
        (copy / "frames.zip").write_bytes(content)
    with pytest.raises(ToolkitError, match=message):
        download(tmp_path / "new", source=copy)
    assert not (tmp_path / "new" / "frames.zip").exists()


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")


def test_without_the_hub_a_copy_is_linked_and_what_was_not_checked_is_said(
    no_hub: None, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        download(tmp_path, source=sample)
        said = capsys.readouterr().err
        assert "the hub cannot be asked" in said
        assert "Train.json is whole: 48 images" in said
        assert "frames.zip is whole: " in said
        assert "not checked: whether these are the hub's files" in said
    assert all((tmp_path / name).samefile(sample / name) for name in FILES)
    assert not (tmp_path / "download.json").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Valid.json", r"Valid\.json is cut off"),
        ("frames.zip", r"frames\.zip is cut off"),
        (None, "no Valid"),
    ],
)
def test_without_the_hub_a_copy_that_is_not_whole_is_refused(
    no_hub: None, sample: Path, tmp_path: Path, name: str | None, message: str
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in FILES:
        data = (sample / file).read_bytes()
        (source / file).write_bytes(data[:-30] if file == name else data)
    if name is None:
        (source / "Valid.json").unlink()
    with pytest.raises(ToolkitError, match=message):
        download(tmp_path / "new", source=source)
    assert not list((tmp_path / "new").iterdir())


def test_without_the_hub_a_copy_that_was_fetched_is_held_against_the_hashes_of_then(
    hub: Hub, tmp_path: Path
) -> None:
    source = tmp_path / "fetched"
    download(source)
    hub.listing_failures = 2
    download(tmp_path / "new", source=source)
    assert complete(tmp_path / "new")
    (source / "frames.zip").write_bytes(flip(CONTENT["frames.zip"]))
    with pytest.raises(ToolkitError, match=r"another file than the hub lists.*with another hash"):
        download(tmp_path / "newer", source=source)


@pytest.fixture
def cache(copy: Path, tmp_path: Path) -> Path:
    """The copy as the hub's own client keeps it: snapshots of relative links to blobs."""
    folder = tmp_path / "datasets--vapaau--LTDv2"
    snapshot = folder / "snapshots" / "4431e62" / "data"
    (folder / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, name in enumerate(FILES):
        (copy / name).rename(folder / "blobs" / str(number))
        (snapshot / name).symlink_to(Path("../../../blobs") / str(number))
    return folder


@pytest.mark.parametrize("below", ["snapshots/4431e62/data", "snapshots/4431e62", "."])
@pytest.mark.parametrize("same_disk", [True, False])
def test_the_links_of_a_hub_cache_are_followed(
    hub: Hub, cache: Path, tmp_path: Path, below: str, same_disk: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not same_disk:
        monkeypatch.setattr(module.os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EXDEV, "")))  # type: ignore[attr-defined]
    assert download(tmp_path / "new", source=cache / below) == []
    assert complete(tmp_path / "new")
    assert [path for path, *_ in hub.requests if "/tree/" not in path] == []


def test_links_to_nothing_that_an_earlier_run_left_are_made_again(
    hub: Hub, copy: Path, tmp_path: Path
) -> None:
    (tmp_path / "new").mkdir()
    for name in FILES:
        (tmp_path / "new" / name).symlink_to(Path("../../blobs") / name)
    download(tmp_path / "new", source=copy)
    assert complete(tmp_path / "new")


def test_a_copy_that_lacks_annotations_is_completed(hub: Hub, copy: Path, tmp_path: Path) -> None:
    (copy / "TestNoLabels.json").unlink()
    assert download(tmp_path / "new", source=copy) == []
    assert complete(tmp_path / "new")
    fetched = {path.rpartition("/")[2] for path, *_ in hub.requests if "/tree/" not in path}
    assert fetched == {"TestNoLabels.json"}
    assert (tmp_path / "new" / "frames.zip").samefile(copy / "frames.zip")


def test_without_the_hub_what_is_missing_is_said_and_the_rest_linked(
    no_hub: None, sample: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in set(FILES) - {"TestNoLabels.json"}:
        (source / name).symlink_to(sample / name)
    assert download(tmp_path / "new", source=source) == ["TestNoLabels.json"]
    assert "neither has TestNoLabels.json" in capsys.readouterr().err
    assert prepare(tmp_path / "new").manifest.images == {"train": 48, "val": 24}


def test_what_was_made_is_looked_at(
    hub: Hub, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that vanishes meanwhile, as on a disk that is unmounted."""
    monkeypatch.setattr(module, "_record", lambda folder, name, entry: (folder / "Train.json").unlink(True))
    with pytest.raises(ToolkitError, match=r"is not complete; found no Train\.json"):
        download(tmp_path / "new", source=copy)
