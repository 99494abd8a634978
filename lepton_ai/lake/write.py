"""Writing a table: rows to Arrow, to the table's columns, to one commit, once.

Appends to a table on a folder go through `commits`, where many writers share a version. All else (creating,
replacing, appending in a bucket) is one commit of its own, tried again when another writer was faster.
"""

from __future__ import annotations

import contextlib
import functools
import random
import time
from typing import TYPE_CHECKING, Any

from lepton_ai.errors import Conflict, Corrupt, Invalid
from lepton_ai.lake.commits import MARK, Commits, Intent, Progress, write_parquet
from lepton_ai.spec.base import uuid7

if TYPE_CHECKING:
    from lepton_ai.lake.tables import Table, TableVersion

TRANSACTION_BYTES_MAX = 200
TRIES = 200
WAIT_S_MAX = 0.2
TRANSACTION_KEY = "lepton.transaction"
WRITE_KEY = "lepton.write"


def write(
    table: Table, data: Any, mode: str, transaction: str | None, progress: Progress | None = None
) -> TableVersion:
    """`data` as a new version; `mode` is error (create), append or overwrite. Raises as `Table.append` says."""
    if table.lineage:
        raise Invalid(f"{table.lineage} is past and cannot be written", hint=f"write to {table.name}")
    _check(transaction, progress)
    rows = arrow(data)
    for attempt in range(TRIES):
        try:
            if mode == "append" and table.place.folder is not None and table.exists():
                return _grouped(table, rows, transaction, progress)
            return _alone(table, rows, mode, transaction, progress)
        except Conflict as error:
            if error.details.get("position"):
                raise  # what is to be written now is for the reader of the stream to say
            if mode == "error" and table.exists() and _written(table, table.opened(), transaction) is None:
                raise
            if attempt == TRIES - 1:
                raise
        # Others are writing: wait a random while, so that not all come back at once.
        time.sleep(random.uniform(0, min(WAIT_S_MAX, 0.005 * 2**attempt)))
    raise AssertionError("unreachable")


def _grouped(table: Table, rows: Any, transaction: str | None, progress: Progress | None) -> TableVersion:
    """An append that shares a version with whoever else appends now."""
    folder = table.folder
    log = table.log()
    if not log.plain:
        return _alone(table, rows, "append", transaction, progress)
    schema = log.schema
    fitted = fit(table, rows, schema)
    intent_id = uuid7()
    with table.faults():
        path, size, stats = write_parquet(folder, intent_id, fitted)
    intent = Intent(intent_id, path, size, fitted.num_rows, stats, schema, transaction, progress)
    outcome = Commits(folder, log, table.faults).submit(intent)
    if outcome.again:
        with table.faults():
            log.refresh()
        raise _elsewhere(outcome.again) if progress is not None else Conflict(outcome.again, hint="write again")
    if outcome.version < 0:  # done by an older release, which did not note the version
        found = _written(table, table.opened(), transaction)
        assert found is not None
        return found
    return table.entry(outcome.version)


def _alone(table: Table, rows: Any, mode: str, transaction: str | None, progress: Progress | None) -> TableVersion:
    """One attempt at a commit of its own. Raises Conflict when another came between looking and writing."""
    with contextlib.ExitStack() as stack:
        if table.place.folder is not None and table.exists():
            stack.enter_context(Commits(table.folder, table.log(), table.faults).locked())
        return _one(table, rows, mode, transaction, progress)


