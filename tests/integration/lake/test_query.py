"""The sealed worker: answers, limits that are kept, and hostile SQL that reaches nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import lepton_ai.lake
from lepton_ai.errors import Corrupt, Forbidden, Invalid, LeptonError, NotFound, Timeout, TooLarge, Unavailable
from lepton_ai.lake import Lake, Limits
from lepton_ai.lake.query import QueryWorker

SHORT = Limits(timeout_s=20)


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> Lake:
    made = lepton_ai.lake.open(tmp_path_factory.mktemp("lake"))
    table = made.table("ratings")
    table.append({"user": [1, 2, 3], "item": ["a", "b", "c"], "rating": [1.0, 2.0, 3.0]})
    table.append({"user": [4], "item": ["d"], "rating": [4.0]})
    made.table("films").append({"item": ["a"], "title": ["活着"]})
    return made


@pytest.fixture(scope="module")
def worker(lake: Lake) -> Iterator[QueryWorker]:
    with QueryWorker(lake.url) as made:
        yield made


def test_a_query_answers_and_says_which_versions_it_read(worker: QueryWorker) -> None:
    found = worker.query("SELECT title, sum(rating) AS s FROM ratings JOIN films USING (item) GROUP BY 1", SHORT)
    assert (found.columns, found.types, found.rows) == (["title", "s"], ["VARCHAR", "DOUBLE"], [["活着", 1.0]])
    assert sorted(found.tables) == ["films@1", "ratings@2"]
    assert not found.truncated


def test_time_travel(worker: QueryWorker) -> None:
    counts = 'SELECT (SELECT count(*) FROM ratings@1), (SELECT count(*) FROM "ratings@2"), count(*) FROM ratings'
    assert worker.query(counts, SHORT).rows == [[3, 4, 4]]
    with pytest.raises(NotFound, match="no version 7"):
        worker.query("SELECT * FROM ratings@7", SHORT)


def test_values_become_json(worker: QueryWorker) -> None:
    sql = "SELECT 1.5::DECIMAL(4,2), DATE '2024-02-29', 'nan'::DOUBLE, '\\xFF'::BLOB, [1, NULL], {'a': 1}, NULL, true"
    assert worker.query(sql, SHORT).rows == [["1.50", "2024-02-29", "nan", "ff", [1, None], {"a": 1}, None, True]]


def test_tables_and_history(worker: QueryWorker, lake: Lake) -> None:
    found = {row["name"]: row for row in worker.tables()}
    assert found["ratings"]["version"] == 2
    assert found["ratings"]["rows"] == 4
    assert found["ratings"]["columns"] == {"user": "int64", "item": "string", "rating": "double"}
    assert [row["version"] for row in worker.history("ratings")] == ["ratings@2", "ratings@1"]
    assert [row[0] for row in worker.query("SHOW TABLES", SHORT).rows] == ["films", "ratings"]
    assert lake.query("SELECT count(*) FROM ratings").rows == [[4]]
    lake.close()


@pytest.mark.parametrize(
    ("sql", "says"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT * FROM nope", "nope does not exist"),
        ("SELECT nope FROM ratings", "nope"),
        ("SELECT 'a'::INT", "Conversion"),
        ("", "no statement"),
        ("SELECT 1; SELECT 2", "2 statements"),
        ("SELECT * FROM ratings@0", "not a table"),
    ],
)
def test_what_cannot_be_answered_is_said_with_a_hint(worker: QueryWorker, sql: str, says: str) -> None:
    with pytest.raises(Invalid, match=says) as caught:
        worker.query(sql, SHORT)
    assert caught.value.hint


@pytest.fixture(scope="module")
def secret(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("secret") / "secret.csv"
    path.write_text("a,b\nhush,hush\n")
    return path


HOSTILE = [
    "SELECT * FROM read_csv('{secret}')",
    "SELECT * FROM read_csv_auto('{secret}')",
    "SELECT * FROM read_text('{secret}')",
    "SELECT * FROM read_blob('{secret}')",
    "SELECT * FROM read_json('{secret}')",
    "SELECT * FROM read_parquet('{secret}')",
    "SELECT * FROM parquet_metadata('{secret}')",
    "SELECT * FROM sniff_csv('{secret}')",
    "SELECT * FROM '{secret}'",
    "FROM '{folder}/*.csv'",
    "SELECT * FROM glob('{folder}/*')",
    "SELECT * FROM read_csv('https://127.0.0.1:9/x.csv')",
    "COPY ratings TO '{folder}/stolen.csv'",
    "COPY (SELECT 1) TO '{folder}/stolen.parquet' (FORMAT parquet)",
    "EXPLAIN ANALYZE COPY (SELECT 1) TO '{folder}/stolen.csv'",
    "EXPORT DATABASE '{folder}/stolen'",
    "IMPORT DATABASE '{folder}'",
    "ATTACH '{folder}/stolen.db'",
    "ATTACH '{folder}/stolen.db' AS s (TYPE sqlite)",
    "INSTALL httpfs",
    "LOAD httpfs",
    "LOAD '{folder}/x.duckdb_extension'",
    "SET enable_external_access = true",
    "SET lock_configuration = false",
    "RESET memory_limit",
    "PRAGMA enable_external_access",
    "CREATE TABLE t AS SELECT * FROM read_text('{secret}')",
    "CREATE SECRET s (TYPE s3)",
    "CREATE MACRO m() AS TABLE FROM read_text('{secret}')",
    "INSERT INTO ratings VALUES (9, 'z', 1.0)",
    "DELETE FROM ratings",
    "DROP VIEW ratings",
    "CALL pragma_version()",
    "CHECKPOINT",
    "SELECT * FROM query('SELECT * FROM read_text(''{secret}'')')",
    "SELECT * FROM query_table('{secret}')",
    "WITH x AS (FROM read_text('{secret}')) SELECT * FROM x",
    # Python replacement scans: names of variables inside the worker.
    "SELECT * FROM lake",
    "SELECT * FROM connection",
    "SELECT * FROM sys",
    "SELECT getenv('PATH')",
]


@pytest.mark.parametrize("sql", HOSTILE)
def test_hostile_sql_reaches_nothing(worker: QueryWorker, secret: Path, sql: str) -> None:
    before = sorted(os.listdir(secret.parent))
    with pytest.raises((Forbidden, Invalid)) as caught:
        worker.query(sql.format(secret=secret, folder=secret.parent), SHORT)
    assert "hush" not in str(caught.value)
    assert sorted(os.listdir(secret.parent)) == before
    assert worker.query("SELECT count(*) FROM ratings", SHORT).rows == [[4]]


def test_the_callers_secrets_do_not_reach_the_worker(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_AI_TOKEN", "lta_hush")
    with QueryWorker(lake.url) as worker:
        worker.query("SELECT 1", SHORT)
        assert worker.pid is not None
        assert "LEPTON_AI_TOKEN" not in psutil.Process(worker.pid).environ()


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(1000000000) a, range(1000000) b",
        "WITH RECURSIVE t AS (SELECT 1 a UNION ALL SELECT a + 1 FROM t) SELECT sum(a) FROM t",
        # One call that never looks up to see whether it was interrupted: only a kill ends it.
        "SELECT levenshtein(repeat('ab', 2000000), repeat('ba', 2000000))",
    ],
)
def test_a_query_that_overstays_is_stopped(worker: QueryWorker, sql: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(Timeout, match=r"0.5 s"):
        worker.query(sql, Limits(timeout_s=0.5))
    assert time.monotonic() - started_s < 30
    assert worker.query("SELECT 1", SHORT).rows == [[1]]


def test_memory_is_limited(worker: QueryWorker) -> None:
    for sql in ("SELECT list(i) FROM range(500000000) t(i)", "SELECT repeat('x', 200000000) FROM range(20)"):
        with pytest.raises(TooLarge):
            worker.query(sql, Limits(timeout_s=60, memory_mib=384))
    assert worker.query("SELECT 1", SHORT).rows == [[1]]


def test_rows_and_bytes_are_limited(worker: QueryWorker) -> None:
    found = worker.query("SELECT * FROM range(5000)", Limits(rows_max=2000))
    assert len(found.rows) == 2000
    assert found.truncated
    assert not worker.query("SELECT * FROM range(2000)", Limits(rows_max=2000)).truncated
    with pytest.raises(TooLarge, match="answer"):
        worker.query("SELECT repeat('x', 1000) FROM range(1000)", Limits(answer_bytes_max=100_000))
    with pytest.raises(TooLarge, match="longer"):
        worker.query("SELECT 1 -- " + "x" * (1 << 20))


def test_a_killed_worker_is_said_and_replaced(lake: Lake) -> None:
    with QueryWorker(lake.url) as worker:
        worker.query("SELECT 1", SHORT)
        first = worker.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        psutil.Process(first).wait(20)
        assert worker.query("SELECT count(*) FROM ratings", SHORT).rows == [[4]]
        assert worker.pid != first
        os.kill(worker.pid or 0, signal.SIGSTOP)
        with pytest.raises(Timeout):
            worker.query("SELECT 1", Limits(timeout_s=0.2))
        assert worker.query("SELECT 1", SHORT).rows == [[1]]
        last = worker.pid
    assert last is not None
    assert not psutil.pid_exists(last)


def test_a_worker_never_outlives_who_asked(lake: Lake) -> None:
    code = (
        "import sys, os, signal\nfrom lepton_ai.lake.query import QueryWorker\nworker = QueryWorker(sys.argv[1])\n"
        "worker.query('SELECT 1')\nprint(worker.pid, flush=True)\nos.kill(os.getpid(), signal.SIGKILL)"
    )
    command = [sys.executable, "-c", code, lake.url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    pid = int(done.stdout)
    deadline_s = time.monotonic() + 30
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def test_a_lake_that_cannot_be_read_is_unavailable_not_a_hang(tmp_path: Path) -> None:
    with QueryWorker("ftp://nowhere") as worker, pytest.raises(Unavailable, match="died"):
        worker.query("SELECT 1")


def test_a_broken_table_is_corrupt_and_hides_no_other(tmp_path: Path) -> None:
    broken = lepton_ai.lake.open(tmp_path / "lake")
    broken.table("good").append({"a": [1]})
    for name in ("bad_data", "bad_log"):
        broken.table(name).append({"a": list(range(1000))})
    for file in broken.table("bad_data").folder.glob("*.parquet"):
        file.write_bytes(file.read_bytes()[:300])
    for file in broken.table("bad_log").folder.glob("_delta_log/*.json"):
        file.write_text("{broken")
    with QueryWorker(broken.url) as worker:
        assert worker.query("SELECT * FROM good", SHORT).rows == [[1]]
        for name in ("bad_data", "bad_log"):
            with pytest.raises(Corrupt) as caught:
                worker.query(f"SELECT sum(a) FROM {name}", SHORT)
            assert caught.value.hint
        listed = {row["name"]: row["error"] for row in worker.tables()}
    assert listed["good"] is None
    assert "bad_log" in str(listed["bad_log"])


def test_asking_loads_no_engine() -> None:
    code = (
        "import sys, lepton_ai.lake, lepton_ai.lake.query; "
        "sys.exit(bool({'pyarrow', 'duckdb', 'deltalake', 'obstore', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_errors_keep_their_kind_across_the_process(worker: QueryWorker) -> None:
    with pytest.raises(LeptonError) as caught:
        worker.history("absent")
    assert type(caught.value) is NotFound
