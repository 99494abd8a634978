"""Group commit: many acknowledged transactions of many processes become one version of a table on a folder.

Owns the spool `_lepton/` of a table. A writer leaves its rows as a Parquet file and an intent in the spool, then asks
for the table's lock. Whoever gets it commits every intent that lies there as one Delta version and leaves each its
outcome; the others find theirs when the lock comes to them (flat combining: Hendler, Incze, Shavit, Tzafrir, SPAA
2010). So there is no server: the committer is whichever writer holds the lock, for as long as one commit takes. When
it dies the kernel gives the lock to the next one, which learns from the holder's note and the table's log what was
committed, and commits the rest. A version's log entry is only ever created, never replaced, so that writers which know
nothing of this lock (any Delta writer) are met as conflicts, not overwritten.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import time
from collections import ChainMap
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import Conflict, LeptonError
from lepton_ai.lake.deltalog import CHECKPOINT_EVERY, DeltaLog, checkpoint

FOLDER = "_lepton"
GROUP_MAX = 512
"""At most so many transactions a version: a reader's log entry stays small."""
STALE_S = 3600.0
TRIES = 50
MARK = 2
"""Under a transaction's id the table records the Delta version that wrote it plus this; older releases recorded 1."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Rows that are the part (after, position] of a stream: taken in only by a table that stands at `after`.

    None: at the beginning. Positions grow and need not be without gaps (offsets of a partition).
    """

    stream: str
    position: int
    after: int | None = None