def _one(table: Table, rows: Any, mode: str, transaction: str | None, progress: Progress | None) -> TableVersion:
    from deltalake import CommitProperties, Transaction, write_deltalake

    target, options = table.place.table()
    opened: Any = None
    version = 0
    if table.exists():
        opened = table.opened()
        version = int(opened.version()) + 1
        before = _written(table, opened, transaction)
        if before is not None:
            return before
        if progress is not None:
            with table.faults():
                done = opened.transaction_version(progress.stream)
            if done is not None and done >= progress.position:
                return table.version()
            if done != progress.after:
                raise _elsewhere(f"stream {progress.stream} went on meanwhile")
        if mode == "append":
            with table.faults():
                schema = opened.schema().to_json()
            rows = fit(table, rows, schema)
    # Every commit carries an id of its own: with other writers about, it tells which version is ours.
    mark = uuid7()
    metadata = {WRITE_KEY: mark} | ({TRANSACTION_KEY: transaction} if transaction else {})
    marks = [Transaction(transaction, version + MARK)] if transaction else []
    marks += [Transaction(progress.stream, progress.position)] if progress else []
    properties = CommitProperties(
        custom_metadata=metadata,
        app_transactions=marks or None,
        # The engine moves a commit behind others' without looking at their transaction ids: with an id, only the
        # version right after the one that was looked at will do.
        max_commit_retries=0 if marks else None,
    )
    extra: dict[str, Any] = {"schema_mode": "overwrite"} if mode == "overwrite" else {}
    if opened is None:
        table.place.make()
        extra["storage_options"] = options
    with table.faults():
        write_deltalake(opened or target, rows, mode=mode, commit_properties=properties, **extra)
    written = [item for item in table.history() if item.write == mark]
    assert written, f"{table.name} lost a commit"
    return written[0]


def _elsewhere(why: str) -> Conflict:
    return Conflict(why, hint="read on from table.position(stream)", details={"position": True})


def _written(table: Table, opened: Any, transaction: str | None) -> TableVersion | None:
    """The version that was written under that id, if there is one."""
    if transaction is None:
        return None
    with table.faults():
        marked = opened.transaction_version(transaction)
    if marked is None:
        return None
    if marked >= MARK:
        return table.entry(int(marked) - MARK)
    found = [item for item in table.history() if transaction in item.transactions]
    if not found:
        raise Corrupt(f"table {table.name} lost the commit of {transaction!r}", hint=table.hint())
    return found[0]


def fit(table: Table, rows: Any, columns: str) -> Any:
    """The rows in the order and types of `columns` (Delta's JSON). Raises Invalid where they do not fit."""
    import pyarrow

    schema = _arrow_schema(columns)
    if set(rows.column_names) != set(schema.names):
        hint = "append the same columns, or replace the table: table.overwrite(data)"
        raise Invalid(f"columns {rows.column_names} are not {table.name}'s {schema.names}", hint=hint)
    try:
        return rows.select(schema.names).cast(schema)
    except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, ValueError) as error:
        raise Invalid(f"rows do not fit table {table.name}: {error}", hint=f"its types: {table.schema()}") from None


@functools.lru_cache(maxsize=256)
def _arrow_schema(columns: str) -> Any:
    import pyarrow
    from deltalake import Schema

    return pyarrow.schema(Schema.from_json(columns).to_arrow())


def _check(transaction: str | None, progress: Progress | None) -> None:
    for text in (transaction, None if progress is None else progress.stream):
        if text is not None and (not text or len(text.encode()) > TRANSACTION_BYTES_MAX or not text.isprintable()):
            raise Invalid(f"{text!r} is not a transaction id", hint="use up to 200 printable characters")
    if progress is not None and progress.position <= (-1 if progress.after is None else progress.after):
        what = f"({progress.after}, {progress.position}] is no part of a stream"
        raise Invalid(what, hint="positions count from 0 and grow")


def arrow(data: Any) -> Any:
    """Any Arrow-speaking object, DataFrame or mapping of columns as a pyarrow Table with named columns."""
    import pyarrow

    try:
        if isinstance(data, dict):
            table = pyarrow.table(data)
        elif isinstance(data, list):
            table = pyarrow.Table.from_pylist(data)
        elif hasattr(data, "__arrow_c_stream__") or isinstance(data, pyarrow.RecordBatch):
            table = pyarrow.table(data)
        else:
            table = pyarrow.Table.from_pandas(data, preserve_index=False)
    except (pyarrow.ArrowException, TypeError, ValueError, AttributeError) as error:
        hint = "pass an Arrow table, a DataFrame or {column: values}"
        raise Invalid(f"{type(data).__name__} is not a table: {error}", hint=hint) from None
    # Query engines do not tell `User` from `user`.
    if not table.num_columns or len({name.lower() for name in table.column_names}) != table.num_columns:
        raise Invalid(f"columns {table.column_names} cannot be a table", hint="give each column a name of its own")
    if "" in table.column_names:
        raise Invalid("a column has no name", hint="give each column a name of its own")
    return table.replace_schema_metadata(None)
