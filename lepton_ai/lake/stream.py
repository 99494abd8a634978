"""A stream into a table: every message once, however often it is delivered and whoever dies on the way.

Owns the joining of the two. A stream is a partition of one topic as it was made once: its offsets mean nothing in a
topic of the same name that was made later or elsewhere. The table itself records how far it is in each stream, in the
commit of the rows (Delta's transaction ids), so no crash can come between; what the group commits afterwards only
saves reading again.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from lepton_ai.errors import Conflict, Invalid
from lepton_ai.lake.bus import Bus, Delivered
from lepton_ai.lake.commits import Progress
from lepton_ai.lake.tables import Table

POLL_S = 0.5

Parse = Callable[[Sequence[Delivered]], Any]


def into_table(
    bus: Bus,
    topic: str,
    table: Table,
    *,
    group: str,
    parse: Parse | None = None,
    limit: int = 5000,
    until: Callable[[], bool] | None = None,
) -> int:
    """Append the messages of `topic` to `table`; returns how many. Ends when there are no more, or when `until` says.

    `parse` makes rows of messages (default: each value is a JSON object, a row); it must give them in order.
    Raises Invalid for a message that is no row: nothing of its batch is taken in, and it is read again the next time;
    NotFound when the topic is deleted meanwhile.
    """
    parse = parse or rows
    taken, identity = 0, bus.identity(topic)
    subscription = bus.subscribe(topic, group)
    try:
        while until is None or not until():
            delivered = subscription.poll(limit, POLL_S)
            if not delivered and until is None:
                return taken
            parts: dict[int, list[Delivered]] = defaultdict(list)
            for item in delivered:
                parts[item.partition].append(item)
            for partition, items in sorted(parts.items()):
                taken += _append(table, f"{topic}/{identity}/{partition}", items, parse)
            subscription.commit(delivered)
    finally:
        subscription.close()
    return taken


def rows(delivered: Sequence[Delivered]) -> list[dict[str, Any]]:
    """Messages whose values are JSON objects, as rows. Raises Invalid that names the message."""
    found = []
    for item in delivered:
        try:
            value = json.loads(item.value)
            if not isinstance(value, dict) or not value:
                raise ValueError("not a JSON object")
        except ValueError as error:
            where = f"{item.topic}, partition {item.partition}, offset {item.offset}"
            raise Invalid(f"{where}: {error}", hint="give `parse`, or publish JSON objects") from None
        found.append(value)
    return found


def _append(table: Table, stream: str, items: list[Delivered], parse: Parse) -> int:
    """Those of `items` (of one partition, in order) that the table does not have yet; how many."""
    while True:
        position = table.position(stream)
        # Where the group was taken over by another member, messages come again: only what is behind is new.
        fresh = [item for item in items if position is None or item.offset > position]
        if not fresh:
            return 0
        try:
            # Only from where the table stands: a batch that overlaps another member's must not be taken in beside it.
            table.append(parse(fresh), progress=Progress(stream, fresh[-1].offset, position))
            return len(fresh)
        except Conflict as error:
            if not error.details.get("position"):
                raise
