"""Changes and losses under load: what callers must not notice, and what is put back."""

from __future__ import annotations

import random
import threading

import pytest

from lepton_ai.errors import Invalid
from lepton_ai.gateway import envoy as envoy_module
from lepton_ai.gateway.envoy import EnvoyGateway
from lepton_ai.gateway.listener import Listen
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes

CHANGES = 40
"""A seeded sample; 1 in 10 is a set that must be refused."""


def test_forty_changes_under_load_fail_no_request(place, route):
    seed = 7
    dice = random.Random(seed)
    replicas = [place.replica(f"r{number}") for number in range(4)]
    place.publish(route("movies", replicas[:2], idempotent=True))
    load = place.load("/default/movies/work")
    refused = 0
    for number in range(CHANGES):
        if number % 10 == 5:
            with pytest.raises(Invalid):
                place.gateway.publish(invalid(dice))
            refused += 1
            continue
        old = dice.sample(replicas, dice.randint(1, 3))
        new = dice.sample(replicas, dice.randint(0, 2))
        weights = (dice.randint(1, 100), dice.randint(0, 100))
        extra = [route(f"other{index}", [dice.choice(replicas)]) for index in range(dice.randint(0, 3))]
        tokens = ("a",) if dice.random() < 0.5 else None
        health = dice.choice([None, "/healthz"])
        kept = {"idempotent": True, "health_path": health}
        place.publish(route("movies", old, new, weights=weights, **kept), route("locked", old, tokens=tokens), *extra)
    load.stop()
    assert refused == CHANGES // 10
    assert load.failed == [], f"seed {seed}: {len(load.failed)} of {load.ok} failed: {load.failed[:5]}"
    assert load.ok > CHANGES


def test_changes_fail_no_request_that_may_not_be_repeated(place, route):
    one, two, three = (place.replica(name) for name in ("one", "two", "three"))
    place.publish(route("movies", [one]))
    load = place.load("/default/movies/work")
    for replicas in ([two], [three], [one, two], [three], [one], [two, three]) * 2:
        place.publish(route("movies", replicas))
    place.publish(route("movies", [], [one], weights=(0, 100)))
    place.publish(route("movies", [two], [one], weights=(50, 50)))
    load.stop()
    assert load.failed == []


def test_an_exchange_of_releases_fails_no_request(place, route):
    """The stand-in of a release becomes its only endpoint, and the reverse, many times."""
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one], [two], weights=(50, 50)))
    loads = [place.load("/default/movies/work", connections=12) for _ in range(2)]
    for _ in range(30):
        place.publish(route("movies", [two], [], weights=(50, 50)))
        place.publish(route("movies", [one], [two], weights=(50, 50)))
    for load in loads:
        load.stop()
        assert load.failed == [], f"{len(load.failed)} of {load.ok} failed: {load.failed[:5]}"


def test_removal_lets_requests_in_flight_end(place, route):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one]), route("gone", [one]))
    found = []
    callers = [
        threading.Thread(target=lambda path=path: found.append(place.get(path, x_hold="1")))
        for path in ("/default/movies/a", "/default/gone/a")
    ]
    for caller in callers:
        caller.start()
    place.until(lambda: sum(item.in_flight for item in place.gateway.stats()) == 2)
    place.publish(route("movies", [two]))
    assert place.get("/default/gone/a")[0] == 404
    assert place.get("/default/movies/a")[1]["name"] == "two"
    assert found == []
    one.release()
    for caller in callers:
        caller.join(30)
    assert [(status, body["name"]) for status, body in found] == [(200, "one"), (200, "one")]


def test_a_new_endpoint_takes_traffic_at_once(place, route):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one]))
    place.publish(route("movies", [two]))
    assert {place.get("/default/movies/a")[1]["name"] for _ in range(20)} == {"two"}


def test_killing_a_replica_fails_no_idempotent_request(place, route):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one, two], idempotent=True))
    load = place.load("/default/movies/work", connections=8)
    place.until(lambda: load.by_name["one"] > 100 and load.by_name["two"] > 100)
    one.process.kill()
    seen = load.by_name["two"]
    place.until(lambda: load.by_name["two"] > seen + 500)
    one.end()
    place.replica("one again", one.port)
    place.until(lambda: load.by_name["one again"] > 50)
    load.stop()
    assert load.failed == []
    figures = place.gateway.stats()[0]
    assert figures.requests == load.ok
    assert figures.failed == 0


def test_killing_the_only_canary_replica_falls_back_to_the_other_release(place, route):
    old, new = place.replica("old"), place.replica("new")
    place.publish(route("movies", [old], [new], weights=(50, 50), idempotent=True))
    load = place.load("/default/movies/work")
    place.until(lambda: load.by_name["new"] > 50)
    new.process.kill()
    seen = load.by_name["old"]
    place.until(lambda: load.by_name["old"] > seen + 300)
    load.stop()
    assert load.failed == []


