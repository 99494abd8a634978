"""Envoy's counters -> what each deployment was asked, how it went, and what is in flight. One admin call an Envoy.

Counters of an Envoy start again at zero when it restarts; here they only grow.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

from lepton_ai.gateway.latency import Buckets, Latency, read
from lepton_ai.spec.route import Endpoint, Route, Routes, RouteStats

PATTERN = (
    r"^vhost\..*\.route\..*\.upstream_rq_(completed|5xx|total)$"
    r"|^cluster\..*\.(upstream_rq_active|upstream_rq_retry|upstream_rq_time|endpoint\..*\.rq_(active|success|error))$"
)
"""What one call must fetch."""

_ROUTE = re.compile(r"vhost\..*\.route\.([a-z0-9-]+)/([a-z0-9-]+)\.upstream_rq_(completed|5xx)$")
_CLUSTER = re.compile(r"cluster\.([a-z0-9-]+)/([a-z0-9-]+)/\d+\.(upstream_rq_active|endpoint\.(.*)\.rq_active)$")
_ENDPOINT = re.compile(r"cluster\.([a-z0-9-]+)/([a-z0-9-]+)/\d+\.endpoint\.(.*)\.rq_(success|error)$")
_TIME = re.compile(r"cluster\.([a-z0-9-]+)/([a-z0-9-]+)/\d+\.upstream_rq_time$")

Key = tuple[str, str]


class Stats:
    """Adds up what several Envoys say, over their restarts."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], int] = {}
        self._total: dict[Key, dict[str, int]] = defaultdict(lambda: {"completed": 0, "5xx": 0})
        self._each: dict[Key, dict[tuple[str, str], int]] = defaultdict(lambda: defaultdict(int))
        self._last_request_ms: dict[Key, int] = {}
        self._latency: dict[Key, Latency] = {}
        self._buckets: dict[tuple[str, str], Buckets] = {}

    def update(
        self, figures: Mapping[str, Mapping[str, str]], routes: Routes, held: Mapping[str, int], now_ms: int
    ) -> tuple[RouteStats, ...]:
        """The figures of every route.

        Args:
            figures: for each Envoy that answered, its statistics (names matching PATTERN).
            held: requests that the activator holds now, by "WORKSPACE/NAME".
            now_ms: time of this reading, UTC.
        """
        wanted = {(route.workspace, route.name) for route in routes.routes}
        active: dict[Key, int] = defaultdict(int)
        by_address: dict[Key, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        busy: set[Key] = set()
        for latency in self._latency.values():
            latency.age(now_ms)
        for envoy, values in figures.items():
            self._forget(envoy, values)
            for name, text in values.items():
                if match := _ROUTE.match(name):
                    key = (match[1], match[2])
                    grown = self._grown(envoy, name, int(text))
                    self._total[key][match[3]] += grown
                    if grown:
                        busy.add(key)
                elif match := _TIME.match(name):
                    self._time(envoy, name, read(text), (match[1], match[2]), now_ms)
                elif match := _ENDPOINT.match(name):
                    self._each[match[1], match[2]][match[3], match[4]] += self._grown(envoy, name, int(text))
                elif (match := _CLUSTER.match(name)) and int(text):
                    key = (match[1], match[2])
                    if match[4] is None:
                        active[key] += int(text)
                    else:
                        by_address[key][match[4]] += int(text)
        for key in busy | set(active):
            self._last_request_ms[key] = now_ms
        for key in set(self._total) - wanted:
            del self._total[key]
            self._last_request_ms.pop(key, None)
            self._latency.pop(key, None)
        self._each = defaultdict(lambda: defaultdict(int), {key: self._each[key] for key in wanted & set(self._each)})
        return tuple(
            RouteStats(
                workspace=route.workspace,
                name=route.name,
                requests=self._total[route.workspace, route.name]["completed"],
                failed=self._total[route.workspace, route.name]["5xx"],
                in_flight=active[route.workspace, route.name],
                held=held.get(f"{route.workspace}/{route.name}", 0),
                last_request_ms=self._last_request_ms.get((route.workspace, route.name), 0),
                in_flight_by_replica={
                    endpoint.replica: by_address[route.workspace, route.name].get(address_label(endpoint), 0)
                    for backend in route.backends
                    for endpoint in backend.endpoints
                },
                **self._quantiles((route.workspace, route.name)),
                answered_by_replica=self._of_each(route, "success"),
                failed_by_replica=self._of_each(route, "error"),
            )
            for route in routes.routes
        )

    def _time(self, envoy: str, name: str, after: Buckets, key: Key, now_ms: int) -> None:
        before, self._buckets[envoy, name] = self._buckets.get((envoy, name), {}), after
        if after and after != before:
            latency = self._latency.get(key)
            if latency is None:
                latency = self._latency[key] = Latency()
                latency.age(now_ms)
            latency.add(before, after)

    def _quantiles(self, key: Key) -> dict[str, float]:
        found = self._latency[key].quantiles_ms((0.5, 0.95)) if key in self._latency else None
        return {} if found is None else {"latency_ms_p50": round(found[0], 2), "latency_ms_p95": round(found[1], 2)}

    def _of_each(self, route: Route, kind: str) -> dict[str, int]:
        """A counter of every replica; empty while an Envoy that was started before this release does not count it."""
        counted = self._each.get((route.workspace, route.name), {})
        found: dict[str, int] = {}
        kept: dict[tuple[str, str], int] = {}
        for endpoint in (endpoint for backend in route.backends for endpoint in backend.endpoints):
            place = (address_label(endpoint), kind)
            if place in counted:
                found[endpoint.replica] = kept[place] = counted[place]
        if len(counted) > 4 * (len(kept) + 8):  # addresses that nobody has any more
            self._each[route.workspace, route.name] = defaultdict(int, {
                place: value for place, value in counted.items() if place[1] != kind or place in kept
            })  # fmt: skip
        return found

    def _forget(self, envoy: str, values: Mapping[str, str]) -> None:
        """Drops what Envoy no longer has (removed routes), so that memory follows the number of routes."""
        for key in [key for key in self._last if key[0] == envoy and key[1] not in values]:
            del self._last[key]
        for key in [key for key in self._buckets if key[0] == envoy and key[1] not in values]:
            del self._buckets[key]

    def _grown(self, envoy: str, name: str, value: int) -> int:
        """By how much a counter has grown since it was last read; one that went back began at zero."""
        last = self._last.get((envoy, name), 0)
        self._last[envoy, name] = value
        return value - last if value >= last else value


def address_label(endpoint: Endpoint) -> str:
    """How Envoy writes an address in the name of a statistic."""
    host = f"[{endpoint.address}]" if ":" in endpoint.address else endpoint.address
    return f"{host}:{endpoint.port}".replace(":", "_")
