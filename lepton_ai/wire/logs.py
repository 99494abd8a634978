"""Logs as the public client reads them: Loki's query_range answer, and plain lines."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lepton_ai.wire.record import Json


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of one replica; `ns` is distinct within the replica."""

    ns: int
    line: str
    owner_kind: str
    owner: str
    replica: str


def shown(entries: Iterable[Entry]) -> Json:
    """The answer to GET /logs; entries keep their order within each replica's stream."""
    streams: dict[tuple[str, str, str], list[list[str]]] = {}
    for item in entries:
        streams.setdefault((item.owner_kind, item.owner, item.replica), []).append([str(item.ns), item.line])
    result = [
        {"stream": {kind: owner, "replica": replica}, "values": values}
        for (kind, owner, replica), values in streams.items()
    ]
    return {"status": "success", "data": {"resultType": "streams", "result": result}}


def counted(times_ns: Iterable[tuple[str, int]], owner: tuple[str, str], start_ns: int, interval_ns: int) -> Json:
    """The answer to GET /logs/timeseries: lines in each interval, by replica, as Loki's range vectors.

    `times_ns` are (replica, time) of each line. Intervals without lines are left out; times are seconds.
    """
    counts: dict[str, dict[int, int]] = {}
    for replica, ns in times_ns:
        buckets = counts.setdefault(replica, {})
        at = (ns - start_ns) // interval_ns
        buckets[at] = buckets.get(at, 0) + 1
    result = [
        {
            "metric": {owner[0]: owner[1], "replica": replica},
            "values": [[(start_ns + at * interval_ns) / 1e9, str(count)] for at, count in sorted(buckets.items())],
        }
        for replica, buckets in sorted(counts.items())
    ]
    return {"status": "success", "data": {"resultType": "matrix", "result": result}}
