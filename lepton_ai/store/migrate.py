"""Brings a database to this release's schema, once, whoever comes first. Owns the version check and the lock.

Alembic (about 12 MB of memory) is imported only when there is something to do. The whole upgrade is one
transaction on both engines: a process killed in it leaves the database as it was.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sqlalchemy import Connection, Engine, inspect, text

from lepton_ai.errors import Invalid, LeptonError, Unavailable, Unsupported
from lepton_ai.store import engine as engines
from lepton_ai.store.faults import translated
from lepton_ai.store.tables import HEAD, VERSION_TABLE, VERSIONS

log = logging.getLogger(__name__)
LOCK_KEY = 0x6C6570746F6E6169
"""Key of the PostgreSQL advisory lock: the letters 'leptonai'."""


def migrate(engine: Engine) -> None:
    """Makes or upgrades the schema of `engine`.

    Raises Unsupported when the database is newer than this release, Invalid when it is somebody else's, Corrupt,
    DiskFull or Unavailable when it cannot be read or written.
    """
    path = engines.file_of(engine)
    with translated(engine):
        if path is not None and not path.parent.is_dir():
            raise Unavailable(f"the folder {path.parent} does not exist", hint=f"run: mkdir -p {path.parent}")
        if (path is None or path.exists()) and _version(engine) == HEAD:
            return
        with _locked(engine, path):
            if path is not None:
                _prepare(engine, path)
            if _version(engine) != HEAD:
                _upgrade(engine)


def _version(engine: Engine) -> str | None:
    with engine.connect() as connection:
        tables = set(inspect(connection).get_table_names())
        if VERSION_TABLE in tables:
            found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
            return _known(engine, found)
        if tables and engine.dialect.name == "sqlite":
            raise Invalid(
                f"{engine.url.database} is not the database of a cell: it has {', '.join(sorted(tables)[:5])}",
                hint="name another file in the setting `store`",
            )
        return None


def _known(engine: Engine, found: str | None) -> str | None:
    if found is None or found in VERSIONS:
        return found
    where = engine.url.render_as_string(hide_password=True)
    raise Unsupported(
        f"the database {where} has schema {found}; this release knows up to {HEAD}",
        hint="a newer release made it; run: pip install --upgrade lepton-cloud",
        details={"found": found, "known": HEAD},
    )


@contextmanager
def _locked(engine: Engine, path: Path | None) -> Iterator[None]:
    if path is None:
        with engine.connect() as connection:
            connection.execute(text(f"SELECT pg_advisory_lock({LOCK_KEY})"))
            connection.commit()
            try:
                yield
            finally:
                connection.execute(text(f"SELECT pg_advisory_unlock({LOCK_KEY})"))
                connection.commit()
        return
    try:
        lock = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        hint = f"check the rights: ls -ld {path.parent}"
        raise Unavailable(f"cannot lock {path} for its migration: {error.strerror}", hint=hint) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)


def _prepare(engine: Engine, path: Path) -> None:
    engines.touch(path)
    connection = engine.raw_connection()
    try:
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        mode = str(*cursor.fetchone() or [])
        cursor.close()
    finally:
        connection.close()
    if mode != "wal":
        raise Unsupported(
            f"{path}: SQLite cannot use its write-ahead log here (mode {mode})",
            hint="put the store on a local file system, or use postgresql://",
        )


def _upgrade(engine: Engine) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    with engine.connect().execution_options(**{engines.WRITE: True}) as connection, connection.begin():
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            raise LeptonError(f"the schema cannot be upgraded: {error}", hint="run: lepton doctor") from error
        _check(connection)
    log.info("store schema is now %s", HEAD)


def _check(connection: Connection) -> None:
    found = connection.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar()
    assert found == HEAD, f"migrations end at {found}, tables.HEAD is {HEAD}"
