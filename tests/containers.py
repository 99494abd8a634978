"""A container engine and image registries for tests, in folders of their own and ended by process id; and an image.

Nothing comes from outside: the engine and the registry are Debian's (`.ci/setup docker`), the image is made of this
machine's Python and shell. Loaded by path from the conftest files that need it.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lepton_ai.node.engine import Away, Engine, Refused
from lepton_ai.node.shim import start_ticks

WAIT_S = 60.0
FLAGS = ("--iptables=false", "--ip6tables=false", "--ip-forward=false", "--bridge=none")
USER, PASSWORD = "tester", "pass word"
HTPASSWD = f"{USER}:$2y$05$abcdefghijklmnopqrstuuIt/9/tGzLcigNq/.RWIDjeEVR30RSf.\n"
AUTH = base64.urlsafe_b64encode(json.dumps({"username": USER, "password": PASSWORD}).encode()).decode()
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
_PROGRAMS = ("sh", "bash", "cat", "ls", "sleep", "id", "env", "touch", "mkdir", "stat", "kill")
_LEFT_OUT = {"test", "tests", "idlelib", "tkinter", "lib2to3", "ensurepip", "__pycache__", "turtledemo"}
_LEFT_OUT |= {"site-packages", "dist-packages"}


def missing() -> str:
    """Why these tests cannot run here; empty when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a container engine of our own needs root on Linux"
    absent = [
        name for name in ("dockerd", "containerd", "runc", "docker-registry") if not shutil.which(name, path=_PATH)
    ]
    return f"not installed: {', '.join(absent)} (.ci/setup docker)" if absent else ""


def until(check: Callable[[], Any], what: str = "it", timeout_s: float = WAIT_S) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (value := check()):
        assert time.monotonic() < end_s, f"{what} did not happen in time"
        time.sleep(0.02)
    return value


class Process:
    """A program that is started and ended by its id."""

    def __init__(self, name: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=f"lai-{name}-"))  # short: sockets lie below it
        self.process: subprocess.Popen[bytes] | None = None

    def run(self, argv: list[str]) -> subprocess.Popen[bytes]:
        with open(self.folder / "log", "ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": _PATH, "HOME": str(self.folder)},
            )  # fmt: skip
        return self.process

    def said(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")[-2000:]

    def kill(self, number: int) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            self.process.wait(WAIT_S)


class Docker(Process):
    """A dockerd of our own: images and containers are nobody else's."""

    def __init__(self, *flags: str) -> None:
        super().__init__("docker")
        self.flags, self.path = flags, str(self.folder / "docker.sock")
        self.engine = Engine(self.path)

    def start(self) -> None:
        pid = self.folder / "exec/containerd/containerd.pid"
        if pid.exists() and start_ticks(int(pid.read_text())) is None:
            pid.unlink()  # killed with its parent; where nobody reaps it, dockerd would wait for it
        folders = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"-p={self.folder}/pid"]
        process = self.run(["dockerd", *FLAGS, *self.flags, f"-H=unix://{self.path}", *folders])

        def answers() -> bool:
            assert process.poll() is None, self.said()
            try:
                self.engine.ask("GET", "/_ping", timeout_s=5.0)
            except (Away, Refused):
                return False
            return True

        until(answers, "the start of dockerd")

    def end(self) -> None:
        try:
            for one in self.engine.ask("GET", "/containers/json", query={"all": 1}):
                self.engine.ask("DELETE", f"/containers/{one['Id']}", query={"force": 1, "v": 1})
        except (Away, Refused):
            pass
        self.kill(signal.SIGTERM)
        for path in (self.folder / "exec").glob("containerd/containerd.pid"):  # of a dockerd that was killed
            try:
                os.kill(int(path.read_text()), signal.SIGKILL)
            except (OSError, ValueError):
                continue
        for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
            if (place := line.split()[1]).startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", place], check=False, capture_output=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def load(self, data: bytes, repository: str, tag: str, *changes: str) -> None:
        """An image of a tar file. `changes`: lines of a Dockerfile."""
        query = {"fromSrc": "-", "repo": repository, "tag": tag, "changes": "\n".join(changes)}
        self.engine.ask("POST", "/images/create", data, query=query, timeout_s=300.0)

    def push(self, source: str, repository: str, tag: str, auth: str = "e30=") -> None:
        self.engine.ask("POST", f"/images/{source}/tag", query={"repo": repository, "tag": tag})
        events = self.engine.stream(
            "POST", f"/images/{repository}/push", query={"tag": tag}, headers={"X-Registry-Auth": auth}, timeout_s=300.0
        )
        for event in events:
            assert "error" not in event, event

    def remove(self, name: str) -> None:
        try:
            self.engine.ask("DELETE", f"/images/{name}")
        except Refused as error:
            if error.status != 404:
                raise

    def containers(self) -> list[dict[str, Any]]:
        return list(self.engine.ask("GET", "/containers/json", query={"all": 1}))

    def inspect(self, name: str) -> dict[str, Any]:
        return dict(self.engine.ask("GET", f"/containers/{name}/json"))

    def images(self) -> set[str]:
        """Every name that images go by."""
        found = self.engine.ask("GET", "/images/json")
        return {name for one in found for name in one.get("RepoTags") or ()}


