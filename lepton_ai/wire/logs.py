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
