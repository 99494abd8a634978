"""One request: who asks, for which workspace, with which checked body and query; and its answer or error as JSON.

Owns authentication, roles, the bounds of a JSON body, and the form of every error. Handlers are plain functions of
a `Call` that return JSON values; they run on a thread, because the store blocks. A coroutine handler returns a
Response and must not block.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from lepton_ai.api import idempotency, sight
from lepton_ai.api.cell import Cell
from lepton_ai.api.check import near, parse, validated
from lepton_ai.api.shares import Shares, outside, run_in_threadpool
from lepton_ai.errors import BY_CODE, Conflict, Forbidden, Invalid, LeptonError, NotFound, TooLarge, Unauthorized
from lepton_ai.spec.base import is_name
from lepton_ai.store import Record
from lepton_ai.tenancy import Principal
from lepton_ai.tenancy.access import OF_THE_CELL, Action

BASE = "/api/v2/workspaces/{ws}"
BODY_BYTES_MAX = 1 << 20
SMALL_BYTES = 16 * 1024
BODY_TIMEOUT_S = 60.0
TRIES = 8
"""A write that lost a race is decided anew so often before the caller is told."""

_log = logging.getLogger(__name__)
M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request that was let in. `body` is its JSON value (None without one)."""

    cell: Cell
    request: Request
    principal: Principal
    body: Any = field(default=None, repr=False)

    @property
    def ws(self) -> str:
        return self.principal.workspace

    @property
    def actor(self) -> str:
        return self.principal.token_name

    def path(self, name: str) -> str:
        return str(self.request.path_params[name])

    def form(self, model: type[M], what: str) -> M:
        """The body as `model`; raises Invalid."""
        return validated(model, {} if self.body is None else self.body, what)

    def text(self, name: str, default: str | None = None, limit: int = 1024) -> str | None:
        """A query parameter; raises Invalid when it is longer than `limit`."""
        value = self.request.query_params.get(name)
        if value is not None and (len(value) > limit or "\0" in value):
            raise Invalid(f"query parameter {name} is too long or holds a NUL", hint=f"at most {limit} characters")
        return default if value is None else value

    def number(self, name: str, default: int | None = None, low: int = 0, high: int = 2**63 - 1) -> int | None:
        """A whole number in the query; raises Invalid outside low..high."""
        value = self.text(name)
        if value is None or value == "":
            return default
        if not value.isascii() or not value.isdigit() or len(value) > 19 or not low <= int(value) <= high:
            raise Invalid(f"{name} = {value[:40]!r} is not a number from {low} to {high}", hint=f"for example {name}=1")
        return int(value)

    def flag(self, name: str) -> bool:
        """A truth value in the query; raises Invalid."""
        value = (self.text(name) or "false").lower()
        if value not in ("true", "false", "1", "0"):
            raise Invalid(f"{name} = {value[:40]!r} is neither true nor false", hint=f"for example {name}=true")
        return value in ("true", "1")

    def require(self, action: Action) -> None:
        permit(self.cell, self.principal, action)

    def note(self, action: str, kind: str, name: str, **details: Any) -> None:
        """Leaves an audit entry of a change that was made."""
        self.cell.audit.add(self.ws, self.actor, action, kind, name, details)

    def find(self, kind: str, name: str, command: str = "lepton ps --all") -> Record:
        """The record of this workspace; raises NotFound that names the nearest one, also when it is private."""
        record = self.cell.store.find(self.ws, kind, name) if len(name) <= 255 else None
        if record is None or not sight.sees(self.cell, self.principal, record):
            raise missing(kind, name, sight.names(self.cell, self.principal, kind), command)
        return record

    def seen(self, kind: str) -> list[Record]:
        """The records of a kind of work that are there for who asks."""
        return sight.seen(self.cell, self.principal, self.cell.store.list(kind, workspace=self.ws))


def missing(kind: str, name: str, names: list[str], command: str) -> NotFound:
    best = near(name, names)
    hint = f"did you mean {best}?" if best else f"list them: {command}"
    return NotFound(f"there is no {kind} {name[:80]!r}", hint=hint, details={"kind": kind, "name": name[:255]})


def retried(change: Callable[[], T]) -> T:
    """`change`, which reads and then writes, again when another writer came between; raises Conflict at last."""
    for tried in range(TRIES):
        try:
            return change()
        except Conflict as error:
            if tried == TRIES - 1 or error.details.get("final"):
                raise
            time.sleep(random.random() * 0.002 * 2**tried)
    raise AssertionError("unreachable")


Handler = Callable[[Call], Any] | Callable[[Call], Awaitable[Response]]
First = Callable[[Call], Awaitable[None]]


@dataclass(frozen=True)
class Entry:
    """A route as it was added: what the API's own description is made from."""

    method: str
    path: str
    action: Action
    status: int
    body: bool
    handler: Handler = field(repr=False)
    first: First | None = field(default=None, repr=False)


