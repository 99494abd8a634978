"""Who leads: the lease "control" of the store, and the epoch that every write and order carries.

A holder is "BOOT_ID/PID/START_TICKS/RANDOM", so that a successor on the same boot sees at once that it is dead and
need not wait for the lease to run out. On another machine or boot nothing is known, and the lease must run out.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

import psutil

from lepton_ai.control.clock import Clock
from lepton_ai.errors import StaleEpoch
from lepton_ai.store import Lease, Store

NAME = "control"


class Leader:
    """Holds the lease, or tries to. `lease` is None while another leads."""

    def __init__(self, store: Store, clock: Clock, *, ttl_s: float = 5.0, holder: str | None = None) -> None:
        self._store, self._clock, self._ttl_s = store, clock, ttl_s
        self._holder = holder or _holder()
        self._renewed_ms = 0
        self._asked_ms = -1_000_000
        self.lease: Lease | None = None
        self.since_ms = 0

    def ensure(self) -> Lease | None:
        """The lease if it is ours (renewed at a third of its time), else None. Raises what the store raises."""
        now_ms = self._clock.elapsed_ms()
        if self.lease is not None:
            if now_ms - self._renewed_ms >= self._ttl_s * 1000 / 3:
                try:
                    self.lease = self._store.renew(self.lease, self._ttl_s)
                    self._renewed_ms = now_ms
                except StaleEpoch:
                    self.lease = None
            return self.lease
        if now_ms - self._asked_ms < 200:
            return None
        self._asked_ms = now_ms
        self.lease = self._store.acquire(NAME, self._holder, self._ttl_s, is_dead=is_dead)
        if self.lease is not None:
            self._renewed_ms = self.since_ms = now_ms
        return self.lease

    def lose(self) -> None:
        """A write was refused: another leads."""
        self.lease = None

    def release(self) -> None:
        """Give the lease up, so that another leads at once."""
        if self.lease is not None:
            self._store.release(self.lease)
            self.lease = None


def is_dead(holder: str) -> bool:
    """Whether the process that `holder` names certainly runs no more."""
    parts = holder.split("/")
    if len(parts) < 3 or not parts[0] or parts[0] != _boot_id() or not parts[1].isdigit():
        return False
    return _started(int(parts[1])) != parts[2]


def _holder() -> str:
    return f"{_boot_id()}/{os.getpid()}/{_started(os.getpid())}/{secrets.token_hex(4)}"


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return f"boot-{psutil.boot_time():.0f}"


def _started(pid: int) -> str:
    """When the process started, as text that never changes while it lives; "" when it has ended."""
    try:
        # After the last parenthesis: the command's name may hold anything. Field 3 is the state, 22 the start.
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            return ""
    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.Error:
        return ""
