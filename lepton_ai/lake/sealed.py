"""What the sealed worker does with SQL: DuckDB that can reach nothing but the tables it is given.

Owns the seal: no files, no network, no extensions, no settings, one reading statement a query, limits on memory,
time, rows and bytes. A fresh in-memory database a query, so that nothing is left for the next one. Runs only in the
process of `python -m lepton_ai.lake`.
"""

from __future__ import annotations

import json
import math
import re
import threading
import time
from typing import Any

from lepton_ai.errors import Corrupt, Forbidden, Invalid, LeptonError, NotFound, TooLarge
from lepton_ai.errors import Timeout as TimedOut
from lepton_ai.lake.lake import Lake
from lepton_ai.lake.query import Answer, Limits
from lepton_ai.lake.tables import Table

THREADS = 2
TABLES_MAX = 32
FETCH_ROWS = 1_000
# Text, quoted names, dollar-quoted text and comments are skipped as they are; names are looked at.
_TOKEN = re.compile(
    r"""(?P<text>\b[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|--[^\n]*|/\*.*?\*/)"""
    r"""|(?P<quoted>"(?:[^"]|"")*")|(?P<name>[A-Za-z_][A-Za-z0-9_]*(?:@[0-9]+)?)|(?P<other>.)""",
    re.DOTALL,
)


def answer(lake: Lake, sql: str, limits: Limits) -> Answer:
    """The rows of one reading statement. Raises as `QueryWorker.query` says."""
    import duckdb

    started_s = time.perf_counter()
    names = lake.tables()
    sql, refs = references(sql, set(names))
    if sql.lstrip().lower().startswith("show"):
        refs = names[:TABLES_MAX]  # SHOW TABLES names none and means all
    connection = duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "memory_limit": f"{max(128, limits.memory_mib // 2)}MiB",
            "threads": str(THREADS),
            "autoload_known_extensions": "false",
            "autoinstall_known_extensions": "false",
            "python_enable_replacements": "false",
            "temp_directory": "",
        },
    )
    stopped = threading.Event()

    def stop() -> None:
        stopped.set()
        connection.interrupt()

    timer = threading.Timer(limits.timeout_s, stop)
    timer.daemon = True
    timer.start()
    try:
        read = [_register(connection, lake.table(ref), ref) for ref in refs]
        connection.execute("SET lock_configuration = true")
        _check(connection, sql)
        result = connection.execute(sql)
        columns = [str(item[0]) for item in result.description or []]
        types = [str(item[1]) for item in result.description or []]
        rows, truncated = _fetch(result, limits)
    except LeptonError:
        raise
    except duckdb.Error as error:
        raise _explain(error, lake, limits, stopped.is_set()) from None
    except (OSError, ValueError, MemoryError) as error:
        raise _explain_read(error, refs) from None
    finally:
        timer.cancel()
        connection.close()
    elapsed_ms = (time.perf_counter() - started_s) * 1000
    return Answer(columns, types, rows, truncated, read, round(elapsed_ms, 3))


def references(sql: str, tables: set[str]) -> tuple[str, list[str]]:
    """(the SQL with every `ratings@2` quoted, the table references that occur in it, in order).

    A name counts wherever it stands, also as a column: giving the query one table more changes nothing.
    """
    out: list[str] = []
    found: dict[str, None] = {}
    for match in _TOKEN.finditer(sql):
        token = match[0]
        name = match["name"] or (match["quoted"] or "").strip('"')
        base, at, _ = name.partition("@")
        if match["name"] and at:
            name = name.lower()
            base = base.lower()
            token = f'"{name}"'
        elif match["name"]:
            name = base = name.lower()
        if base and (base in tables or (at and (match["name"] or base in tables))):
            found[name] = None
        out.append(token)
    if len(found) > TABLES_MAX:
        raise TooLarge(f"the query names {len(found)} tables", hint=f"a query reads at most {TABLES_MAX}")
    return "".join(out), list(found)


def _register(connection: Any, table: Table, ref: str) -> str:
    pinned = table.pin()
    connection.register(ref, pinned.dataset())
    return str(pinned.lineage)


def _check(connection: Any, sql: str) -> None:
    import duckdb

    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        what = "no statement" if not statements else f"{len(statements)} statements"
        raise Invalid(f"the query holds {what}", hint="send one SELECT at a time")
    if statements[0].type not in (duckdb.StatementType.SELECT, duckdb.StatementType.EXPLAIN):
        kind = str(statements[0].type).rpartition(".")[2]
        if kind == "MULTI":  # what a PIVOT becomes
            raise Forbidden("PIVOT is not known here", hint="select each column: sum(n) FILTER (WHERE kind = 'a') AS a")
        raise Forbidden(f"{kind} is not a reading statement", hint="queries only read: use SELECT")


