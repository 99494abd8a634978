"""Damaged, foreign, read-only and old databases: a clear error with a hint, or it simply opens."""

from __future__ import annotations

import ast
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_ai.errors import Busy, Corrupt, Invalid, LeptonError, Unavailable
from lepton_ai.store import Store, faults, tables


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"hello world, this is no database\n" * 100)
    with pytest.raises(Corrupt, match=r"store\.db") as caught:
        Store.open(f"sqlite:///{path}")
    assert "restore a backup" in str(caught.value.hint)
    assert path.read_bytes().startswith(b"hello")


def test_a_damaged_page_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    with Store.open(f"sqlite:///{path}") as store:
        for number in range(50):
            store.create("w", "k", f"n{number}", {"x": "x" * 2000})
    data = bytearray(path.read_bytes())
    for page in range(20, len(data) // 4096):
        data[page * 4096 : page * 4096 + 64] = b"\xff" * 64
    path.write_bytes(data)
    with Store.open(f"sqlite:///{path}") as store, pytest.raises(Corrupt):
        store.list("k")


def test_a_document_that_is_not_json(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        made = store.create("w", "k", "n", {})
        with store.writing() as connection:
            connection.exec_driver_sql("UPDATE records SET spec = '{'")
        with pytest.raises(Corrupt, match=made.uid):
            store.get("w", "k", "n")


def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.db"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE customers (id)")
    other.close()
    before = path.read_bytes()
    with pytest.raises(Invalid, match="customers"):
        Store.open(f"sqlite:///{path}")
    assert path.read_bytes() == before


def test_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(Unavailable) as caught:
        Store.open(f"sqlite:///{tmp_path}/none/store.db")
    assert "mkdir" in str(caught.value.hint)


@pytest.mark.parametrize("url", ["", "sqlite://", "sqlite:///:memory:", "mysql://x/y", "store.db", "sqlite:///file:x"])
def test_other_urls(url: str) -> None:
    with pytest.raises(Invalid) as caught:
        Store.open(url)
    assert "sqlite:///PATH" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_READONLY, Unavailable),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, Busy),
        (sqlite3.SQLITE_IOERR_READ, Unavailable),
    ],
)
def test_what_the_codes_of_sqlite_mean(tmp_path: Path, code: int, kind: type[LeptonError]) -> None:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        error = sqlite3.OperationalError("x")
        error.sqlite_errorcode = code
        found = faults.fault(store._engine, error)
    assert type(found) is kind
    assert found.hint


def test_the_newest_migration_is_head() -> None:
    versions = Path(tables.__file__).parent / "migrations" / "versions"
    found = []
    for path in versions.glob("0*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "revision":
                found.append(ast.literal_eval(node.value))
    assert tuple(sorted(found)) == tables.VERSIONS
    assert tables.VERSIONS[-1] == tables.HEAD


def test_the_file_is_private_and_reopening_needs_no_alembic(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/store.db"
    Store.open(url).close()
    assert (tmp_path / "store.db").stat().st_mode & 0o777 == 0o600
    code = (
        f"import sys; from lepton_ai.store import Store; Store.open({url!r}).close(); print('alembic' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "False\n"
