"""Streams in an SQLite file: durable, for many processes of one machine, with nothing to run.

A publication is one transaction, forced to the device. Members of a group say every few seconds that they live; each
partition belongs to one of the living, by their order, so that they agree without talking to one another. While a
membership changes two may read the same messages: delivery is at least once, here as on Kafka.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from lepton_ai.errors import Conflict, Corrupt, DiskFull, Invalid, LeptonError, NotFound, TooLarge, Unavailable
from lepton_ai.lake.bus import MESSAGE_BYTES_MAX, PARTITIONS_MAX, Delivered, Message, check_topic, partition_of
from lepton_ai.spec.base import uuid7

BUSY_S = 30.0
LOOK_S = 0.02
ALIVE_S = 10.0
"""A member that has not said for so long that it lives has left."""
_FORM = 1
_TABLES = """
CREATE TABLE IF NOT EXISTS topic (name TEXT PRIMARY KEY, partitions INTEGER NOT NULL, turn INTEGER NOT NULL,
  identity TEXT NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS part (topic TEXT NOT NULL, number INTEGER NOT NULL, next INTEGER NOT NULL,
  PRIMARY KEY (topic, number)) STRICT;
CREATE TABLE IF NOT EXISTS message (topic TEXT NOT NULL, part INTEGER NOT NULL, at INTEGER NOT NULL, key BLOB,
  value BLOB NOT NULL, headers TEXT NOT NULL, time_ms INTEGER NOT NULL, PRIMARY KEY (topic, part, at)) STRICT;
CREATE TABLE IF NOT EXISTS progress (topic TEXT NOT NULL, grp TEXT NOT NULL, part INTEGER NOT NULL,
  next INTEGER NOT NULL, PRIMARY KEY (topic, grp, part)) STRICT;
CREATE TABLE IF NOT EXISTS member (topic TEXT NOT NULL, grp TEXT NOT NULL, id TEXT NOT NULL, seen REAL NOT NULL,
  PRIMARY KEY (topic, grp, id)) STRICT;
"""


class SqliteBus:
    """Topics in the file `path`; see `bus.Bus`. The file is made (0600) at the first use."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        self._lock = threading.Lock()
        self._opened: sqlite3.Connection | None = None

    def create(self, topic: str, partitions: int = 1) -> None:
        check_topic(topic)
        if not 1 <= partitions <= PARTITIONS_MAX:
            raise Invalid(f"{partitions} partitions cannot be made", hint=f"use 1 to {PARTITIONS_MAX}")
        with self.writing() as connection:
            known = connection.execute("SELECT partitions FROM topic WHERE name = ?", (topic,)).fetchone()
            if known is not None:
                if known[0] != partitions:
                    raise Conflict(f"topic {topic} has {known[0]} partitions", hint="delete it first")
                return
            connection.execute("INSERT INTO topic VALUES (?, ?, 0, ?)", (topic, partitions, uuid7()))
            connection.executemany("INSERT INTO part VALUES (?, ?, 0)", [(topic, n) for n in range(partitions)])

    def publish(self, topic: str, messages: Sequence[Message]) -> list[tuple[int, int]]:
        for message in messages:
            if len(message.value) > MESSAGE_BYTES_MAX:
                raise TooLarge(f"a message has {len(message.value)} bytes", hint="put large values into an object")
        with self.writing() as connection:
            partitions, turn, _ = self.known(connection, topic)
            rows = connection.execute("SELECT number, next FROM part WHERE topic = ?", (topic,)).fetchall()
            following: dict[int, int] = dict(rows)
            time_ms = time.time_ns() // 1_000_000
            places, values = [], []
            for message in messages:
                turn += 1
                number = partition_of(message.key, partitions, turn)
                place = (number, following[number])
                following[number] += 1
                places.append(place)
                values.append((topic, *place, message.key, message.value, json.dumps(dict(message.headers)), time_ms))
            connection.executemany("INSERT INTO message VALUES (?, ?, ?, ?, ?, ?, ?)", values)
            changed = [(at, topic, number) for number, at in following.items()]
            connection.executemany("UPDATE part SET next = ? WHERE topic = ? AND number = ?", changed)
            connection.execute("UPDATE topic SET turn = ? WHERE name = ?", (turn, topic))
        return places

    def subscribe(self, topic: str, group: str) -> SqliteSubscription:
        return SqliteSubscription(self, topic, group, self.identity(topic))

    def identity(self, topic: str) -> str:
        with self.reading() as connection:
            return self.known(connection, topic)[2]

    def topics(self) -> dict[str, int]:
        with self.reading() as connection:
            return dict(connection.execute("SELECT name, partitions FROM topic ORDER BY name").fetchall())

    def delete(self, topic: str) -> None:
        with self.writing() as connection:
            connection.execute("DELETE FROM topic WHERE name = ?", (topic,))
            for table in ("part", "message", "progress", "member"):
                connection.execute(f"DELETE FROM {table} WHERE topic = ?", (topic,))

    def close(self) -> None:
        with self._lock:
            if self._opened is not None:
                self._opened.close()
                self._opened = None

    # -- for its subscriptions

    def known(self, connection: sqlite3.Connection, topic: str) -> tuple[int, int, str]:
        """(partitions, turn, identity) of a topic. Raises NotFound."""
        row = connection.execute("SELECT partitions, turn, identity FROM topic WHERE name = ?", (topic,)).fetchone()
        if row is None:
            raise NotFound(f"there is no topic {topic[:80]!r}", hint="make it first: bus.create(topic)")
        return int(row[0]), int(row[1]), str(row[2])

    @contextlib.contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """One transaction that writes: all of it or nothing."""
        with self._one() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                with contextlib.suppress(sqlite3.Error):
                    connection.execute("ROLLBACK")
                raise

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        with self._one() as connection:
            yield connection

    @contextlib.contextmanager
    def _one(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                yield self._open()
            except LeptonError:
                raise
            except sqlite3.Error as error:
                raise _explain(error, self.path) from None

    def _open(self) -> sqlite3.Connection:
        if self._opened is not None:
            return self._opened
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise Invalid(
                f"cannot use {self.path}: {error.strerror}", hint="choose a path that you may write"
            ) from None
        made = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        made.execute("PRAGMA journal_mode=WAL")
        made.execute("PRAGMA synchronous=FULL")
        form = made.execute("PRAGMA user_version").fetchone()[0]
        if form not in (0, _FORM):
            made.close()
            raise Corrupt(f"{self.path} was made by a newer release (form {form})", hint="upgrade lepton-cloud")
        made.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_FORM}; COMMIT;")
        self._opened = made
        return made


class SqliteSubscription:
    """A member of a group; see `bus.Subscription`."""

    def __init__(self, bus: SqliteBus, topic: str, group: str, identity: str) -> None:
        self._bus, self._topic, self._group, self._id = bus, topic, group, uuid7()
        self._identity = identity
        self._next: dict[int, int] = {}
        self._seen_s = -ALIVE_S
        self._closed = False

    def poll(self, limit: int = 500, timeout_s: float = 1.0) -> list[Delivered]:
        deadline_s = time.monotonic() + timeout_s
        while True:
            if time.monotonic() - self._seen_s > ALIVE_S / 4:
                self._say_alive()
            found = self._read(limit)
            left_s = deadline_s - time.monotonic()
            if found or left_s <= 0:
                return found
            time.sleep(min(left_s, LOOK_S * random.uniform(0.5, 1.0)))

    def commit(self, delivered: Iterable[Delivered]) -> None:
        done: dict[int, int] = {}
        for item in delivered:
            done[item.partition] = max(done.get(item.partition, 0), item.offset + 1)
        with self._bus.writing() as connection:
            self._partitions(connection)
            for number, following in done.items():
                connection.execute(
                    "INSERT INTO progress VALUES (?, ?, ?, ?) ON CONFLICT (topic, grp, part)"
                    " DO UPDATE SET next = max(next, excluded.next)",
                    (self._topic, self._group, number, following),
                )

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            with self._bus.writing() as connection:
                connection.execute("DELETE FROM member WHERE id = ?", (self._id,))

    def _partitions(self, connection: sqlite3.Connection) -> int:
        """How many the topic has that was subscribed to. Raises NotFound when it is gone, or was made anew."""
        partitions, _, identity = self._bus.known(connection, self._topic)
        if identity != self._identity:
            raise NotFound(f"topic {self._topic} was deleted and made anew", hint="subscribe again")
        return partitions

    def _say_alive(self) -> None:
        """Note that we live, see who else does, and take the partitions that are ours."""
        now_s = time.time()
        with self._bus.writing() as connection:
            partitions = self._partitions(connection)
            mine = (self._topic, self._group)
            connection.execute(
                "DELETE FROM member WHERE topic = ? AND grp = ? AND (seen < ? OR seen > ?)",
                (*mine, now_s - ALIVE_S, now_s + ALIVE_S),  # a clock that went back must not keep the dead alive
            )
            connection.execute("INSERT OR REPLACE INTO member VALUES (?, ?, ?, ?)", (*mine, self._id, now_s))
            rows = connection.execute("SELECT id FROM member WHERE topic = ? AND grp = ? ORDER BY id", mine).fetchall()
            members = [row[0] for row in rows]
            sql = "SELECT part, next FROM progress WHERE topic = ? AND grp = ?"
            committed: dict[int, int] = dict(connection.execute(sql, mine).fetchall())
        own = range(members.index(self._id), partitions, len(members))
        # What is new begins where the group is; what was ours already goes on where we are.
        self._next = {number: self._next.get(number, committed.get(number, 0)) for number in own}
        self._seen_s = time.monotonic()

    def _read(self, limit: int) -> list[Delivered]:
        found: list[Delivered] = []
        with self._bus.reading() as connection:
            self._partitions(connection)
            for number, after in self._next.items():
                sql = "SELECT at, key, value, headers, time_ms FROM message WHERE topic = ? AND part = ? AND at >= ?"
                rows = connection.execute(
                    f"{sql} ORDER BY at LIMIT ?", (self._topic, number, after, limit - len(found))
                )
                for at, key, value, headers, time_ms in rows.fetchall():
                    found.append(Delivered(self._topic, number, at, value, key, json.loads(headers), time_ms))
                    self._next[number] = at + 1
        return found


def _explain(error: sqlite3.Error, path: Path) -> LeptonError:
    text = str(error)
    if "full" in text:
        return DiskFull(f"no room in {path}", hint="free some space; nothing half written was kept")
    if "locked" in text or "busy" in text:
        return Unavailable(f"{path} is busy for longer than {BUSY_S:g} s", hint="try again")
    if "malformed" in text or "not a database" in text:
        return Corrupt(f"{path} holds no streams: {text}", hint="restore it from a copy, or choose another path")
    return Unavailable(f"{path} cannot be used: {text}", hint="check the file, its rights and its disk")
