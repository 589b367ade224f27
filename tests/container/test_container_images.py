"""An image's name says what is in it, and a published image is taken where this is its source."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_engine import COMMIT, FakeClient, FakeImage, source

from toolkit import __version__
from toolkit.container import images, profiles
from toolkit.container.images import Source


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with one commit and nothing added."""
    for line in (
        ["init", "-q"],
        ["config", "user.email", "somebody@example.org"],
        ["config", "user.name", "Somebody"],
        ["commit", "-q", "--allow-empty", "-m", "Begin"],
    ):
        subprocess.run(["git", *line], cwd=tmp_path, check=True)
    (tmp_path / "docker/certs").mkdir(parents=True)
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.delenv("TOOLKIT_REGISTRY", raising=False)
    return tmp_path


def head(checkout: Path) -> str:
    done = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=checkout, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_what_git_does_not_know_is_in_the_name(checkout: Path) -> None:
    plain = images.additions(None)
    named = [plain, images.additions("mine:1"), images.additions("mine:2")]
    (checkout / "docker/certs/proxy.crt").write_text("one")
    named.append(images.additions(None))
    (checkout / "docker/extra.txt").write_text("# mine\n")
    assert images.additions(None) == named[-1]  # a comment is nothing
    (checkout / "docker/extra.txt").write_text("# mine\ntensorboard  # pictures\n\nmlflow==3\n")
    assert images.extra() == ["tensorboard", "mlflow==3"]
    named.append(images.additions(None))
    assert plain == ""
    assert len(set(named)) == len(named)


def test_two_users_and_two_checkouts_are_two_builders(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = images.builder()
    monkeypatch.setattr(images.os, "getuid", lambda: 4711)
    second = images.builder()
    monkeypatch.setattr(profiles, "ROOT", checkout / "docker")
    assert len({first, second, images.builder()}) == 3
    assert str(checkout) not in first


def test_a_checkout_without_git_is_named_by_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    (tmp_path / "toolkit").mkdir()
    (tmp_path / "toolkit/a.py").write_text("1")
    before = images.tree_digest()
    (tmp_path / "toolkit/a.py").write_text("2")
    assert images.tree_digest() != before


def test_a_release_is_looked_for_where_its_workflow_publishes(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = Source(profiles.Profile("cpu", (), {}), head(checkout))
    monkeypatch.setattr(type(wanted.profile), "variant", "cpu")  # whose pins are elsewhere now
    git = ["git", "-C", str(checkout)]
    subprocess.run([*git, "remote", "add", "origin", "git@github.com:Some/Project.git"], check=True)
    assert images.published(wanted) is None  # no tag
    subprocess.run([*git, "tag", f"v{__version__}"], check=True)
    assert images.published(wanted) == f"ghcr.io/some/project:cpu-{__version__}"
    assert images.published(replace(wanted, commit=f"{wanted.commit}-dirty-1")) is None
    assert images.published(replace(wanted, base="mine:1")) is None
    monkeypatch.setenv("TOOLKIT_REGISTRY", "registry.example.org/team/image")
    assert images.published(wanted) == f"registry.example.org/team/image:cpu-{__version__}"


def test_a_published_image_is_pulled_first_and_built_only_where_it_is_not_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "published", lambda wanted: "far:cpu-1")
    monkeypatch.setattr(images, "additions", lambda base: "")
    client, wanted, built = FakeClient(), source("cpu"), []

    def build() -> str:
        built.append(client.image(wanted.tag, **{images.REVISION: COMMIT}))
        return "sha256:1"

    client.served["far:cpu-1"] = FakeImage(client, ["far:cpu-1"], {images.REVISION: COMMIT}, "9")
    assert images.ensure(client, wanted, build).id == "sha256:9"  # type: ignore[arg-type]
    client.asked.clear()
    assert images.ensure(client, wanted, build).id == "sha256:9"  # type: ignore[arg-type]
    assert not client.asked  # it has this source's name now
    assert not built

    client = FakeClient()
    images.ensure(client, wanted, build)  # type: ignore[arg-type]
    assert len(built) == 1
    assert "built here instead" in capsys.readouterr().err


def test_a_published_image_of_another_commit_is_not_taken(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(images, "published", lambda wanted: "far:cpu-1")
    client = FakeClient()
    client.served["far:cpu-1"] = FakeImage(client, ["far:cpu-1"], {images.REVISION: "feed"}, "9")
    assert images.pulled(client, source("cpu")) is None  # type: ignore[arg-type]
    assert "is of commit feed" in capsys.readouterr().err
