"""Scaling from zero: the first request waits and is answered."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest


@pytest.fixture
def held(place):
    """The place with a running activator."""
    place.start_activator()
    return place


def test_the_first_requests_from_zero_are_held_and_answered(held, route):
    held.publish(route("movies", activate=True))
    found = []
    callers = [
        threading.Thread(target=lambda: found.append(held.get("/default/movies/a?x=1", timeout_s=60)))
        for _ in range(20)
    ]
    for caller in callers:
        caller.start()
    held.until(lambda: held.gateway.held() == {"default/movies": 20})
    assert held.gateway.wait_held(10) == {"default/movies": 20}
    assert held.gateway.stats()[0].held == 20
    one = held.replica("one")
    held.publish(route("movies", [one], activate=True))
    for caller in callers:
        caller.join(60)
    assert [(status, body["name"], body["path"]) for status, body in found] == [(200, "one", "/a?x=1")] * 20
    held.until(lambda: held.gateway.held() == {})
    assert held.gateway.stats()[0].failed == 0


def test_to_zero_and_back_under_load_fails_nothing(held, route):
    one, two = held.replica("one"), held.replica("two")
    held.publish(route("movies", [one], activate=True))
    load = held.load("/default/movies/work")
    for replicas in ([], [two], [], [one], [one, two], []):
        held.publish(route("movies", replicas, activate=True))
        if not replicas:
            held.until(lambda: sum(held.gateway.held().values()) > 0)
    held.publish(route("movies", [one], activate=True))
    seen = load.ok
    held.until(lambda: load.ok > seen + 50)
    load.stop()
    assert load.failed == []


def test_a_dead_replica_that_is_still_listed_is_waited_out(held, route):
    one = held.replica("one")
    held.publish(route("movies", [one], activate=True, idempotent=True))
    held.get("/default/movies/a")
    one.end()
    found = []
    caller = threading.Thread(target=lambda: found.append(held.get("/default/movies/a", timeout_s=60)))
    caller.start()
    held.until(lambda: held.gateway.held() == {"default/movies": 1})
    held.replica("again", one.port)
    caller.join(60)
    assert found[0][1]["name"] == "again"


def test_streams_uploads_and_websockets_pass_the_activator(held, route):
    held.publish(route("movies", activate=True))

    async def talk() -> tuple[int, bytes, int]:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{held.port}", timeout=60) as client:
            upload = asyncio.create_task(client.post("/default/movies/up", content=b"x" * (3 << 20)))
            events = asyncio.create_task(client.get("/default/movies/sse"))
            reader, writer = await asyncio.open_connection("127.0.0.1", held.port)
            writer.write(
                b"GET /default/movies/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            await asyncio.to_thread(held.until, lambda: held.gateway.held() == {"default/movies": 3})
            one = await asyncio.to_thread(held.replica, "one")
            await asyncio.to_thread(held.publish, route("movies", [one], activate=True))
            length = (await upload).json()["length"]
            count = (await events).text.count("data:")
            assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 101")
            writer.write(b"hello")
            echo = await asyncio.wait_for(reader.readexactly(5), 30)
            writer.close()
            return length, echo, count

    assert asyncio.run(talk()) == (3 << 20, b"HELLO", 3)


def test_a_held_request_needs_its_token_too(held, route):
    held.publish(route("movies", activate=True, tokens=("key",)))
    assert held.get("/default/movies/a")[0] == 401
    assert held.gateway.held() == {}


def test_beyond_its_places_it_refuses_with_a_reason(place, route):
    place.start_activator(hold_count=4)
    place.publish(route("movies", activate=True), route("other", activate=True))
    found = []
    callers = [
        threading.Thread(target=lambda path=path: found.append(place.get(path, timeout_s=60)))
        for path in ["/default/movies/a"] * 6 + ["/default/other/a"]
    ]
    for caller in callers[:6]:
        caller.start()
    # Two are held (as many as places are free); the other route still gets a place of its own.
    place.until(lambda: len(found) == 4)
    callers[6].start()
    place.until(lambda: place.gateway.held() == {"default/movies": 2, "default/other": 1})
    assert [(status, body["code"], bool(body["hint"])) for status, body in found] == [(503, "Unavailable", True)] * 4
    one = place.replica("one")
    place.publish(route("movies", [one], activate=True), route("other", [one], activate=True))
    for caller in callers:
        caller.join(60)
    assert [status for status, _ in found[4:]] == [200] * 3


def test_after_its_time_it_gives_up_with_a_reason(place, route):
    place.start_activator(hold_s=0.3)
    place.publish(route("movies", activate=True))
    status, body = place.get("/default/movies/a", timeout_s=60)
    assert (status, body["code"]) == (504, "Timeout")
    assert "0.3 s" in body["message"]
    assert body["hint"]
    assert place.gateway.held() == {}
