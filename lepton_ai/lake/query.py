"""The caller's side of SQL: a sealed worker process, started when needed, limited, and killed when it overstays.

Owns the process and the protocol: frames of 4 bytes of length (big-endian) and JSON, on stdin and stdout. It loads
no data engine, so a control plane can ask without paying for one. What the worker does is `sealed`'s.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lepton_ai.errors import BY_CODE, Failed, Invalid, TooLarge, Unavailable
from lepton_ai.errors import Timeout as TimedOut

FRAME_BYTES_MAX = 64 << 20
SQL_BYTES_MAX = 1 << 20
START_S = 60.0
GRACE_S = 1.0
"""how much longer than its time limit a worker may take to say that it was interrupted"""
WATCH_S = 0.05
PROVIDERS = {"s3": "AWS_", "gs": "GOOGLE_", "az": "AZURE_"}


@dataclass(frozen=True, slots=True)
class Limits:
    """What one query may use. Beyond `memory_mib` (whole process) and `timeout_s` the worker is killed."""

    timeout_s: float = 30.0
    memory_mib: int = 1024
    rows_max: int = 10_000
    answer_bytes_max: int = 16 << 20

    def __post_init__(self) -> None:
        if not (0 < self.timeout_s <= 3600 and self.memory_mib >= 256 and self.rows_max >= 1):
            hint = "timeout_s up to 3600, memory_mib at least 256, rows_max at least 1"
            raise Invalid(f"{self} cannot be kept", hint=hint)
        if not 1024 <= self.answer_bytes_max <= FRAME_BYTES_MAX:
            raise Invalid(f"answer_bytes_max = {self.answer_bytes_max} is out of range", hint="use 1024 to 67108864")


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of JSON values. Times are ISO 8601 text, decimals, non-finite and huge numbers text, bytes hexadecimal."""

    columns: list[str]
    types: list[str]
    rows: list[list[Any]]
    truncated: bool
    """whether there were more rows than `rows_max`"""
    tables: list[str]
    """the table versions that were read: ratings@2"""
    elapsed_ms: float


