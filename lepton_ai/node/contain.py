"""A container's place in the tree of processes: the shim's child, which is to its container what a command is to it.

Run as ``python -I -S -E contain.py FILE``; only the standard library. FILE (written by `docker`) says what to create.
It creates and starts the container, copies what it prints, hands TERM on and KILL when the grace is over, and ends as
the container ended (told.json says it exactly), after removing it. When the engine restarts meanwhile it waits for it.

Written: container.json {id, pid, start_ticks, boot_id, groups}, so that whoever has to can end the container without
the engine; told.json {mark, code, signal, out_of_memory, reason}.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import sys
import threading
import time
from typing import Any

if __name__ == "__main__":  # isolated, so the package is found by where this file lies
    sys.modules["ssl"] = None  # type: ignore[assignment] # a quarter of this process's memory, and never used here
    sys.path.append(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from lepton_ai.node import enter, shim
from lepton_ai.node.engine import CREATE_S, Away, Engine, Refused, frames

ROOT = "/sys/fs/cgroup"
CONTROLLERS = ("memory", "cpu", "cpuacct", "cpu,cpuacct", "pids")
AWAY_S = 60.0
"""so long it is waited for an engine that is away when the container's process has ended"""
LOOK_S = 0.2
DRAIN_S = 3.0
STAGED = "bind-"
"""how the names of bound folders begin"""
MARGIN_S = 0.3
"""KILL comes so much before the shim's own, so that the end is still told as it was"""
NOT_FOUND, NOT_RUN = 127, 126


class Unable(Exception):
    """What could not be done, in words that follow "cannot"."""

    def __init__(self, text: str, code: int = NOT_RUN) -> None:
        super().__init__(text)
        self.code = code


def main(argv: list[str]) -> int:
    """Read FILE, run its container; the container's exit code."""
    with open(argv[1], encoding="utf-8") as file:
        order: dict[str, Any] = json.load(file)
    return Contained(order).run()


