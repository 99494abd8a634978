"""The routes of the model server: a bare ASGI application.

Owns HTTP: paths, limits of bodies and of what is in flight, readiness, the shape of an error. Checks of tensors are
in codec, waiting and batching in batch, the model in runtime. Signals and the socket are in __main__.
"""

from __future__ import annotations

import asyncio
import gc
import hmac
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, TypeVar

import msgspec

from lepton_ai import __version__
from lepton_ai.errors import Busy, Failed, Invalid, LeptonError, NotFound, Timeout, TooLarge, Unauthorized, Unavailable
from lepton_ai.serve.batch import Batcher
from lepton_ai.serve.call import Call
from lepton_ai.serve.codec import PIECE_ELEMENTS, Codec
from lepton_ai.serve.metrics import Metrics
from lepton_ai.serve.openapi import openapi
from lepton_ai.serve.runtime import Runtime

logger = logging.getLogger(__name__)
_T = TypeVar("_T")

BODY_BYTES_MAX = 4 * 1024 * 1024
HELD_BYTES_MAX = 256 * 1024 * 1024
"""Bodies (large ones: what they were decoded to) of all requests in flight together; more are refused with Busy."""

ASIDE_BYTES = 64 * 1024
"""A larger body is decoded on a thread beside the event loop: a hand-over costs less than probes that wait."""

BODY_TIMEOUT_S = 30.0
"""A body that has not arrived by then is given up (a slow or stuck client)."""

RETRY_AFTER_S = 1

Scope = dict[str, Any]
Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]


