"""Tables with ACID commits and versions: Delta tables on folders and buckets, written as `ratings@1`, `ratings@2`, …

Owns names, versions (ours count from 1; Delta's from 0), idempotent writes and errors. The engines (deltalake,
pyarrow) are imported when first used. Many writers at once are safe but slow: one fenced committer per table, which
groups their transactions, is a later issue's.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lepton_ai.errors import Conflict, Corrupt, DiskFull, Invalid, LeptonError, NotFound, Unavailable
from lepton_ai.lake.place import Place
from lepton_ai.spec.base import uuid7

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_REF = re.compile(r"([a-z][a-z0-9_]{0,62})(?:@([1-9][0-9]{0,14}))?\Z")
TRANSACTION_BYTES_MAX = 200
WRITE_TRIES = 200
WRITE_WAIT_S_MAX = 0.2
_TRANSACTION_KEY = "lepton.transaction"
_WRITE_KEY = "lepton.write"


@dataclass(frozen=True, slots=True)
class TableVersion:
    """One committed version. `transaction` is the id under which it was written, if one was given."""

    name: str
    version: int
    created_ms: int
    operation: str
    rows_added: int | None = None
    transaction: str | None = None
    write: str | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Table:
    """A table of a lake, or one version of it (`at`). Data is anything that speaks Arrow, or a mapping of columns."""

    def __init__(self, place: Place, name: str, version: int | None = None) -> None:
        self.place = place
        self.name = name
        self._version = version

    @classmethod
    def of(cls, root: Place, ref: str) -> Table:
        """The table that `ref` (`ratings`, `ratings@2`) names below `root`. Raises Invalid for other texts."""
        match = _REF.match(ref)
        if not match:
            raise Invalid(f"{ref!r} is not a table", hint="use a name like ratings, or one version of it: ratings@1")
        return cls(root.below(match[1]), match[1], int(match[2]) if match[2] else None)

    @property
    def folder(self) -> Path:
        """The table's files, for readers on this machine. Raises Invalid when they lie in a bucket."""
        if self.place.folder is None:
            raise Invalid(f"{self.place.url} is no folder of this machine", hint="read it with table.read()")
        return self.place.folder

    @property
    def lineage(self) -> str | None:
        """`ratings@2` when one version is meant, else None."""
        return f"{self.name}@{self._version}" if self._version else None

    def at(self, version: int) -> Table:
        """The table as it was at a version."""
        if version < 1:
            raise Invalid(f"{self.name} has no version {version}", hint="versions count from 1")
        return Table(self.place, self.name, version)

    def pin(self) -> Table:
        """This table at its current version, which later writes do not change."""
        return self if self._version else self.at(self.version().version)

    def exists(self) -> bool:
        """Whether the table has been created."""
        folder = self.place.folder
        if folder is not None:
            return (folder / "_delta_log").is_dir()
        from deltalake import DeltaTable

        uri, options = self.place.table()
        with self._faults():
            return bool(DeltaTable.is_deltatable(uri, storage_options=options))

    def create(self, data: Any, *, transaction: str | None = None) -> TableVersion:
        """A new table with these rows as version 1. Raises Conflict if it exists (but see `append` on ids)."""
        return self._write(data, "error", transaction)

    def append(self, data: Any, *, transaction: str | None = None) -> TableVersion:
        """Adds rows, creating the table if it is missing; the columns must be the table's.

        A transaction id makes it safe to repeat: if the table holds a version written under that id already, no
        row is added and that version is returned. Raises Invalid, Conflict, DiskFull, Corrupt.
        """
        return self._write(data, "append", transaction)

    def overwrite(self, data: Any, *, transaction: str | None = None) -> TableVersion:
        """Replaces all rows (and columns) in one commit; earlier versions stay readable."""
        return self._write(data, "overwrite", transaction)

    def read(self, *, columns: Sequence[str] | None = None) -> Any:
        """The rows as a pyarrow Table. Raises NotFound (table, version, column) or Corrupt."""
        opened = self._open()
        names = [field.name for field in opened.schema().fields]
        missing = [name for name in columns or [] if name not in names]
        if missing:
            raise NotFound(f"{self.name} has no column {missing[0]!r}", hint=f"its columns: {', '.join(names)}")
        with self._faults():
            return self._dataset(opened).to_table(columns=list(columns) if columns is not None else None)

    def dataset(self) -> Any:
        """The rows as a pyarrow Dataset, which a query engine scans in pieces."""
        opened = self._open()
        with self._faults():
            return self._dataset(opened)

    def schema(self) -> dict[str, str]:
        """Column names and Arrow types, in order."""
        import pyarrow

        opened = self._open()
        with self._faults():
            return {field.name: str(field.type) for field in pyarrow.schema(opened.schema().to_arrow())}

    def rows(self) -> int:
        """How many rows the version holds, from the log alone."""
        opened = self._open()
        with self._faults():
            return int(opened.count())

    def size_bytes(self) -> int:
        """What the version's files take, from the log alone."""
        import pyarrow

        opened = self._open()
        with self._faults():
            return sum(pyarrow.table(opened.get_add_actions(flatten=True)).column("size_bytes").to_pylist())

    def version(self) -> TableVersion:
        """The version that is meant: the pinned one, or the newest."""
        return self._history(1)[0]

    def history(self) -> list[TableVersion]:
        """Every version up to the one that is meant, newest first."""
        return self._history(None)

    def _history(self, limit: int | None) -> list[TableVersion]:
        # The engine numbers a log's entries from the version that is loaded: always load the newest.
        opened = self._open(newest=True)
        newest = int(opened.version()) + 1
        wanted = self._version or newest
        if wanted > newest:
            raise self._absent(newest)
        with self._faults():
            entries = opened.history(None if limit is None else newest - wanted + limit)
        found = [item for item in map(self._entry, entries) if item.version <= wanted]
        found = sorted(found, key=lambda item: -item.version)[:limit]
        if not found or found[0].version != wanted:
            raise Corrupt(f"the log of table {self.name} does not list version {wanted}", hint=self._hint())
        return found

    def _write(self, data: Any, mode: str, transaction: str | None) -> TableVersion:
        if self._version:
            raise Invalid(f"{self.lineage} is past and cannot be written", hint=f"write to {self.name}")
        _check_transaction(transaction)
        rows = _arrow(data)
        for attempt in range(WRITE_TRIES):
            try:
                return self._commit(rows, mode, transaction)
            except Conflict:
                if mode == "error" and self.exists() and self._written(self._open(), transaction) is None:
                    raise
                if attempt == WRITE_TRIES - 1:
                    raise
            # Others are writing: wait a random while, so that not all come back at once.
            time.sleep(random.uniform(0, min(WRITE_WAIT_S_MAX, 0.005 * 2**attempt)))
        raise AssertionError("unreachable")

    def _commit(self, rows: Any, mode: str, transaction: str | None) -> TableVersion:
        """One attempt. Raises Conflict when another commit came between looking and writing."""
        from deltalake import CommitProperties, Transaction, write_deltalake

        target, options = self.place.table()
        opened: Any = None
        if self.exists():
            opened = self._open()
            before = self._written(opened, transaction)
            if before is not None:
                return before
            if mode == "append":
                rows = self._fit(rows, opened)
        # Every commit carries an id of its own: with other writers about, it tells which version is ours.
        mark = uuid7()
        metadata = {_WRITE_KEY: mark} | ({_TRANSACTION_KEY: transaction} if transaction else {})
        properties = CommitProperties(
            custom_metadata=metadata,
            app_transactions=[Transaction(transaction, 1)] if transaction else None,
            # The engine moves a commit behind others' without looking at their transaction ids: with an id, only
            # the version right after the one that was looked at will do.
            max_commit_retries=0 if transaction else None,
        )
        extra: dict[str, Any] = {"schema_mode": "overwrite"} if mode == "overwrite" else {}
        if opened is None:
            self.place.make()
            extra["storage_options"] = options
        with self._faults():
            write_deltalake(opened or target, rows, mode=mode, commit_properties=properties, **extra)
        written = [item for item in self.history() if item.write == mark]
        assert written, f"{self.name} lost a commit"
        return written[0]

    def _written(self, opened: Any, transaction: str | None) -> TableVersion | None:
        if transaction is None:
            return None
        with self._faults():
            if opened.transaction_version(transaction) is None:
                return None
        found = [item for item in self.history() if item.transaction == transaction]
        if not found:
            raise Corrupt(f"table {self.name} lost the commit of {transaction!r}", hint=self._hint())
        return found[0]

    def _fit(self, rows: Any, opened: Any) -> Any:
        """The rows in the order and types of the table. Raises Invalid where they do not fit."""
        import pyarrow

        with self._faults():
            schema = pyarrow.schema(opened.schema().to_arrow())
        if set(rows.column_names) != set(schema.names):
            hint = "append the same columns, or replace the table: table.overwrite(data)"
            raise Invalid(f"columns {rows.column_names} are not {self.name}'s {schema.names}", hint=hint)
        try:
            return rows.select(schema.names).cast(schema)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowNotImplementedError, ValueError) as error:
            raise Invalid(f"rows do not fit table {self.name}: {error}", hint=f"its types: {self.schema()}") from None

    def _open(self, *, newest: bool = False) -> Any:
        from deltalake import DeltaTable

        if not self.exists():
            raise NotFound(f"no table {self.name}", hint="list them: lepton table ls")
        with self._faults():
            uri, options = self.place.table()
            opened = DeltaTable(uri, storage_options=options)
            last = int(opened.version()) + 1
            if self._version and not newest and self._version != last:
                if self._version > last:
                    raise self._absent(last)
                opened.load_as_version(self._version - 1)
        return opened

    def _absent(self, newest: int) -> NotFound:
        hint = f"the newest is {self.name}@{newest}"
        return NotFound(f"table {self.name} has no version {self._version}", hint=hint)

    def _dataset(self, opened: Any) -> Any:
        """The files oldest first, so that rows keep the order in which they were appended."""
        import pyarrow.dataset

        dataset, folder = opened.to_pyarrow_dataset(), self.place.folder
        times = {}
        for action in pyarrow.table(opened.get_add_actions(flatten=True)).to_pylist():
            times[unquote(action["path"])] = action["modification_time"]
            if folder is not None and not (folder / unquote(action["path"])).is_file():
                raise Corrupt(f"table {self.name}: its file {action['path']} is missing", hint=self._hint())
        fragments = list(dataset.get_fragments())
        if len(fragments) < 2 or len(times) != len(fragments) or not all(item.path in times for item in fragments):
            return dataset
        fragments.sort(key=lambda item: (times[item.path], item.path))
        return pyarrow.dataset.FileSystemDataset(
            fragments, dataset.schema, dataset.format, filesystem=dataset.filesystem
        )

    def _entry(self, entry: dict[str, Any]) -> TableVersion:
        metrics = entry.get("operationMetrics") or {}
        added = metrics.get("num_added_rows")
        try:
            transaction, write = entry.get(_TRANSACTION_KEY), entry.get(_WRITE_KEY)
            return TableVersion(
                self.name,
                int(entry["version"]) + 1,
                int(entry.get("timestamp", 0)),
                str(entry.get("operation", "")).lower(),
                int(added) if added is not None else None,
                str(transaction) if transaction is not None else None,
                str(write) if write is not None else None,
            )
        except (KeyError, TypeError, ValueError):
            raise Corrupt(f"the log of table {self.name} is damaged: {json.dumps(entry, default=str)[:200]}") from None

    def _hint(self) -> str:
        return f"read an earlier version ({self.name}@1, …), or restore {self.place.url} from a copy"

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Errors of the engines as errors of this package."""
        import pyarrow
        from deltalake import exceptions

        try:
            yield
        except LeptonError:
            raise
        except (exceptions.DeltaError, pyarrow.ArrowException, OSError, ValueError) as error:
            raise self._explain(error) from None

    def _explain(self, error: Exception) -> LeptonError:
        from deltalake import exceptions

        # The engine appends its own stack trace: the first line is the cause.
        cause = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        if any(mark in str(error) for mark in ("No space left", "Disk quota", "os error 28")):
            return DiskFull(f"no room for table {self.name}", hint="free some space; the table is as it was before")
        if isinstance(error, exceptions.CommitFailedError):
            return Conflict(f"others wrote table {self.name} at the same time: {cause}", hint="write again")
        if isinstance(error, exceptions.SchemaMismatchError):
            return Invalid(f"rows do not fit table {self.name}: {cause}", hint="append the table's own columns")
        if "already exists" in cause:
            return Conflict(f"the table {self.name} exists already", hint="append to it, or overwrite it")
        return Corrupt(f"table {self.name} cannot be read: {cause}", hint=self._hint())


def names(root: Place) -> list[str]:
    """The tables below `root`, sorted. Raises Unavailable for a bucket that does not answer."""
    folder = root.folder
    if folder is not None:
        try:
            found = [item.name for item in folder.iterdir() if (item / "_delta_log").is_dir()]
        except FileNotFoundError:
            return []
        return sorted(name for name in found if NAME.match(name))
    import obstore
    from obstore.exceptions import BaseError

    try:
        prefixes = obstore.list_with_delimiter(root.store())["common_prefixes"]
    except BaseError as error:
        cause = str(error).splitlines()[0][:300]
        raise Unavailable(f"{root.url} does not list its tables: {cause}", hint="check the store and address") from None
    found = [prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes]
    return sorted(name for name in found if NAME.match(name) and Table.of(root, name).exists())


def _check_transaction(transaction: str | None) -> None:
    if transaction is None:
        return
    if not transaction or len(transaction.encode()) > TRANSACTION_BYTES_MAX or not transaction.isprintable():
        raise Invalid(f"{transaction!r} is not a transaction id", hint="use up to 200 printable characters")


def _arrow(data: Any) -> Any:
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
    if not table.num_columns or len(set(table.column_names)) != table.num_columns or "" in table.column_names:
        raise Invalid(f"columns {table.column_names} cannot be a table", hint="give each column a name of its own")
    return table.replace_schema_metadata(None)
