"""Several processes on one store: compare-and-set, watch, kills in mid-write and a disk that fills up."""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from lepton_ai.errors import DiskFull
from lepton_ai.store import Store

ADD = """
import sys
from lepton_ai.errors import Conflict
from lepton_ai.store import Store
with Store.open(sys.argv[1]) as store:
    for _ in range(40):
        while True:
            now = store.get("w", "k", "n")
            try:
                store.update(now, spec={"count": now.spec["count"] + 1})
                break
            except Conflict:
                pass
"""
FOLLOW = """
import sys
from lepton_ai.store import Store
with Store.open(sys.argv[1]) as store:
    since = 0
    print("ready", flush=True)
    while since < 20:
        store.wait(since, 60.0)
        for change in store.changes(since):
            print(change.revision, change.name, flush=True)
            since = change.revision
"""
# Each acknowledged write is told on stdout after it returned; the checksum shows a torn record.
WRITE = """
import hashlib, sys
from lepton_ai.store import Create, Store
store = Store.open(sys.argv[1])
number = int(sys.argv[2])
while True:
    text = str(number) * 500
    spec = {"text": text, "sum": hashlib.sha256(text.encode()).hexdigest()}
    pair = store.batch([Create("w", "k", f"a{number}", spec), Create("w", "k", f"b{number}", spec)])
    store.update(pair[0], status={"done": number})
    print(number, flush=True)
    number += 1
"""
FILL = """
import json, resource, sys
from lepton_ai.errors import LeptonError
from lepton_ai.store import Create, Store
store = Store.open(sys.argv[1])
if len(sys.argv) > 2:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
done = 0
try:
    while True:
        store.batch([Create("w", "k", f"a{done}", {"x": "x" * 4000}), Create("w", "k", f"b{done}", {"x": "x" * 4000})])
        done += 1
except LeptonError as error:
    print(json.dumps([done, error.code, error.hint]))
"""


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    root = str(Path(__file__).resolve().parents[3])
    environment = {**os.environ, "PYTHONPATH": root}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture
def file(tmp_path: Path) -> Iterator[str]:
    return f"sqlite:///{tmp_path}/store.db"


def test_processes_lose_no_update(file: str) -> None:
    with Store.open(file) as store:
        store.create("w", "k", "n", {"count": 0})
        children = [python(ADD, file) for _ in range(2)]
        for child in children:
            child.communicate(timeout=240)
            assert child.returncode == 0
        assert store.get("w", "k", "n").spec == {"count": 80}
        assert store.revision() == 81


def test_a_process_follows_another(file: str) -> None:
    with Store.open(file) as store:
        child = python(FOLLOW, file)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        for number in range(20):
            store.create("w", "k", f"n{number}", {})
        out, _ = child.communicate(timeout=240)
        assert out.splitlines() == [f"{number + 1} n{number}" for number in range(20)]


@pytest.mark.parametrize("seed", range(3))
def test_a_kill_loses_no_acknowledged_write(file: str, seed: int) -> None:
    kill_loop(file, random.Random(seed), rounds=2)


@pytest.mark.soak
def test_many_kills_lose_no_acknowledged_write(file: str, soak: bool) -> None:
    kill_loop(file, random.Random(99), rounds=200 if soak else 2)


def test_a_kill_loses_no_acknowledged_write_on_postgresql(url: str) -> None:
    kill_loop(url, random.Random(7), rounds=2)


def kill_loop(where: str, chance: random.Random, rounds: int) -> None:
    import hashlib

    Store.open(where).close()
    told: set[int] = set()
    for round_number in range(rounds):
        child = python(WRITE, where, str(round_number * 1_000_000))
        assert child.stdout is not None
        told.add(int(child.stdout.readline()))
        time.sleep(chance.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        told |= {int(line) for line in child.communicate(timeout=60)[0].splitlines() if line.strip()}
        with Store.open(where) as store:
            found = {record.name: record for record in store.list("k")}
            for number in told:
                assert found[f"a{number}"].status == {"done": number}
            for record in found.values():
                assert record.spec["sum"] == hashlib.sha256(record.spec["text"].encode()).hexdigest()
                twin = ("b" if record.name[0] == "a" else "a") + record.name[1:]
                assert twin in found, "half a batch"
            if where.startswith("sqlite"):
                with store.reading() as connection:
                    assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
            last = store.changes(max(0, store.revision() - 1))[-1]
            assert last.revision == store.revision()


def test_a_file_that_may_not_grow(file: str) -> None:
    out, _ = python(FILL, file, "400000").communicate(timeout=240)
    done, code, hint = json.loads(out)
    assert code in ("DiskFull", "Unavailable")
    assert "df -h" in hint
    with Store.open(file) as store:
        assert len(store.list("k")) == 2 * done
        assert done > 3
        store.create("w", "k", "again", {})


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, 256 KiB of which a ballast takes."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no small file system can be mounted here")
    (folder / "ballast").write_bytes(b"x" * (256 << 10))
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_device_without_room(small: Path) -> None:
    url = f"sqlite:///{small}/store.db"
    child = python(FILL, url)
    out, _ = child.communicate(timeout=240)
    assert child.returncode == 0
    done, code, hint = json.loads(out)
    assert (code, hint) == ("DiskFull", f"free space: df -h {small}")
    (small / "ballast").unlink()
    with Store.open(url) as store:
        assert len(store.list("k")) == 2 * done
        assert done > 3
        with store.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"
        store.create("w", "k", "again", {"x": "x" * 4000})


def test_a_new_store_on_a_device_without_room(small: Path) -> None:
    with (small / "more").open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(b"x" * 4096):
            pass
    with pytest.raises(DiskFull) as caught:
        Store.open(f"sqlite:///{small}/store.db")
    assert "df -h" in str(caught.value.hint)
    (small / "ballast").unlink()
    with Store.open(f"sqlite:///{small}/store.db") as store:
        assert store.create("w", "k", "n", {}).revision == 1


def test_a_full_disk(file: str) -> None:
    with Store.open(file) as store:
        with store._engine.connect() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar_one()

        def limit(connection: object, _record: object) -> None:
            connection.execute(f"PRAGMA max_page_count={pages + 10}")  # type: ignore[attr-defined]

        from sqlalchemy import event

        event.listen(store._engine, "connect", limit)
        store._engine.dispose()
        kept = store.create("w", "k", "kept", {})
        with pytest.raises(DiskFull, match="nothing of it was kept") as caught:
            store.update(kept, spec={"x": "x" * 200_000})
        assert "df -h" in str(caught.value.hint)
        assert store.list("k") == [kept]
        assert store.revision() == 1
        assert store.update(kept, spec={"x": 1}).revision == 2