class Router:
    """The routes of one family: `add` them, then take `routes`; `entries` says what they are."""

    def __init__(self, cell: Cell) -> None:
        self._cell = cell
        self._shares = Shares()
        self.routes: list[Route] = []
        self.entries: list[Entry] = []

    def add(
        self,
        method: str,
        path: str,
        action: Action,
        handler: Handler,
        *,
        status: int = 200,
        body: bool | None = None,
        first: First | None = None,
    ) -> None:
        """`path` below the workspace. `body`: whether JSON is read first (default: for POST, PUT and PATCH).

        `first` is awaited before a handler that is a plain function: what is waited for without holding a thread.
        """
        wants = method in ("POST", "PUT", "PATCH") if body is None else body
        cell, shares = self._cell, self._shares
        entry = Entry(method, path, action, status, wants, handler, first)

        async def endpoint(request: Request) -> Response:
            outside()
            principal = await run_in_threadpool(admit, cell, request, action)
            share = shares.of(principal.workspace)
            share.enter()
            try:
                value = await read(request) if wants else None
                response = await _answer(Call(cell, request, principal, value), entry)
            except BaseException:
                share.leave()
                raise
            return share.until_sent(response)

        self.entries.append(entry)
        self.routes.append(Route(BASE + path, guarded(endpoint), methods=[method]))


async def _answer(call: Call, entry: Entry) -> Response:
    if inspect.iscoroutinefunction(entry.handler):
        response: Response = await entry.handler(call)
        return response
    if entry.first is not None:
        await entry.first(call)
    key = call.request.headers.get(idempotency.HEADER)
    if entry.method != "POST" or key is None:
        return answer(await run_in_threadpool(entry.handler, call), entry.status)
    asked = f"POST {call.request.url.path}?{call.request.url.query}"
    value, replayed = await run_in_threadpool(
        idempotency.once, call.cell, call.principal, key, asked, call.body, lambda: entry.handler(call)
    )
    response = answer(value, entry.status)
    if replayed:
        response.headers[idempotency.REPLAYED] = "true"
    return response


def admit(cell: Cell, request: Request, action: Action) -> Principal:
    """Who asks. Raises Unauthorized, NotFound (another workspace), Forbidden."""
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthorized("a token is missing", hint="send Authorization: Bearer TOKEN (lepton token add NAME)")
    principal = cell.access.authenticate(token.strip())
    workspace = str(request.path_params["ws"])
    if principal.workspace != workspace:
        shown = workspace if is_name(workspace) else workspace[:40]
        raise NotFound(f"this token knows no workspace {shown!r}", hint=f"its workspace is {principal.workspace}")
    permit(cell, principal, action)
    return principal


def permit(cell: Cell, principal: Principal, action: Action) -> None:
    """Raises Forbidden unless the role may do `action`, and what is the cell's only from its first workspace."""
    cell.access.require(principal, action)
    if action in OF_THE_CELL and principal.workspace != cell.workspaces.first:
        hint = f"ask whoever owns the cell (workspace {cell.workspaces.first})"
        raise Forbidden("nodes, volumes and workspaces belong to the cell, not to this workspace", hint=hint)


async def read(request: Request) -> Any:
    """The JSON body, None when it is empty. Raises TooLarge over 1 MiB, Invalid."""
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                data += chunk
                if len(data) > BODY_BYTES_MAX:
                    hint = "large values go into a blob: PUT x/blobs/DIGEST"
                    raise TooLarge(f"the body is over {BODY_BYTES_MAX} bytes", hint=hint)
    except TimeoutError:
        raise Invalid(f"the body did not arrive within {BODY_TIMEOUT_S:g} s", hint="send it at once") from None
    if not data.strip():
        return None
    if len(data) <= SMALL_BYTES:
        return parse(bytes(data))
    # A large body costs its workspace's threads, not everybody's event loop.
    return await run_in_threadpool(parse, bytes(data))


def answer(value: Any, status: int = 200) -> Response:
    """JSON; None is an empty object."""
    try:
        data = msgspec.json.encode({} if value is None else value)
    except UnicodeEncodeError:  # half of a surrogate pair, as JSON may hold it
        data = json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(data, status, {"cache-control": "no-store"}, "application/json")


def refusal(error: LeptonError) -> Response:
    """An error as every client gets it."""
    value = {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}
    text = json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "replace")
    headers = {"cache-control": "no-store"}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in (429, 503):
        headers["retry-after"] = "1"
    return Response(text, error.status, headers, "application/json")


def guarded(endpoint: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
    """`endpoint`, with every failure answered in our form; a bug of ours is logged and told as Internal."""

    async def wrapped(request: Request) -> Response:
        try:
            return await endpoint(request)
        except LeptonError as error:
            return refusal(error)
        except ClientDisconnect:
            return Response(status_code=499)
        except HTTPException as error:
            return refused(error)
        except Exception as error:  # noqa: BLE001 - the last line: a caller gets an answer, the log the traceback
            _log.exception("%s %s", request.method, request.url.path)
            return refusal(LeptonError(f"the control plane failed: {type(error).__name__}", hint="see its log"))

    return wrapped


def refused(error: HTTPException) -> Response:
    """What the framework itself refuses (no such path, no such method) in our form."""
    kinds = {404: NotFound, 413: TooLarge, 401: Unauthorized}
    kind = kinds.get(error.status_code, BY_CODE["InvalidParameter"])
    response = refusal(kind(str(error.detail), hint="paths begin with /api/v2/workspaces/WORKSPACE/"))
    response.status_code = error.status_code
    return response
