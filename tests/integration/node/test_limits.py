"""Limits that the system enforces, and a disk without room: only where this machine lets us make them."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from lepton_ai.blobs.fetch import fetch
from lepton_ai.blobs.local import LocalBlobs
from lepton_ai.errors import Corrupt, DiskFull, NotFound, Unavailable
from lepton_ai.node import cgroup
from lepton_ai.node.launch import ShimSpec, State, launch, state, stop
from lepton_ai.spec.base import uuid7
from lepton_ai.spec.workload import Resources

WAIT_S = 60.0


def ended(folder: Path) -> State:
    until(lambda: state(folder).phase != "running")
    return state(folder)


def until(check: Callable[[], object]) -> None:
    end_s = time.monotonic() + WAIT_S
    while not check():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.02)


@pytest.fixture
def groups() -> Iterator[tuple[str, ...]]:
    made = cgroup.make(f"test-{uuid7()}", Resources(memory_mib=64))
    if not made:
        pytest.skip("control groups cannot be made here")
    yield made
    until(lambda: cgroup.remove(made))


def test_replicas_together_weigh_as_much_as_the_cores(groups: tuple[str, ...]) -> None:
    parents = [Path(group).parent for group in groups]
    found = {name: (path / name).read_text().strip() for path in parents for name in FULL if (path / name).exists()}
    assert found
    assert all(int(value) == FULL[name] * (os.cpu_count() or 1) for name, value in found.items())


FULL = {"cpu.shares": 1024, "cpu.weight": 100}


def python(folder: Path, code: str, groups: tuple[str, ...] = ()) -> ShimSpec:
    return ShimSpec(
        (sys.executable, "-S", "-c", code), {"PATH": os.environ["PATH"]}, str(folder / "work"), cgroup=groups
    )


def test_out_of_memory_is_told(tmp_path: Path, groups: tuple[str, ...]) -> None:
    launch(tmp_path / "s", python(tmp_path / "s", "x = [bytearray(b'x' * (1 << 20)) for _ in range(300)]", groups))
    end = ended(tmp_path / "s")
    assert end.exit is not None
    assert end.exit.out_of_memory, end
    assert end.exit.describe() == "killed: out of memory"
    assert not any(os.path.exists(group) for group in groups)


def test_use_and_escaped_processes(tmp_path: Path, groups: tuple[str, ...]) -> None:
    code = (
        "import os, time\n"
        "if os.fork() == 0:\n"
        "    os.setsid()\n"
        "    if os.fork(): os._exit(0)\n"
        "    os.execve('/bin/sleep', ['sleep', '600'], {})\n"  # another session, another parent, no mark
        "x = b'x' * (20 << 20); end = time.process_time() + 0.1\n"
        "while time.process_time() < end: pass\n"
        "open('done', 'w').close(); time.sleep(600)\n"
    )
    launch(tmp_path / "s", python(tmp_path / "s", code, groups))
    until((tmp_path / "s/work/done").exists)
    use = cgroup.use(groups)
    assert use is not None
    assert use[0] > 50_000_000
    assert use[1] > 20 << 20
    stop(tmp_path / "s", 0)
    assert not any(os.path.exists(group) for group in groups), "a process was left in the group"


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(folder)], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no small file system can be mounted here")
    yield folder
    stop(folder / "s", 0)
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_no_child_and_hides_no_end(small: Path, tmp_path: Path) -> None:
    done = str(tmp_path / "done")
    code = f"import sys\nfor i in range(30000): print('x' * 50)\nopen({done!r}, 'w').close(); sys.exit(5)"
    launch(small / "s", python(tmp_path, code))
    end = ended(small / "s")
    assert (tmp_path / "done").exists()
    assert end.exit is not None
    assert end.exit.code == 5
    with pytest.raises(DiskFull):
        LocalBlobs(small).put(b"x" * (1 << 20))
    assert list((small / "new").iterdir()) == []


def test_fetching_over_http(tmp_path: Path) -> None:
    data = os.urandom(300_000)
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.headers["Authorization"] != "Bearer x":
                self.send_error(401)
                return
            if self.path == "/absent":
                self.send_error(404)
                return
            body = data[: len(data) // 2] if self.path == "/cut" else data
            body = data[:-1] + b"?" if self.path == "/other" else body
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    blobs = LocalBlobs(tmp_path / "blobs")
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            url, headers = f"http://127.0.0.1:{server.server_port}", {"Authorization": "Bearer x"}
            for path, given, error in (
                ("/absent", headers, NotFound),
                ("/cut", headers, (Corrupt, Unavailable)),
                ("/other", headers, Corrupt),
                ("/whole", {}, Unavailable),
            ):
                with pytest.raises(error):  # type: ignore[call-overload]
                    fetch(url + path, given, digest, len(data), blobs)
                assert list(blobs.list()) == []
            assert fetch(url + "/whole", headers, digest, len(data), blobs).read_bytes() == data
        finally:
            server.shutdown()
            thread.join()
    with pytest.raises(Unavailable):
        fetch(url + "/whole", headers, digest, len(data), LocalBlobs(tmp_path / "none"))
