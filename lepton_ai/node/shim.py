"""The shim: a small process that owns one child, so that nothing about it is lost when everything else dies.

Run as ``python -I -S -E shim.py DIR``; only the standard library, so that it starts fast and stays small. It owns the
child's process group, its log and the record of its end, all as files in DIR (see CONTRACT below). It does not decide
what runs or where: that is the agent. The functions before `main` are also used by the agent's side (`identity`,
`launch`), so that both read and kill in the same way.

CONTRACT. Read: spec.json; hold (while it exists no child is started); stop.json {"grace_s", "reason"} (read at TERM);
lease {"deadline_ns"} on `clock_ns` (the child is gone by then); container.json, told.json (see `contain`). Written:
lock (flock while alive), shim.json, child.json, exit.json, log/NNNNNN.log with lines ``<ns> <o|e> <text>``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import resource
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

RECORD_BYTES = 1024
LINE_BYTES = 16 * 1024
READ_BYTES = 256 * 1024
SEGMENTS = 8
LOUDEST_BYTES_S = 200e6
BACKOFF_MIN_S, BACKOFF_MAX_S, HEALTHY_S = 0.05, 5.0, 10.0
DRAIN_S = 0.5
MARK = "LEPTON_AI_SHIM_MARK"
EXIT_LOCKED = 3


def clock_ns() -> int:
    """A clock that never goes back, equal in every process of this boot, and counting through suspend."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def boot_id() -> str:
    """Names this boot of the machine."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        with os.popen("sysctl -n kern.boottime 2>/dev/null") as pipe:
            return "".join(c for c in pipe.read() if c.isalnum())[:40] or "unknown"


def start_ticks(pid: int) -> int | None:
    """When the process started, in a unit of the system's own; None when there is none (a zombie has ended)."""
    if os.path.isdir("/proc/self"):
        fields = stat_fields(pid)
        return None if fields is None else int(fields[19])
    with os.popen(f"ps -o stat=,lstart= -p {int(pid)} 2>/dev/null") as pipe:
        text = pipe.read().strip()
    if not text or text.startswith("Z"):
        return None
    words = text.split()[1:]
    return int.from_bytes(" ".join(words).encode()[:24], "big") % (1 << 53)


