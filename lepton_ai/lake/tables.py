"""Tables with ACID commits and versions: Delta tables on folders and buckets, written as `ratings@1`, `ratings@2`, …

Owns names, versions (ours count from 1; Delta's from 0), reading and errors; writing is `write`. The engines
(deltalake, pyarrow) are imported when first used.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from lepton_ai.errors import Conflict, Corrupt, DiskFull, Invalid, LeptonError, NotFound, Unavailable
from lepton_ai.lake.commits import Progress
from lepton_ai.lake.deltalog import DeltaLog
from lepton_ai.lake.place import Place
from lepton_ai.lake.write import TRANSACTION_KEY, WRITE_KEY, write

NAME = re.compile(r"[a-z][a-z0-9_]{0,62}\Z")
_REF = re.compile(r"([a-z][a-z0-9_]{0,62})(?:@([1-9][0-9]{0,14}))?\Z")
TRANSACTIONS_KEY = "lepton.transactions"
ROWS_KEY = "lepton.rows"
"""Names under which a version's log entry carries what we say of it (and those of `write`)."""


@dataclass(frozen=True, slots=True)
class TableVersion:
    """One committed version. `transactions` are the ids under which it was written, of those that gave one."""

    name: str
    version: int
    created_ms: int
    operation: str
    rows_added: int | None = None
    transactions: tuple[str, ...] = ()
    write: str | None = field(default=None, repr=False, compare=False)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"

    @property
    def transaction(self) -> str | None:
        """The id, when the version was written under one alone."""
        return self.transactions[0] if len(self.transactions) == 1 else None


