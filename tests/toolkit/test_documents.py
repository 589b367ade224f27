"""The documents lead somewhere: links, anchors, files, tests, targets of make, verbs and flags are there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main
from modules import ROOT

from toolkit import settings
from toolkit.cli import app
from toolkit.runs import health

PAGES = [
    *(ROOT / name for name in ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "toolkit" / "training" / "ultralytics.md",
    *(ROOT / name for name in ("docker/README.md", "patches/README.md")),
]
BLOCK = re.compile(r"^```.*?^```$", flags=re.M | re.S)
LINK = re.compile(r"\]\(([^)\s]+)\)")
FILE = re.compile(r"(?:toolkit|patches|submission|scripts|tests|docs|docker)/[\w./*-]+")
TEST = re.compile(r"(?<!\w)(test_\w+\.py)(?: -k (\w+|\"[^\"]+\"))?")
YOURS = {"docker/extra.txt", "docker/certs/*.crt"}
"""Files that a reader may add."""

OTHERS = {
    *("--build-arg", "--gpus", "--memory", "--provenance", "--sbom", "--shm-size"),
    *("--max-restarts", "--nnodes", "--rdzv-id", "--help", "--route"),
}
"""Flags of Docker and BuildKit, of torchrun, and of ``python -m convroutes run``."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> list[str]:
    """What a page shows as code: each span, and each line of a block without its comment."""
    text = page.read_text()
    blocks = [
        re.sub(r"\s+# .*|\s{2,}or .*", "", line)
        for block in BLOCK.findall(text)
        for line in block.split("\n")
    ]
    spans = re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    return [*blocks, *(" ".join(span.split()) for span in spans)]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    titles = re.findall(r"^#+ (.+)$", BLOCK.sub("", page.read_text()), flags=re.M)
    return {
        re.sub(r"[^\w -]", "", re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", t)).lower().replace(" ", "-")
        for t in titles
    }


@pages
def test_a_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for link in LINK.findall(re.sub("`[^`]*`", "", BLOCK.sub("", page.read_text()))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), f"no {name}"
        assert not anchor or anchor in anchors(target), f"{target.name} has no heading #{anchor}"


@pages
def test_files_that_are_named_exist(page: Path) -> None:
    for text in code(page):
        for word in text.split():
            name = word.rstrip(".,;:")
            if FILE.fullmatch(name) and not re.search(r"\b(NAME|LOCK)\b|\.\.\.", name) and name not in YOURS:
                assert next(ROOT.glob(name.rstrip("/")), None), f"no {name}"


@cache
def source(name: str) -> str:
    """The text of a file of tests, wherever it lies."""
    (path,) = (ROOT / "tests").rglob(name)
    return path.read_text()


@pages
def test_tests_that_are_named_exist(page: Path) -> None:
    for text in code(page):
        for name, chosen in TEST.findall(text):
            names = re.findall(r"(?:def|class) (\w+)", source(name))
            for keyword in chosen.strip('"').split(" or ") if chosen else []:
                assert any(keyword.lower() in each.lower() for each in names), f"{name} has no {keyword}"


@pages
def test_targets_of_make_exist(page: Path) -> None:
    rules = (ROOT / "Makefile").read_text() + (ROOT / "docker" / "docker.mk").read_text()
    targets = re.findall(r"^([\w-]+):", rules, flags=re.M)
    for text in code(page):
        for name in re.findall(r"^make ([a-z][\w-]*)", text):
            assert name in targets, f"no make {name}"


@cache
def application() -> Any:
    """The command line as its own declaration has it."""
    return typer.main.get_command(app)


def command(words: list[str]) -> tuple[Any, list[str]]:
    """The verb that a command line begins with, as its application declares it, and its arguments."""
    found = application()
    while words and words[0] in getattr(found, "commands", {}):
        found, words = found.commands[words[0]], words[1:]
    return found, words


@pages
def test_verbs_and_flags_exist(page: Path) -> None:
    for text in code(page):
        call = re.match(r"(?:\S+=\S+ )*toolkit ((?!container)[a-z].*)", text)
        if not call or re.search(r"[{|\\]|\.\.\.", call[1]):
            continue
        for part in re.split(r"[;&]", call[1]):
            verb, arguments = command(part.split())
            assert not (arguments and hasattr(verb, "commands")), f"no verb in {text!r}"
            known = {
                "--help",
                "-h",
                *(name for one in verb.params for name in (*one.opts, *one.secondary_opts)),
            }
            for flag in (word.split("=")[0] for word in arguments if word.startswith("--")):
                assert flag in known, f"{text!r}: no {flag}"


@cache
def flags() -> set[str]:
    """Every flag of every verb, and what the scripts' own sources mention."""
    found, waiting = set(OTHERS), [application()]
    while waiting:
        verb = waiting.pop()
        waiting += getattr(verb, "commands", {}).values()
        found |= {name for one in verb.params for name in (*one.opts, *one.secondary_opts)}
    scripts = (path for path in (ROOT / "scripts").iterdir() if path.is_file())
    return found.union(*(re.findall(r"--[a-z][\w-]+", path.read_text()) for path in scripts))


@pages
def test_a_flag_that_stands_alone_exists(page: Path) -> None:
    for text in code(page):
        name = re.match(r"--[a-z][\w-]+", text)
        assert not name or name[0] in flags(), f"no {text}"


@cache
def sources() -> str:
    """All that may read a variable of ours."""
    files = (path for name in ("toolkit", "patches", "docker") for path in (ROOT / name).rglob("*"))
    return "".join(
        path.read_text(errors="replace") for path in files if path.suffix in (".py", ".mk", ".env")
    )


@pages
def test_variables_of_ours_that_are_named_are_read_somewhere(page: Path) -> None:
    for text in code(page):
        for name in re.findall(r"\b(?:TOOLKIT|CONVROUTES)[A-Z_]*", text):
            assert re.search(rf"\b{name}\b", sources()), f"nothing reads {name}"


@pages
def test_settings_that_are_shown_are_taken(page: Path, tmp_path: Path) -> None:
    for text in re.findall(r"^```toml\n(.*?)^```$", page.read_text(), flags=re.M | re.S):
        (tmp_path / "toolkit.toml").write_text(text)
        health.load(settings.read([tmp_path / "toolkit.toml"]).health)


def test_something_is_checked() -> None:
    found = [text for page in PAGES for text in code(page)]
    assert sum(text.startswith("toolkit ") for text in found) > 60
    assert sum(bool(TEST.search(text)) for text in found) > 80