@dataclass(frozen=True, slots=True)
class Intent:
    """A transaction whose rows are written but not committed; `schema` is the table's as its writer knew it."""

    id: str
    path: str
    size_bytes: int
    rows: int
    stats: str
    schema: str
    transaction: str | None = None
    progress: Progress | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of an intent: the Delta `version` that holds its rows. `written`: by this very intent.

    `again` says why it must be written anew: the table has other columns now, or stands elsewhere in the stream.
    """

    version: int
    written: bool
    again: str = ""


class Commits:
    """The commits of one table on a folder. `log`: the caller's own; `faults` translates the engine's errors."""

    def __init__(self, folder: Path, log: DeltaLog, faults: Callable[[], AbstractContextManager[None]]) -> None:
        self._folder, self._spool = folder, folder / FOLDER
        self._log, self._faults = log, faults

    def submit(self, intent: Intent) -> Outcome:
        """Commit an intent, with all others that wait. Its data file is removed if it was surely not committed.

        Raises Conflict, DiskFull, Corrupt, Unavailable; after any of them, and after Ctrl-C, the rows may be in the
        table: a transaction id tells, when the same is submitted again.
        """
        known = self._log.version
        try:
            self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self._spool / "done").mkdir(mode=0o700, exist_ok=True)
            with self._faults():
                _write(self._spool / f"{intent.id}.json", asdict(intent))
            with self.locked():
                outcome = self._outcome(intent.id)
                if outcome is None:
                    outcome = self._combine(intent)
        except BaseException:
            self._withdraw(intent, known)
            raise
        (self._spool / "done" / f"{intent.id}.json").unlink(missing_ok=True)
        if not outcome.written:
            _remove(self._folder / intent.path)
        return outcome

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone with the table, among all that use this class."""
        self._spool.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = os.open(self._spool / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    # -- with the lock

    def _combine(self, own: Intent) -> Outcome:
        """Commit what lies in the spool; returns the outcome of `own`, which is among it."""
        for _ in range(TRIES):
            with self._faults():
                self._log.refresh()
            waiting = self._waiting(own)
            outcomes = self._known(waiting)
            fresh = [item for item in waiting if item.id not in outcomes]
            try:
                if fresh:
                    outcomes |= self._commit(fresh)
            except Conflict:
                continue  # a writer that does not know this lock was faster: look again
            unsettled = [item for item in waiting if not self._settle(item, outcomes[item.id], own)]
            self._leave({item.path: outcomes[item.id].version for item in unsettled if outcomes[item.id].written})
            if fresh and self._log.version % CHECKPOINT_EVERY == 0:
                checkpoint(self._folder)
                self._tidy()
            return outcomes[own.id]
        raise Conflict("others write the table all the time, past its lock", hint="write again")

    def _waiting(self, own: Intent) -> list[Intent]:
        """The intents of the spool, oldest first; `own` always among them."""
        found = {own.id: own}
        for name in sorted(os.listdir(self._spool)):
            if len(found) >= GROUP_MAX:
                break
            if not name.endswith(".json") or name[:-5] == own.id:
                continue
            try:
                value = json.loads((self._spool / name).read_text())
                progress = value.pop("progress")
                intent = Intent(**value, progress=None if progress is None else Progress(**progress))
            except FileNotFoundError:
                continue  # withdrawn meanwhile
            except (ValueError, TypeError, KeyError, OSError):
                (self._spool / name).unlink(missing_ok=True)  # never whole, so never to be acknowledged
                continue
            if (self._folder / intent.path).is_file():
                found[intent.id] = intent
            else:
                (self._spool / name).unlink(missing_ok=True)
        return sorted(found.values(), key=lambda item: item.id)

    def _known(self, waiting: list[Intent]) -> dict[str, Outcome]:
        """What needs no commit: committed by a holder that died, done before under its id, or not fitting any more."""
        outcomes: dict[str, Outcome] = {}
        committed = self._left_behind()
        done = ChainMap[str, int]({}, self._log.transactions)
        version = self._log.version + 1
        for item in waiting:
            if item.path in committed:
                outcomes[item.id] = Outcome(committed[item.path], True)
            elif item.progress is not None and done.get(item.progress.stream, -1) >= item.progress.position:
                outcomes[item.id] = Outcome(self._log.version, False)
            elif item.progress is not None and done.get(item.progress.stream) != item.progress.after:
                outcomes[item.id] = Outcome(
                    self._log.version, False, f"stream {item.progress.stream} went on meanwhile"
                )
            elif item.transaction is not None and item.transaction in done:
                outcomes[item.id] = Outcome(done[item.transaction] - MARK, False)
            elif item.schema != self._log.schema or not self._log.plain:
                outcomes[item.id] = Outcome(self._log.version, False, "the table was changed meanwhile")
            else:
                # Within a group too the same is done once: the next of this id finds the first.
                if item.transaction is not None:
                    done[item.transaction] = version + MARK
                if item.progress is not None:
                    done[item.progress.stream] = item.progress.position
        return outcomes

    def _commit(self, fresh: list[Intent]) -> dict[str, Outcome]:
        version = self._log.version + 1
        now_ms = time.time_ns() // 1_000_000
        marks = {item.transaction: version + MARK for item in fresh if item.transaction is not None}
        marks |= {item.progress.stream: item.progress.position for item in fresh if item.progress is not None}
        rows = sum(item.rows for item in fresh)
        info = {
            "timestamp": now_ms,
            "operation": "WRITE",
            "operationParameters": {"mode": "Append"},
            "operationMetrics": {"num_added_files": len(fresh), "num_added_rows": rows},
            "engineInfo": "lepton-cloud",
            "lepton.transactions": json.dumps([item.transaction for item in fresh if item.transaction]),
        }
        actions: list[dict[str, Any]] = [{"commitInfo": info}]
        actions += [{"txn": {"appId": key, "version": value, "lastUpdated": now_ms}} for key, value in marks.items()]
        for item in fresh:
            add = {"path": item.path, "partitionValues": {}, "size": item.size_bytes, "modificationTime": now_ms}
            actions.append({"add": {**add, "dataChange": True, "stats": item.stats}})
        with self._faults():
            self._leave({**self._left_behind(), **{item.path: version for item in fresh}})
            self._log.append(actions)
        return {item.id: Outcome(version, True) for item in fresh}

    @property
    def _note(self) -> Path:
        """What holders of the lock were about to commit and have not told all writers of: data file -> version."""
        return self._spool / "committing.note"

    def _leave(self, paths: dict[str, int]) -> None:
        if paths:
            _write(self._note, paths)
        else:
            self._note.unlink(missing_ok=True)

    def _left_behind(self) -> dict[str, int]:
        """Of what the note names, what was committed: data file -> Delta version."""
        try:
            note = {str(path): int(version) for path, version in json.loads(self._note.read_text()).items()}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError):
            return {}  # it died while writing the note, so before the commit
        entries = {version: self._added(version) for version in set(note.values())}
        return {path: version for path, version in note.items() if path in entries[version]}

    def _added(self, version: int) -> set[str]:
        """The data files that a version added."""
        return {str(line["add"]["path"]) for line in self._log.entry(version) or [] if "add" in line}

    # -- outcomes

    def _settle(self, item: Intent, outcome: Outcome, own: Intent) -> bool:
        """Tell a writer what became of its intent; False when that could not be written (the note stays then)."""
        try:
            if item.id != own.id:
                _write(self._spool / "done" / f"{item.id}.json", asdict(outcome))
            (self._spool / f"{item.id}.json").unlink(missing_ok=True)
        except OSError:
            return item.id == own.id
        return True

    def _outcome(self, intent_id: str) -> Outcome | None:
        try:
            return Outcome(**json.loads((self._spool / "done" / f"{intent_id}.json").read_text()))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    def _withdraw(self, intent: Intent, known: int) -> None:
        """Nobody may commit it later; its data file goes, unless a version after `known` has it or nobody can say.

        A file too many costs room, a file too few the table.
        """
        with contextlib.suppress(LeptonError, OSError), self.locked():
            (self._spool / f"{intent.id}.json").unlink(missing_ok=True)
            (self._spool / "done" / f"{intent.id}.json").unlink(missing_ok=True)
            version = known + 1
            while self._log.entry(version) is not None:
                if intent.path in self._added(version):
                    return
                version += 1
            _remove(self._folder / intent.path)

    def _tidy(self) -> None:
        """Remove outcomes whose writers never came for them."""
        now_s = time.time()
        with contextlib.suppress(OSError), os.scandir(self._spool / "done") as entries:
            for entry in entries:
                if now_s - entry.stat().st_mtime > STALE_S:
                    os.unlink(entry.path)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()


