"""Quantiles of what Envoy's histograms grew by lately."""

from __future__ import annotations

import pytest

from lepton_ai.gateway.latency import Latency, read
from lepton_ai.gateway.stats import PATTERN, Stats
from lepton_ai.spec.route import Backend, Route, Routes

NAME = "cluster.default/movies/1.upstream_rq_time"


def test_a_histogram_as_envoy_writes_it() -> None:
    assert read("B0.5(0,0) B1(2,3) B5(2,9)") == {0.5: 0, 1.0: 3, 5.0: 9}
    assert read("No recorded values") == {}


def test_quantiles_within_buckets() -> None:
    latency = Latency()
    latency.age(1000)
    latency.add({}, {10.0: 50, 20.0: 90, 100.0: 100})
    assert latency.quantiles_ms((0.25, 0.5, 0.7, 0.95)) == pytest.approx([5.0, 10.0, 15.0, 60.0])


def test_only_what_grew_lately_counts() -> None:
    latency, slow, fast = Latency(), {10.0: 0, 100.0: 1000}, {10.0: 1000, 100.0: 2000}
    latency.age(1000)
    latency.add({}, slow)
    latency.age(101_000)
    latency.add(slow, fast)
    assert latency.quantiles_ms((0.95,)) == pytest.approx([9.6], abs=0.5)
    latency.age(1_000_000)
    assert latency.quantiles_ms((0.95,)) is None


def test_an_envoy_that_began_anew_and_a_clock_that_was_set_back() -> None:
    latency = Latency()
    latency.age(10_000)
    latency.add({10.0: 500, 100.0: 500}, {10.0: 4, 100.0: 8})
    latency.age(5)
    assert latency.quantiles_ms((0.5,)) == pytest.approx([10.0])


def test_the_latency_of_a_route() -> None:
    import re

    assert re.search(PATTERN, NAME)
    routes = Routes(routes=(Route(workspace="default", name="movies", backends=(Backend(release=1),)),))
    stats = Stats()
    (none,) = stats.update({"e": {NAME: "No recorded values"}}, routes, {}, 1000)
    assert none.latency_ms_p95 is None
    (found,) = stats.update({"e": {NAME: "B10(1,50) B100(1,100)"}}, routes, {}, 2000)
    assert (found.latency_ms_p50, found.latency_ms_p95) == (10.0, 91.0)
    (gone,) = stats.update({"e": {}}, routes, {}, 900_000)
    assert gone.latency_ms_p95 is None
