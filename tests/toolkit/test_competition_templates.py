"""Lists of ids that a competition's starting kits have, against a model of Codabench."""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from codabench_server import Server, phase
from command import Command, Result

from submission import templates
from toolkit import uploads

OLD = templates.template("testing")[:30].tolist()
NEW = [*OLD[5:], 20210501001020304]
"""A later list: five ids of the shipped one's are gone, one is new."""


def template(ids: Sequence[int]) -> bytes:
    return json.dumps({str(i): {"boxes": [], "scores": [], "labels": []} for i in ids}).encode()


def kit(**members: bytes) -> bytes:
    """A zip; ``__`` in a name stands for the dot before its ending."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("README.md", "template of a submission")
        archive.writestr("__MACOSX/._template.json", b"\x00")
        for name, content in members.items():
            archive.writestr(f"starting_kit/{name.replace('__', '.')}", content)
    return buffer.getvalue()


def predictions(ids: Sequence[int]) -> str:
    rows = [[10 + 8 * n, 20, 16 + 8 * n, 40] for n in range(8)]
    labels = [1, 1, 1, 1, 4, 1, 1, 2]
    one = {"boxes": rows, "scores": [0.1 * n + 0.1 for n in range(8)], "labels": labels}
    return json.dumps({str(i): one for i in ids})


@pytest.fixture
def data(workspace: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A workspace with a data folder, as far as a submission needs one."""
    monkeypatch.setattr(uploads, "LOOKS", (0.0, 0.0))
    (workspace / "data").mkdir()
    (workspace / "data" / "TestNoLabels.json").write_text(json.dumps({"images": [{"id": i} for i in NEW]}))
    (workspace / "new.json").write_text(predictions(NEW))
    (workspace / "old.json").write_text(predictions(OLD))
    return workspace / "data"


@pytest.fixture
def server(codabench_server: Server) -> Server:
    """It has a kit with later lists of both phases."""
    given = {"id": 5, "name": "Starting kit", "type": "starting_kit", "key": "kit-1"}
    named = {71: "Development Phase", 72: "Testing Phase"}
    codabench_server.competitions[10954] = [phase(n, name, starting_kit=given) for n, name in named.items()]
    codabench_server.files["kit-1"] = kit(
        template_development__json__gz=gzip.compress(template(OLD[:4])), template_testing__json=template(NEW)
    )
    return codabench_server


def upload(toolkit: Command, file: str, *options: str) -> Result:
    return toolkit("submit", file, "--out", "entry.zip", "--upload", *options)


