"""Images: fetched with and without a login, from registries that are away or know nothing, and removed again."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from lepton_ai.node import images
from lepton_ai.node.engine import Engine
from lepton_ai.node.images import Images, registry, split
from lepton_ai.spec.replica import RegistryLogin

DAY_MS = 86_400_000


class Clock:
    def __init__(self) -> None:
        self.now_ms = 1_000 * DAY_MS

    def __call__(self) -> int:
        return self.now_ms


class Stage:
    """What a test needs: images with a clock, and what was said."""

    def __init__(self, docker: Any, folder: Path, containers: Any) -> None:
        self.docker, self.path, self.containers = docker, folder / "images.json", containers
        self.clock, self.said = Clock(), list[str]()
        self.images = self.make()

    def make(self, **options: Any) -> Images:
        return Images(Engine(self.docker.path), self.path, now_ms=self.clock, **options)

    def fetch(self, name: str, *logins: RegistryLogin) -> Any:
        return self.images.fetch(name, logins, self.said.append)

    def put(self, host: str, name: str, tag: str = "1", text: str = "") -> str:
        """A new small image at a registry, not here; its name."""
        self.docker.load(self.containers.small(text or name), "made", "1", 'CMD ["/none"]')
        self.docker.push("made:1", f"{host}/{name}", tag)
        for one in (f"{host}/{name}:{tag}", "made:1"):
            self.docker.remove(one)
        return f"{host}/{name}:{tag}"


@pytest.fixture
def stage(docker: Any, tmp_path: Path, containers: Any) -> Iterator[Stage]:
    before = docker.images()
    yield Stage(docker, tmp_path, containers)
    for name in docker.images() - before:
        docker.remove(name)


def test_a_tag_is_asked_for_each_time_and_a_digest_once(stage: Stage, registry: Any) -> None:
    name = stage.put(registry.host, "tagged", text="one")
    first = stage.fetch(name)
    assert first.digest.startswith(f"{registry.host}/tagged@sha256:")
    assert first.config["Cmd"] == ["/none"]
    stage.put(registry.host, "tagged", text="two")
    second = stage.fetch(name)
    assert second.id != first.id
    assert stage.fetch(first.digest).id == first.id
    registry.kill(9)
    try:
        assert stage.fetch(first.digest).note == ""  # nobody was asked
        third = stage.fetch(name)
        assert third.id == second.id
        assert "does not answer" in third.note
        assert second.digest in third.note
        assert third.note in stage.said
        with pytest.raises(Unavailable, match=r"does not answer.*connection refused"):
            stage.fetch(f"{registry.host}/never-seen:1")
    finally:
        registry.start()


def test_what_a_registry_does_not_have(stage: Stage, registry: Any) -> None:
    with pytest.raises(NotFound, match=r"has no such image \(.*manifest unknown"):
        stage.fetch(f"{registry.host}/base:none")
    with pytest.raises(NotFound, match="has no such image"):
        stage.fetch(f"{registry.host}/none:1")
    with pytest.raises(Unavailable, match=r"there is no host registry\.invalid"):
        stage.fetch("registry.invalid/base:1")
    for name in ("Base", "../../containers/json", "a b", "x?fromSrc=-", "", "a@sha256:1"):
        with pytest.raises(Invalid, match="no name of an image"):
            stage.fetch(name)


def test_logins(stage: Stage, locked: Any, containers: Any) -> None:
    name = f"{locked.host}/secret:1"
    right = RegistryLogin(registry=f"https://{locked.host}/v2/", username=containers.USER, password=containers.PASSWORD)
    wrong = right.model_copy(update={"password": "wrong"})
    other = right.model_copy(update={"registry": "ghcr.io"})
    for logins in ((), (other,)):
        with pytest.raises(Forbidden, match="wants a login"):
            stage.fetch(name, *logins)
    with pytest.raises(Forbidden, match=f"refuses user {containers.USER}") as raised:
        stage.fetch(name, wrong)
    assert "wrong" not in str(raised.value).replace("wrong password", "")
    digest = stage.fetch(name, other, wrong, right).digest
    # What one workspace fetched with its login is not the other's, also when nobody can be asked.
    for one in (name, digest):
        for logins in ((), (wrong,)):
            with pytest.raises(Forbidden, match=r"wants a login|refuses user"):
                stage.fetch(one, *logins)
    locked.kill(9)
    try:
        assert stage.fetch(digest, right).digest == digest
        assert "does not answer" in stage.fetch(name, right).note
        for one in (name, digest):
            with pytest.raises(Unavailable):
                stage.fetch(one, wrong)
    finally:
        locked.start()
    assert containers.PASSWORD not in stage.path.read_text()


def test_a_fetch_that_nobody_wants_ends(stage: Stage, registry: Any) -> None:
    name = stage.put(registry.host, "large", text=random.Random(1).randbytes(3_000_000).hex())

    def say(text: str) -> None:
        raise Conflict("stopped")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "SAY_S", 0.0)
        with pytest.raises(Conflict, match="stopped"):
            stage.images.fetch(name, (), say)
        stage.fetch(name)
    assert any("MiB" in text or "unpacking" in text for text in stage.said), stage.said


def test_the_longest_unused_go_first_and_never_what_is_in_use_or_anothers(stage: Stage, registry: Any) -> None:
    names = [stage.put(registry.host, f"old{number}", text=str(number) * 2_000_000) for number in range(3)]
    theirs = stage.put(registry.host, "theirs", text="4" * 2_000_000)
    stage.docker.engine.ask("POST", "/images/create", query={"fromImage": f"{registry.host}/theirs", "tag": "1"})
    for name in (*names, theirs):
        stage.fetch(name)
        stage.clock.now_ms += DAY_MS
    body = {"Image": names[0], "HostConfig": {"NetworkMode": "none"}}
    used = stage.docker.engine.ask("POST", "/containers/create", body)["Id"]
    small = stage.make(max_mib=4)
    assert stage.images.clean() == []
    removed = small.clean()
    assert {one for one in removed if "@" not in one} == {names[1]}
    assert names[1] not in stage.docker.images()
    assert {names[0], names[2], theirs} <= stage.docker.images()
    stage.docker.engine.ask("DELETE", f"/containers/{used}")
    stage.clock.now_ms += 15 * DAY_MS
    assert {one for one in stage.images.clean() if "@" not in one} == {names[0], names[2]}
    assert {names[0], names[2]} & stage.docker.images() == set()
    assert theirs in stage.docker.images()  # it was here before
    assert json.loads(stage.path.read_text())["images"] == {}


def test_a_name_that_somebody_else_gave_stays(stage: Stage, registry: Any) -> None:
    name = stage.put(registry.host, "shared")
    id = stage.fetch(name).id
    stage.docker.engine.ask("POST", f"/images/{name}/tag", query={"repo": "kept", "tag": "1"})
    stage.clock.now_ms += 15 * DAY_MS
    assert name in stage.images.clean()
    assert "kept:1" in stage.docker.images()
    assert stage.images.find("kept:1").id == id  # type: ignore[union-attr]


def test_many_at_once_lose_no_record(stage: Stage, registry: Any) -> None:
    names = [stage.put(registry.host, f"many{number}") for number in range(6)]
    threads = [threading.Thread(target=stage.make().fetch, args=(name, (), stage.said.append)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    known = json.loads(stage.path.read_text())["images"]
    assert {name for one in known.values() for name in one["names"] if "@" not in name} == set(names)


@pytest.mark.parametrize(
    ("name", "host", "parts"),
    [
        ("python", "docker.io", ("python", "latest")),
        ("nvcr.io/nvidia/pytorch:24.05-py3", "nvcr.io", ("nvcr.io/nvidia/pytorch", "24.05-py3")),
        ("localhost:5000/a/b", "localhost:5000", ("localhost:5000/a/b", "latest")),
        ("index.docker.io/a:1", "docker.io", ("index.docker.io/a", "1")),
        ("a/b:1@sha256:00", "docker.io", ("a/b", "sha256:00")),
    ],
)
def test_names(name: str, host: str, parts: tuple[str, str]) -> None:
    assert (registry(name), split(name)) == (host, parts)
