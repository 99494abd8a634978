"""Giving up a node: ends what its agent left running. For a node on a host where nobody else does that."""

from __future__ import annotations

import fcntl
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lepton_ai.errors import Conflict, NotFound
from lepton_ai.node import launch
from lepton_ai.node.network import SHARED, Network
from lepton_ai.node.users import Users

REASON = "lost: its node was given up"


def leave(folder: Path) -> int:
    """End the replicas and the inlet of the node in `folder`; returns how many replicas ran. Idempotent.

    Raises NotFound when that is no node's folder, Conflict while its agent runs, Timeout.
    """
    if not (folder / "replicas").is_dir():
        raise NotFound(f"{folder} is no node's folder", hint="give the --dir of the agent")
    lock = os.open(folder / "agent.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise Conflict(f"the agent of {folder} runs", hint="end it first (SIGTERM)") from error
        found = sorted((folder / "replicas").iterdir())
        ran = sum(launch.state(path).phase == "running" for path in found)
        if found:
            with ThreadPoolExecutor(max_workers=min(32, len(found))) as pool:
                list(pool.map(lambda path: launch.stop(path, reason=REASON), found))
        launch.stop(folder / "inlet")
        if sys.platform == "linux" and os.geteuid() == 0 and SHARED.exists():
            Network(folder, "127.0.0.1", Users(folder.parent / "users.json")).remove()
        return ran
    finally:
        os.close(lock)
