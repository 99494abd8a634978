"""The publisher with its threads: the last set wins, nothing blocks the loop, and it ends when it is told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping

import pytest

from lepton_ai.control.clock import SystemClock
from lepton_ai.control.publish import Publisher
from lepton_ai.errors import Invalid, Timeout
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes, RouteStats


def routes(*uids: str) -> Routes:
    ends = tuple(Endpoint(replica=uid, address="127.0.0.1", port=20_000 + number) for number, uid in enumerate(uids))
    return Routes(routes=(Route(workspace="w", name="movies", backends=(Backend(release=1, endpoints=ends),)),))


class Gateway:
    """Notes what it is told; `gate` holds up a publish, `errors` are raised by the next ones."""

    def __init__(self) -> None:
        self.seen: list[Routes] = []
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.errors: list[Exception] = []
        self.figures: tuple[RouteStats, ...] = ()
        self.broken = False
        self.waiting: dict[str, int] = {}

    def publish(self, routes: Routes) -> object:
        self.begun.set()
        assert self.gate.wait(10)
        if self.errors:
            raise self.errors.pop(0)
        self.seen.append(routes)
        return None

    def stats(self) -> tuple[RouteStats, ...]:
        if self.broken:
            raise Timeout("no answer")
        return self.figures

    def wait_held(self, wait_s: float) -> Mapping[str, int]:
        time.sleep(0.005)
        return dict(self.waiting)


@pytest.fixture
def gateway() -> Gateway:
    return Gateway()


@pytest.fixture
def publisher(gateway: Gateway) -> Iterator[Publisher]:
    made = Publisher(gateway, SystemClock(), stats_s=0.02)
    made.start()
    yield made
    gateway.gate.set()
    made.close()
    assert not made._workers[0].is_alive()


def until(true: Callable[[], object]) -> None:
    end_s = time.monotonic() + 10
    while not true():
        assert time.monotonic() < end_s
        time.sleep(0.002)


def test_a_slow_gateway_blocks_nobody_and_gets_only_the_last_set(gateway: Gateway, publisher: Publisher) -> None:
    gateway.gate.clear()
    publisher.offer(routes("a"))
    assert gateway.begun.wait(10)
    for uid in ("b", "c", "d"):
        publisher.offer(routes(uid))
    assert publisher.routed_ms("a") is None
    gateway.gate.set()
    until(lambda: publisher.routed_ms("d") is not None)
    assert gateway.seen == [routes("a"), routes("d")]
    assert publisher.routed_ms("a") is None
    assert publisher.is_out("a")


def test_nothing_is_out_before_something_is_confirmed(gateway: Gateway, publisher: Publisher) -> None:
    assert not publisher.is_out("a")
    gateway.errors = [Invalid("no")] * 2
    publisher.offer(routes("b"))
    until(lambda: not gateway.errors)
    assert not publisher.is_out("a")


def test_a_set_that_may_have_been_taken_counts_until_another_is_confirmed(
    gateway: Gateway, publisher: Publisher
) -> None:
    publisher.offer(routes("a"))
    until(lambda: publisher.routed_ms("a") is not None)
    gateway.errors = [Timeout("not confirmed")]
    publisher.offer(routes("a", "b"))
    until(lambda: not gateway.errors)
    gateway.gate.clear()
    gateway.begun.clear()
    publisher.offer(routes("a", "c"))
    assert gateway.begun.wait(10)
    assert not publisher.is_out("b")
    assert not publisher.is_out("c")
    gateway.gate.set()
    until(lambda: publisher.routed_ms("c") is not None)
    assert publisher.is_out("b")


def test_what_was_refused_is_tried_again(
    gateway: Gateway, publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lepton_ai.control.publish.RETRY_S", 0.01)
    gateway.errors = [Invalid("no"), RuntimeError("a bug"), Invalid("no")]
    publisher.offer(routes("a"))
    until(lambda: gateway.seen == [routes("a")])


def test_in_flight_is_known_only_from_figures_since_it_left(gateway: Gateway, publisher: Publisher) -> None:
    publisher.offer(routes("a", "b"), hurry=True)
    until(lambda: publisher.routed_ms("a") is not None)
    gateway.broken = True
    time.sleep(0.15)
    publisher.offer(routes("b"), hurry=True)
    until(lambda: publisher.is_out("a"))
    assert publisher.in_flight("a", "w", "movies") is None
    gateway.figures = (RouteStats(workspace="w", name="movies", in_flight=5, in_flight_by_replica={"b": 3}),)
    gateway.broken = False
    until(lambda: publisher.in_flight("a", "w", "movies") is not None)
    until(lambda: publisher.in_flight("a", "w", "movies") == 2)
    gateway.figures = (RouteStats(workspace="w", name="movies", in_flight=3, in_flight_by_replica={"b": 3}),)
    until(lambda: publisher.in_flight("a", "w", "movies") == 0)


def test_a_request_that_begins_to_be_held_wakes_the_loop(gateway: Gateway, publisher: Publisher) -> None:
    woken = threading.Event()
    publisher.subscribe(woken.set)
    gateway.figures = (RouteStats(workspace="w", name="movies", held=2),)
    gateway.waiting = {"w/movies": 2}
    assert woken.wait(10)
    until(lambda: publisher.held("w", "movies") == 2)


def test_rest_forgets_what_was_wanted_and_confirmed(gateway: Gateway, publisher: Publisher) -> None:
    publisher.offer(routes("a"))
    until(lambda: publisher.routed_ms("a") is not None)
    publisher.rest()
    assert publisher.routed_ms("a") is None
    assert not publisher.is_out("b")
    publisher.offer(routes("a"))
    until(lambda: publisher.routed_ms("a") is not None)
    assert gateway.seen == [routes("a"), routes("a")]
