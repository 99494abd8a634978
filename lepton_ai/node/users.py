"""The user id of each workspace of a cell: stable, never shared, far from every account of the machine.

Owns one file that all agents of a cell share. Whether anything runs under these numbers is the runtime's.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path

from lepton_ai.errors import Unavailable
from lepton_ai.node import shim

FIRST, BLOCK, BLOCKS = 0x7000_0000, 4096, 0xFFF0
"""Numbers that no account, container range or service manager gives out (systemd's table of user ids leaves them)."""


class Users:
    """Gives each workspace a number. A cell has a block of its own, chosen by chance, so that two cells of one machine
    do not meet; within it numbers are given in order and never again to another workspace.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, int] = {}

    def uid(self, workspace: str) -> int:
        """The workspace's user id, which is its group id too. Raises Unavailable when it cannot be recorded."""
        if (known := self._known.get(workspace)) is not None:
            return known
        try:
            lock = os.open(self._path.with_name(self._path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o600)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                self._known[workspace] = self._given(workspace)
            finally:
                os.close(lock)
        except OSError as error:
            raise Unavailable(
                f"cannot record a user id in {self._path}: {error.strerror}", hint=f"check: ls -l {self._path.parent}"
            ) from error
        return self._known[workspace]

    def _given(self, workspace: str) -> int:
        record = shim.read_record(str(self._path))
        if record is None:
            if self._path.exists():  # to begin anew would give one workspace's files to another
                raise OSError(5, "it is not readable as JSON")
            record = {"first": FIRST + BLOCK * secrets.randbelow(BLOCKS), "users": {}}
        users = record["users"]
        if workspace not in users:
            uid = max(users.values(), default=int(record["first"]) - 1) + 1
            if uid >= int(record["first"]) + BLOCK:
                raise OSError(28, f"all {BLOCK} user ids of this cell are given")
            users[workspace] = uid
            # Synced: files on disk belong to this number from now on.
            shim.write_record(str(self._path), record, sync=True)
        return int(users[workspace])
