"""Requests to one workspace of one cell: its token, patience while the control plane restarts, errors as raised there.

What can be repeated without harm is repeated for a few seconds; anything may be tried again when no connection was
made at all. A cell on this machine is reached directly, whatever proxy the environment names.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from lepton_ai.errors import BY_CODE, Failed, Invalid, LeptonError, Timeout, Unavailable
from lepton_ai.settings import is_loopback
from lepton_ai.spec.base import NAME_PATTERN, is_name

PATIENCE_S = 6.0
PAUSE_S = (0.05, 0.5)
TIMEOUT_S = 120.0
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout)


class Connection:
    """HTTP to ``URL/api/v2/workspaces/WORKSPACE``."""

    def __init__(self, url: str, token: str, workspace: str, *, patience_s: float = PATIENCE_S) -> None:
        _check(url, token, workspace)
        self.url, self.workspace = url.rstrip("/"), workspace
        self._base = f"{self.url}/api/v2/workspaces/{quote(workspace, safe='')}"
        self._patience_s = patience_s
        self._http = client(url, headers={"authorization": f"Bearer {token}"} if token else {})

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, **query: Any) -> Any:
        return self.send("GET", path, query=query, again=True)

    def send(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        query: Mapping[str, Any] | None = None,
        content: Callable[[], Any] | None = None,
        again: bool = False,
    ) -> Any:
        """The JSON answer. `content` makes the raw body of each try. `again`: it may be sent twice.

        Raises what the cell raised; Unavailable when it does not answer, Timeout when it takes too long.
        """
        response = self._persistently(method, path, body, query, content, again)
        if response is None:
            return {}
        check(response, self.url)
        try:
            return response.json() if response.content else {}
        except ValueError:
            hint = f"does {self.url} belong to a cell?"
            raise Unavailable(f"{self.url} did not answer in JSON", hint=hint) from None

    @contextmanager
    def stream(self, path: str, query: Mapping[str, Any]) -> Iterator[httpx.Response]:
        """An answer that is read as it comes; raises what the cell raised. Transport errors are httpx's."""
        timeout = httpx.Timeout(TIMEOUT_S, read=None)
        with self._http.stream("GET", self._base + path, params=_given(query), timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
            check(response, self.url)
            yield response

    def health(self) -> dict[str, Any]:
        """What the cell says to anyone, asked once. Raises Unavailable."""
        try:
            response = self._http.get(f"{self.url}/api/health", timeout=5.0)
        except httpx.TransportError as error:
            raise self.away(error) from None
        check(response, self.url)
        return dict(response.json())

    def away(self, error: Exception) -> LeptonError:
        """The error of this package for a connection that failed."""
        if isinstance(error, httpx.ReadTimeout | httpx.WriteTimeout | httpx.PoolTimeout):
            return Timeout(f"{self.url} did not answer within {TIMEOUT_S:g} s", hint="run: lepton doctor")
        cause = str(error) or type(error).__name__
        return Unavailable(f"the control plane at {self.url} does not answer ({cause})", hint="start it: lepton up")

    def _persistently(
        self,
        method: str,
        path: str,
        body: Any,
        query: Mapping[str, Any] | None,
        content: Callable[[], Any] | None,
        again: bool,
    ) -> httpx.Response | None:
        deadline_s, pause_s, tries = time.monotonic() + self._patience_s, PAUSE_S[0], 0
        while True:
            tries += 1
            try:
                response = self._http.request(
                    method,
                    self._base + path,
                    params=_given(query or {}),
                    json=body,
                    content=None if content is None else content(),
                )
                if response.status_code == 404 and method == "DELETE" and tries > 1:
                    return None  # the first try did it, and only its answer was lost
                if response.status_code != 503 or not again or time.monotonic() > deadline_s:
                    return response
            except httpx.TransportError as error:
                may = isinstance(error, _NOT_SENT) or (again and not isinstance(error, httpx.TimeoutException))
                if not may or time.monotonic() > deadline_s:
                    raise self.away(error) from None
            time.sleep(pause_s)
            pause_s = min(pause_s * 1.6, PAUSE_S[1])


def _check(url: str, token: str, workspace: str) -> None:
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and parts.hostname and (parts.port or 1) and httpx.URL(url)
    except (ValueError, httpx.InvalidURL):
        fits = False
    if not fits:
        raise Invalid(f"{url!r} is not the address of a cell", hint="for example http://127.0.0.1:8600")
    if not is_name(workspace):
        raise Invalid(f"{workspace!r} is not a workspace's name", hint=f"names match {NAME_PATTERN}")
    if not token:
        return
    if not (token.isascii() and token.isprintable()) or " " in token:
        raise Invalid("the token holds letters that no token has", hint="copy it again: lepton token add")
    if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
        raise Invalid(
            f"the token would go to {parts.hostname} in plain text, where all who carry it can read it",
            hint="use https://, with tls_cert and tls_key at that cell, or a tunnel to 127.0.0.1",
        )


def client(url: str, headers: Mapping[str, str] | None = None) -> httpx.Client:
    """An HTTP client for `url`; this machine is never asked through a proxy."""
    local = is_loopback(urlsplit(url).hostname or "")
    return httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=not local)


def check(response: httpx.Response, what: str) -> None:
    """Raises the error that an answer stands for."""
    if response.status_code < 400:
        return
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or "message" not in body:
        text = response.text.strip()[:300]
        raise Failed(f"{what} answered {response.status_code}" + (f": {text}" if text else ""), hint="lepton doctor")
    kind = BY_CODE.get(str(body.get("code"))) or _by_status(response.status_code)
    details = body.get("details")
    raise kind(
        str(body["message"]), hint=body.get("hint") or None, details=details if isinstance(details, dict) else None
    )


def part(name: str) -> str:
    """One part of a path."""
    return quote(name, safe="@:")


def _by_status(status: int) -> type[LeptonError]:
    return next((kind for kind in BY_CODE.values() if kind.status == status), Failed)


def _given(query: Mapping[str, Any]) -> dict[str, Any]:
    named = {key: value for key, value in query.items() if value is not None}
    return {key: str(value).lower() if isinstance(value, bool) else value for key, value in named.items()}
