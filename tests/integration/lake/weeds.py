"""A real SeaweedFS on loopback: its processes, started, killed one by one, started again."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import subprocess
import time
from pathlib import Path

from lepton_ai.errors import LeptonError
from lepton_ai.lake.objects import Objects
from lepton_ai.lake.place import Place
from lepton_ai.lake.seaweed import Seaweed


class Weeds:
    """The processes of a Seaweed: started, killed one by one, started again."""

    def __init__(self, folder: Path) -> None:
        self.seaweed = Seaweed(folder, free_ports(12))
        self._env = {**os.environ, **self.seaweed.configure()}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str) -> None:
        for name in names or self.seaweed.names:
            with (self.seaweed.folder / f"{name}.log").open("ab") as log:
                self._processes[name] = subprocess.Popen(
                    self.seaweed.argv(name), cwd=self.seaweed.folder, env=self._env, stdout=log, stderr=log
                )

    def kill(self, *names: str) -> None:
        for name in names or tuple(self._processes):
            process = self._processes.pop(name)
            process.kill()
            process.wait()

    def await_ready(self) -> None:
        """Until an object can be written and read."""
        objects = Objects(Place.of(self.seaweed.url).below("ready"))
        deadline_s = time.monotonic() + 90
        while True:
            with contextlib.suppress(LeptonError):
                if self.seaweed.status().healthy:
                    objects.put("ready", b"1")
                    assert objects.get("ready") == b"1"
                    return
            assert time.monotonic() < deadline_s, self.seaweed.status()
            time.sleep(0.1)


def free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on."""
    while True:
        first = random.randrange(12_000, 19_000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first
