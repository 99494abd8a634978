"""Bring a blob here and believe nothing about it: `fetch` streams it, and keeps it only if digest and size hold.

Owns the transfer of one blob over http(s) or from a file URL. Standard library only: it runs in every agent.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import ipaddress
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from lepton_ai.blobs.local import LocalBlobs, Readable
from lepton_ai.errors import Corrupt, Invalid, NotFound, Unavailable

TIMEOUT_S = 30.0


class Client(Protocol):
    """Opens a URL as a stream of its body; raises OSError or http.client.HTTPException when it cannot."""

    def __call__(self, url: str, headers: Mapping[str, str], timeout_s: float) -> AbstractContextManager[Readable]: ...


def fetch(
    url: str,
    headers: Mapping[str, str],
    digest: str,
    size_bytes: int,
    into: LocalBlobs,
    client: Client | None = None,
) -> Path:
    """The blob's file in `into`, transferred unless an unchanged copy is there. Blocks; one silence is at most 30 s.

    Raises:
        Corrupt: what came is not what `digest` and `size_bytes` say.
        NotFound: there is nothing at `url`. Unavailable: it does not answer, refuses, or breaks off.
        DiskFull: no room. Invalid: a scheme other than http, https, file.
    """
    if into.has(digest):
        if into.intact(digest):
            return into.path(digest)
        into.delete(digest)
    parts = urlsplit(url)
    place = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # no query: it may be a signature
    if parts.scheme == "file":
        source = Path(unquote(parts.path))
        if not source.is_file():
            raise NotFound(f"no blob at {place}")
        into.put(source, digest=digest, size_bytes=size_bytes)
        return into.path(digest)
    if parts.scheme not in ("http", "https"):
        raise Invalid(f"cannot fetch from {place}", hint="use http, https or file")
    try:
        with (client or _open)(url, headers, TIMEOUT_S) as body:
            into.put(body, digest=digest, size_bytes=size_bytes)
    except urllib.error.HTTPError as error:
        with contextlib.closing(error):
            if error.code in (404, 410):
                raise NotFound(f"no blob at {place}") from error
            raise Unavailable(f"{place} answered {error.code}", details={"status": error.code}) from error
    except (http.client.HTTPException, urllib.error.URLError, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unavailable(f"{place} broke off: {reason}", hint="it is tried again when the work is") from error
    except Corrupt as error:
        raise Corrupt(f"{place}: {error.message}", hint=error.hint) from error
    return into.path(digest)


class _Redirect(urllib.request.HTTPRedirectHandler):
    """Follows redirects, but gives the caller's headers (a token) to the first host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: object, code: int, msg: str, headers: object, newurl: str
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if new is not None and urlsplit(newurl)[:2] != urlsplit(req.full_url)[:2]:
            new.headers.clear()
        return new


def trusting(ca: Path) -> Client:
    """A client that believes the authority in `ca` (PEM) too, besides those of the system. Raises OSError."""
    context = ssl.create_default_context()
    context.load_verify_locations(ca)
    return functools.partial(_open, context=context)


def _open(
    url: str, headers: Mapping[str, str], timeout_s: float, context: ssl.SSLContext | None = None
) -> AbstractContextManager[Readable]:
    handlers: list[urllib.request.BaseHandler] = [_Redirect()]
    if context is not None:
        handlers.append(urllib.request.HTTPSHandler(context=context))
    if _is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))  # a proxy could not reach this machine's own address
    opener = urllib.request.build_opener(*handlers)
    answer: AbstractContextManager[Readable] = opener.open(
        urllib.request.Request(url, headers=dict(headers)), timeout=timeout_s
    )
    return answer


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
