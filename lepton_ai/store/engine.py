"""Connections: a store URL becomes an SQLAlchemy engine with the settings that durability needs.

SQLite: WAL (set once, by migrate), synchronous=FULL (an acknowledged commit survives a power cut), busy_timeout,
and transactions that we begin ourselves: the driver's own would upgrade a read lock in the middle and fail.
PostgreSQL: psycopg 3, a ping before a pooled connection is used again, and a bound on every wait for a lock.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from lepton_ai.errors import Invalid, Unsupported

BUSY_TIMEOUT_MS = 30_000
WRITE = "lepton_ai_write"
"""Execution option of a connection whose transactions write: SQLite then takes the write lock at the start."""


def engine(text: str) -> Engine:
    """The engine of ``sqlite:///PATH`` or ``postgresql://…``. Nothing is opened yet.

    Raises Invalid for any other URL and Unsupported when the PostgreSQL driver is not installed.
    """
    url = parse(text)
    return _sqlite(url) if url.get_backend_name() == "sqlite" else _postgresql(url)


def parse(text: str) -> URL:
    """The URL, with the driver that we use; raises Invalid. Its text hides the password."""
    hint = "use sqlite:///PATH (an absolute path has four slashes) or postgresql://USER@HOST/DATABASE"
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise Invalid("the store's URL cannot be read", hint=hint) from None
    if url.drivername == "sqlite":
        if url.database in (None, "", ":memory:") or str(url.database).startswith("file:") or url.query:
            raise Invalid(f"store {text!r} names no file", hint=hint)
        return url
    if url.drivername in ("postgresql", "postgres", "postgresql+psycopg"):
        return url.set(drivername="postgresql+psycopg")
    raise Invalid(f"store {url.drivername}:// is not known", hint=hint)


def file_of(engine: Engine) -> Path | None:
    """The database file of an SQLite engine; None for PostgreSQL."""
    return Path(str(engine.url.database)).absolute() if engine.dialect.name == "sqlite" else None


def touch(path: Path) -> None:
    """Makes an empty database file that only its owner can read; SQLite gives -wal and -shm the same rights."""
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))


def _sqlite(url: URL) -> Engine:
    made = create_engine(
        url.set(database=str(Path(str(url.database)).expanduser().absolute())),
        pool_size=4,
        max_overflow=28,
        pool_timeout=BUSY_TIMEOUT_MS / 1000,
        connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "check_same_thread": False},
    )

    @event.listens_for(made, "connect")
    def _connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.isolation_level = None
        # FULL is the default of most builds, not of all: an acknowledged write must be on the device.
        for pragma in ("synchronous=FULL", "cache_size=-1024", "journal_size_limit=16777216"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        write = connection.get_execution_options().get(WRITE)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")

    return made


def _postgresql(url: URL) -> Engine:
    try:
        import psycopg  # noqa: F401  (an engine chosen by a URL is imported only here)
    except ImportError:
        hint = "run: pip install 'lepton-cloud[postgres]'"
        raise Unsupported("the PostgreSQL driver is not installed", hint=hint) from None
    arguments: dict[str, Any] = {"connect_timeout": 10, "application_name": "lepton_ai"}
    if "options" not in url.query:
        arguments["options"] = f"-c lock_timeout={BUSY_TIMEOUT_MS} -c idle_in_transaction_session_timeout=60000"
    return create_engine(
        url,
        pool_size=4,
        max_overflow=28,
        pool_timeout=BUSY_TIMEOUT_MS / 1000,
        pool_pre_ping=True,
        isolation_level="READ COMMITTED",
        connect_args=arguments,
    )