def stat_fields(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the third (state) on, or None when the process is gone or a zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(2048)
    except OSError:
        return None
    fields = data[data.rfind(b")") + 2 :].split()
    return None if not fields or fields[0] in (b"Z", b"X", b"x") else fields


def read_record(path: str) -> dict[str, Any] | None:
    """A JSON object that `write_record` wrote; None when it is absent or was torn by a power loss."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def write_record(path: str, value: dict[str, Any], sync: bool = False) -> None:
    """Replace a record in one step; on a full disk overwrite the one that is there.

    The temporary file is not truncated first: `reserve` gives it its blocks while there is room. Identities are not
    synced: after a power loss they name another boot anyway.
    """
    data = json.dumps(value).encode().ljust(RECORD_BYTES)
    try:
        fd = os.open(path + ".tmp", os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            _write_all(fd, data)
            os.ftruncate(fd, len(data))
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(path + ".tmp", path)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not os.path.exists(path):
            raise
        fd = os.open(path, os.O_WRONLY)
        try:
            _write_all(fd, data)
        finally:
            os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def kill_pid(pid: int, ticks: int, number: int) -> bool:
    """Signal the process that started at `ticks`, never another that got its number later."""
    if not hasattr(os, "pidfd_open"):
        if start_ticks(pid) != ticks:
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        return True
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        if start_ticks(pid) != ticks:
            return False
        signal.pidfd_send_signal(fd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(fd)


def all_groups(folder: str, cgroups: list[str]) -> list[str]:
    """`cgroups`, and those that the child says its work is in (as `contain` does)."""
    return [*cgroups, *((read_record(folder + "/container.json") or {}).get("groups") or ())]


def kill_left(child: dict[str, Any], cgroups: list[str]) -> int:
    """Kill what is left of a child: its group, its session, its control groups, and all that carry its mark.

    Repeats until a look finds nothing, so that a fork bomb ends too. Returns how many processes were signalled.
    """
    killed = 0
    for _ in range(200):
        found = list(_members(child, cgroups))
        if not found:
            break
        for pid, ticks in found:
            killed += kill_pid(pid, ticks, signal.SIGKILL)
        time.sleep(0.002)
    return killed


def _members(child: dict[str, Any], cgroups: list[str]) -> Iterator[tuple[int, int]]:
    if child.get("boot_id") != boot_id():
        return
    leader, ticks = int(child["pid"]), int(child["start_ticks"])
    inside: set[int] = set()
    for folder in cgroups:
        with contextlib.suppress(OSError, ValueError), open(folder + "/cgroup.procs", encoding="ascii") as file:
            inside.update(int(line) for line in file)
    if not os.path.isdir("/proc/self"):
        if start_ticks(leader) == ticks:
            with contextlib.suppress(OSError):
                os.killpg(leader, signal.SIGKILL)
            yield leader, ticks
        return
    group = str(leader).encode()
    leads = stat_fields(leader)
    # When the number names another process now, so may the group and the session of that number.
    recycled = leads is not None and int(leads[19]) != ticks
    mark = f"{MARK}={child.get('mark', '')}".encode() + b"\0"
    for name in os.listdir("/proc"):
        fields = stat_fields(int(name)) if name.isdigit() else None
        if fields is None or int(fields[19]) < ticks or int(name) == os.getpid():
            continue
        if int(name) in inside or (not recycled and group in (fields[2], fields[3])) or _marked(name, mark):
            yield int(name), int(fields[19])


def _marked(pid: str, mark: bytes) -> bool:
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return mark in file.read()
    except OSError:
        return False


class Log:
    """Segments of stamped lines, bounded in rate and size; a failure to write never reaches the child."""

    def __init__(self, folder: str, max_bytes: int, rate_bytes_s: int) -> None:
        self.folder, self.max_bytes, self.rate = folder, max(max_bytes, 64 * 1024), max(rate_bytes_s, 1024)
        self.segment_bytes = max(self.max_bytes // SEGMENTS, 8 * 1024)
        self.fd, self.size, self.torn = -1, 0, False
        os.makedirs(folder, 0o700, exist_ok=True)
        names = sorted(name for name in os.listdir(folder) if name.endswith(".log"))
        self.number = int(names[-1][:-4]) if names else 0
        self.last_ns = max((_last_ns(os.path.join(folder, name)) for name in names[-2:]), default=0)
        self.tokens, self.filled_s = float(self.rate), time.monotonic()
        self.rest = {"o": b"", "e": b""}
        self.skip = {"o": False, "e": False}
        self.dropping = False
        self.lost_lines = self.lost_bytes = 0
        self.lost_why = ""

    def feed(self, stream: str, chunk: bytes) -> None:
        """Take what the child wrote; all of it is dropped, and counted, while the rate is over its limit."""
        now = time.monotonic()
        self.tokens = min(float(self.rate), self.tokens + (now - self.filled_s) * self.rate)
        self.filled_s = now
        # Once over the limit, wait until half a second's worth is there: one note for many lines, not one for each.
        if self.tokens <= 0 or (self.dropping and self.tokens < self.rate / 2):
            self.dropping = self.skip[stream] = True
            lost = self.rest[stream] + chunk
            self.rest[stream] = b""
            self._lose(lost, f"over {self.rate} bytes/s")
            time.sleep(len(chunk) / LOUDEST_BYTES_S)  # to throw away must not take a whole core
            return
        self.dropping = False
        self.tokens -= len(chunk)
        if self.skip[stream]:
            head, newline, chunk = chunk.partition(b"\n")
            self._lose(head + newline, self.lost_why)
            self.skip[stream] = not newline
        self.note()
        lines = (self.rest[stream] + chunk).split(b"\n")
        self.rest[stream] = lines.pop()
        if len(self.rest[stream]) >= LINE_BYTES:
            pieces = list(_pieces(self.rest[stream]))
            self.rest[stream] = pieces.pop() if len(pieces[-1]) < LINE_BYTES else b""
            lines += pieces
        self.write(stream, lines)

    def close(self) -> None:
        """Write what came without a newline, and what was lost."""
        for stream, rest in self.rest.items():
            self.rest[stream], self.skip[stream] = b"", False
            if rest:
                self.write(stream, [rest])
        self.note()

    def note(self) -> None:
        if self.lost_bytes:
            text = f"[lepton: {self.lost_lines} lines ({self.lost_bytes} bytes) dropped, {self.lost_why}]"
            self.lost_lines = self.lost_bytes = 0
            self.write("e", [text.encode()])

    def write(self, stream: str, lines: list[bytes]) -> None:
        if not lines:
            return
        if any(len(line) > LINE_BYTES for line in lines):
            lines = [piece for line in lines for piece in _pieces(line)]
        if not _is_text(b"\n".join(lines)):
            lines = [line.decode("utf-8", "replace").encode() for line in lines]
        first = max(self.last_ns + 1, time.time_ns())
        self.last_ns = first + len(lines) - 1
        sign = stream.encode()
        data = b"".join([b"%d %b %b\n" % (first + i, sign, line.rstrip(b"\r")) for i, line in enumerate(lines)])
        done = 0
        try:
            if self.fd < 0 or self.size + len(data) > self.segment_bytes:
                self._rotate()
            if self.torn:
                data = b"\n" + data
            while done < len(data):
                done += os.write(self.fd, data[done:])
            self.torn = False
        except OSError as error:
            self.torn = data[done - 1 : done] != b"\n" if done else self.torn
            self._lose(data[done:], os.strerror(error.errno or 0))
        self.size += done

    def _rotate(self) -> None:
        path = os.path.join(self.folder, f"{self.number + 1:06d}.log")
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        if self.fd >= 0:
            os.close(self.fd)
        self.fd, self.number, self.size, self.torn = fd, self.number + 1, 0, False
        kept = 0
        for name in sorted((n for n in os.listdir(self.folder) if n.endswith(".log")), reverse=True)[1:]:
            path = os.path.join(self.folder, name)
            kept += os.path.getsize(path)
            if kept > self.max_bytes - self.segment_bytes:
                os.unlink(path)

    def _lose(self, data: bytes, why: str) -> None:
        self.lost_bytes += len(data)
        self.lost_lines += data.count(b"\n")
        self.lost_why = why


def _last_ns(path: str) -> int:
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 2 * LINE_BYTES))
        stamps = [line.split(b" ", 1)[0] for line in file.read().split(b"\n")]
    return max((int(stamp) for stamp in stamps if len(stamp) == 19 and stamp.isdigit()), default=0)


def _is_text(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _pieces(line: bytes) -> Iterator[bytes]:
    while len(line) > LINE_BYTES:
        cut = LINE_BYTES
        while cut > LINE_BYTES - 4 and line[cut] & 0xC0 == 0x80:  # not in the middle of a character
            cut -= 1
        yield line[:cut]
        line = line[cut:]
    yield line


class Shim:
    """Starts the child, carries its output into the log, ends it when told, records how it ended."""

    def __init__(self, folder: str, spec: dict[str, Any]) -> None:
        self.folder, self.spec = folder, spec
        groups = spec.get("cgroup") or []
        self.cgroups: list[str] = [groups] if isinstance(groups, str) else list(groups)
        self.log = Log(folder + "/log", spec.get("log_max_bytes", 64 << 20), spec.get("log_rate_bytes_s", 2 << 20))
        self.child: dict[str, Any] = {}
        self.attempt = int((read_record(folder + "/child.json") or {}).get("attempt", 0))
        self.pipes: dict[int, str] = {}
        self.stopping, self.killed, self.kill_at_ns, self.reason = False, False, 0, ""
        self.wake, wake_in = os.pipe()
        for fd in (self.wake, wake_in):
            os.set_blocking(fd, False)
        signal.set_wakeup_fd(wake_in, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    def run(self, ready: Callable[[], None]) -> None:
        """Until the child has ended for good. `ready` is called when the first child is recorded, or held down."""
        backoff_s = BACKOFF_MIN_S
        while True:
            while os.path.exists(self.folder + "/hold") and not self.stopping:
                ready()
                self.wait(0.2)
            if self.stopping:
                return
            began_s = time.monotonic()
            self.start()
            ready()
            while (status := self.ended()) is None:
                self.wait(self.patience_s())
            self.finish(status)
            if self.stopping or self.spec.get("restart") != "always":
                return
            backoff_s = BACKOFF_MIN_S if time.monotonic() - began_s >= HEALTHY_S else backoff_s
            until_s = time.monotonic() + backoff_s
            while not self.stopping and (left_s := until_s - time.monotonic()) > 0:
                self.wait(left_s)
            backoff_s = min(backoff_s * 2, float(self.spec.get("backoff_max_s", BACKOFF_MAX_S)))

    def start(self) -> None:
        """Fork; the child runs the command only after its identity is on disk, so no child is ever unknown."""
        self.attempt += 1
        mark = os.urandom(8).hex()
        (out_r, out_w), (err_r, err_w), (gate_r, gate_w), (fail_r, fail_w) = (os.pipe() for _ in range(4))
        started_ms = time.time_ns() // 1_000_000
        pid = os.fork()
        if pid == 0:
            os.close(gate_w)  # else the gate would never end when the shim dies
            _become(self.spec, self.cgroups, mark, out_w, err_w, gate_r, fail_w)
        for fd in (out_w, err_w, gate_r, fail_w):
            os.close(fd)
        self.child = {"pid": pid, "pgid": pid, "start_ticks": start_ticks(pid) or 0, "boot_id": boot_id(), "mark": mark}
        self.child.update(attempt=self.attempt, started_ms=started_ms)
        self.killed, self.reason = False, ""
        for fd, stream in ((out_r, "o"), (err_r, "e")):
            os.set_blocking(fd, False)
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, 1031, 1 << 20)  # F_SETPIPE_SZ
            self.pipes[fd] = stream
        try:
            write_record(self.folder + "/child.json", self.child)
            os.write(gate_w, b"g")
        except OSError as error:  # the closing gate ends the child before it has run anything
            self.reason = f"cannot record the start: {os.strerror(error.errno or 0)}"
        os.close(gate_w)
        with open(fail_r, "rb") as file:  # ends at the child's exec
            self.reason = file.read(400).decode("utf-8", "replace") or self.reason
        with contextlib.suppress(OSError), open(self.folder + "/exit.json.tmp", "wb") as file:
            file.write(b" " * RECORD_BYTES)  # room for the record of the end, also when the disk is full by then

    def ended(self) -> int | None:
        """The wait status once the child has ended. Its group is killed before its number is given back."""
        pid = self.child["pid"]
        if hasattr(os, "waitid"):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
                return None
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
            return os.waitpid(pid, 0)[1]
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            with contextlib.suppress(OSError):  # at once: no number is given out again within microseconds
                os.killpg(pid, signal.SIGKILL)
        return status if done else None

    def finish(self, status: int) -> None:
        ended_ms = time.time_ns() // 1_000_000
        kill_left(self.child, all_groups(self.folder, self.cgroups))
        until_s = time.monotonic() + DRAIN_S
        while self.pipes and time.monotonic() < until_s:
            self.wait(0.05)
        for fd in list(self.pipes):
            self._close(fd)
        self.log.close()
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
        record = {
            "code": os.WEXITSTATUS(status) if number is None else None,
            "signal": number,
            "out_of_memory": number == signal.SIGKILL and any(_oom_kills(group) for group in self.cgroups),
            "reason": self.reason[:400],
            "started_ms": self.child["started_ms"],
            "ended_ms": max(ended_ms, self.child["started_ms"]),
        }
        told = read_record(self.folder + "/told.json") or {}
        if told.pop("mark", "") == self.child["mark"]:
            record.update(told)
        with contextlib.suppress(OSError):
            write_record(self.folder + "/exit.json", record, sync=True)
        self.child = {}

    def patience_s(self) -> float:
        """How long to wait for the child, after doing what is due: TERM before a lease ends, KILL when it has."""
        now = clock_ns()
        due = self.kill_at_ns
        if self.spec.get("lease_s"):
            lease = read_record(self.folder + "/lease") or {}
            deadline = int(lease.get("deadline_ns", 0))
            early = int(min(self.spec.get("grace_s", 10.0), self.spec["lease_s"] / 3) * 1e9)
            if not self.stopping and now >= deadline - early:
                self.stop("lease lost", kill_at_ns=deadline)
            due = min(self.kill_at_ns, deadline) if self.stopping else deadline - early
        if self.stopping and now >= due and not self.killed:
            self.killed = True
            self._signal(signal.SIGKILL)
        if self.stopping and self.killed:
            return 1.0
        return min(1.0, max(0.0, (due - now) / 1e9)) if due else 3600.0

    def stop(self, reason: str, kill_at_ns: int) -> None:
        self.stopping, self.kill_at_ns = True, kill_at_ns
        self.reason = reason or self.reason
        if kill_at_ns > clock_ns():
            self._signal(signal.SIGTERM)

    def wait(self, timeout_s: float) -> None:
        """Until output, a signal or the time; carries output into the log and takes note of TERM."""
        poll = select.poll()
        for fd in (self.wake, *self.pipes):
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll(max(0, int(timeout_s * 1000) + (timeout_s > 0))):
            if fd != self.wake:
                self._carry(fd)
            elif signal.SIGTERM in os.read(self.wake, 512):
                order = read_record(self.folder + "/stop.json") or {}
                grace_s = float(order.get("grace_s", self.spec.get("grace_s", 10.0)))
                self.stop(str(order.get("reason", "")), clock_ns() + int(grace_s * 1e9))

    def _carry(self, fd: int) -> None:
        try:
            chunk = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        if chunk:
            self.log.feed(self.pipes[fd], chunk)
        else:
            self._close(fd)

    def _close(self, fd: int) -> None:
        del self.pipes[fd]
        os.close(fd)

    def _signal(self, number: int) -> None:
        if self.child:  # not reaped yet, so its number is still its own
            with contextlib.suppress(OSError):
                os.killpg(self.child["pid"], number)


def _become(spec: dict[str, Any], cgroups: list[str], mark: str, out: int, err: int, gate: int, fail: int) -> NoReturn:
    """In the forked child: take on session, limits and environment, wait for the gate, become the command."""
    what = "start"
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGINT, signal.SIGPIPE):
            signal.signal(number, signal.SIG_DFL)
        if os.read(gate, 1) != b"g":
            os._exit(125)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(out, 1)
        os.dup2(err, 2)
        for group in cgroups:
            what = f"join {group}"
            with open(group + "/cgroup.procs", "w", encoding="ascii") as file:
                file.write(str(os.getpid()))
        limits = spec.get("limits") or {}
        _limit(resource.RLIMIT_CORE, 0)
        if limits.get("nofile"):
            _limit(resource.RLIMIT_NOFILE, int(limits["nofile"]))
        if limits.get("memory_mib") and not cgroups and sys.platform == "linux":
            # Counts reserved private memory, of which allocators take more than they touch: hence the slack.
            _limit(resource.RLIMIT_DATA, (2 * int(limits["memory_mib"]) + 512) << 20)
        what = f"enter {spec['cwd']}"
        os.chdir(spec["cwd"])
        os.umask(0o022)
        env = {**spec["env"], MARK: mark}
        what = f"run {spec['argv'][0]!r}"
        os.execvpe(spec["argv"][0], spec["argv"], env)
    except OSError as error:
        os.write(fail, f"cannot {what}: {os.strerror(error.errno or 0)}".encode("utf-8", "replace"))
    except (ValueError, TypeError, KeyError, IndexError) as error:
        os.write(fail, f"cannot {what}: {error}".encode("utf-8", "replace"))
    os._exit(127)


def _limit(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(which, (value, value))


def _oom_kills(group: str) -> bool:
    for name in ("memory.events", "memory.oom_control"):
        with contextlib.suppress(OSError), open(f"{group}/{name}", encoding="ascii") as file:
            for line in file:
                if line.startswith("oom_kill ") and int(line.split()[1]) > 0:
                    return True
    return False


def main(argv: list[str]) -> int:
    """Take the lock, leave the starter's session, clear what a dead predecessor left, run."""
    folder = os.path.abspath(argv[1])
    spec = read_record(folder + "/spec.json")
    if spec is None:
        sys.stderr.write(f"shim: no spec.json in {folder}\n")
        return 2
    os.umask(0o077)
    lock = os.open(folder + "/lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.stderr.write(f"shim: another shim runs in {folder}\n")
        return EXIT_LOCKED
    ready_r, ready_w = os.pipe()
    if os.fork():
        os.close(ready_w)
        os._exit(0 if os.read(ready_r, 1) else 1)
    os.close(ready_r)
    os.setsid()
    os.chdir("/")
    write_record(
        folder + "/shim.json", {"pid": os.getpid(), "start_ticks": start_ticks(os.getpid()), "boot_id": boot_id()}
    )
    old = read_record(folder + "/child.json")
    shim = Shim(folder, spec)
    if old is not None:
        kill_left(old, all_groups(folder, shim.cgroups))
    with contextlib.suppress(OSError):
        os.unlink(folder + "/stop.json")

    def ready() -> None:
        nonlocal ready_w
        if ready_w >= 0:
            with contextlib.suppress(OSError):  # who waited is gone
                os.write(ready_w, b"r")
            os.close(ready_w)
            ready_w = -1

    shim.run(ready)
    for group in shim.cgroups:
        with contextlib.suppress(OSError):  # something in it still dies: the agent tries again
            os.rmdir(group)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
