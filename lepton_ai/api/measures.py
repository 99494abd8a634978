"""What is measured, over HTTP: for people (`lepton top`) and for Prometheus.

GET x/top       the replicas of the workspace by what they use
GET x/metrics   Prometheus text: nodes, and of the workspace replicas and endpoints

Who owns or administers the first workspace runs the cell and sees every workspace in x/metrics; everybody else sees
their own, and in it what is there for them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from starlette.responses import Response

from lepton_ai.api import nodes, sight
from lepton_ai.api.call import Call, Router
from lepton_ai.api.shares import run_in_threadpool
from lepton_ai.control.monitor import Shown
from lepton_ai.spec.replica import ReplicaReport
from lepton_ai.store import Record

MEDIA = "text/plain; version=0.0.4; charset=utf-8"
MARKS = ("idle", "normal", "overloaded")
MIB = 1 << 20
Json = dict[str, Any]
Sample = tuple[Mapping[str, str], float]


def add(router: Router) -> None:
    router.add("GET", "/x/top", "read", _top)
    router.add("GET", "/x/metrics", "read", _metrics)


def _top(call: Call) -> list[Json]:
    said_of, hidden = call.cell.measures().replicas(), sight.hidden_names(call.cell, call.principal)
    found = []
    for record in call.cell.store.list("replica", workspace=call.ws, but="exited"):
        kind, owner = _owner(record)
        if (kind, owner) in hidden:
            continue
        node, said = said_of.get(record.uid, (str(record.spec.get("node") or ""), None))
        asked = (record.spec.get("replica") or {}).get("resources") or {}
        found.append(
            {
                "name": record.name,
                "owner": owner,
                "owner_kind": kind,
                "node": node,
                "phase": str(record.status.get("phase") or "pending"),
                "cpu_milli": None if said is None else _amount(said.cpu_milli),
                "cpu_asked_milli": asked.get("cpu_milli"),
                "memory_mib": None if said is None else _amount(said.memory_mib),
                "memory_asked_mib": asked.get("memory_mib"),
                **_gauges(said),
            }
        )
    return sorted(found, key=lambda item: (-(item["cpu_milli"] or 0), item["name"]))


def _gauges(said: ReplicaReport | None) -> Json:
    known = {} if said is None or said.gauges is None else said.gauges.model_dump()
    names = ("cpu_stall", "disk_read_bytes_s", "disk_write_bytes_s", "network_in_bytes_s", "network_out_bytes_s")
    return {name: _amount(known.get(name)) for name in names}


async def _metrics(call: Call) -> Response:
    text = await run_in_threadpool(lambda: "\n".join(_lines(call)) + "\n")
    return Response(text, media_type=MEDIA, headers={"cache-control": "no-store"})


def _lines(call: Call) -> Iterator[str]:
    shown = call.cell.measures()
    yield from _family("lepton_leading", "gauge", "1 while this control plane leads.", [({}, call.cell.leading())])
    at_s = shown.measured_ms / 1000
    yield from _family("lepton_measured_seconds", "gauge", "When the nodes were measured last.", [({}, at_s)])
    text = "How long a replica takes to start: nine of ten took no longer."
    yield from _family("lepton_startup_seconds", "gauge", text, [({}, shown.startup_s)])
    yield from _nodes(nodes.all_nodes(call))
    whole = call.ws == call.cell.workspaces.first and call.principal.role in sight.SEES_ALL
    hidden = sight.hidden_names(call.cell, call.principal)
    yield from _replicas(call, shown, None if whole else call.ws, hidden)
    yield from _endpoints(shown, None if whole else call.ws, hidden)


def _nodes(items: list[Json]) -> Iterator[str]:
    named = [({"node": item["name"]}, item, item.get("load") or {}, item.get("gauges") or {}) for item in items]
    up = [(name, float(item["state"] == "ready")) for name, item, _, _ in named]
    yield from _family("lepton_node_ready", "gauge", "1 when the node is connected and takes work.", up)
    for key, metric, text in (
        ("u", "utilisation", "u: measured use of its fullest resource, as a share of its capacity."),
        ("w", "growth", "w: the factor by which it will have grown at the upper quantile of the forecast."),
        ("s", "planned", "s = w * u: the load to plan for."),
        ("limit", "limit", "A node whose planned load is larger is overloaded."),
    ):
        yield from _family(f"lepton_node_{metric}", "gauge", text, [(n, load.get(key)) for n, _, load, _ in named])
    marks = [
        ({**name, "mark": mark}, float(load.get("mark") == mark))
        for name, _, load, _ in named
        for mark in MARKS
        if load
    ]
    yield from _family("lepton_node_mark", "gauge", "1 for the node's mark.", marks)
    flags = (
        ("stale", "1 when the node was not measured lately."),
        ("network", "1 when the network had a part in its forecast."),
    )
    for key, text in flags:
        values = [(name, float(bool(load.get(key)))) for name, _, load, _ in named if load]
        yield from _family(f"lepton_node_{key}", "gauge", text, values)
    for key, metric in (("u", "utilisation"), ("w", "growth"), ("s", "planned")):
        parts: list[tuple[Mapping[str, str], float | None]] = [
            ({**name, "resource": resource}, part.get(key))
            for name, _, load, _ in named
            for resource, part in (load.get("parts") or {}).items()
        ]
        yield from _family(f"lepton_node_resource_{metric}", "gauge", f"{key} of each resource.", parts)
    stalls = [
        ({**name, "resource": resource}, gauges.get(f"{resource}_stall"))
        for name, _, _, gauges in named
        for resource in ("cpu", "memory", "io")
    ]
    text = "Share of time that work waited for it: some of it for cpu, all of it for memory and io."
    yield from _family("lepton_node_stall_ratio", "gauge", text, stalls)
    for metric, text, value in _AMOUNTS:
        amounts = [(name, value({**item, **gauges})) for name, item, _, gauges in named]
        yield from _family(f"lepton_node_{metric}", "gauge", text, amounts)


def _of(name: str, factor: float = 1.0) -> Callable[[Json], float | None]:
    def value(item: Json) -> float | None:
        found = item.get(name)
        return None if found is None else float(found) * factor

    return value


_AMOUNTS: tuple[tuple[str, str, Callable[[Json], float | None]], ...] = (
    ("cpu_used_cores", "Cores that its replicas use.", _of("cpu_used_milli", 0.001)),
    ("cpu_placed_cores", "Cores that are promised on it.", _of("cpu_placed_milli", 0.001)),
    ("memory_used_bytes", "Memory that its replicas use.", _of("memory_used_mib", MIB)),
    ("memory_placed_bytes", "Memory that is promised on it.", _of("memory_placed_mib", MIB)),
    ("machine_cores", "Cores of its machine that it may use.", _of("cores_milli", 0.001)),
    ("disk_free_bytes", "Free room on its disk.", _of("disk_free_mib", MIB)),
    ("disk_busy_ratio", "Share of time in which its disk was busy.", _of("disk_busy")),
    ("disk_read_bytes_per_second", "Read from its disk.", _of("disk_read_bytes_s")),
    ("disk_write_bytes_per_second", "Written to its disk.", _of("disk_write_bytes_s")),
    ("network_in_bytes_per_second", "Received by its machine.", _of("network_in_bytes_s")),
    ("network_out_bytes_per_second", "Sent by its machine.", _of("network_out_bytes_s")),
    ("gpu_used_ratio", "Mean share of time in which a GPU was busy.", _of("gpu_used")),
    ("gpu_memory_used_bytes", "Memory in use on its GPUs.", _of("gpu_memory_used_mib", MIB)),
)


def _replicas(call: Call, shown: Shown, ws: str | None, hidden: frozenset[tuple[str, str]]) -> Iterator[str]:
    records = call.cell.store.list("replica", workspace=ws, but="exited")
    records = [record for record in records if record.workspace != call.ws or _owner(record) not in hidden]
    counts = Counter(
        (record.workspace, *_owner(record), str(record.status.get("phase") or "pending")) for record in records
    )
    labels = ("workspace", "kind", "owner", "phase")
    values: list[Sample] = [
        (dict(zip(labels, key, strict=True)), float(count)) for key, count in sorted(counts.items())
    ]
    yield from _family("lepton_replicas", "gauge", "Replicas that have not ended, by phase.", values)
    said_of = shown.replicas()
    metrics: dict[str, list[tuple[Mapping[str, str], float | None]]] = defaultdict(list)
    for record in records:
        node, said = said_of.get(record.uid, ("", None))
        if said is None:
            continue
        kind, owner = _owner(record)
        name = {
            "workspace": record.workspace, "kind": kind, "owner": owner, "replica": record.name, "node": node,
        }  # fmt: skip
        gauges = _gauges(said)
        metrics["cpu_cores"].append((name, _scaled(said.cpu_milli, 0.001)))
        metrics["memory_bytes"].append((name, _scaled(said.memory_mib, MIB)))
        for gauge, metric in _REPLICA:
            metrics[metric].append((name, gauges[gauge]))
        stats, _ = shown.endpoints.get((record.workspace, owner), (None, 0.0))
        if stats is not None and kind == "deployment":
            metrics["in_flight"].append((name, stats.in_flight_by_replica.get(record.uid)))
            metrics["answered_total"].append((name, stats.answered_by_replica.get(record.uid)))
            metrics["failed_total"].append((name, stats.failed_by_replica.get(record.uid)))
    for metric, text in _REPLICA_TEXTS:
        kind = "counter" if metric.endswith("_total") else "gauge"
        yield from _family(f"lepton_replica_{metric}", kind, text, metrics[metric])


_REPLICA = (
    ("cpu_stall", "cpu_stall_ratio"),
    ("disk_read_bytes_s", "disk_read_bytes_per_second"),
    ("disk_write_bytes_s", "disk_write_bytes_per_second"),
    ("network_in_bytes_s", "network_in_bytes_per_second"),
    ("network_out_bytes_s", "network_out_bytes_per_second"),
)
_REPLICA_TEXTS = (
    ("cpu_cores", "Cores that it uses."),
    ("memory_bytes", "Memory that it uses."),
    ("cpu_stall_ratio", "Share of time for which it was ready to run and waited for a processor."),
    ("disk_read_bytes_per_second", "Read from a disk."),
    ("disk_write_bytes_per_second", "Written to a disk."),
    ("network_in_bytes_per_second", "Received, where it has a network of its own."),
    ("network_out_bytes_per_second", "Sent, where it has a network of its own."),
    ("in_flight", "Requests under way at it."),
    ("answered_total", "Answers other than 5xx, as the gateway counted them."),
    ("failed_total", "5xx and broken requests, as the gateway counted them."),
)


def _endpoints(shown: Shown, ws: str | None, hidden: frozenset[tuple[str, str]]) -> Iterator[str]:
    items = [
        ({"workspace": key[0], "endpoint": key[1]}, stats, rate)
        for key, (stats, rate) in sorted(shown.endpoints.items())
        if ws is None or (key[0] == ws and ("deployment", key[1]) not in hidden)
    ]
    for metric, kind, text in (
        ("requests_total", "counter", "Requests since the gateway started."),
        ("failed_total", "counter", "Of these, failed ones."),
        ("in_flight", "gauge", "Requests under way."),
        ("held", "gauge", "Requests that wait for a replica."),
    ):
        field = metric.removesuffix("_total")
        values = [(name, float(getattr(stats, field))) for name, stats, _ in items]
        yield from _family(f"lepton_endpoint_{metric}", kind, text, values)
    rates = [(name, rate) for name, _, rate in items]
    yield from _family("lepton_endpoint_requests_per_second", "gauge", "Requests lately.", rates)


def _family(
    name: str, kind: str, text: str, samples: Iterable[tuple[Mapping[str, str], float | None]]
) -> Iterator[str]:
    """One metric: what it is, then a line for each set of labels; nothing at all where nothing is known."""
    lines = [f"{name}{_labels(labels)} {float(value):.12g}" for labels, value in samples if value is not None]
    if lines:
        yield f"# HELP {name} {_escape(text)}"
        yield f"# TYPE {name} {kind}"
        yield from lines


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escape(value, quoted=True)}"' for name, value in labels.items()) + "}"


def _escape(text: str, *, quoted: bool = False) -> str:
    found = text.replace("\\", "\\\\").replace("\n", "\\n")
    return found.replace('"', '\\"') if quoted else found


def _owner(record: Record) -> tuple[str, str]:
    spec = record.spec.get("replica") or {}
    return str(spec.get("owner_kind") or ""), str(spec.get("owner") or "")


def _amount(value: float | None) -> float | None:
    """None for what is not known or cannot be."""
    return value if value is not None and 0 <= value < 1e18 else None


def _scaled(value: float, factor: float) -> float | None:
    known = _amount(value)
    return None if known is None else known * factor
