"""What control needs to know before it ends a replica: a request in flight where no route leads any more is counted."""

from __future__ import annotations

import socket

import pytest

from lepton_ai.spec.route import Backend


def held(place) -> socket.socket:
    """A request that a replica has and does not answer before it is released."""
    connection = socket.create_connection(("127.0.0.1", place.port), timeout=30)
    connection.sendall(b"GET /default/movies/a HTTP/1.1\r\nHost: x\r\nx-hold: 1\r\n\r\n")
    place.until(lambda: place.gateway.stats()[0].in_flight == 1)
    return connection


@pytest.mark.parametrize("exchange", [False, True])
def test_in_flight_where_no_route_leads_any_more(place, route, exchange):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one], request_timeout_s=60))
    with held(place) as connection:
        if exchange:  # another release takes over; the old one stays, empty, while it drains
            new = route("movies", [], [two], request_timeout_s=60)
            place.publish(new.model_copy(update={"backends": (Backend(release=1, weight=0), new.backends[1])}))
        else:
            place.publish(route("movies", [two], request_timeout_s=60))
        assert place.get("/default/movies/b")[1]["name"] == "two"
        (stats,) = place.gateway.stats()
        assert "one" not in stats.in_flight_by_replica
        assert stats.in_flight - sum(stats.in_flight_by_replica.values()) == 1
        one.release()
        assert connection.recv(12) == b"HTTP/1.1 200"
        place.until(lambda: place.gateway.stats()[0].in_flight == 0)
