"""The workspace's lake over HTTP: SQL in a sealed worker, and the tables it sees.

POST x/query {"sql", "limit"}   GET x/tables   GET x/tables/NAME   GET x/tables/NAME/history
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, TypeVar

from starlette.responses import Response

from lepton_ai.api.call import Call, Router, answer, missing
from lepton_ai.api.form import QueryForm
from lepton_ai.api.lanes import lanes
from lepton_ai.api.shares import run_in_threadpool
from lepton_ai.lake import open as open_lake
from lepton_ai.lake.query import Limits, QueryWorker

T = TypeVar("T")


def add(router: Router) -> None:
    router.add("POST", "/x/query", "read", _query)
    router.add("GET", "/x/tables", "read", _tables)
    router.add("GET", "/x/tables/{name}", "read", _table)
    router.add("GET", "/x/tables/{name}/history", "read", _history)


async def _query(call: Call) -> Response:
    form = call.form(QueryForm, "query")

    found = await _ask(call, lambda worker: asdict(worker.query(form.sql, Limits(rows_max=form.limit))))
    return await run_in_threadpool(answer, found)


async def _tables(call: Call) -> Response:
    found = await _ask(call, lambda worker: worker.tables())
    return answer([_shown(item) for item in found])


async def _table(call: Call) -> Response:
    name = call.path("name").partition("@")[0]
    found = await _ask(call, lambda worker: worker.tables())
    for item in found:
        if item["name"] == name:
            return answer(_shown(item))
    raise missing("table", name, [str(item["name"]) for item in found], "lepton table ls")


async def _history(call: Call) -> Response:
    name = call.path("name").partition("@")[0]
    found = await _ask(call, lambda worker: worker.history(name))
    rows = [
        {
            "version": int(str(item["version"]).rpartition("@")[2]),
            "ref": item["version"],
            "time_ms": item["created_ms"],
            "operation": item["operation"],
            "rows": item["rows_added"],
            "transaction": item["transaction"],
        }
        for item in found
    ]
    return answer(rows)


async def _ask(call: Call, question: Callable[[QueryWorker], T]) -> T:
    """The answer of the workspace's worker. Raises Busy while too many wait for it."""
    url = call.cell.lake_url(call.ws)
    worker, lane = lanes(call.request).queries(url)

    def work() -> T:
        open_lake(url)  # makes its folder: a workspace may have no data yet
        return question(worker)

    return await lane.run(work)


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    columns = item.get("columns") or {}
    return {**item, "columns": [{"name": name, "type": kind} for name, kind in columns.items()]}
