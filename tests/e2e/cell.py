"""A real cell for the tests: its connection, its processes, and waiting for what must become so."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lepton_ai.client import Cloud
from lepton_ai.control.folder import State
from lepton_ai.errors import LeptonError
from lepton_ai.node.identity import Identity

SERVICE = Path(__file__).with_name("service.py")
T = TypeVar("T")


@dataclass
class Cell:
    """One cell in a home of its own."""

    cloud: Cloud
    state: State
    home: Path

    def lepton(self, *words: str, env: dict[str, str] | None = None, cwd: Path | None = None) -> Done:
        """One `lepton` command as a user types it, with nobody at the keyboard."""
        clean = {key: value for key, value in os.environ.items() if not key.startswith("LEPTON_AI_")}
        clean |= {"LEPTON_AI_HOME": str(self.home), "LEPTON_AI_CELL": self.state.name, "COLUMNS": "200", **(env or {})}
        done = subprocess.run(
            [sys.executable, "-m", "lepton_ai.cli", *words],
            env=clean,
            cwd=cwd or self.home,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def processes(self) -> dict[str, Identity]:
        """Every living process of the cell by what it is: shims and their children."""
        found = {}
        for pattern in ("system/*", "nodes/*/replicas/*"):
            for folder in sorted(self.state.dir.glob(pattern)):
                for part in ("shim", "child"):
                    who = Identity.read(folder / f"{part}.json")
                    if who is not None and who.alive():
                        found[f"{folder.relative_to(self.state.dir)} {part}"] = who
        return found

    def url(self, name: str) -> str:
        return f"{self.state.gateway_url}/{self.state.settings.workspace}/{name}/"


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def service(release: str, *, mode: str = "", **template: Any) -> dict[str, Any]:
    """The template of tests/e2e/service.py."""
    command = [sys.executable, str(SERVICE), "{port}", release, *([mode] if mode else [])]
    return {
        "command": command,
        "health": {"path": "/", "interval_s": 0.5},
        "resources": {"cpu_milli": 50, "memory_mib": 64},
        "idempotent": True,
        "grace_s": 3,
        **template,
    }


def eventually(look: Callable[[], T], what: str, timeout_s: float = 90.0) -> T:
    """The first true answer of `look`; errors of the cell while it recovers count as not yet."""
    deadline_s, last = time.monotonic() + timeout_s, ""
    while True:
        try:
            value = look()
            if value:
                return value
            last = f"{value!r}"
        except LeptonError as error:
            last = error.message
        assert time.monotonic() < deadline_s, f"{what}: not within {timeout_s:g} s, at last {last}"
        time.sleep(0.05)
