"""Small servers with a known service time, one process each, and an open loop of callers, a process too.

Not a measurement itself. A server takes one request at a time, in order, and sleeps for its service time (so that the
machine's cores are not what is measured) or computes for it (`burn`, for servers that are throttled by cgroup). `/hold`
waits until `/free`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SERVER = r"""
import asyncio, sys, time
port, service_s, burn = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "burn"
lock, free, state = asyncio.Lock(), asyncio.Event(), {"served": 0, "held": 0}
def answer(text): return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(text), text)
async def handle(reader, writer):
    try:
        while True:
            path = (await reader.readuntil(b"\r\n\r\n")).split(b" ", 2)[1]
            if path.endswith(b"/health"): text = b"ok"
            elif path.endswith(b"/count"): text = b"%d %d" % (state["served"], state["held"])
            elif path.endswith(b"/free"): free.set(); free.clear(); text = b"ok"
            elif path.endswith(b"/hold"):
                state["held"] += 1
                await free.wait()
                state["held"] -= 1; text = b"held"
            else:
                async with lock:
                    if burn:
                        until = time.process_time() + service_s
                        while time.process_time() < until: pass
                    elif service_s: await asyncio.sleep(service_s)
                state["served"] += 1; text = b"%d" % port
            writer.write(answer(text)); await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError): pass
    finally: writer.close()
async def main():
    server = await asyncio.start_server(handle, "127.0.0.1", port, backlog=1024)
    async with server: await server.serve_forever()
asyncio.run(main())
"""

CALLERS = r"""
import asyncio, json, random, sys, time
port, path, rate, span_s, seed = int(sys.argv[1]), sys.argv[2], float(sys.argv[3]), float(sys.argv[4]), int(sys.argv[5])
rng, idle, found, failed = random.Random(seed), [], [], []
async def call(due):
    reader = writer = None
    try:
        reader, writer = idle.pop() if idle else await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET %s HTTP/1.1\r\nhost: x\r\n\r\n" % path.encode())
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
        length = next(int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        body = await reader.readexactly(length)
        if head[9:12] != b"200": failed.append(head[9:12].decode())
        else: found.append((time.perf_counter() - due, int(body)))
        idle.append((reader, writer))
    except Exception as error:
        failed.append(type(error).__name__)
        if writer is not None: writer.close()
async def main():
    tasks, due = [], time.perf_counter()
    end = due + span_s
    while True:
        due += rng.expovariate(rate)
        if due > end: break
        pause = due - time.perf_counter()
        if pause > 0: await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(call(due)))
    await asyncio.gather(*tasks)
    print(json.dumps({"latencies": found, "failed": failed}))
asyncio.run(main())
"""


@dataclass
class Server:
    """One server process."""

    port: int
    process: subprocess.Popen[bytes]

    def get(self, path: str) -> str:
        return fetch(self.port, path)

    def counts(self) -> tuple[int, int]:
        """(served, held now)."""
        served, held = self.get("/count").split()
        return int(served), int(held)


@contextmanager
def servers(services_s: Sequence[float], *, burn: bool = False) -> Iterator[list[Server]]:
    """One server for each service time, ready."""
    made = []
    try:
        for service_s in services_s:
            port = free_port()
            command = [sys.executable, "-I", "-S", "-c", SERVER, str(port), str(service_s), "burn" if burn else "sleep"]
            made.append(Server(port, quiet(command)))
        for server in made:
            until(lambda server=server: server.get("/health") == "ok", "a server answers")  # type: ignore[misc]
        yield made
    finally:
        end([server.process for server in made])


def callers(port: int, path: str, rate: float, span_s: float, seed: int) -> dict[str, Any]:
    """An open loop of Poisson arrivals for `span_s`; {"latencies": [(seconds, port of the server)], "failed": []}."""
    command = [sys.executable, "-I", "-S", "-c", CALLERS, str(port), path, str(rate), str(span_s), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=span_s + 120)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@contextmanager
def throttled(processes: Sequence[subprocess.Popen[bytes]], share: float, *, hog: bool) -> Iterator[bool]:
    """Puts the processes under a cpu quota (a share of one core), with a hog that eats of it; False where that cannot
    be done (no cgroup v1 or v2 to write to)."""
    folder = cgroup(share)
    hogs: list[subprocess.Popen[bytes]] = []
    try:
        if folder is not None:
            if hog:
                hogs.append(quiet([sys.executable, "-I", "-S", "-c", "while True: pass"]))
            for process in [*processes, *hogs]:
                (folder / "cgroup.procs").write_text(str(process.pid), "ascii")
        yield folder is not None
    finally:
        end(hogs)
        if folder is not None:
            home = folder.parent / "cgroup.procs"
            for pid in (folder / "cgroup.procs").read_text("ascii").split():
                with contextlib.suppress(OSError):
                    home.write_text(pid, "ascii")
            with contextlib.suppress(OSError):
                folder.rmdir()


def cgroup(share: float) -> Path | None:
    """A new cgroup with this quota of cpu, or None."""
    period_us = 100_000
    for root, files in (
        (Path("/sys/fs/cgroup/cpu"), {"cpu.cfs_period_us": period_us, "cpu.cfs_quota_us": round(share * period_us)}),
        (Path("/sys/fs/cgroup"), {"cpu.max": f"{round(share * period_us)} {period_us}"}),
    ):
        folder = root / f"lepton-bench-{os.getpid()}"
        try:
            folder.mkdir()
            for name, value in files.items():
                (folder / name).write_text(str(value), "ascii")
            return folder
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return None


def quiet(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        list(command), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)
    for process in processes:
        process.wait()


def fetch(port: int, path: str, timeout_s: float = 5.0) -> str:
    """The body of GET `path`; empty when nobody answers."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_s)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    except OSError:
        return ""
    finally:
        connection.close()


def until(true: Any, what: str, within_s: float = 30.0) -> None:
    deadline = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < deadline, f"not within {within_s} s: {what}"
        time.sleep(0.02)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