def test_a_later_list_is_read_once_and_serves_without_a_token(
    data: Path, server: Server, toolkit: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = toolkit("submissions")
    assert (first.status, f"'Testing Phase' expects {len(NEW)} ids" in first.err) == (0, True)
    assert toolkit("submissions").status == 0
    assert server.count("/datasets/download/") == 1  # one kit of two phases
    assert list(json.loads((data / "codabench-10954-72.json").read_text())) == [str(i) for i in NEW]
    kept = json.loads((data / "codabench-10954.json").read_text())["templates"]
    assert kept["71"]["member"] == "starting_kit/template_development.json.gz"
    monkeypatch.delenv("CODABENCH_TOKEN")
    checked = json.loads(toolkit("submit", "new.json", "--json").out)
    assert (checked["images"], checked["phase"]) == (len(NEW), "testing")
    assert f"phase 72 'Testing Phase', as {server.url} gave it on 20" in checked["checked_against"]
    refused = toolkit("submit", "old.json", "--phase", "testing")
    assert (refused.status, refused.err.count("error: "), "unknown id" in refused.err) == (1, 1, True)
    own = toolkit("submit", "new.json", "--template", "data/TestNoLabels.json", "--json")
    assert json.loads(own.out)["checked_against"] == "data/TestNoLabels.json"


def test_the_token_stays_away_from_files_and_their_storage(
    data: Path, server: Server, toolkit: Command
) -> None:
    assert toolkit("submissions").status == 0
    tokens = [token for _, path, token in server.requests if path.startswith(("/datasets/", "/storage/"))]
    assert tokens == [None, None]


def test_a_new_kit_replaces_what_was_kept(data: Path, server: Server, toolkit: Command) -> None:
    assert toolkit("submissions").status == 0
    server.files["kit-2"] = kit(Template__json=template(OLD))
    server.competitions[10954][1]["starting_kit"]["key"] = "kit-2"
    assert toolkit("submissions").status == 0
    assert list(json.loads((data / "codabench-10954-72.json").read_text())) == [str(i) for i in OLD]


def test_the_shipped_list_is_named_as_such_where_the_servers_is_the_same(
    data: Path, server: Server, toolkit: Command
) -> None:
    whole = template(templates.template("testing")[::-1].tolist())
    server.files["kit-1"] = kit(submission_template_testing__json=whole)
    assert toolkit("submissions").status == 0
    checked = json.loads(toolkit("submit", "old.json", "--phase", "testing", "--allow-missing", "--json").out)
    assert checked["checked_against"] == "the testing template"


def test_an_upload_that_was_checked_against_an_older_list_is_not_sent(
    data: Path, server: Server, toolkit: Command
) -> None:
    refused = upload(toolkit, "old.json", "--phase", "testing", "--allow-missing", "--upload-sparse")
    assert (refused.status, server.archives, server.submissions) == (1, [], [])
    assert "1 of its 26 ids missing, 49,405 that it lacks" in refused.err
    sent = upload(toolkit, "new.json")
    assert (sent.status, len(server.submissions)) == (0, 1)


def test_a_template_of_ones_own_wins_over_the_servers(data: Path, server: Server, toolkit: Command) -> None:
    (data.parent / "own.json").write_bytes(template(NEW[:20]))
    (data.parent / "p.json").write_text(predictions(NEW[:20]))
    sent = upload(toolkit, "p.json", "--template", "own.json", "--phase-id", "72")
    assert (sent.status, len(server.submissions)) == (0, 1)


def test_a_phase_that_nobody_knows_by_name_has_its_list_too(
    data: Path, server: Server, toolkit: Command
) -> None:
    given = {"key": "kit-1", "name": None}
    server.competitions[16106] = [phase(90, "Season 1", starting_kit=given), phase(91, "Winter")]
    server.files["kit-1"] = kit(template__json=template(NEW))
    assert toolkit("submissions", "--competition", "16106").status == 0
    assert (data / "codabench-16106-90.json").is_file()
    named = ("--competition", "16106", "--phase-id", "90")
    sparse = ("--phase", "testing", "--allow-missing", "--upload-sparse")
    refused = upload(toolkit, "old.json", *named, *sparse)
    assert (refused.status, "phase 90 'Season 1' expects other ids" in refused.err) == (1, True)
    assert server.archives == []
    checked = json.loads(toolkit("submit", "new.json", *named, "--json").out)
    assert checked["checked_against"] == str(data / "codabench-16106-90.json")
    assert (upload(toolkit, "new.json", *named).status, len(server.submissions)) == (0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no zip", "cannot be read"),
        (kit(), "no template"),
        (kit(template_a__json=b"{}", template_b__json=b"{}"), "several templates"),
        (kit(template__json=b"[1, 2]"), "is no template"),
        (kit(template__json=b"{}"), "names no id"),
        (kit(template__json=template(OLD) + b"}"), "is no template"),
        (kit(template__json=b'{"1": 0, "1": 0}'), "twice"),
        (kit(template__json=b'{"../x": 0}'), "image ids such as"),
        (kit(template__json__gz=b"{}"), "cannot be read"),
        (kit(template__json__gz=gzip.compress(b" " * (65 << 20))), "too large"),
        (kit(template__json=template(OLD))[:-40], "cannot be read"),
    ],
)
def test_a_kit_that_lies_leaves_the_shipped_list(
    data: Path, server: Server, toolkit: Command, content: bytes, message: str
) -> None:
    server.files["kit-1"] = content
    shown = toolkit("submissions")
    told = [line for line in shown.err.splitlines() if "no list of ids" in line]
    assert (shown.status, len(told), message in shown.err) == (0, 2, True)
    checked = json.loads(toolkit("submit", "old.json", "--phase", "testing", "--allow-missing", "--json").out)
    assert checked["checked_against"] == "the testing template"


@pytest.mark.parametrize(
    ("storage", "key"),
    [
        ("http://example.org/kit.zip", "kit-1"),
        ("file:///etc/passwd", "kit-1"),
        ("", "missing"),
        ("", "../../etc"),
    ],
)
def test_a_way_to_the_kit_that_cannot_be_used_is_one_line(
    data: Path, server: Server, toolkit: Command, storage: str, key: str
) -> None:
    server.storage = storage
    server.competitions[10954][0]["starting_kit"]["key"] = key
    shown = toolkit("submissions")
    assert (shown.status, shown.err.count("no list of ids")) == (0, 2)
    assert list(data.glob("codabench-10954-*.json")) == []


@pytest.mark.parametrize("given", [3, "kit", {"key": 4}, {"key": None}])
def test_a_kit_of_another_shape_is_an_unexpected_answer(
    data: Path, server: Server, toolkit: Command, given: Any
) -> None:
    server.competitions[10954][0]["starting_kit"] = given
    shown = toolkit("submissions")
    assert (shown.status, shown.err.count("\n"), "unexpected answer" in shown.err) == (1, 1, True)


def test_a_damaged_list_beside_the_data_is_one_line(data: Path, server: Server, toolkit: Command) -> None:
    assert toolkit("submissions").status == 0
    (data / "codabench-10954-72.json").write_bytes(b"{")
    refused = toolkit("submit", "new.json")
    assert (refused.status, refused.err.count("\n"), "codabench-10954-72.json" in refused.err) == (1, 1, True)
