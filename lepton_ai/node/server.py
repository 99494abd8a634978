"""The agent's verbs over HTTP: a bare ASGI application, JSON in and out, one token.

Owns paths, status codes and streams. Decides nothing: that is the agent.

    PUT    /v1/replicas/UID                 ReplicaSpec                       202 ReplicaReport
    DELETE /v1/replicas/UID?grace_s=        idempotent                        202
    POST   /v1/replicas/UID/forget          an ended one                      200
    GET    /v1/replicas/UID/log             ?start_ns=&end_ns=&follow=true    NDJSON {"ns", "stream", "line"}
    GET    /v1/usage                                                          NodeReport
    GET    /v1/watch                        at once, at every change, 0.5 s   NDJSON of NodeReport
    POST   /v1/keepalive                                                      200
Changes carry X-Lepton-Epoch. Errors are {"code", "message", "hint", "details"} with the error's status.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs

from pydantic import ValidationError

from lepton_ai.errors import Conflict, Invalid, LeptonError, NotFound, TooLarge, Unauthorized
from lepton_ai.node.agent import Agent
from lepton_ai.spec.replica import ReplicaSpec

MAX_BODY_BYTES = 1 << 20
COALESCE_S = 0.01
HEARTBEAT_S = 0.5
LOG_BATCH = 512

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_log = logging.getLogger(__name__)


class Server:
    """An ASGI application over one agent. `closing` ends its streams, so that a server can stop."""

    def __init__(self, agent: Agent, token: str) -> None:
        self._agent, self._token = agent, token.encode()
        self.closing = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        call = _Call(scope, receive, send)
        try:
            self._authenticate(call)
            await self._route(call)
        except LeptonError as error:
            await call.fail(error)
        except Exception as error:  # noqa: BLE001 - the last line: a caller gets an answer, the log the traceback
            _log.exception("%s %s", scope["method"], scope["path"])
            await call.fail(LeptonError(f"the agent failed: {type(error).__name__}", hint="see the agent's log"))

    def _authenticate(self, call: _Call) -> None:
        given = call.header(b"authorization")
        if not hmac.compare_digest(given, b"Bearer " + self._token):
            raise Unauthorized("the agent's token is missing or wrong", hint="send Authorization: Bearer AGENT_TOKEN")

    async def _route(self, call: _Call) -> None:
        agent, parts = self._agent, tuple(call.path.strip("/").split("/"))
        match (call.method, parts):
            case ("GET", ("v1", "usage")):
                await call.answer(200, agent.usage().model_dump_json().encode())
            case ("GET", ("v1", "watch")):
                await call.stream(self._watch(), self.closing)
            case ("POST", ("v1", "keepalive")):
                await agent.keepalive(call.epoch())
                await call.answer(200)
            case ("PUT", ("v1", "replicas", uid)):
                epoch = call.epoch()
                report = await agent.apply(_spec(await call.body(), uid), epoch)
                await call.answer(202, report.model_dump_json().encode())
            case ("DELETE", ("v1", "replicas", uid)):
                await agent.stop(uid, call.number("grace_s"), call.epoch())
                await call.answer(202)
            case ("POST", ("v1", "replicas", uid, "forget")):
                await agent.forget(uid, call.epoch())
                await call.answer(200)
            case ("GET", ("v1", "replicas", uid, "log")):
                agent.check(uid)
                start, end = call.integer("start_ns") or 0, call.integer("end_ns")
                follow = call.query("follow") in ("true", "1")
                await call.stream(self._lines(uid, start, end, follow), self.closing)
            case _:
                raise NotFound(f"the agent has no {call.method} {call.path}", hint="its protocol is version 1")

    async def _watch(self) -> AsyncIterator[bytes]:
        while True:
            version = self._agent.version
            yield self._agent.usage().model_dump_json().encode() + b"\n"
            if await self._agent.wait(version, HEARTBEAT_S) != version:
                await asyncio.sleep(COALESCE_S)

    async def _lines(self, uid: str, start: int, end: int | None, follow: bool) -> AsyncIterator[bytes]:
        # Batches are closed by size only when nothing waits: a follower sees a line as soon as it is read.
        batch: list[bytes] = []
        async for line in self._agent.logs(uid, start, end, follow):
            batch.append(json.dumps(line._asdict()).encode() + b"\n")
            if follow or len(batch) >= LOG_BATCH:
                yield b"".join(batch)
                batch.clear()
        yield b"".join(batch)


class _Call:
    """One request and its answer."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.method, self.path = str(scope["method"]), str(scope["path"])
        self._headers: dict[bytes, bytes] = dict(scope["headers"])
        self._query: dict[str, list[str]] = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        self._receive, self._send = receive, send
        self._begun = False

    def header(self, name: bytes) -> bytes:
        return self._headers.get(name, b"")

    def query(self, name: str) -> str | None:
        values = self._query.get(name)
        return values[-1] if values else None

    def epoch(self) -> int:
        text = self.header(b"x-lepton-epoch")
        if not text.isdigit() or len(text) > 18:
            raise Invalid("the header X-Lepton-Epoch is missing or no number", hint="send the leader's epoch")
        return int(text)

    def integer(self, name: str) -> int | None:
        text = self.query(name)
        if not text:
            return None
        if not text.isascii() or not text.isdigit() or len(text) > 19:
            raise Invalid(f"{name} is {text[:40]!r}, not a number of nanoseconds")
        return int(text)

    def number(self, name: str) -> float | None:
        text = self.query(name)
        if not text:
            return None
        try:
            return float(text)
        except ValueError:
            raise Invalid(f"{name} is {text[:40]!r}, not a number", hint="give seconds, e.g. 10") from None

    async def body(self) -> bytes:
        data, more = bytearray(), True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise Conflict("the caller went away")
            data += message.get("body", b"")
            more = message.get("more_body", False)
            if len(data) > MAX_BODY_BYTES:
                raise TooLarge(f"the body is over {MAX_BODY_BYTES} bytes", hint="put large values into a blob")
        return bytes(data)

    async def answer(self, status: int, body: bytes = b"{}") -> None:
        self._begun = True
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def fail(self, error: LeptonError) -> None:
        if self._begun:
            return  # a stream that broke: the caller sees that it was cut off
        value = {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}
        await self.answer(error.status, json.dumps(value, default=str).encode())

    async def stream(self, parts: AsyncIterator[bytes], closing: asyncio.Event) -> None:
        """Send parts until they end, the caller goes away, or the server closes."""
        self._begun = True
        headers = [(b"content-type", b"application/x-ndjson"), (b"cache-control", b"no-store")]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        sending = asyncio.create_task(self._pump(parts))
        others = [asyncio.create_task(self._gone()), asyncio.create_task(closing.wait())]
        try:
            await asyncio.wait([sending, *others], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (sending, *others):
                task.cancel()
            results = await asyncio.gather(sending, *others, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]
        with contextlib.suppress(OSError):
            await self._send({"type": "http.response.body", "body": b""})

    async def _pump(self, parts: AsyncIterator[bytes]) -> None:
        async for part in parts:
            if part:
                await self._send({"type": "http.response.body", "body": part, "more_body": True})

    async def _gone(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass


def _spec(body: bytes, uid: str) -> ReplicaSpec:
    try:
        spec = ReplicaSpec.model_validate_json(body)
    except ValidationError as error:
        # Without the input: it may hold secrets.
        found = error.errors(include_url=False, include_input=False, include_context=False)
        first = found[0]
        where = ".".join(map(str, first["loc"])) or "the body"
        raise Invalid(
            f"{where}: {first['msg']}", hint="send a ReplicaSpec as JSON", details={"errors": found[:20]}
        ) from None
    if spec.uid != uid:
        raise Invalid(f"the path names replica {uid[:80]!r}, the body {spec.uid[:80]!r}", hint="they must be equal")
    return spec
