"""An HTTP load generator that checks every answer: open loop (arrivals do not wait for answers) or closed loop.

Owns the sending, the checking and the counting; it knows nothing of cells. Run as a process of its own
(``python -m lepton_ai.demo.load PLAN.json``) so that what it measures does not share an interpreter with what it
watches; it prints ``started`` when the first request is out and writes a JSON result when the time is over or on
TERM. Latency in the open loop counts from the moment a request was due (no coordinated omission, after G. Tene's
wrk2); at most `connections` requests are on the wire at once, the others wait here, and that wait counts too. A
connection that the server closed while idle is opened anew, as any HTTP client does; a request that breaks on the
wire is `broken`, and is sent once more on a new connection only when the plan says so: what fails after that is
`failed`. Both are always counted, and sent = ok + failed: a request without an answer at the end failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import math
import random
import signal
import ssl
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

REQUEST_TIMEOUT_S = 15.0
SLICE_MS = 100
RETRY_PAUSE_S = 0.05
_MISSING = object()


@dataclass
class Plan:
    """What to send. `bodies[i]` is posted as JSON and the answer must hold `expected[i]` under key `check`.

    `rate_per_s` > 0: open loop with Poisson arrivals; 0: closed loop on `connections` connections.
    """

    url: str
    bodies: list[str]
    expected: list[object]
    check: str
    out: str
    rate_per_s: float = 0.0
    connections: int = 64
    duration_s: float = 10.0
    retry: bool = False
    seed: int = 42
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Result:
    """What was sent and what came back. Times are milliseconds; `slices` counts per 100 ms of due time."""

    sent: int = 0
    ok: int = 0
    broken: int = 0
    retried_ok: int = 0
    failed: int = 0
    wrong: int = 0
    started_ms: int = 0
    seconds: float = 0.0
    rate_per_s: float = 0.0
    latency_ms_p50: float = 0.0
    latency_ms_p95: float = 0.0
    latency_ms_p99: float = 0.0
    latency_ms_max: float = 0.0
    longest_gap_ms: float = 0.0
    reasons: dict[str, int] = field(default_factory=dict)
    broken_at_ms: list[int] = field(default_factory=list)
    slices: list[list[int]] = field(default_factory=list)


class Load:
    """One run of a plan."""

    def __init__(self, plan: Plan) -> None:
        parts = urlsplit(plan.url)
        self.plan = plan
        # By the system's authorities, or those of SSL_CERT_FILE.
        self.tls = ssl.create_default_context() if parts.scheme == "https" else None
        self.host, self.port = parts.hostname or "127.0.0.1", parts.port or (443 if self.tls else 80)
        extra = "".join(f"{key}: {value}\r\n" for key, value in plan.headers.items())
        head = f"POST {parts.path or '/'} HTTP/1.1\r\nHost: {parts.netloc}\r\nContent-Type: application/json\r\n{extra}"
        self.requests = [
            f"{head}Content-Length: {len(body.encode())}\r\n\r\n".encode() + body.encode() for body in plan.bodies
        ]
        self.result = Result()
        self.latencies_ms: list[float] = []
        self.answered_at: list[float] = []
        self.idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self.pending: set[asyncio.Task[None]] = set()
        self.free = asyncio.Semaphore(plan.connections)
        self.stop = asyncio.Event()
        self.begin = 0.0

    async def run(self) -> Result:
        self.result.started_ms = time.time_ns() // 1_000_000
        self.begin = time.perf_counter()
        print("started", flush=True)
        if self.plan.rate_per_s > 0:
            await self._open_loop()
        else:
            await asyncio.gather(*(self._closed_loop(i) for i in range(self.plan.connections)))
        if self.pending:
            await asyncio.wait(self.pending, timeout=REQUEST_TIMEOUT_S * 2 + 5)
        for task in self.pending:
            task.cancel()
        self.result.seconds = time.perf_counter() - self.begin
        for _, writer in self.idle:
            writer.close()
        return self._summary()

    async def _open_loop(self) -> None:
        rng = random.Random(self.plan.seed)
        due, index = self.begin, 0
        end = self.begin + self.plan.duration_s
        while due < end and not (index and self.stop.is_set()):  # told to stop at once, it has still asked once
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._one(index % len(self.requests), due))
            self.pending.add(task)
            task.add_done_callback(self.pending.discard)
            index += 1
            due += rng.expovariate(self.plan.rate_per_s)

    async def _closed_loop(self, worker: int) -> None:
        index = worker * 7919
        end = self.begin + self.plan.duration_s
        while time.perf_counter() < end and not self.stop.is_set():
            await self._one(index % len(self.requests), time.perf_counter())
            index += 1

    async def _one(self, index: int, due: float) -> None:
        self.result.sent += 1
        outcome = await self._attempt(index)
        if outcome.startswith("broken"):
            self.result.broken += 1
            if len(self.result.broken_at_ms) < 1000:
                self.result.broken_at_ms.append(int((time.perf_counter() - self.begin) * 1000))
            if self.plan.retry:
                # Not at once: the sockets of a process that is dying close one after another.
                await asyncio.sleep(RETRY_PAUSE_S)
                outcome = await self._attempt(index, fresh=True)
                self.result.retried_ok += outcome == "ok"
        now = time.perf_counter()
        latency_ms = (now - due) * 1000
        slot = int((due - self.begin) * 1000 / SLICE_MS)
        while len(self.result.slices) <= slot:
            self.result.slices.append([0, 0, 0])
        cell = self.result.slices[slot]
        cell[0] += 1
        cell[2] = max(cell[2], int(latency_ms))
        if outcome == "ok":
            self.result.ok += 1
            self.latencies_ms.append(latency_ms)
            self.answered_at.append(now)
            return
        cell[1] += 1
        self.result.failed += 1
        self.result.wrong += outcome.startswith("wrong")
        key = outcome[:160]
        if key in self.result.reasons or len(self.result.reasons) < 50:
            self.result.reasons[key] = self.result.reasons.get(key, 0) + 1

    async def _attempt(self, index: int, *, fresh: bool = False) -> str:
        """ "ok", or why not: "broken: ..." on the wire, "status ...", "wrong answer ..."."""
        try:
            async with self.free, asyncio.timeout(REQUEST_TIMEOUT_S):
                return await self._exchange(index, fresh)
        except TimeoutError:
            return "broken: no answer in time"
        except asyncio.IncompleteReadError as error:
            return f"broken: closed {'in the middle of' if error.partial else 'before'} an answer"
        except (OSError, asyncio.LimitOverrunError, ValueError) as error:
            return f"broken: {type(error).__name__}"
        except Exception as error:  # noqa: BLE001  # whatever it is, this request was not answered rightly
            return f"wrong answer: {type(error).__name__}"

    async def _exchange(self, index: int, fresh: bool) -> str:
        reader, writer = await self._connection(fresh)
        try:
            writer.write(self.requests[index])
            head = await reader.readuntil(b"\r\n\r\n")
            status = int(head[9:12])
            length, keep = 0, True
            for line in head[:-4].split(b"\r\n")[1:]:
                name, _, value = line.partition(b":")
                name = name.lower()
                if name == b"content-length":
                    length = int(value)
                elif name == b"connection" and value.strip().lower() == b"close":
                    keep = False
            body = await _body(reader, length)
        except BaseException:
            writer.close()
            raise
        if keep:
            self.idle.append((reader, writer))
        else:
            writer.close()
        if status != 200:
            return f"status {status}: {body[:100].decode('utf-8', 'replace')}"
        try:
            answer = json.loads(body)
        except ValueError:
            return "wrong answer: not JSON"
        if not isinstance(answer, dict) or answer.get(self.plan.check, _MISSING) != self.plan.expected[index]:
            return "wrong answer: not this row's"
        return "ok"

    async def _connection(self, fresh: bool) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        while self.idle and not fresh:
            reader, writer = self.idle.pop()
            if not (reader.at_eof() or reader.exception() or writer.is_closing()):
                return reader, writer
            writer.close()
        return await asyncio.open_connection(self.host, self.port, ssl=self.tls)

    def _summary(self) -> Result:
        result = self.result
        lost = result.sent - result.ok - result.failed
        assert lost >= 0
        if lost:
            result.failed += lost
            result.reasons["no answer when the run ended"] = lost
        result.rate_per_s = result.ok / result.seconds if result.seconds else 0.0
        ordered = sorted(self.latencies_ms)
        if ordered:

            def at(share: float) -> float:
                return round(quantile(ordered, share), 3)

            result.latency_ms_p50, result.latency_ms_p95 = at(0.50), at(0.95)
            result.latency_ms_p99, result.latency_ms_max = at(0.99), round(ordered[-1], 3)
            times = sorted(self.answered_at)
            gaps = [after - before for before, after in itertools.pairwise(times)]
            result.longest_gap_ms = round(max(gaps, default=0.0) * 1000, 1)
        return result


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest of `values` that at least `share` of all do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


async def _body(reader: asyncio.StreamReader, length: int) -> bytes:
    try:
        return await reader.readexactly(length)
    except asyncio.IncompleteReadError as error:
        raise asyncio.IncompleteReadError(error.partial or b"head", length) from None


async def _main(plan: Plan) -> None:
    load = Load(plan)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, load.stop.set)
    result = await load.run()
    out = Path(plan.out)
    temporary = out.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(result)))
    temporary.rename(out)


def main(path: str) -> None:
    """Run the plan in the file at `path`."""
    plan = Plan(**json.loads(Path(path).read_text()))
    with contextlib.suppress(ImportError):
        import uvloop

        uvloop.run(_main(plan))
        return
    asyncio.run(_main(plan))


if __name__ == "__main__":
    main(sys.argv[1])
