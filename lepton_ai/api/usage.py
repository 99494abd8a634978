"""How much of the disk a workspace takes: its lake and its archived logs. Owns the looking, at most once a minute."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

from sqlalchemy import func, select

from lepton_ai.store import Store
from lepton_ai.store.tables import segments

KEEP_S = 60.0
FILES_MAX = 200_000
"""A lake with more files is counted no further: the figure is then a lower bound."""


class Usage:
    """Bytes by workspace, as they were at most a minute ago."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, int]] = {}
        self._lock = threading.Lock()

    def disk_bytes(self, store: Store, lake: Path, workspace: str) -> int:
        """What `lake` and the logs of `workspace` take. Whoever comes during a look gets the figure before."""
        now_s = time.monotonic()
        looked_s, before = self._found.get(workspace, (-KEEP_S, 0))
        if now_s - looked_s < KEEP_S or not self._lock.acquire(blocking=False):
            return before
        try:
            found = _tree(lake) + _logs(store, workspace)
            self._found[workspace] = (now_s, found)
            return found
        finally:
            self._lock.release()


def _logs(store: Store, workspace: str) -> int:
    query = select(func.coalesce(func.sum(segments.c.size_bytes), 0)).where(segments.c.workspace == workspace)
    with store.reading() as connection:
        return int(connection.execute(query).scalar_one())


def _tree(folder: Path) -> int:
    total, seen, left = 0, 0, [str(folder)]
    while left:
        try:
            with os.scandir(left.pop()) as entries:
                for entry in entries:
                    seen += 1
                    if seen > FILES_MAX:
                        return total
                    if entry.is_dir(follow_symlinks=False):
                        left.append(entry.path)
                    else:
                        total += entry.stat(follow_symlinks=False).st_blocks * 512
        except OSError:
            continue  # it went while we looked
    return total
