"""Whether the re-implemented pickers do what Envoy does: the same replicas, the same requests stuck, the same shares.

Not a measurement itself; `routing` refuses to compare pickers when this fails. Some requests are held at three servers
through a real Envoy; then many quick ones follow one after another, so that what is in flight stands still. The
re-implementation is given what was in flight and must send the same share to each server. The gateway's own picker is
checked the other way round: the simulation runs its very code, and Envoy must agree with it.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pickers
import workers
from replicas import Day, Gateway, Speeds
from workers import Server

from lepton_ai.gateway.balance import balance
from lepton_ai.gateway.bootstrap import binary
from lepton_ai.gateway.picker import built
from lepton_ai.spec.container import Balance

WEIGHTS = (1, 2, 4)
HELD = 12
NEAR = 0.05


@dataclass(frozen=True)
class Case:
    """A cluster of Envoy's and the picker that stands for it."""

    name: str
    cluster: dict[str, Any]
    weights: tuple[int, ...]
    picker: type[pickers.Base]
    fields: dict[str, Any]


def cases(folder: Path) -> list[Case]:
    equal = (1,) * len(WEIGHTS)
    found = [
        Case("LEAST_REQUEST", {"lb_policy": "LEAST_REQUEST"}, equal, pickers.LeastRequest, {}),
        Case("LEAST_REQUEST, full scan", balance(Balance(), None), equal, pickers.FullScan, {}),
    ]
    for bias in (0.0, 1.0, 4.0):
        config = {"active_request_bias": {"default_value": bias, "runtime_key": f"bias{bias}"}}
        cluster = {"lb_policy": "LEAST_REQUEST", "least_request_lb_config": config}
        found.append(Case(f"LEAST_REQUEST, weights, bias {bias:g}", cluster, WEIGHTS, pickers.Weighted, {"bias": bias}))
    module = built(folder)
    if module is not None:
        found.append(Case("picker.c", balance(Balance(), str(module)), equal, pickers.Module, {}))
    return found


def check(folder: Path, count: int) -> list[dict[str, object]]:
    """A row a picker: shares of `count` requests measured and expected, and whether they agree."""
    rows = []
    with workers.servers([0.0] * len(WEIGHTS)) as servers:
        for case in cases(folder):
            with envoy(folder, case, servers) as port:
                rows.append(compare(case, port, servers, count))
    return rows


@contextmanager
def envoy(folder: Path, case: Case, servers: list[Server]) -> Iterator[int]:
    port = workers.free_port()
    ends = [
        {
            "endpoint": {"address": {"socket_address": {"address": "127.0.0.1", "port_value": server.port}}},
            "load_balancing_weight": weight,
        }
        for server, weight in zip(servers, case.weights, strict=True)
    ]
    cluster = {
        "name": "c", "type": "STATIC", "connect_timeout": "1s", **case.cluster,
        "load_assignment": {"cluster_name": "c", "endpoints": [{"lb_endpoints": ends}]},
    }  # fmt: skip
    manager = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    hosts = [
        {
            "name": "h",
            "domains": ["*"],
            "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "c", "timeout": "0s"}}],
        }
    ]
    http_filter = {
        "name": manager,
        "typed_config": {
            "@type": f"type.googleapis.com/{manager}",
            "stat_prefix": "in",
            "route_config": {"virtual_hosts": hosts},
            "http_filters": [{"name": "envoy.filters.http.router", "typed_config": router}],
        },
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    listener = {"name": "l", "address": address, "filter_chains": [{"filters": [http_filter]}]}
    start = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    path = folder / "checked.json"
    path.write_text(json.dumps(start), "utf-8")
    argv = [str(binary()), "-c", str(path), "--concurrency", "1", "--disable-hot-restart", "-l", "off"]
    process = workers.quiet(argv)
    try:
        workers.until(lambda: workers.fetch(port, "/health") == "ok", "Envoy answers")
        yield port
    finally:
        workers.end([process])


def compare(case: Case, port: int, servers: list[Server], count: int) -> dict[str, object]:
    held = [threading.Thread(target=workers.fetch, args=(port, "/hold", 60)) for _ in range(HELD)]
    for caller in held:
        caller.start()
        time.sleep(0.01)
    workers.until(lambda: sum(server.counts()[1] for server in servers) == HELD, "the requests are held")
    servers[0].get("/free")  # one server has nothing in flight: pickers that look must tell it from the others
    workers.until(lambda: servers[0].counts()[1] == 0, "what was held at one server is done")
    time.sleep(0.2)
    active = [server.counts()[1] for server in servers]
    met: Counter[int] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(count):
        connection.request("GET", "/x")
        met[int(connection.getresponse().read())] += 1
    connection.close()
    for server in servers:
        server.get("/free")
    for caller in held:
        caller.join(10)
    measured = [met[server.port] / count for server in servers]
    expected = foreseen(case, active, count)
    off = max(abs(one - other) for one, other in zip(measured, expected, strict=True))
    return {
        "what": "checked against the binary",
        "picker": case.name,
        "weights": case.weights,
        "in_flight": active,
        "share_of_envoy": [round(value, 3) for value in measured],
        "share_of_simulation": [round(value, 3) for value in expected],
        "off": round(off, 3),
        "agrees": off <= NEAR,
    }


def foreseen(case: Case, active: list[int], count: int) -> list[float]:
    """What the re-implementation does with the same in flight."""
    import numpy as np

    gateway = Gateway(len(active))
    gateway.active[:] = active
    day = Day(replicas=len(active), span_s=1.0)
    setting = pickers.Setting([gateway], Speeds(day, np.random.default_rng(0)), day.work_s)
    setting.capacity = [float(weight) for weight in case.weights]
    kind = type(case.picker.__name__, (case.picker,), case.fields)
    picker = kind(setting, 0, 1)
    met: Counter[int] = Counter()
    for number in range(count):
        replica = picker.pick(number * 1e-3)
        met[replica] += 1
        gateway.answered[replica] += 1
    return [met[index] / count for index in range(len(active))]