class Contained:
    """One container from its creation to its removal."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.order, self.folder = order, str(order["folder"])
        self.engine = Engine(order["engine"])
        self.id, self.pid, self.ticks = "", 0, 0
        self.mark = os.environ.get(shim.MARK, "")
        self.stopping, self.killed, self.kill_at_ns = False, False, 0
        self.code: int | None = None
        self.rest = b""
        self.wake, self.wake_in = os.pipe()
        for fd in (self.wake, self.wake_in):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(self.wake_in, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda *_: None)

    def run(self) -> int:
        try:
            stream = self.begin()
        except Unable as error:
            self.say(f"{enter.SIGN}{error}")
            self.remove()
            return self.tell(error.code, None, reason=f"cannot {error}")
        end = self.until_ended(stream)
        self.remove()
        if end is None:
            if self.code is None:
                return self.tell(None, None, reason="lost: the container engine is away, and the container has ended")
            end = {"ExitCode": self.code}
        code = int(end.get("ExitCode", 0))
        number = code - 128
        if number in signal.valid_signals():  # that is how the engine says it
            return self.tell(None, number, bool(end.get("OOMKilled")) and number == signal.SIGKILL)
        return self.tell(code, None)

    # --- its beginning --------------------------------------------------------------------------------------------

    def begin(self) -> socket.socket | None:
        """Create, attach, start, and record it. Raises Unable."""
        if self.order.get("note"):
            self.say(self.order["note"])
        staged: list[tuple[str, dict[str, Any]]] = []
        try:
            self.stage(staged)
            self.id = self.create(staged)
            stream, self.rest = self.engine.attach(self.id)
            self.heed(0)
            if self.stopping:
                raise Unable("start: it was stopped before", 128 + signal.SIGTERM)
            self.engine.ask("POST", f"/containers/{self.id}/start", timeout_s=CREATE_S)
        except Refused as error:
            raise refused(error.message) from None
        except Away as error:
            raise Unable(f"reach the container engine at {self.engine.path}: {error}") from None
        finally:
            unstage([path for path, _ in staged])
            # What held the network until this container was in it.
            if self.order.get("hold"):
                self.discard(self.order["hold"])
        state = self.state() or {}
        self.record(int(state.get("Pid", 0)))
        return stream

    def create(self, staged: list[tuple[str, dict[str, Any]]]) -> str:
        body: dict[str, Any] = json.loads(json.dumps(self.order["create"]))
        body["Env"] = [*body.get("Env", ()), f"{shim.MARK}={self.mark}"]
        host = body.setdefault("HostConfig", {})
        for path, volume in staged:
            mount = {"Type": "bind", "Source": path, "Target": volume["target"], "ReadOnly": volume["read_only"]}
            mount["BindOptions"] = {"Propagation": "rprivate"}
            host["Mounts"] = [*host.get("Mounts", ()), mount]
        query = {"name": self.order["name"]}
        try:
            made = self.engine.ask("POST", "/containers/create", body, query=query, timeout_s=CREATE_S)
        except Refused as error:
            if error.status != 409:
                raise
            self.discard(self.order["name"])  # of an earlier start that was cut off
            made = self.engine.ask("POST", "/containers/create", body, query=query, timeout_s=CREATE_S)
        return str(made["Id"])

    def stage(self, staged: list[tuple[str, dict[str, Any]]]) -> None:
        """Each volume's folder at a path that only root can change, into `staged`. Raises Unable.

        The engine takes paths, and follows links in them; a folder of a tenant could become a link after any look.
        So it is walked here without following one, held, and bound to where the tenant does not reach.
        """
        for number, volume in enumerate(self.order["mounts"]):
            if os.geteuid() != 0:  # then only whole volumes come here, whose paths are the operator's
                staged.append((os.path.realpath(volume["root"]), volume))
                continue
            path = f"{self.order['stage']}-{number}"
            staged.append((path, volume))
            try:
                fd = enter.walk(volume)
                try:
                    os.makedirs(path, 0o700, exist_ok=True)
                    enter.bind(fd, path)
                finally:
                    os.close(fd)
            except (OSError, enter.Refused) as error:
                raise Unable(str(error)) from None

    def record(self, pid: int) -> None:
        self.pid, self.ticks = pid, shim.start_ticks(pid) or 0 if pid else 0
        values = {"id": self.id, "pid": pid, "start_ticks": self.ticks, "boot_id": shim.boot_id()}
        with contextlib.suppress(OSError):  # the container is found by its mark and its label too
            shim.write_record(self.folder + "/container.json", {**values, "groups": groups(pid)})

    # --- its life -------------------------------------------------------------------------------------------------

    def until_ended(self, stream: socket.socket | None) -> dict[str, Any] | None:
        """How it ended, as the engine says; None when the engine stays away and its process has ended."""
        while True:
            threading.Thread(target=self.wait, daemon=True).start()
            self.carry(stream)
            state, away = self.state(), False
            left_s = AWAY_S
            while state is None:
                away = True
                if not self.alive():
                    if self.code is not None or left_s <= 0:
                        return None
                    left_s -= LOOK_S
                self.heed(LOOK_S)
                state = self.state()
            if not state.get("Running"):
                return None if state.get("Gone") else state
            if away:
                self.say("[lepton: the container engine was restarted: lines may be missing]")
            with contextlib.suppress(Away, Refused):
                stream, self.rest = self.engine.attach(self.id)

    def wait(self) -> None:
        """In a thread: wakes the other one when the container has ended, or the engine."""
        with contextlib.suppress(Away, Refused):
            answer = self.engine.ask("POST", f"/containers/{self.id}/wait", timeout_s=None)
            self.code = int(answer["StatusCode"])
        with contextlib.suppress(OSError):
            os.write(self.wake_in, b"\0")

    def carry(self, stream: socket.socket | None) -> None:
        """Copy output until `wait` has said that there is an end, and then what is still on its way."""
        self.copy(b"")
        until_s: float | None = None
        while until_s is None or (stream is not None and time.monotonic() < until_s):
            poll = select.poll()
            poll.register(self.wake, select.POLLIN)
            if stream is not None:
                poll.register(stream, select.POLLIN)
            due_s = self.due_s() if until_s is None else max(0.0, until_s - time.monotonic())
            for fd, _ in poll.poll(int(due_s * 1000) + 1):
                if fd == self.wake:
                    if self.note() and until_s is None:
                        until_s = time.monotonic() + DRAIN_S
                elif stream is not None:
                    try:
                        data = stream.recv(256 * 1024)
                    except OSError:
                        data = b""
                    if data:
                        self.copy(data)
                    else:
                        stream.close()
                        stream = None
        if stream is not None:
            stream.close()

    def copy(self, data: bytes) -> None:
        found, self.rest = frames(self.rest + data)
        for stream, text in found:
            with contextlib.suppress(OSError):
                while text:
                    text = text[os.write(2 if stream == 2 else 1, text) :]

    def heed(self, timeout_s: float) -> None:
        """Wait a little; do what is due."""
        poll = select.poll()
        poll.register(self.wake, select.POLLIN)
        if poll.poll(int(min(timeout_s, self.due_s()) * 1000)):
            self.note()

    def note(self) -> bool:
        """Take note of what woke us: TERM is handed on. Whether the other thread was it."""
        try:
            said = os.read(self.wake, 512)
        except BlockingIOError:
            return False
        if signal.SIGTERM in said and not self.stopping:
            self.stopping = True
            self.kill_at_ns = shim.clock_ns() + int(max(0.0, self.grace_s()) * 1e9)
            if self.id:
                self.signal(str(self.order.get("stop_signal") or "SIGTERM"))
        return 0 in said

    def grace_s(self) -> float:
        """Until the shim kills, less what it takes to be before it."""
        order = shim.read_record(self.folder + "/stop.json") or {}
        grace_s = float(order.get("grace_s", self.order["grace_s"]))
        if lease := shim.read_record(self.folder + "/lease"):
            grace_s = min(grace_s, (int(lease.get("deadline_ns", 0)) - shim.clock_ns()) / 1e9)
        return grace_s - min(MARGIN_S, grace_s * 0.1)

    def due_s(self) -> float:
        """How long there is nothing to do, after doing what is due."""
        if not self.stopping or self.killed:
            return 3600.0
        left_s = (self.kill_at_ns - shim.clock_ns()) / 1e9
        if left_s <= 0:
            self.killed = True
            self.signal("SIGKILL")
            return 3600.0
        return left_s

    def signal(self, name: str) -> None:
        try:
            self.engine.ask("POST", f"/containers/{self.id}/kill", query={"signal": name}, timeout_s=5.0)
        except (Refused, Away):  # it has ended; or without the engine, where one may
            number = getattr(signal, name if name.startswith("SIG") else "SIG" + name, signal.SIGTERM)
            with contextlib.suppress(OSError):
                if self.alive():
                    shim.kill_pid(self.pid, self.ticks, number)

    def alive(self) -> bool:
        return self.pid > 0 and shim.start_ticks(self.pid) == self.ticks

    def state(self) -> dict[str, Any] | None:
        """What the engine says of it; None when it is away."""
        try:
            return dict(self.engine.ask("GET", f"/containers/{self.id}/json")["State"])
        except Refused as error:
            return {"Running": False, "Gone": True} if error.status == 404 else None
        except Away:
            return None

    # --- its end --------------------------------------------------------------------------------------------------

    def remove(self) -> None:
        if self.id:
            self.discard(self.id)

    def discard(self, container: str) -> None:
        with contextlib.suppress(Refused, Away):  # the agent looks for what is left
            self.engine.ask("DELETE", f"/containers/{container}", query={"force": 1, "v": 1})

    def tell(self, code: int | None, number: int | None, out_of_memory: bool = False, reason: str = "") -> int:
        """Record the end; returns the exit code that says most of it."""
        values: dict[str, Any] = {"mark": self.mark, "code": code, "signal": number, "out_of_memory": out_of_memory}
        if reason:
            values["reason"] = reason[:400]
        with contextlib.suppress(OSError):
            shim.write_record(self.folder + "/told.json", values)
        return code if code is not None else 128 + number if number is not None else NOT_RUN

    def say(self, text: str) -> None:
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode("utf-8", "replace"))


def refused(message: str) -> Unable:
    """Why a container did not start, without what the engine's parts say about themselves."""
    text = message.rpartition("unable to start container process: ")[2].removesuffix(": unknown")
    if "executable file not found" in text or "no such file or directory" in text:
        return Unable(f"start the container: {text}", NOT_FOUND)
    return Unable(f"start the container: {text}")


def groups(pid: int) -> list[str]:
    """The control groups of a process that are its limits; empty where they cannot be seen."""
    found = []
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cgroup", encoding="ascii") as file:
        for line in file:
            _, controllers, path = line.strip().split(":", 2)
            folder = f"{ROOT}/{controllers}{path}" if controllers in CONTROLLERS else f"{ROOT}{path}"
            # Never a whole machine's: what is in these is killed when the container has to end.
            if (controllers in CONTROLLERS or not controllers) and len(path) > 32 and os.path.isdir(folder):
                found.append(folder)
    return found


def unstage(paths: list[str]) -> None:
    """Let go of what was bound for the engine; the container has it by then."""
    for path in paths:
        if os.path.basename(path).startswith(STAGED):
            with contextlib.suppress(OSError):
                enter.unbind(path)
                os.rmdir(path)  # never what is in it


if __name__ == "__main__":
    sys.exit(main(sys.argv))
