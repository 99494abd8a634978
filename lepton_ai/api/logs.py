"""Logs over HTTP: ours as NDJSON, the public client's as Loki answers and as live text.

GET x/logs/NAME?lines=&follow=&grep=     a deployment, job or replica; {"ns", "stream", "line", "replica"} a line
GET /logs?start=&end=&…   /logs/timeseries?interval_ms=   GET …/replicas/RID/log
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing

from starlette.responses import Response

from lepton_ai.api import sight
from lepton_ai.api.call import Call, Router, answer, missing
from lepton_ai.api.shares import run_in_threadpool
from lepton_ai.api.stream import Stream
from lepton_ai.api.trail import Line, Source, Trail
from lepton_ai.errors import Invalid, LeptonError
from lepton_ai.telemetry.logs import MAX_LINES
from lepton_ai.wire import logs as wire

FOLLOWED_FROM = 10_000
COUNTED_MAX = 200_000
OWNERS = ("deployment", "job")
_log = logging.getLogger(__name__)


def add(router: Router) -> None:
    router.add("GET", "/x/logs/{name}", "read", _logs)
    router.add("GET", "/logs", "read", _wire_query)
    router.add("GET", "/logs/timeseries", "read", _wire_counts)
    router.add("GET", "/jobs/{owner}/replicas/{name}/log", "read", _wire_live)
    router.add("GET", "/deployments/{owner}/replicas/{name}/log", "read", _wire_live)


async def _logs(call: Call) -> Response:
    grep, follow = call.text("grep") or None, call.flag("follow")
    lines = call.number("lines", None, low=1, high=MAX_LINES)
    source = await run_in_threadpool(_source, call, call.path("name"))
    trail = Trail(call.cell, source, grep)
    count = MAX_LINES if lines is None else lines
    tail = await trail.tail(count)
    return _ndjson(_followed(trail, tail, follow, cut=len(tail) >= count))


def _source(call: Call, name: str) -> Source:
    """Whose lines `name` means. Raises NotFound, also for what left no line, or is private."""
    store, ws, who = call.cell.store, call.ws, call.principal
    for kind in OWNERS:
        owner = store.find(ws, kind, name)
        if owner is not None and sight.sees(call.cell, who, owner):
            return Source(ws, kind, name, None, owner.uid, _left(call, kind, name) or 0)
    record = store.find(ws, "replica", name)
    if record is not None and sight.sees(call.cell, who, record):
        spec = record.spec.get("replica", {})
        return Source(ws, spec.get("owner_kind"), spec.get("owner"), record.name, record.owner_uid)
    for left in (*OWNERS, None):
        since = _left(call, left, name)
        if since is None:
            continue
        source = Source(ws, left, name if left else None, None if left else name, None, since)
        found = call.cell.logs.query(
            ws,
            owner_kind=source.owner_kind,
            owner=source.owner,
            replica=source.replica,
            limit=1,
            start_ns=since or None,
        )
        if found:
            return source
    names = [name for kind in (*OWNERS, "replica") for name in sight.names(call.cell, who, kind)]
    raise missing("deployment, job or replica", name, names, "lepton ps --all")


def _left(call: Call, kind: str | None, name: str) -> int | None:
    """From when on (ns) who asks may read what is left of the work or (without a kind) replica; None: not at all."""
    cell, who = call.cell, call.principal
    ms = sight.since_of_replica_ms(cell, who, name) if kind is None else sight.since_ms(cell, who, kind, name)
    return None if ms is None else ms * 1_000_000


async def _followed(trail: Trail, tail: list[Line], follow: bool, *, cut: bool) -> AsyncGenerator[list[Line]]:
    """Batches of lines: what there is, then one by one what comes."""
    for first in range(0, len(tail), 512):
        yield tail[first : first + 512]
    if not follow:
        return
    try:
        async with aclosing(trail.follow(tail, cut=cut)) as coming:
            async for line in coming:
                yield [line]
    except LeptonError as error:  # the answer has begun: all that is left is to end it
        _log.warning("following a log: %s", error.message)


def _encode(line: Line) -> bytes:
    value = {"ns": line.ns, "stream": line.stream, "line": line.text, "replica": line.replica}
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def _ndjson(batches: AsyncGenerator[list[Line]]) -> Response:
    async def chunks() -> AsyncGenerator[bytes]:
        async with aclosing(batches):
            async for batch in batches:
                yield b"".join(_encode(line) for line in batch)

    return Stream(chunks(), "application/x-ndjson")


# -- the public client's


def _range(call: Call) -> tuple[int, int]:
    start, end = call.number("start"), call.number("end")
    if start is None or end is None:
        hint = "give both in nanoseconds: ?start=…&end=…"
        raise Invalid("start and end are missing", hint=hint)
    return start, end


async def _wire_counts(call: Call) -> Response:
    """How many lines came when. Counts the first COUNTED_MAX lines of the range, in pages."""
    start, end = _range(call)
    interval_ns = (call.number("interval_ms", 60_000, low=1, high=86_400_000) or 60_000) * 1_000_000
    source = await run_in_threadpool(_selected, call)
    trail = Trail(call.cell, source, call.text("q") or None)
    times: list[tuple[str, int]] = []
    at = start
    while at < end and len(times) < COUNTED_MAX:
        page = await trail.window(at, end, MAX_LINES)
        times += [(item.replica, item.ns) for item in page]
        if len(page) < MAX_LINES:
            break
        at = page[-1].ns + 1
    return await run_in_threadpool(answer, wire.counted(times, _owner(source), start, interval_ns))


async def _wire_query(call: Call) -> Response:
    start, end = _range(call)
    direction = call.text("direction") or "forward"
    if direction not in ("forward", "backward"):
        raise Invalid(f"direction {direction[:40]!r} is not known", hint="use forward or backward")
    limit = call.number("limit", 1000, low=1, high=MAX_LINES) or 1000
    source = await run_in_threadpool(_selected, call)
    trail = Trail(call.cell, source, call.text("q") or None)
    found = await trail.window(start, end, limit, backward=direction == "backward")
    entries = [wire.Entry(item.ns, item.text, *_owner(source), item.replica) for item in found]
    return await run_in_threadpool(answer, wire.shown(entries))


def _owner(source: Source) -> tuple[str, str]:
    return source.owner_kind or "replica", source.owner or source.replica or ""


def _selected(call: Call) -> Source:
    """The selector of a query. What is not known (any more) may still have archived lines."""
    chosen = [
        (kind, value)
        for name, kind in (("job", "job"), ("job_history_name", "job"), ("deployment", "deployment"))
        if (value := call.text(name, limit=255))
    ] + ([("deployment", value)] if (value := call.text("endpoint", limit=255)) else [])
    replica = call.text("replica", limit=255)
    if len(chosen) > 1 or (not chosen and not replica):
        raise Invalid("one selector is needed", hint="give job=ID, deployment=NAME or replica=ID")
    if not chosen:
        assert replica is not None
        record = call.cell.store.find(call.ws, "replica", replica)
        since = _left(call, None, replica)
        if since is None:
            raise missing("replica", replica, [], "lepton ps --all")
        spec = record.spec.get("replica", {}) if record is not None else {}
        return Source(call.ws, spec.get("owner_kind"), spec.get("owner"), replica, None, since)
    kind, name = chosen[0]
    since = _left(call, kind, name)
    if since is None:
        raise missing(kind, name, [], "lepton ps --all")
    owner = call.cell.store.find(call.ws, kind, name)
    return Source(call.ws, kind, name, replica or None, None if owner is None else owner.uid, since)


async def _wire_live(call: Call) -> Response:
    record = await run_in_threadpool(call.find, "replica", call.path("name"))
    spec = record.spec.get("replica", {})
    if spec.get("owner") != call.path("owner"):
        raise missing("replica", call.path("name"), [], f"GET …/{call.path('owner')}/replicas")
    source = Source(call.ws, spec.get("owner_kind"), spec.get("owner"), record.name, record.owner_uid)
    trail = Trail(call.cell, source)
    tail = await trail.tail(FOLLOWED_FROM)

    async def chunks() -> AsyncGenerator[bytes]:
        # Whole lines, so that every chunk is valid UTF-8 by itself: the public client decodes chunk by chunk.
        async with aclosing(_followed(trail, tail, True, cut=len(tail) >= FOLLOWED_FROM)) as batches:
            async for batch in batches:
                yield "".join(f"{line.text}\n" for line in batch).encode("utf-8", "replace")

    return Stream(chunks(), "text/plain; charset=utf-8")