class QueryWorker:
    """SQL over the lake at `url`. One query at a time; a dead worker is replaced at the next one. Thread-safe."""

    def __init__(self, url: str, *, limits: Limits | None = None) -> None:
        self.url = url
        self.limits = limits or Limits()
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def query(self, sql: str, limits: Limits | None = None) -> Answer:
        """Runs one reading statement; tables go by name, `ratings@2` is version 2.

        Raises Invalid (does not parse, unknown names, not a reading statement), NotFound (table or version),
        Forbidden (reaches outside), Corrupt, TooLarge (memory or answer), Timeout, Unavailable.
        """
        limits = limits or self.limits
        if len(sql.encode("utf-8", "replace")) > SQL_BYTES_MAX:
            raise TooLarge(f"the query is longer than {SQL_BYTES_MAX} bytes", hint="put its data into a table")
        reply = self._ask({"do": "query", "sql": sql, "limits": asdict(limits)}, limits)
        return Answer(**reply)

    def tables(self) -> list[dict[str, Any]]:
        """Every table: {"name", "version", "rows", "size_bytes", "columns", "created_ms", "error"}.

        `error` says what is wrong with a table that cannot be read; its other values are then null.
        """
        return list(self._ask({"do": "tables"}, self.limits)["tables"])

    def history(self, table: str) -> list[dict[str, Any]]:
        """The versions of a table, newest first. Raises NotFound, Corrupt."""
        return list(self._ask({"do": "history", "table": table}, self.limits)["history"])

    @property
    def pid(self) -> int | None:
        """The worker's process, while there is one."""
        return self._process.pid if self._process is not None else None

    def close(self) -> None:
        """Ends the worker."""
        with self._lock:
            self._kill()

    def __enter__(self) -> QueryWorker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _ask(self, request: dict[str, Any], limits: Limits) -> dict[str, Any]:
        with self._lock:
            process = self._running()
            deadline_s = time.monotonic() + limits.timeout_s + GRACE_S
            try:
                _send(process, json.dumps(request).encode())
                reply = json.loads(self._receive(process, deadline_s, limits))
            except BaseException:
                # Also on Ctrl-C: a worker in the middle of an answer can never be asked again.
                self._kill()
                raise
        if "error" in reply:
            error = reply["error"]
            kind = BY_CODE.get(error["code"], Failed)
            raise kind(error["message"], hint=error["hint"], details=error["details"])
        return dict(reply)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        self._kill()
        command = [sys.executable, "-m", "lepton_ai.lake", "--url", self.url]
        try:
            # stderr is dropped: what the worker has to say travels in frames. A session of its own keeps Ctrl-C away.
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, cwd="/", bufsize=0,
                env=_environment(self.url), start_new_session=True, close_fds=True,
            )  # fmt: skip
        except OSError as error:
            raise Unavailable(f"the query worker does not start: {error.strerror}", hint="run: lepton doctor") from None
        try:
            hello = json.loads(self._receive(self._process, time.monotonic() + START_S, Limits(memory_mib=1 << 20)))
        except BaseException:
            self._kill()
            raise
        assert hello == {"ready": True}, hello
        return self._process

    def _receive(self, process: subprocess.Popen[bytes], deadline_s: float, limits: Limits) -> bytes:
        """One frame. Kills the worker (through the caller's cleanup) for time, memory or a broken pipe."""
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        data = bytearray()
        wanted = 4
        while len(data) < wanted:
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                hint = "select less, or raise the limit: Limits(timeout_s=…)"
                raise TimedOut(f"the query took longer than {limits.timeout_s:g} s and was stopped", hint=hint)
            if not select.select([descriptor], [], [], min(WATCH_S, left_s))[0]:
                _check_memory(process.pid, limits.memory_mib)
                continue
            piece = os.read(descriptor, min(1 << 20, wanted - len(data)))
            if not piece:
                status = process.wait(timeout=10)
                hint = "ask again; if it happens again, select less or raise Limits(memory_mib=…)"
                raise Unavailable(f"the query worker died ({_status(status)})", hint=hint)
            data += piece
            if wanted == 4 and len(data) == 4:
                wanted += int.from_bytes(data)
                if wanted - 4 > FRAME_BYTES_MAX:
                    raise TooLarge(f"the answer is larger than {FRAME_BYTES_MAX} bytes", hint="select less")
        return bytes(data[4:])

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _send(process: subprocess.Popen[bytes], payload: bytes) -> None:
    assert process.stdin is not None
    view = memoryview(len(payload).to_bytes(4) + payload)
    try:
        while view:
            view = view[process.stdin.write(view) :]
    except BrokenPipeError:
        raise Unavailable("the query worker died", hint="ask again") from None


def _check_memory(pid: int, memory_mib: int) -> None:
    import psutil

    try:
        used_mib = psutil.Process(pid).memory_info().rss >> 20
    except psutil.Error:
        return
    if used_mib > memory_mib:
        hint = "select less, or raise the limit: Limits(memory_mib=…)"
        raise TooLarge(f"the query took {used_mib} MiB of memory, more than {memory_mib}, and was stopped", hint=hint)


def _environment(url: str) -> dict[str, str]:
    """Only what an interpreter needs, and what opens the lake's own bucket: no other secret reaches the worker."""
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH", "TZ", "SYSTEMROOT") if name in os.environ}
    prefix = PROVIDERS.get(url.partition("://")[0], "\0")
    kept |= {name: value for name, value in os.environ.items() if name.startswith(prefix)}
    # The worker must find this package where the caller found it, installed or not.
    package = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": package, "PYTHONUNBUFFERED": "1", "LC_ALL": "C.UTF-8", "HOME": "/nonexistent"}


def _status(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"exit {status}"