class App:
    """Serves one model. Live at once; ready after ``attach``; not ready again after ``drain``.

    Args:
        token: when given, every route but the health routes wants ``Authorization: Bearer TOKEN``.
        body_bytes_max: a larger body gets 413.
        body_timeout_s: how long a body may take to arrive.
    """

    def __init__(
        self,
        *,
        token: str | None = None,
        body_bytes_max: int = BODY_BYTES_MAX,
        held_bytes_max: int = HELD_BYTES_MAX,
        body_timeout_s: float = BODY_TIMEOUT_S,
    ) -> None:
        self.metrics = Metrics()
        self._bearer = f"Bearer {token}".encode() if token else None
        self._body_bytes_max = body_bytes_max
        self._held_bytes_max = held_bytes_max
        self._body_timeout_s = body_timeout_s
        self._held_bytes = 0
        self._draining = False
        self._json = ThreadPoolExecutor(1, thread_name_prefix="json")  # started when first used
        self._codec: Codec | None = None
        self._batcher: Batcher | None = None
        self._infer_paths: frozenset[str] = frozenset()
        self._pages: dict[str, Callable[[], tuple[int, bytes]]] = {
            "/": self._about,
            "/v2": lambda: (200, _json({"name": "lepton-serve", "version": __version__, "extensions": []})),
            "/v2/health/live": lambda: (200, _json({"live": True})),
            "/v2/health/ready": self._health,
            "/healthz": self._health,
        }
        self._description: dict[str, object] = {"name": "lepton-serve", "version": __version__}

    @property
    def draining(self) -> bool:
        """Whether ``drain`` was called."""
        return self._draining

    @property
    def ready(self) -> bool:
        """Whether requests are accepted and new ones should be sent here."""
        return self._codec is not None and not self._draining

    def attach(
        self,
        runtime: Runtime,
        executor: Executor,
        *,
        name: str,
        version: str,
        rows_max: int = 128,
        waiting_max: int = 1024,
        lone: Callable[[], bool] = lambda: False,
    ) -> None:
        """Serve this warmed-up model from here on (on the event loop's thread)."""
        signature = runtime.signature
        self.metrics.model, self.metrics.version = name, version
        self._batcher = Batcher(
            runtime.run,
            runtime.inline,
            executor,
            batches=runtime.batches,
            rows_max=rows_max,
            waiting_max=waiting_max,
            lone=lone,
            observe=self.metrics.batched,
        )
        self._codec = Codec(signature, name, version)
        public: dict[str, object] = {
            "name": name,
            "versions": [version],
            "platform": "onnxruntime",
            "inputs": [tensor.public for tensor in signature.inputs],
            "outputs": [tensor.public for tensor in signature.outputs],
        }
        self._description = public
        described, document = _json(public), _json(openapi(signature, name, version))
        for base in (f"/v2/models/{name}", f"/v2/models/{name}/versions/{version}"):
            self._pages[base] = lambda: (200, described)
            self._pages[base + "/ready"] = self._model_health
            self._infer_paths |= {base + "/infer"}
        self._pages["/openapi.json"] = lambda: (200, document)

    def drain(self) -> None:
        """Not ready from now on. Requests are still answered, and each answer asks its connection to close."""
        self._draining = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path, method = scope["path"], scope["method"]
            if method == "POST" and (path in self._infer_paths or path == "/"):
                await self._infer(scope, receive, send, plain=path == "/")
            else:
                await self._page(scope, send, path, method)
        elif scope["type"] == "lifespan":
            await _lifespan(receive, send)
        else:
            await send({"type": "websocket.close", "code": 1000})

    async def _infer(self, scope: Scope, receive: Receive, send: Send, *, plain: bool) -> None:
        started = time.perf_counter()
        metrics = self.metrics
        metrics.in_flight += 1
        held = 0
        status, headers = 200, _JSON
        try:
            self._check(scope["headers"])
            codec, batcher = self._codec, self._batcher
            if codec is None or batcher is None:
                raise Unavailable("the model is being loaded", hint="wait until /v2/health/ready answers 200")
            message = await receive()
            body: bytes = message.get("body", b"")
            if message.get("more_body"):
                body = await self._rest(body, receive)
            size = len(body)
            if size > self._body_bytes_max:
                raise self._too_large()
            held = size
            self._held_bytes += size
            if size > ASIDE_BYTES:
                call = await self._aside(_decode_large, codec.decode_plain if plain else codec.decode, body)
                more = max(0, sum([array.nbytes for array in call.arrays]) - size)
                held += more
                self._held_bytes += more
                if self._held_bytes > self._held_bytes_max:
                    raise self._full()
            else:
                call = codec.decode_plain(body) if plain else codec.decode(body)
            results = await batcher.infer(call)
            if codec.answer_elements(results) > PIECE_ELEMENTS:
                answer = await self._aside(codec.encode_plain if plain else codec.encode, call, results)
            else:
                answer = codec.encode_plain(call, results) if plain else codec.encode(call, results)
        except _Gone:
            return
        except LeptonError as error:
            status, answer, headers = _refusal(error)
            metrics.failed(error.code)
        except Exception:
            logger.exception("a request failed in the server")
            status, answer, headers = _refusal(Failed("the server failed; its log says more"))
            metrics.failed(Failed.code)
        finally:
            metrics.in_flight -= 1
            self._held_bytes -= held
        metrics.answered(status, time.perf_counter() - started)
        await self._send(send, status, answer, headers)

    async def _rest(self, first: bytes, receive: Receive) -> bytes:
        """The whole of a body that comes in parts, within the limits of size, of memory and of time."""
        parts = [first]
        size = len(first)
        self._held_bytes += size
        try:
            async with asyncio.timeout(self._body_timeout_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _Gone
                    part = message.get("body", b"")
                    parts.append(part)
                    size += len(part)
                    self._held_bytes += len(part)
                    if size > self._body_bytes_max:
                        raise self._too_large()
                    if self._held_bytes > self._held_bytes_max:
                        raise self._full()
                    if not message.get("more_body"):
                        return b"".join(parts)
        except TimeoutError:
            raise Timeout(
                f"the body did not arrive within {self._body_timeout_s:g} s", hint="send the whole body at once"
            ) from None
        finally:
            self._held_bytes -= size

    def _check(self, headers: list[tuple[bytes, bytes]]) -> None:
        """What can be refused before the body is read."""
        authorized = self._bearer is None
        for key, value in headers:
            if key == b"content-length" and int(value) > self._body_bytes_max:
                raise self._too_large()
            if key == b"content-encoding" and value != b"identity":
                raise Invalid(f"content-encoding {value.decode('latin-1')!r} is not accepted", hint="send plain JSON")
            if key == b"inference-header-content-length":
                raise Invalid("the binary tensor extension is not accepted", hint="send the data as JSON")
            if key == b"authorization" and self._bearer is not None:
                authorized = hmac.compare_digest(value, self._bearer)
        if not authorized:
            raise Unauthorized("this endpoint needs its token", hint="send the header Authorization: Bearer TOKEN")

    async def _aside(self, work: Callable[..., _T], *arguments: object) -> _T:
        """On the thread for large JSON: one, so that at most one body is lists of Python objects at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._json, work, *arguments)

    def _full(self) -> Busy:
        return Busy("the requests in flight use all the memory set aside for them", hint="try again, or add replicas")

    def _too_large(self) -> TooLarge:
        return TooLarge(f"the body is larger than {self._body_bytes_max} bytes", hint="send fewer rows in each request")

    async def _page(self, scope: Scope, send: Send, path: str, method: str) -> None:
        headers = _JSON
        try:
            if path not in _OPEN:
                self._check(scope["headers"])
            page = self._pages.get(path)
            if path == "/metrics":
                text = self.metrics.render(ready=self.ready, waiting=self._batcher.waiting if self._batcher else 0)
                page, headers = (lambda: (200, text.encode())), _TEXT
            if page is None:
                raise self._missing(path)
            if method not in ("GET", "HEAD"):
                status, answer, headers = _refusal(Invalid(f"{method} is not a method of {path}"), status=405)
                headers = (*headers, (b"allow", b"GET, HEAD, POST" if path == "/" else b"GET, HEAD"))
            else:
                status, answer = page()
        except LeptonError as error:
            status, answer, headers = _refusal(error)
        await self._send(send, status, answer, headers)

    def _missing(self, path: str) -> LeptonError:
        if self._codec is None and (path.startswith("/v2/models/") or path == "/openapi.json"):
            return Unavailable("the model is being loaded", hint="wait until /v2/health/ready answers 200")
        if path in self._infer_paths:
            return Invalid("inference is a POST")
        if path.startswith("/v2/models/"):
            name, version = self.metrics.model, self.metrics.version
            return NotFound(
                f"no model at {path[:200]}", hint=f"this replica serves /v2/models/{name}/versions/{version}"
            )
        return NotFound(f"nothing at {path[:200]}", hint="GET / shows what is here")

    async def _send(self, send: Send, status: int, answer: bytes, headers: _Headers) -> None:
        fields = [*headers, (b"content-length", b"%d" % len(answer))]
        # An answer given before the body was read leaves bytes on the connection that nobody wants.
        if self._draining or status in (408, 413, 504):
            fields.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": status, "headers": fields})
        await send({"type": "http.response.body", "body": answer})

    def _about(self) -> tuple[int, bytes]:
        example = {}
        if self._codec is not None:
            inputs: Any = self._description["inputs"]
            example = {tensor["name"]: f"{tensor['datatype']} {tensor['shape'][1:] or ''}".strip() for tensor in inputs}
        return 200, _json(
            {
                **self._description,
                "ready": self.ready,
                "call": {"plain": {"POST": "/", "fields": example}, "v2": sorted(self._infer_paths)},
                "more": ["/openapi.json", "/metrics", "/v2/health/ready"],
            }
        )

    def _health(self) -> tuple[int, bytes]:
        return (200 if self.ready else 503), _json({"ready": self.ready})

    def _model_health(self) -> tuple[int, bytes]:
        return (200 if self.ready else 503), _json({"name": self.metrics.model, "ready": self.ready})


class _Gone(Exception):
    """The client closed its connection before its body was complete."""


def _decode_large(decode: Callable[[bytes], Call], body: bytes) -> Call:
    # A million small lists set the collector off again and again, each time with every thread stopped; JSON makes no
    # cycles, so it has nothing to find here. Only the one thread of `_aside` comes here: nobody else switches it.
    collects = gc.isenabled()
    gc.disable()
    try:
        return decode(body)
    finally:
        if collects:
            gc.enable()


_OPEN = frozenset({"/v2/health/live", "/v2/health/ready", "/healthz"})
_Headers = tuple[tuple[bytes, bytes], ...]
_JSON: _Headers = ((b"content-type", b"application/json"),)
_TEXT: _Headers = ((b"content-type", b"text/plain; version=0.0.4; charset=utf-8"),)
_json = msgspec.json.encode


def _refusal(error: LeptonError, status: int | None = None) -> tuple[int, bytes, _Headers]:
    """Status, body and headers of an error; ``error`` repeats the message where V2 clients look for it."""
    body: dict[str, object] = {"code": error.code, "message": error.message}
    if error.hint is not None:
        body["hint"] = error.hint
    body["error"] = error.message
    status = error.status if status is None else status
    if isinstance(error, Timeout):
        status = 408  # the client was late, not something behind this server
    retry = ((b"retry-after", b"%d" % RETRY_AFTER_S),) if status in (429, 503) else ()
    return status, _json(body), (*_JSON, *retry)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        kind = (await receive())["type"]
        await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return