class Registry(Process):
    """A registry on loopback; with `login`, one that asks who one is."""

    def __init__(self, *, login: bool = False) -> None:
        super().__init__("registry")
        with socket.socket() as sock:
            sock.bind(("127.0.0.1", 0))
            self.host = f"127.0.0.1:{sock.getsockname()[1]}"
        auth = f"auth: {{htpasswd: {{realm: test, path: {self.folder}/htpasswd}}}}" if login else ""
        (self.folder / "htpasswd").write_text(HTPASSWD)
        (self.folder / "config.yml").write_text(
            f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {self.folder}/data}}}}\n"
            f"http: {{addr: '{self.host}'}}\n{auth}\n"
        )

    def start(self) -> None:
        process = self.run(["docker-registry", "serve", f"{self.folder}/config.yml"])
        address, port = self.host.split(":")

        def listens() -> bool:
            assert process.poll() is None, self.said()
            with socket.socket() as sock:
                return sock.connect_ex((address, int(port))) == 0

        until(listens, "the start of the registry")

    def end(self) -> None:
        self.kill(signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


@functools.cache
def image() -> bytes:
    """A tar file with this machine's Python (as ``python``), its library, a shell and a few programs."""
    file = io.BytesIO()
    seen: set[str] = set()
    with tarfile.open(fileobj=file, mode="w") as tar:

        def add(path: str, name: str | None = None) -> None:
            if (name := name or path) not in seen:
                seen.add(name)
                tar.add(os.path.realpath(path), name.lstrip("/"), recursive=False)

        python = os.path.realpath(sys.executable)
        library = Path(sysconfig.get_path("stdlib"))
        binaries = [(str(shutil.which(name)), f"/bin/{name}") for name in _PROGRAMS]
        binaries += [(python, python), (python, "/bin/python"), (python, "/bin/python3")]
        for path in _library(library):
            if path.suffix == ".so":
                binaries.append((str(path), str(path)))
            else:
                tar.add(path, str(path).lstrip("/"), recursive=False)
        for path, name in binaries:
            add(path, name)
        for path in _needed([path for path, _ in binaries]):
            add(path)
        for name, text in (("etc/passwd", "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n"),
                           ("etc/group", "root:x:0:\nuser:x:1000:\n")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
        for name, mode in (("tmp", 0o1777), ("root", 0o755)):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, mode
            tar.addfile(folder)
    return file.getvalue()


def small(text: str = "x") -> bytes:
    """A tar file with next to nothing in it: an image that is quickly pushed."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo("text")
        info.size = len(text)
        tar.addfile(info, io.BytesIO(text.encode()))
    return file.getvalue()


def _library(top: Path) -> Iterator[Path]:
    for folder, names, files in os.walk(top):
        names[:] = [name for name in names if name not in _LEFT_OUT and not name.startswith("config-")]
        yield from (Path(folder) / name for name in files if not name.endswith((".pyc", ".a")))


def _needed(paths: list[str]) -> list[str]:
    """The shared libraries that binaries load, with the loader."""
    done = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=False)
    words = [word for line in done.stdout.splitlines() for word in line.split()]
    return [word for word in words if word.startswith("/") and not word.endswith(":")]