def write_parquet(folder: Path, intent_id: str, rows: Any) -> tuple[str, int, str]:
    """(name, size, statistics) of a new data file of the table in `folder`; raises OSError, pyarrow's errors."""
    import pyarrow.parquet as parquet

    name = f"part-{intent_id}.parquet"
    try:
        with open(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            parquet.write_table(rows, file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
    except BaseException:
        _remove(folder / name)  # half of it would stand on the disk that is full
        raise
    return name, size, statistics(rows)


def statistics(rows: Any) -> str:
    """Delta's statistics of a file: rows, and least, greatest and missing values of the plain columns."""
    import pyarrow
    import pyarrow.compute as compute

    least: dict[str, Any] = {}
    greatest: dict[str, Any] = {}
    missing: dict[str, int] = {}
    for name in rows.column_names[:32]:
        column = rows.column(name)
        missing[name] = column.null_count
        kind = column.type
        plain = pyarrow.types.is_integer(kind) or pyarrow.types.is_floating(kind) or pyarrow.types.is_string(kind)
        if not plain or column.null_count == len(column):
            continue
        if pyarrow.types.is_floating(kind) and compute.any(compute.is_nan(column)).as_py():
            continue  # NaN has no place in an order
        found = compute.min_max(column).as_py()
        if pyarrow.types.is_string(kind) and (len(found["min"]) > 64 or len(found["max"]) > 64):
            continue  # a cut text would be no bound
        if pyarrow.types.is_floating(kind) and found["max"] in (float("inf"), float("-inf")):
            continue
        if pyarrow.types.is_floating(kind) and found["min"] in (float("inf"), float("-inf")):
            continue
        least[name], greatest[name] = found["min"], found["max"]
    value = {"numRecords": rows.num_rows, "minValues": least, "maxValues": greatest, "nullCount": missing}
    return json.dumps(value)


def _write(path: Path, value: dict[str, Any]) -> None:
    """A file that appears whole. Not forced to the device: what is acknowledged is in the table's log, which is."""
    part = path.with_suffix(".part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump(value, file)
    part.replace(path)
