"""Starting, stopping and looking at a shim: `launch`, and its siblings `stop` and `state` over the same folder.

Owns how a shim is started and asked to end. What it does meanwhile is in `shim`; who may start what is the agent's
(replicas) and the composition root's (system workloads).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from lepton_ai.errors import Conflict, DiskFull, Failed, Timeout
from lepton_ai.node import shim
from lepton_ai.node.identity import Identity
from lepton_ai.spec.replica import Exit

START_S = 20.0


@dataclass(frozen=True)
class ShimSpec:
    """What a shim runs. `env` is complete: nothing is inherited. `cgroup` holds the folders the child joins.

    `log_max_bytes` bounds all segments together; what is over `log_rate_bytes_s` is dropped and counted. With
    `lease_s` the child ends when DIR/lease is not renewed (see `renew`). A child that is started again waits longer
    each time it ends soon, up to `backoff_max_s`.
    """

    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str
    restart: Literal["never", "always"] = "never"
    grace_s: float = 10.0
    log_max_bytes: int = 64 << 20
    log_rate_bytes_s: int = 2 << 20
    limits: dict[str, int] = field(default_factory=dict)
    cgroup: tuple[str, ...] = ()
    lease_s: float | None = None
    backoff_max_s: float = 5.0


@dataclass(frozen=True)
class State:
    """What runs in a shim's folder. `exit` is the last end, also while a restarted child runs again.

    `running`: the shim lives (`child` may be None between restarts or while held). `exited`: the child ended and was
    recorded. `lost`: the shim died without a record. `absent`: nothing was started here.
    """

    phase: Literal["running", "exited", "lost", "absent"]
    shim: Identity | None = None
    child: Identity | None = None
    exit: Exit | None = None
    attempt: int = 0


def launch(dir: Path, spec: ShimSpec) -> Identity:
    """Start a shim for `dir`; returns once its child is recorded there (or held down). Blocks some 40 ms.

    Idempotent: a living shim of the same spec is returned as it is.

    Raises:
        Conflict: a shim with another spec runs there.
        DiskFull: its files cannot be written.
        Failed: it did not start; the message holds what it said.
    """
    dir = dir.absolute()
    data = json.dumps(asdict(spec)).encode()
    path = dir / "spec.json"
    running = Identity.read(dir / "shim.json")
    if running is not None and running.alive():
        if path.read_bytes() == data:
            return running
        raise Conflict(f"another workload runs in {dir}", hint="stop it first")
    try:
        dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        Path(spec.cwd).mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = dir / "spec.json.tmp"
        temporary.touch(mode=0o600)
        temporary.write_bytes(data)
        temporary.rename(path)
        rc, said = _spawn(dir)
    except OSError as error:
        if error.errno in (28, 122):
            raise DiskFull(f"no room to start a process in {dir}", hint="free space on the device") from error
        raise Failed(f"cannot start a process in {dir}: {error}", hint="check the folder's permissions") from error
    if rc == shim.EXIT_LOCKED:
        raise Conflict(f"another shim holds {dir}", hint="stop it first, or wait until it has ended")
    identity = Identity.read(dir / "shim.json")
    if rc != 0 or identity is None:
        raise Failed(f"the shim in {dir} did not start ({rc}): {said}", hint=f"see {dir / 'shim.err'}")
    return identity


def settle(dir: Path) -> None:
    """Wait for a shim that whoever began it did not live to see: until it is recorded, or there is none.

    Only where /proc shows it; elsewhere the lock of `dir` keeps the second shim away.
    """
    until_s = time.monotonic() + START_S
    while not (dir / "shim.json").exists() and time.monotonic() < until_s and _starting(dir):
        time.sleep(0.01)


def revive(dir: Path) -> bool:
    """Start again what `dir` was last told to run, if its shim died without being asked to; whether it did.

    Nothing is started while DIR/hold exists. Raises what `launch` raises.
    """
    running = Identity.read(dir / "shim.json")
    if running is None or running.alive() or (dir / "stop.json").exists() or (dir / "hold").exists():
        return False
    record = shim.read_record(str(dir / "spec.json"))
    if record is None or record.get("restart") != "always":
        return False
    values = {**record, "argv": tuple(record["argv"]), "cgroup": tuple(record.get("cgroup") or ())}
    launch(dir, ShimSpec(**values))
    return True


def stop(dir: Path, grace_s: float | None = None, *, reason: str = "", wait: bool = True) -> State:
    """End what runs in `dir`: TERM, then KILL after `grace_s` (default: the spec's). Idempotent.

    With `wait`, returns when the shim has ended; a shim that does not is killed, with its child, 10 s after the grace.

    Raises:
        Timeout: it could not be ended.
    """
    running = Identity.read(dir / "shim.json")
    if running is None or not running.alive():
        clear(dir)
        return state(dir)
    record = shim.read_record(str(dir / "spec.json")) or {}
    grace_s = float(record.get("grace_s", 10.0)) if grace_s is None else grace_s
    try:
        shim.write_record(str(dir / "stop.json"), {"grace_s": grace_s, "reason": reason[:300]})
    except OSError:
        (dir / "stop.json").unlink(missing_ok=True)  # on a full disk the spec's own grace holds
    running.kill(signal.SIGTERM)
    if not wait:
        return state(dir)
    if not _wait(running, grace_s + 10.0):
        running.kill(signal.SIGKILL)
        if not _wait(running, 5.0):
            raise Timeout(f"process {running.pid} does not end", hint="it may hang in a system call; see ps")
        clear(dir)
    return state(dir)


def state(dir: Path) -> State:
    """What runs in `dir` now; reads files only."""
    running = Identity.read(dir / "shim.json")
    if running is None:
        return State("absent")
    child = Identity.read(dir / "child.json")
    attempt = int((shim.read_record(str(dir / "child.json")) or {}).get("attempt", 0))
    # Looked at before exit.json: a shim that dies in between has written it by then.
    alive = running.alive()
    ended = _exit(dir)
    if alive:
        living = child if child is not None and child.alive() else None
        return State("running", running, living, ended, attempt)
    # A record of an earlier attempt says nothing about the last one.
    if attempt == 0:
        return State("absent", running)
    if ended is not None and ended.started_ms == _started_ms(dir):
        return State("exited", running, None, ended, attempt)
    return State("lost", running, child if child is not None and child.alive() else None, None, attempt)


def clear(dir: Path) -> int:
    """Kill what a dead shim left running in `dir`; returns how many processes. A living shim's child is spared."""
    running, child = Identity.read(dir / "shim.json"), shim.read_record(str(dir / "child.json"))
    if child is None or (running is not None and running.alive()):
        return 0
    groups = (shim.read_record(str(dir / "spec.json")) or {}).get("cgroup") or []
    groups = [groups] if isinstance(groups, str) else list(groups)
    return shim.kill_left(child, shim.all_groups(str(dir), groups))


def renew(dir: Path, deadline_ns: int) -> None:
    """Let the child of a spec with a lease live until `deadline_ns` on `shim.clock_ns`.

    Raises OSError when that cannot be written; the child then ends at its earlier deadline.
    """
    shim.write_record(str(dir / "lease"), {"deadline_ns": deadline_ns})


def _spawn(dir: Path) -> tuple[int, str]:
    argv = [sys.executable, "-I", "-S", "-E", shim.__file__, str(dir)]
    env = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8"}
    with open(os.open(dir / "shim.err", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "wb") as err:
        process = subprocess.Popen(
            argv, env=env, cwd="/", stdin=subprocess.DEVNULL, stdout=err, stderr=err, start_new_session=True
        )
        # A wait with a time limit looks every 50 ms, which is longer than a start: wait on the process itself.
        watchdog = threading.Timer(START_S, process.kill)
        watchdog.start()
        rc = process.wait()
        watchdog.cancel()
    return rc, (dir / "shim.err").read_text("utf-8", "replace").strip()[-500:]


def _starting(dir: Path) -> bool:
    wanted = b"\0".join((shim.__file__.encode(), str(dir.absolute()).encode())) + b"\0"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().endswith(wanted):
                return True
    return False


def _wait(identity: Identity, timeout_s: float) -> bool:
    until_s = time.monotonic() + timeout_s
    while identity.alive():
        if time.monotonic() > until_s:
            return False
        time.sleep(0.01)
    return True


def _exit(dir: Path) -> Exit | None:
    record = shim.read_record(str(dir / "exit.json"))
    try:
        return None if record is None else Exit.model_validate(record)
    except ValidationError:
        return None


def _started_ms(dir: Path) -> int:
    return int((shim.read_record(str(dir / "child.json")) or {}).get("started_ms", 0))