def _fetch(result: Any, limits: Limits) -> tuple[list[list[Any]], bool]:
    rows: list[list[Any]] = []
    size_bytes = 0
    while True:
        batch = result.fetchmany(min(FETCH_ROWS, limits.rows_max + 1 - len(rows)))
        for row in batch:
            values = [_plain(value) for value in row]
            size_bytes += len(json.dumps(values, ensure_ascii=False).encode("utf-8", "replace"))
            if size_bytes > limits.answer_bytes_max:
                hint = "select fewer columns or rows, or aggregate"
                raise TooLarge(f"the answer is larger than {limits.answer_bytes_max} bytes", hint=hint)
            rows.append(values)
        if not batch or len(rows) > limits.rows_max:
            return rows[: limits.rows_max], len(rows) > limits.rows_max


def _plain(value: Any) -> Any:
    """A JSON value."""
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return str(value)  # most readers of JSON would round it
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _explain(error: Exception, lake: Lake, limits: Limits, stopped: bool) -> LeptonError:
    import duckdb

    text = str(error).strip()
    cause = text.split("\n\n")[0].replace("\n", " ")[:400]
    # The parser points at the place with a line and a caret below it: keep that.
    shown = text[:1000] if "LINE" in text else cause
    if isinstance(error, duckdb.InterruptException) or stopped:
        hint = "select less, or raise the limit: Limits(timeout_s=…)"
        return TimedOut(f"the query took longer than {limits.timeout_s:g} s and was stopped", hint=hint)
    if isinstance(error, duckdb.OutOfMemoryException):
        hint = "select less, or raise the limit: Limits(memory_mib=…)"
        return TooLarge(f"the query needs more memory than it may: {cause}", hint=hint)
    if isinstance(error, duckdb.PermissionException):
        return Forbidden(cause, hint="a query reads only the lake's tables; copy files into a table first")
    tables = ", ".join(lake.tables()) or "none yet"
    if isinstance(error, duckdb.CatalogException) and "Table with name" in text:
        return Invalid(shown, hint=f"tables: {tables}")
    if isinstance(error, duckdb.ParserException | duckdb.SyntaxException):
        return Invalid(shown, hint=f"write SQL, for example: SELECT count(*) FROM ratings (tables: {tables})")
    if isinstance(error, duckdb.IOException) or "parquet" in text.lower() or "Invalid: " in text:
        return Corrupt(f"a table file cannot be read: {cause}", hint="read an earlier version: SELECT … FROM ratings@1")
    return Invalid(shown, hint=f"check the names and types (tables: {tables})")


def _explain_read(error: Exception, refs: list[str]) -> LeptonError:
    if isinstance(error, MemoryError):
        return TooLarge("the query needs more memory than it may", hint="select less, or raise Limits(memory_mib=…)")
    cause = str(error).splitlines()[0][:300] if str(error) else type(error).__name__
    hint = "read an earlier version: SELECT … FROM ratings@1"
    return Corrupt(f"a file of {', '.join(refs) or 'the lake'} cannot be read: {cause}", hint=hint)


def tables(lake: Lake) -> list[dict[str, Any]]:
    """What `QueryWorker.tables` returns; one broken table does not hide the others."""
    found: list[dict[str, Any]] = []
    for name in lake.tables():
        row: dict[str, Any] = dict.fromkeys(("version", "rows", "size_bytes", "columns", "created_ms", "error"))
        try:
            pinned = lake.table(name).pin()
            version = pinned.version()
            row |= {"version": version.version, "rows": pinned.rows(), "columns": pinned.schema()}
            row |= {"size_bytes": pinned.size_bytes(), "created_ms": version.created_ms}
        except (Corrupt, NotFound) as error:
            row["error"] = error.message
        found.append({"name": name, **row})
    return found


def history(lake: Lake, table: str) -> list[dict[str, Any]]:
    """What `QueryWorker.history` returns."""
    return [
        {
            "version": str(item),
            "created_ms": item.created_ms,
            "operation": item.operation,
            "rows_added": item.rows_added,
            "transaction": item.transaction,
        }
        for item in lake.table(table).history()
    ]
