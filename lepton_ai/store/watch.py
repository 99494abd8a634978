"""How a waiter hears of a commit: at once within a process, and by the engine's own signal across processes.

Owns one daemon thread, started by the first `wait` and asleep while nobody waits. SQLite: `PRAGMA data_version`
on one connection, every POLL_S after a change and every QUIET_POLL_S in
quiet times (no lock is taken and the disk is not read). PostgreSQL: LISTEN/NOTIFY.
"""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine

log = logging.getLogger(__name__)
POLL_S = 0.03
QUIET_POLL_S = 0.1
"""Between two looks when nothing has changed for QUIET_AFTER_S: a wake-up of the thread costs more than the look."""
QUIET_AFTER_S = 1.0
RETRY_S = 0.5
LISTEN_S = 30.0
"""LISTEN wakes up this often without a notification, to find a connection that died silently."""
CHANNEL = "lepton_ai_changes"


class Watch:
    """Wakes waiters when the revision grows. `revision` reads the current one from the database."""

    def __init__(self, engine: Engine, revision: Callable[[], int]) -> None:
        self._engine = engine
        self._revision = revision
        self._known = 0
        self._waiters = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wake: tuple[int, int] | None = None

    def notice(self, revision: int) -> None:
        """A commit of this process, or one that the thread heard of."""
        with self._changed:
            if revision > self._known:
                self._known = revision
                self._changed.notify_all()

    def wait(self, since: int, timeout_s: float) -> int:
        """The revision as soon as it is over `since`, else what it is after `timeout_s` seconds."""
        deadline_s = time.monotonic() + timeout_s
        with self._changed:
            self._waiters += 1
            self._start()
            self._changed.notify_all()
        try:
            # Read after registering: a commit before this line is read here, one after it is signalled.
            self.notice(self._revision())
            with self._changed:
                while self._known <= since and not self._closed:
                    left_s = deadline_s - time.monotonic()
                    if left_s <= 0:
                        break
                    self._changed.wait(left_s)
                return self._known
        finally:
            with self._changed:
                self._waiters -= 1

    def close(self) -> None:
        """Ends the thread and every wait. A second call does nothing."""
        with self._changed:
            if self._closed:
                return
            self._closed = True
            self._changed.notify_all()
            thread, wake = self._thread, self._wake
            if wake is not None:
                os.write(wake[1], b"x")
        if thread is not None:
            thread.join(5.0)
        if wake is not None and thread is not None and not thread.is_alive():
            os.close(wake[0])
            os.close(wake[1])

    def _start(self) -> None:
        if self._thread is not None or self._closed:
            return
        if self._engine.dialect.name == "sqlite":
            target = self._poll
        else:
            self._wake = os.pipe()
            target = self._listen
        self._thread = threading.Thread(target=self._forever, args=(target,), name="store-watch", daemon=True)
        self._thread.start()

    def _forever(self, target: Callable[[], None]) -> None:
        while not self._closed:
            try:
                target()
            except Exception as error:  # noqa: BLE001  the thread must outlive any failure of the database
                log.warning("watching the store failed, trying again in %s s: %s", RETRY_S, error)
                with self._changed:
                    if not self._closed:
                        self._changed.wait(RETRY_S)

    def _poll(self) -> None:
        connection = self._engine.raw_connection()
        try:
            cursor = connection.cursor()
            last: object = None
            changed_s = time.monotonic()
            while not self._closed:
                if not self._waiters:
                    self._until_someone_waits()
                cursor.execute("PRAGMA data_version")
                version = cursor.fetchone()
                if version != last:
                    last = version
                    changed_s = time.monotonic()
                    self.notice(self._revision())
                quiet = time.monotonic() - changed_s > QUIET_AFTER_S
                time.sleep(QUIET_POLL_S if quiet else POLL_S)
        finally:
            connection.close()

    def _until_someone_waits(self) -> None:
        with self._changed:
            while not self._waiters and not self._closed:
                self._changed.wait()

    def _listen(self) -> None:
        assert self._wake is not None
        connection = self._engine.raw_connection()
        try:
            driver = connection.driver_connection
            assert driver is not None
            connection.detach()
            driver.autocommit = True
            driver.execute(f"LISTEN {CHANNEL}")
            while not self._closed:
                self.notice(self._revision())
                ready, _, _ = select.select([driver.fileno(), self._wake[0]], [], [], LISTEN_S)
                if ready == []:
                    driver.execute("SELECT 1")
                for heard in driver.notifies(timeout=0):
                    self.notice(int(heard.payload))
        finally:
            connection.close()
