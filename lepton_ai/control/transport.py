"""How an agent is reached: plain HTTP on this machine, else TLS with certificates of the cell's own authority.

Owns the rule that nothing plain leaves loopback, and the contexts. No authority of the system is trusted: what a
public one signed for a node's name says nothing here.
"""

from __future__ import annotations

import functools
import os
import ssl
from dataclasses import dataclass
from typing import Any

import httpx

from lepton_ai.errors import Unavailable
from lepton_ai.settings import is_loopback


@dataclass(frozen=True, slots=True)
class NodeTls:
    """Files of the cell's authority and of the certificate that is shown; `host` is the name the node's must have."""

    ca: str
    cert: str
    key: str
    host: str


@dataclass(frozen=True, slots=True)
class Where:
    """An agent's base URL, the headers it wants, and what its certificate is checked by (None: plain)."""

    base: str
    headers: dict[str, str]
    tls: NodeTls | None = None

    @property
    def extensions(self) -> dict[str, Any]:
        """For every request of httpx: the certificate must have the node's name, wherever the node is."""
        return {} if self.tls is None else {"sni_hostname": self.tls.host}

    def verify(self) -> ssl.SSLContext | bool:
        """What httpx calls `verify`. A client that loads the system's certificates would cost more than it fetches.

        Raises Unavailable when the files cannot be used.
        """
        return False if self.tls is None else context(self.tls)


def where(address: str, port: int, token: str, tls: NodeTls | None) -> Where:
    """Raises Unavailable where plain HTTP would leave this machine."""
    if tls is None and not is_loopback(address):
        raise Unavailable(
            f"its agent is at {address}, beyond this machine, and plain HTTP is not spoken there",
            hint="give the node a certificate: see cluster = static:// in lepton config",
        )
    host = f"[{address}]" if ":" in address else address
    scheme = "http" if tls is None else "https"
    return Where(f"{scheme}://{host}:{port}", {"authorization": f"Bearer {token}"}, tls)


def context(tls: NodeTls) -> ssl.SSLContext:
    """Verifies by the cell's authority only. Raises Unavailable."""
    try:
        return _context(tls, tuple(os.stat(path).st_mtime_ns for path in (tls.ca, tls.cert, tls.key)))
    except (OSError, ssl.SSLError) as error:
        raise Unavailable(f"the certificates in {os.path.dirname(tls.ca)} cannot be used: {error}") from error


@functools.lru_cache(maxsize=128)
def _context(tls: NodeTls, written_ns: tuple[int, ...]) -> ssl.SSLContext:
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.minimum_version = ssl.TLSVersion.TLSv1_2
    made.load_verify_locations(tls.ca)
    made.load_cert_chain(tls.cert, tls.key)
    return made


def refusal(error: Exception) -> str:
    """Why a connection failed, when it is for its certificate; else empty."""
    text = str(error)
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return f"its certificate is not good: {text.rpartition('verify failed: ')[2].partition(' (_ssl')[0]}"
    # Plain HTTP was the answer, or none at all.
    return "it does not speak TLS" if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER" in text else ""


def failed(error: httpx.HTTPError | OSError) -> str:
    """What broke, in a few words."""
    return refusal(error) or type(error).__name__
