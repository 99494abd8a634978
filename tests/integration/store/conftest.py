"""A real PostgreSQL, started once for the session in a temporary folder and ended by its process id."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import psycopg


def binaries() -> Path | None:
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    found = shutil.which("initdb")
    folders += [Path(found).resolve().parent] if found else []
    return next((folder for folder in folders if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


def unprivileged() -> dict[str, object]:
    """initdb refuses root: run it as postgres, or nobody."""
    if os.getuid() != 0:
        return {}
    names = {entry.pw_name: entry for entry in pwd.getpwall()}
    entry = names.get("postgres") or names["nobody"]
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL binaries (initdb, postgres) on this machine")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    base = Path(tempfile.mkdtemp(prefix="pg"))
    who = unprivileged()
    if who:
        os.chown(base, who["user"], who["group"])  # type: ignore[arg-type]
    data = base / "data"
    initdb = [folder / "initdb", "-D", data, "-U", "lepton", "-A", "trust", "-E", "UTF8", "--locale=C.UTF-8", "-N"]
    subprocess.run(initdb, check=True, capture_output=True, timeout=300, cwd=base, **who)  # type: ignore[call-overload]
    options = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": base, "fsync": "off"}
    options |= {"max_connections": 80, "shared_buffers": "32MB"}
    arguments = [folder / "postgres", "-D", data, *(f"--{key}={value}" for key, value in options.items())]
    with (base.parent / f"{base.name}.log").open("wb") as log:
        process = subprocess.Popen(arguments, cwd=base, stdout=log, stderr=log, **who)  # type: ignore[call-overload]
    try:
        wait_for(process, port, Path(log.name))
        yield f"postgresql://lepton@127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(base, ignore_errors=True)
        Path(log.name).unlink(missing_ok=True)


def wait_for(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    import psycopg

    for _ in range(600):
        try:
            psycopg.connect(f"postgresql://lepton@127.0.0.1:{port}/postgres").close()
            return
        except psycopg.OperationalError:
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
    pytest.fail("PostgreSQL did not start: " + log.read_text())


@pytest.fixture(scope="session")
def database(server: str) -> Iterator[psycopg.Connection]:
    """A connection to the one database of these tests; an empty schema in it costs a tenth of a new database."""
    import psycopg

    with psycopg.connect(f"{server}/postgres", autocommit=True) as connection:
        connection.execute("CREATE DATABASE tests")
    with psycopg.connect(f"{server}/tests", autocommit=True) as connection:
        yield connection


@pytest.fixture
def url(server: str, database: psycopg.Connection) -> str:
    """A database in which nobody has been before, and nobody is now."""
    others = "datname = current_database() AND pid <> pg_backend_pid()"
    database.execute(f"SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE {others}")
    database.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    return f"{server}/tests"


@pytest.fixture(params=["0001", "0002"])
def first(request: pytest.FixtureRequest, url: str) -> str:
    """A store that the first commit which had this schema wrote (tests/data/README.md)."""
    import psycopg

    dump = Path(__file__).parents[2] / "data" / f"store-{request.param}.postgresql.sql"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(dump.read_text("utf-8"))  # type: ignore[call-overload]
    return url
