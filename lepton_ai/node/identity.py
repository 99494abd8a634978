"""Which process exactly: a number alone is given to another process later.

Owns the identity value; how it is read from the system is in `shim`, which both sides use.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from lepton_ai.node import shim


@dataclass(frozen=True)
class Identity:
    """A process of one boot: its number and when it started (`start_ticks`, in the system's own unit)."""

    pid: int
    start_ticks: int
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> Identity | None:
        """The identity of a living process, or None (a zombie has ended)."""
        ticks = shim.start_ticks(pid)
        return None if ticks is None else cls(pid, ticks, _boot_id())

    @classmethod
    def read(cls, path: Path) -> Identity | None:
        """The identity recorded in a file (shim.json, child.json, agent.json), or None when there is none."""
        record = shim.read_record(str(path))
        if record is None:
            return None
        try:
            return cls(int(record["pid"]), int(record["start_ticks"]), str(record["boot_id"]))
        except (KeyError, TypeError, ValueError):
            return None

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.boot_id == _boot_id() and shim.start_ticks(self.pid) == self.start_ticks

    def kill(self, number: int) -> bool:
        """Send a signal to this very process; False when it has ended. Never reaches a recycled number."""
        return self.boot_id == _boot_id() and shim.kill_pid(self.pid, self.start_ticks, number)

    def open(self) -> int | None:
        """A file descriptor that becomes readable when the process ends; None when it has, or there is no pidfd."""
        if self.boot_id != _boot_id() or not hasattr(os, "pidfd_open"):
            return None
        try:
            fd = os.pidfd_open(self.pid)
        except OSError:
            return None
        if not self.alive():
            os.close(fd)
            return None
        return fd

    async def wait(self, every_s: float) -> None:
        """Until this process has ended: at once by its pidfd, else by looking `every_s`."""
        fd = self.open()
        if fd is None:
            while self.alive():
                await asyncio.sleep(every_s)
            return
        loop = asyncio.get_running_loop()
        done = asyncio.Event()
        loop.add_reader(fd, done.set)
        try:
            await done.wait()
        finally:
            loop.remove_reader(fd)
            os.close(fd)


@cache
def _boot_id() -> str:
    return shim.boot_id()
