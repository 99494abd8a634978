"""The live part of `routing`: servers behind real Envoys of the shipped gateway, some of them slow. No measurement
itself.

Three ways to the same servers, in turns: Envoy's plain LEAST_REQUEST (two choices, its default), the gateway as it
ships, and the gateway on a machine without a compiler. Control is what ships too: once a second the gateway's figures,
`Capacity`, `route`, `publish`.
"""

from __future__ import annotations

import statistics
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import workers
from workers import Server

from lepton_ai.control.standing import seen
from lepton_ai.gateway.envoy import EnvoyGateway
from lepton_ai.gateway.listener import Listen
from lepton_ai.scheduler.capacity import Capacity
from lepton_ai.scheduler.route import Share, route
from lepton_ai.spec.container import Balance
from lepton_ai.spec.route import Backend, Endpoint, Route, Routes

PLAIN, OURS, WITHOUT = "LEAST_REQUEST", "shipped", "shipped, no compiler"
WARM_S = 3.0
"""The first seconds of each turn are not counted: control and pickers learn."""


@dataclass
class Way:
    """One way to the servers: the port of its gateway and its path."""

    name: str
    port: int
    path: str
    envoys: list[psutil.Process]
    keeper: Keeper | None = None


@dataclass
class Keeper:
    """Control of one gateway, as it ships, in a thread."""

    gateway: EnvoyGateway
    servers: Sequence[Server]
    known: dict[str, Capacity] = field(default_factory=dict)
    shares: dict[str, dict[str, Share]] = field(default_factory=dict)
    writes: int = 0

    def publish(self) -> None:
        routes = []
        for name, balance in (("plain", Balance(choices=2)), ("ours", Balance())):
            shares = self.shares.get(name, {}) if name == "ours" else {}
            ends = []
            for server in self.servers:
                share = shares.get(str(server.port), Share())
                ends.append(
                    Endpoint(
                        replica=str(server.port),
                        address="127.0.0.1",
                        port=server.port,
                        weight=share.weight,
                        spare=share.spare,
                    )
                )
            backend = Backend(release=1, endpoints=tuple(ends))
            routes.append(
                Route(workspace="default", name=name, backends=(backend,), balance=balance, health_path="/health")
            )
        self.gateway.publish(Routes(routes=tuple(routes)))

    def run(self, ended: threading.Event) -> None:
        while not ended.wait(1.0):
            for stats in self.gateway.stats():
                if stats.name != "ours":
                    continue
                known = self.known.setdefault(stats.name, Capacity())
                known.observe(time.monotonic_ns() // 1_000_000, seen(stats))
                before = self.shares.get(stats.name, {})
                after = route(known.estimate(), known.ahead(), before)
                if after != before:
                    self.shares[stats.name] = after
                    self.writes += 1
                    self.publish()


@contextmanager
def ways(folder: Path, servers: Sequence[Server], envoys: int) -> Iterator[list[Way]]:
    """The three ways, each Envoy running and every server known to be healthy."""
    processes: list[subprocess.Popen[bytes]] = []
    ended, threads, keepers, found = threading.Event(), [], [], []
    try:
        for name, picker in ((OURS, True), (WITHOUT, False)):
            port = workers.free_port()
            place = folder / ("with" if picker else "without")
            gateway = EnvoyGateway(place, Listen("127.0.0.1", port), envoys, picker=picker)
            keeper = Keeper(gateway, servers)
            keeper.publish()
            started = [workers.quiet(gateway.argv(number)) for number in range(1, envoys + 1)]
            processes += started
            workers.until(lambda gateway=gateway: gateway.live() == envoys, "the Envoys run")  # type: ignore[misc]
            keepers.append(keeper)
            each = [psutil.Process(process.pid) for process in started]
            if picker:
                found.append(Way(PLAIN, port, "/default/plain/x", each))
            found.append(Way(name, port, "/default/ours/x", each, keeper))
        for way in found:
            workers.until(lambda way=way: workers.fetch(way.port, way.path).isdigit(), "a way leads there")  # type: ignore[misc]
        time.sleep(1.0)
        for keeper in keepers:
            thread = threading.Thread(target=keeper.run, args=(ended,), daemon=True)
            thread.start()
            threads.append(thread)
        yield found
    finally:
        ended.set()
        for thread in threads:
            thread.join(10)
        workers.end(processes)


def measure(
    folder: Path,
    label: str,
    services_s: Sequence[float],
    slow: Sequence[int],
    rate: float,
    *,
    rounds: int,
    span_s: float,
    warm_s: float = WARM_S,
    envoys: int = 2,
    quota: float | None = None,
) -> list[dict[str, object]]:
    """Rows: one a way, over interleaved rounds. `slow`: the indices of the throttled ones, for the column of shares.

    With `quota` the servers compute, and the slow ones share so much of a core with a hog; [] where that cannot be.
    """
    burn = quota is not None
    with workers.servers(services_s, burn=burn) as servers:
        chosen = [servers[index].process for index in slow] if burn else []
        with workers.throttled(chosen, quota or 1.0, hog=True) if burn else nothing() as able:
            if not able:
                return []
            with ways(folder / label, servers, envoys) as found:
                return rows(label, found, {servers[index].port for index in slow}, rate, rounds, span_s, warm_s)


@contextmanager
def nothing() -> Iterator[bool]:
    yield True


def rows(
    label: str, found: list[Way], slow: set[int], rate: float, rounds: int, span_s: float, warm_s: float
) -> list[dict[str, object]]:
    p99: dict[str, list[float]] = {way.name: [] for way in found}
    p50: dict[str, list[float]] = {way.name: [] for way in found}
    shares: dict[str, list[float]] = {way.name: [] for way in found}
    cpu: dict[str, list[float]] = {way.name: [] for way in found}
    failed = dict.fromkeys(p99, 0)
    for number in range(rounds):
        for way in found if number % 2 == 0 else found[::-1]:
            before_s = spent_s(way)
            done = workers.callers(way.port, way.path, rate, span_s + warm_s, number)
            count = len(done["latencies"])
            late = done["latencies"][int(count * warm_s / (span_s + warm_s)) :]
            took = np.array([latency for latency, _ in late])
            p99[way.name].append(float(np.quantile(took, 0.99)) * 1000)
            p50[way.name].append(float(np.quantile(took, 0.5)) * 1000)
            shares[way.name].append(statistics.fmean(port in slow for _, port in late))
            cpu[way.name].append((spent_s(way) - before_s) / max(1, count) * 1e6)
            failed[way.name] += len(done["failed"])
    plain = statistics.median(p99[PLAIN])
    return [
        {
            "what": "live",
            "servers": label,
            "picker": way.name,
            "rounds": rounds,
            "rate_per_s": round(rate, 1),
            "latency_ms_p50": round(statistics.median(p50[way.name]), 1),
            "latency_ms_p99": round(statistics.median(p99[way.name]), 1),
            "latency_ms_p99_range": [round(min(p99[way.name]), 1), round(max(p99[way.name]), 1)],
            "beside_least_request": round(statistics.median(p99[way.name]) / plain, 3),
            "to_slow": round(statistics.median(shares[way.name]), 4),
            "envoy_cpu_us_per_request": round(statistics.median(cpu[way.name]), 1),
            "failed": failed[way.name],
            "writes": None if way.keeper is None else way.keeper.writes,
        }
        for way in found
    ]


def spent_s(way: Way) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in way.envoys)