def test_a_draining_replica_that_answers_503_costs_no_idempotent_request(place, route):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one, two], idempotent=True))
    load = place.load("/default/movies/work")
    place.until(lambda: load.by_name["one"] > 50 and load.by_name["two"] > 50)
    drained = place.get("/default/movies/drain")[1]["name"]
    other = {"one": "two", "two": "one"}[drained]
    seen = load.by_name[other]
    place.until(lambda: load.by_name[other] > seen + 300)
    load.stop()
    assert load.failed == []


def test_killing_one_envoy_leaves_the_other_serving(place, route):
    place.publish(route("movies", [place.replica("one")]))
    place.kill("envoy-1")
    for _ in range(30):
        assert place.get("/default/movies/a")[0] == 200
    assert place.gateway.ready()
    assert place.publish(route("movies", [place.replica("two")])).confirmed == 1
    place.start(1)
    place.until(lambda: place.gateway.live() == 2)
    place.kill("envoy-2")
    assert place.get("/default/movies/a")[1]["name"] == "two"


def test_everything_comes_back_from_the_files_without_control(place, route):
    place.publish(route("movies", [place.replica("one")], tokens=("key",)))
    for number in (1, 2):
        place.kill(f"envoy-{number}")
    assert not place.gateway.ready()
    place.start(1)
    place.until(place.gateway.ready)
    place.until(lambda: place.get("/default/movies/a", Authorization="Bearer key")[0] == 200)
    assert place.get("/default/movies/a")[0] == 401


def test_a_new_control_process_goes_on_from_the_files(place, route):
    one = place.replica("one")
    wanted = route("movies", [one])
    first = place.publish(wanted)
    again = EnvoyGateway(place.folder, Listen("127.0.0.1", place.port))
    assert again.publish(Routes(routes=(wanted,))).changed is False
    assert again.publish(Routes(routes=(wanted,))).version == first.version
    assert [item.name for item in again.stats()] == ["movies"]
    assert place.get("/default/movies/a")[0] == 200


def test_what_the_running_envoys_refuse_is_taken_back(place, route, monkeypatch):
    one = place.replica("one")
    place.publish(route("movies", [one]))
    before = {path: path.read_bytes() for path in place.folder.rglob("*.json")}
    honest = envoy_module.render

    def broken(*args, **fields):
        rendered = honest(*args, **fields)
        rendered.routes[0]["virtual_hosts"][0]["domains"] = []
        return rendered

    monkeypatch.setattr(envoy_module, "render", broken)
    with pytest.raises(Invalid) as caught:
        place.publish(route("movies", [one]), route("more", [one]))
    assert "domains" in str(caught.value.details["reason"]).lower()
    monkeypatch.setattr(envoy_module, "validate", lambda *_: None)
    with pytest.raises(Invalid, match="refused"):
        place.publish(route("movies", [one]), route("more", [one]))
    assert {path: path.read_bytes() for path in place.folder.rglob("*.json")} == before
    monkeypatch.undo()
    assert place.get("/default/movies/a")[0] == 200
    assert place.publish(route("movies", [one]), route("more", [one])).confirmed == 2
    assert place.get("/default/more/a")[0] == 200


def test_endpoint_changes_touch_only_the_file_of_their_release(place, route, monkeypatch):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one]), route("other", [one]))
    before = {path.name: path.stat().st_mtime_ns for path in place.folder.rglob("*.json")}
    checks = []
    monkeypatch.setattr(envoy_module, "validate", lambda *_: checks.append(1))
    assert place.publish(route("movies", [one, two]), route("other", [one])).confirmed == 2
    assert checks == [], "an Envoy was started to check what a few milliseconds are enough for"
    after = {path.name: path.stat().st_mtime_ns for path in place.folder.rglob("*.json")}
    changed = {name for name in after if after[name] != before[name]}
    assert "default.movies.1.json" in changed
    assert changed <= {"default.movies.1.json", "wanted.json", "activator.json"}


def invalid(dice: random.Random) -> Routes:
    """A set with something that cannot be served."""
    good = Endpoint(replica="x", address="127.0.0.1", port=1)
    name_not_address = Endpoint(replica="x", address="no.such.host", port=1)
    backend = Backend(release=1, endpoints=(good,))
    choices = (
        (Route(workspace="default", name="movies", backends=(Backend(release=1, endpoints=(name_not_address,)),)),),
        (Route(workspace="default", name="movies", backends=(backend,)),) * 2,
        (Route(workspace="default", name="movies", backends=(backend,), tokens=("a\nb",)),),
        (Route(workspace="default", name="movies", backends=(backend,), health_path="no slash"),),
        (Route(workspace="default", name="movies", backends=(backend,), request_timeout_s=-1),),
    )
    return Routes(routes=dice.choice(choices))