class Table:
    """A table of a lake, or one version of it (`at`). Data is anything that speaks Arrow, or a mapping of columns."""

    def __init__(self, place: Place, name: str, version: int | None = None) -> None:
        self.place = place
        self.name = name
        self._version = version
        self._log: DeltaLog | None = None

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
            return _is_table(folder)
        from deltalake import DeltaTable

        uri, options = self.place.table()
        with self.faults():
            return bool(DeltaTable.is_deltatable(uri, storage_options=options))

    def create(self, data: Any, *, transaction: str | None = None) -> TableVersion:
        """A new table with these rows as version 1. Raises Conflict if it exists (but see `append` on ids)."""
        return write(self, data, "error", transaction)

    def append(self, data: Any, *, transaction: str | None = None, progress: Progress | None = None) -> TableVersion:
        """Adds rows, creating the table if it is missing; the columns must be the table's.

        A transaction id makes it safe to repeat: if the table holds a version written under that id already, no
        row is added and that version is returned. `progress` does the same for a reader of a stream: rows are
        added only while the table stands where they begin (see `Progress`, `position`). On a folder the
        appends of many processes at once share a version (see `commits`). Raises Invalid, Conflict, DiskFull,
        Corrupt.
        """
        return write(self, data, "append", transaction, progress)

    def position(self, stream: str) -> int | None:
        """Up to where the table has taken in that stream (see `append`); None: nothing of it."""
        if not self.exists():
            return None
        opened = self.opened()
        with self.faults():
            found = opened.transaction_version(stream)
        return None if found is None else int(found)

    def overwrite(self, data: Any, *, transaction: str | None = None) -> TableVersion:
        """Replaces all rows (and columns) in one commit; earlier versions stay readable."""
        return write(self, data, "overwrite", transaction)

    def read(self, *, columns: Sequence[str] | None = None) -> Any:
        """The rows as a pyarrow Table. Raises NotFound (table, version, column) or Corrupt."""
        opened = self.opened()
        names = [field.name for field in opened.schema().fields]
        missing = [name for name in columns or [] if name not in names]
        if missing:
            raise NotFound(f"{self.name} has no column {missing[0]!r}", hint=f"its columns: {', '.join(names)}")
        with self.faults():
            return self._dataset(opened).to_table(columns=list(columns) if columns is not None else None)

    def dataset(self) -> Any:
        """The rows as a pyarrow Dataset, which a query engine scans in pieces."""
        opened = self.opened()
        with self.faults():
            return self._dataset(opened)

    def schema(self) -> dict[str, str]:
        """Column names and Arrow types, in order."""
        import pyarrow

        opened = self.opened()
        with self.faults():
            return {field.name: str(field.type) for field in pyarrow.schema(opened.schema().to_arrow())}

    def rows(self) -> int:
        """How many rows the version holds, from the log alone."""
        opened = self.opened()
        with self.faults():
            return int(opened.count())

    def size_bytes(self) -> int:
        """What the version's files take, from the log alone."""
        import pyarrow

        opened = self.opened()
        with self.faults():
            return sum(pyarrow.table(opened.get_add_actions(flatten=True)).column("size_bytes").to_pylist())

    def version(self) -> TableVersion:
        """The version that is meant: the pinned one, or the newest."""
        return self._history(1)[0]

    def history(self) -> list[TableVersion]:
        """Every version up to the one that is meant, newest first."""
        return self._history(None)

    def _history(self, limit: int | None) -> list[TableVersion]:
        # The engine numbers a log's entries from the version that is loaded: always load the newest.
        opened = self.opened(newest=True)
        newest = int(opened.version()) + 1
        wanted = self._version or newest
        if wanted > newest:
            raise self._absent(newest)
        with self.faults():
            entries = opened.history(None if limit is None else newest - wanted + limit)
        found = [item for item in map(self._entry, entries) if item.version <= wanted]
        found = sorted(found, key=lambda item: -item.version)[:limit]
        if not found or found[0].version != wanted:
            raise Corrupt(f"the log of table {self.name} does not list version {wanted}", hint=self.hint())
        return found

    def log(self) -> DeltaLog:
        """The table's log as this value has read it so far; read it at the first call. Raises Invalid, Corrupt."""
        if self._log is None:
            log = DeltaLog(self.folder)
            with self.faults():
                log.refresh()
            self._log = log
        return self._log

    def opened(self, *, newest: bool = False) -> Any:
        """The engine's table at the version that is meant, or the newest. Raises NotFound, Corrupt."""
        from deltalake import DeltaTable

        if not self.exists():
            raise NotFound(f"no table {self.name}", hint="list them: lepton table ls")
        with self.faults():
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
                raise Corrupt(f"table {self.name}: its file {action['path']} is missing", hint=self.hint())
        fragments = list(dataset.get_fragments())
        if len(fragments) < 2 or len(times) != len(fragments) or not all(item.path in times for item in fragments):
            return dataset
        fragments.sort(key=lambda item: (times[item.path], item.path))
        return pyarrow.dataset.FileSystemDataset(
            fragments, dataset.schema, dataset.format, filesystem=dataset.filesystem
        )

    def entry(self, delta_version: int) -> TableVersion:
        """One version by Delta's number, from its own log entry. Raises Corrupt."""
        folder = self.place.folder
        if folder is None:
            return next(item for item in self.at(delta_version + 1)._history(1))
        try:
            with open(folder / "_delta_log" / f"{delta_version:020d}.json", encoding="utf-8") as file:
                found = next(item["commitInfo"] for line in file if "commitInfo" in (item := json.loads(line)))
        except FileNotFoundError:
            return self.at(delta_version + 1)._history(1)[0]
        except (OSError, ValueError, StopIteration, TypeError):
            raise Corrupt(f"version {delta_version + 1} of {self.name} cannot be read", hint=self.hint()) from None
        return self._entry({**found, "version": delta_version})

    def _entry(self, entry: dict[str, Any]) -> TableVersion:
        metrics = entry.get("operationMetrics") or {}
        added = entry.get(ROWS_KEY, metrics.get("num_added_rows"))
        try:
            one, many, mark = entry.get(TRANSACTION_KEY), entry.get(TRANSACTIONS_KEY), entry.get(WRITE_KEY)
            transactions = [str(one)] if one is not None else json.loads(many or "[]")
            return TableVersion(
                self.name,
                int(entry["version"]) + 1,
                int(entry.get("timestamp", 0)),
                str(entry.get("operation", "")).lower(),
                int(added) if added is not None else None,
                tuple(str(item) for item in transactions),
                str(mark) if mark is not None else None,
            )
        except (KeyError, TypeError, ValueError):
            raise Corrupt(f"the log of table {self.name} is damaged: {json.dumps(entry, default=str)[:200]}") from None

    def hint(self) -> str:
        return f"read an earlier version ({self.name}@1, …), or restore {self.place.url} from a copy"

    @contextmanager
    def faults(self) -> Iterator[None]:
        """Within: errors of the engines as errors of this package."""
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
        if "Invalid data found" in cause or "violates" in cause:
            return Invalid(
                f"rows break a rule of table {self.name}: {cause}", hint="see its constraints, correct the rows"
            )
        if "already exists" in cause:
            return Conflict(f"the table {self.name} exists already", hint="append to it, or overwrite it")
        return Corrupt(f"table {self.name} cannot be read: {cause}", hint=self.hint())


def _is_table(folder: Path) -> bool:
    """Whether there is a version: a creation that was cut off leaves a log without entries."""
    log = folder / "_delta_log"
    return (log / f"{0:020d}.json").is_file() or (log / "_last_checkpoint").is_file()


def names(root: Place) -> list[str]:
    """The tables below `root`, sorted. Raises Unavailable for a bucket that does not answer."""
    folder = root.folder
    if folder is not None:
        try:
            found = [item.name for item in folder.iterdir() if _is_table(item)]
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
