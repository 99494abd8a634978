"""Which replica a request goes to, through real Envoys: with the gateway's own picker, and without a compiler."""

from __future__ import annotations

import http.client
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lepton_ai.gateway import picker
from lepton_ai.spec.route import Backend, Endpoint, Route

needs_compiler = pytest.mark.skipif(picker.compiler() is None, reason="no C compiler")


def served(place: Any, path: str, count: int, connections: int = 6) -> dict[str, int]:
    """Answers by replica, of about `count` requests."""
    load = place.load(path, connections)
    place.until(lambda: load.ok + len(load.failed) >= count)
    load.stop()
    return dict(load.by_name)


@needs_compiler
def test_a_slow_replica_gets_less_and_none_is_forgotten(place: Any, route: Callable[..., Route]) -> None:
    replicas = [place.replica(name, lag_s=0.01) for name in "abc"] + [place.replica("slow", lag_s=0.15)]
    place.publish(route("movies", replicas))
    served(place, "/default/movies/", 100)
    found = served(place, "/default/movies/", 600)
    assert found.get("slow", 0) < 600 / 4 / 3
    assert min(found[name] for name in "abc") > 600 / 4 / 2
    logs = "".join(path.read_text("utf-8") for path in place.folder.parent.glob("envoy-*.log"))
    assert "invalid" not in logs
    assert "critical" not in logs


@needs_compiler
def test_a_replica_that_fails_fast_is_not_taken_for_a_fast_one(place: Any, route: Callable[..., Route]) -> None:
    replicas = [place.replica(name, lag_s=0.02) for name in "abcd"]
    place.publish(route("movies", replicas))
    load = place.load("/default/movies/work")
    place.until(lambda: load.ok > 100)
    drain(replicas[0])
    before, failed = load.ok, len(load.failed)
    place.until(lambda: load.ok - before > 400)
    load.stop()
    assert len(load.failed) - failed < 400 / 3, "the failing replica drew the traffic"


@needs_compiler
def test_a_replica_that_recovers_is_found_again(place: Any, route: Callable[..., Route]) -> None:
    replicas = [place.replica(name, lag_s=0.01) for name in "abc"]
    place.publish(route("movies", replicas))
    load = place.load("/default/movies/work")
    place.until(lambda: load.ok > 100)
    drain(replicas[0])
    place.until(lambda: load.ok > 500)
    undrain(replicas[0])
    before = load.by_name["a"]
    place.until(lambda: load.by_name["a"] - before > 50)
    load.stop()


@needs_compiler
def test_weights_change_under_load_and_nothing_fails(place: Any, route: Callable[..., Route]) -> None:
    replicas = [place.replica(name, lag_s=0.002) for name in "abc"]
    place.publish(route("movies", replicas))
    load = place.load("/default/movies/")
    place.until(lambda: load.ok > 50)
    for turn in range(20):
        weights = [100, 40 + turn, 250 - turn]
        place.publish(weighed("movies", replicas, weights))
    place.until(lambda: load.ok > 500)
    load.stop()
    assert load.failed == []


def test_a_change_of_weights_alone_is_not_validated_anew(
    place: Any, route: Callable[..., Route], monkeypatch: pytest.MonkeyPatch
) -> None:
    from lepton_ai.gateway import envoy

    replicas = [place.replica(name) for name in "ab"]
    place.publish(route("movies", replicas))
    validated = []
    monkeypatch.setattr(envoy, "validate", lambda *given, **more: validated.append(given))
    done = place.publish(weighed("movies", replicas, [100, 50]))
    assert done.changed
    assert done.confirmed == 2
    assert validated == []


def test_without_a_picker_a_spare_replica_serves_only_when_no_other_can(
    plain: Any, route: Callable[..., Route]
) -> None:
    one, other = plain.replica("one"), plain.replica("spare")
    spare = other.endpoint.model_copy(update={"spare": True, "weight": 30})
    backend = Backend(release=1, endpoints=(one.endpoint, spare))
    plain.publish(Route(workspace="default", name="movies", backends=(backend,), idempotent=True))
    plain.until(lambda: plain.get("/default/movies/")[0] == 200)
    time.sleep(1.0)
    assert set(served(plain, "/default/movies/", 200)) == {"one"}
    one.process.kill()
    found = served(plain, "/default/movies/", 200)
    assert found["spare"] >= 190


def test_where_it_cannot_be_built_the_gateway_does_without(
    tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(picker, "compiler", lambda: None)
    assert picker.built(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@needs_compiler
@pytest.mark.parametrize("source", ["this is no C", "int nothing_of_what_envoy_needs;"])
def test_a_module_that_envoy_does_not_take_is_not_used(
    source: str, tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = tmp_path / "wrong.c"
    wrong.write_text(source, "utf-8")
    monkeypatch.setattr(picker, "SOURCE", wrong)
    assert picker.built(tmp_path / "gateway") is None


@pytest.mark.parametrize("full", ["mkstemp", "TemporaryDirectory"])
def test_without_room_to_build_or_keep_it_the_gateway_does_without(
    full: str, tmp_path: Path, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> object:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(picker.tempfile, full, refused)
    if full == "mkstemp":
        monkeypatch.setattr(picker, "_content", lambda: b"a module")
    else:
        monkeypatch.setattr(picker, "compiler", lambda: ["cc"])
    assert picker.built(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@needs_compiler
def test_it_is_built_once_and_for_its_owner_only(tmp_path: Path) -> None:
    path = picker.built(tmp_path)
    assert path is not None
    assert path.stat().st_mode & 0o077 == 0
    before = path.stat().st_mtime_ns
    assert picker.built(tmp_path) == path
    assert path.stat().st_mtime_ns == before


@needs_compiler
def test_it_compiles_without_a_warning(tmp_path: Path) -> None:
    command = [*(picker.compiler() or ()), "-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "p.so"), str(picker.SOURCE), "-lm"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture
def fresh() -> Iterator[None]:
    """Nothing is remembered of what was built before, nor afterwards of what this test built."""
    content, version = picker._content, picker._version
    for known in (content, version):
        known.cache_clear()
    yield
    for known in (content, version):
        known.cache_clear()


def drain(replica: Any) -> None:
    told(replica, "/drain")


def undrain(replica: Any) -> None:
    told(replica, "/undrain")


def told(replica: Any, path: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", replica.port, timeout=10)
    connection.request("GET", path)
    assert connection.getresponse().status == 200
    connection.close()


def weighed(name: str, replicas: list[Any], weights: list[int]) -> Route:
    ends: list[Endpoint] = [
        replica.endpoint.model_copy(update={"weight": weight})
        for replica, weight in zip(replicas, weights, strict=True)
    ]
    return Route(workspace="default", name=name, backends=(Backend(release=1, endpoints=tuple(ends)),))
