"""Ports of a node's address, given to one replica each, also when several agents share the address.

Owns the choice. A port is taken by an exclusive lock on a file named after it in a folder that all agents of one
user share, and by a trial bind: the lock keeps other agents away before the replica listens, the bind everyone else.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from lepton_ai.errors import Busy, Conflict

FIRST, LAST = 20_000, 31_999
"""Below the ports that Linux gives to outgoing connections (32768 on), which would take them at any time."""
REST_S = 5.0
"""A port that was given back rests: a gateway may still send there what was meant for the replica that had it."""


class Ports:
    """The ports of one address. Locks end with the process; a replica that listens is then seen by the bind."""

    def __init__(
        self,
        address: str,
        folder: Path | None = None,
        seed: int | None = None,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self.address, self._clock_s = address, clock_s
        self.folder = folder or Path(tempfile.gettempdir()) / f"lepton_ai-{os.getuid()}-ports"
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self.folder.stat().st_uid != os.getuid():
            raise Conflict(f"{self.folder} belongs to another user", hint=f"remove {self.folder}")
        self._random = random.Random(seed)
        self._locks: dict[int, int] = {}
        self._held: dict[int, list[socket.socket]] = {}
        self._resting: dict[int, tuple[int, float]] = {}

    def take(self, wanted: int | None = None, *, listening: bool = False, hold: bool = False) -> int:
        """A port for one replica: `wanted`, or a free one. With `listening`, the replica has it already.

        With `hold` it stays bound here, so that nobody else takes it: for a port that is forwarded, where no process
        listens.

        Raises:
            Conflict: `wanted` is taken. Busy: no port is free.
        """
        self.wake()
        if wanted is not None:
            if wanted in self._locks or not self._lock(wanted):
                raise Conflict(f"port {wanted} is given to another replica on this machine", hint="choose no port")
            if not listening and not self._bind(wanted, hold):
                self._let_go(wanted)
                raise Conflict(f"port {wanted} is in use on this machine", hint="choose no port, or end its user")
            return wanted
        start = self._random.randrange(FIRST, LAST + 1)
        for step in range(LAST - FIRST + 1):
            port = FIRST + (start - FIRST + step) % (LAST - FIRST + 1)
            if port in self._locks or port in self._resting or not self._lock(port):
                continue
            if self._bind(port, hold):
                return port
            self._let_go(port)
        raise Busy(f"no port of {FIRST} to {LAST} is free on {self.address}", hint="end some replicas")

    def free(self, port: int) -> None:
        """Give a port back; one that was not taken is fine.

        One that could be chosen for another replica rests first. One that only somebody can get who asks for its number
        does not: whoever stood there comes back, and may do so on another node of this machine.
        """
        fd = self._locks.pop(port, None)
        self._unbind(port)
        if fd is None:
            return
        if FIRST <= port <= LAST:
            self._resting[port] = (fd, self._clock_s() + REST_S)
        else:
            os.close(fd)

    def close(self) -> None:
        for port in list(self._locks):
            self._let_go(port)
        self.wake(everything=True)

    def wake(self, everything: bool = False) -> None:
        """Let go of what has rested: to be called now and then, since other agents wait for it."""
        now_s = self._clock_s()
        for port, (fd, until_s) in list(self._resting.items()):
            if everything or until_s <= now_s:
                del self._resting[port]
                os.close(fd)

    def _let_go(self, port: int) -> None:
        self._unbind(port)
        os.close(self._locks.pop(port))

    def _bind(self, port: int, hold: bool) -> bool:
        if not _binds(self.address, port):
            return False
        if hold:
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                sock = socket.socket(socket.AF_INET6 if ":" in self.address else socket.AF_INET, kind)
                try:
                    # Without SO_REUSEADDR and without listening: nobody else can bind it, and nothing connects to it.
                    sock.bind((self.address, port))
                except OSError:
                    sock.close()
                    self._unbind(port)
                    return False
                self._held.setdefault(port, []).append(sock)
        return True

    def _unbind(self, port: int) -> None:
        for sock in self._held.pop(port, ()):
            sock.close()

    def _lock(self, port: int) -> bool:
        if port in self._resting:  # asked for by number: its user wants this one, resting or not
            self._locks[port] = self._resting.pop(port)[0]
            return True
        # The file stays: to remove it would let two holders lock two files of one name.
        fd = os.open(self.folder / f"{self.address}-{port}", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            return False
        self._locks[port] = fd
        return True


def _binds(address: str, port: int) -> bool:
    """Whether a server could listen there now, also one that listens on every address."""
    for host in (address, ""):
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with contextlib.closing(socket.socket(family, socket.SOCK_STREAM)) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port in TIME_WAIT is free
            try:
                sock.bind((host, port))
                sock.listen(1)
            except OSError:
                return False
    return True
