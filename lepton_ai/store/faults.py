"""What a database's error means for a user: one place that turns driver errors into lepton_ai.errors with a hint."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Engine, exc

from lepton_ai.errors import Busy, Conflict, Corrupt, DiskFull, LeptonError, Unavailable
from lepton_ai.store.engine import file_of

FULL_BYTES = 1 << 20
"""An I/O error on a device with less free room than this is reported as a full disk."""


@contextmanager
def translated(engine: Engine) -> Iterator[None]:
    """Raises what a database error inside the block means: DiskFull, Busy, Corrupt, Conflict or Unavailable."""
    try:
        yield
    except exc.TimeoutError as error:
        raise Busy("every connection to the store is in use", hint="try again; the cell is overloaded") from error
    except exc.DBAPIError as error:
        raise fault(engine, error.orig) from error
    except sqlite3.Error as error:
        raise fault(engine, error) from error


def fault(engine: Engine, error: BaseException | None) -> LeptonError:
    """The error of our tree for an error of the driver; `where` in it never holds a password."""
    path = file_of(engine)
    if path is not None:
        return _sqlite(path, error)
    return _postgresql(engine.url.render_as_string(hide_password=True), error)


def _sqlite(path: Path, error: BaseException | None) -> LeptonError:
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if code is not None else None
    if primary == sqlite3.SQLITE_FULL or (primary == sqlite3.SQLITE_IOERR and _is_full(path)):
        return DiskFull(
            f"no room for a write to {path}; nothing of it was kept", hint=f"free space: df -h {path.parent}"
        )
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        hint = f"keep a copy of the file, then restore a backup or run: sqlite3 {path} .recover"
        return Corrupt(f"{path} is damaged or not an SQLite database ({error})", hint=hint)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Busy(f"another process holds the write lock of {path} too long", hint=f"see who: fuser -v {path}")
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        hint = f"the file and its folder must be writable: ls -ld {path.parent} {path}"
        return Unavailable(f"{path} is read-only", hint=hint)
    if primary == sqlite3.SQLITE_CANTOPEN:
        return Unavailable(f"{path} cannot be opened", hint=f"check that the folder exists: ls -ld {path.parent}")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return Conflict(f"a record with this name or uid exists already ({error})", hint="read it again")
    if primary == sqlite3.SQLITE_IOERR:
        hint = f"check the device and its free space: df -h {path.parent}"
        return Unavailable(f"reading or writing {path} failed ({error})", hint=hint)
    return Unavailable(f"the store {path} does not work: {error}", hint="run: lepton doctor")


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < FULL_BYTES
    except OSError:
        return False


def _postgresql(where: str, error: BaseException | None) -> LeptonError:
    state = getattr(error, "sqlstate", None) or ""
    text = " ".join(str(error).split())[:300]
    if state in ("53100", "53200"):
        return DiskFull(f"the server of {where} has no room ({text})", hint="free space on the database server")
    if state.startswith("23"):
        return Conflict("a record with this name or uid exists already", hint="read it again")
    if state in ("40001", "40P01", "55P03", "53300", "57014"):
        return Busy(f"{where} is overloaded or locked ({text})", hint="try again")
    if state.startswith("XX"):
        return Corrupt(f"{where} reports damage ({text})", hint="restore a backup of the database")
    if state == "25006":
        return Unavailable(f"{where} is read-only", hint="use the primary server, not a standby")
    if state.startswith("28") or state == "3D000":
        return Unavailable(f"{where} refuses us ({text})", hint="check user, password and database in the store's URL")
    if state == "42501":
        return Unavailable(f"{where}: a right is missing ({text})", hint="grant the user CREATE on the schema")
    return Unavailable(f"{where} does not answer ({text})", hint="check that the server runs: pg_isready")
