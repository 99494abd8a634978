"""A replica that became slow, in a real cell: callers meet it less, control says so, and it is found again."""

from __future__ import annotations

import json
import sys
import threading
from collections import Counter
from pathlib import Path

import httpx
from cell import Cell, eventually

# Answers with its port; slowly while a file of that name is in the folder that it was told of.
SLOWED = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
port, folder = sys.argv[1], sys.argv[2]
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.2 if self.path != "/" and os.path.exists(os.path.join(folder, port)) else 0.005)
        self.send_response(200)
        self.send_header("content-length", str(len(port)))
        self.end_headers()
        self.wfile.write(port.encode())
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


class Callers:
    """A closed loop of a few callers; `met` counts the answers of each replica."""

    def __init__(self, url: str, count: int = 6) -> None:
        self.met: Counter[str] = Counter()
        self.failed: list[str] = []
        self._url, self._ended = url, threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(30)

    def _run(self) -> None:
        with httpx.Client(timeout=30, trust_env=False) as client:
            while not self._ended.is_set():
                answer = client.get(self._url)
                if answer.status_code == 200:
                    self.met[answer.text] += 1
                else:
                    self.failed.append(f"{answer.status_code} {answer.text[:80]}")


def test_callers_avoid_a_slow_replica_and_come_back(cell: Cell, tmp_path: Path) -> None:
    template = {
        "command": [sys.executable, "-I", "-S", "-c", SLOWED, "{port}", str(tmp_path)],
        "resources": {"cpu_milli": 50, "memory_mib": 64},
        "health": {"path": "/"},
    }
    cell.cloud.deploy({"name": "uneven", "template": template, "replicas": 4}, wait=True)
    ports = {str(item.port) for item in cell.cloud.replicas("uneven")}
    slow = min(ports)
    callers = Callers(cell.url("uneven") + "work")
    try:
        eventually(lambda: set(callers.met) == ports, "every replica is asked")
        (tmp_path / slow).touch()
        eventually(lambda: weight(cell, slow) < 80, "control has seen that it is slow", 60)
        before = Counter(callers.met)
        eventually(lambda: (callers.met - before).total() > 400, "callers go on")
        part = (callers.met - before)[slow] / (callers.met - before).total()
        assert part < 1 / len(ports) / 2
        (tmp_path / slow).unlink()
        before = Counter(callers.met)
        eventually(lambda: (callers.met - before)[slow] > 50, "it is asked again", 60)
        eventually(lambda: weight(cell, slow) >= 80, "and control sees it", 60)
    finally:
        callers.stop()
        cell.cloud.delete("uneven")
    assert callers.failed == []


def weight(cell: Cell, port: str) -> int:
    """What the gateway was told of the replica at this port."""
    wanted = json.loads((cell.state.dir / "gateway" / "wanted.json").read_text("utf-8"))
    for route in wanted["routes"]:
        for backend in route["backends"]:
            for end in backend["endpoints"]:
                if route["name"] == "uneven" and str(end["port"]) == port:
                    return int(end["weight"])
    return -1
