"""`query` and `table`: looking into the lake, through the cell."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from lepton_ai.cli import render

if TYPE_CHECKING:
    from lepton_ai.cli.session import Session


def query(session: Session) -> None:
    """Run SQL in the cell's sealed worker and print the rows."""
    arguments = session.arguments
    answer = render.record(session.cloud.query(arguments.sql, limit=arguments.limit))
    if session.answer(answer):
        return
    session.table(answer["columns"], answer["rows"], "no rows")
    if answer.get("truncated"):
        session.say(f"only the first {len(answer['rows'])} rows are shown: --limit N shows more")


def tables(session: Session) -> None:
    """Every table of the workspace's lake."""
    rows = [render.record(item) for item in session.cloud.tables()]
    if session.answer(rows):
        return
    shown = [(r["name"], r.get("version"), r.get("rows"), render.size(r.get("size_bytes"))) for r in rows]
    session.table(("name", "version", "rows", "size"), shown, "the lake has no table; next: lepton demo --keep")


def table(session: Session) -> None:
    """One table: its version and its columns."""
    found = render.record(session.cloud.table(session.arguments.name))
    if session.answer(found):
        return
    columns = found.pop("columns", [])
    session.print(render.fields(found))
    session.print()
    rows = [(c["name"], c["type"]) for c in (render.record(item) for item in columns)]
    session.table(("column", "type"), rows, "it has no columns")


def history(session: Session) -> None:
    """The versions of a table, newest first."""
    name = session.arguments.name
    rows = [render.record(item) for item in session.cloud.history(name)]
    if session.answer(rows):
        return
    now_ms = time.time_ns() // 1_000_000
    shown = [
        (f"{name}@{r['version']}", render.age(r.get("time_ms"), now_ms), r.get("operation"), r.get("rows"))
        for r in rows
    ]
    session.table(("version", "age", "operation", "rows"), shown, "it has no versions")
