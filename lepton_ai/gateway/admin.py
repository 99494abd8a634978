"""Asking one Envoy through its admin socket. Owns the connection; what the numbers mean is its callers' business."""

from __future__ import annotations

import http.client
import json
import socket
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lepton_ai.errors import Unavailable


class Admin:
    """The admin interface of the Envoy behind a unix socket. Every call raises Unavailable when nobody answers."""

    def __init__(self, path: Path, *, timeout_s: float = 2.0) -> None:
        self.path = path
        self._timeout_s = timeout_s

    def live(self) -> bool:
        """Whether it takes requests now (not starting, not draining)."""
        try:
            return self.text("/ready").startswith("LIVE")
        except Unavailable:
            return False

    def running(self) -> bool:
        """Whether a process answers at all, also one that is still starting."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(self._timeout_s)
            try:
                probe.connect(str(self.path))
            except OSError:
                return False
        return True

    def stats(self, pattern: str) -> dict[str, str]:
        """Statistics whose name matches the regular expression `pattern`, as text; a histogram's is its buckets as
        "B5(2,17) ...": of the last interval and since the start, below 5."""
        lines = self.text(f"/stats?histogram_buckets=cumulative&filter={quote(pattern)}").splitlines()
        pairs = (line.rsplit(": ", 1) for line in lines if ": " in line)
        return {name: value.strip('"') for name, value in pairs}

    def json(self, path: str) -> Any:
        """The JSON document at `path`."""
        return json.loads(self.text(path))

    def text(self, path: str) -> str:
        """The body of GET `path`, whatever its status."""
        connection = _UnixConnection(self.path, self._timeout_s)
        try:
            connection.request("GET", path)
            return connection.getresponse().read().decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise Unavailable(
                f"the gateway behind {self.path} does not answer: {error}", hint="run: lepton doctor"
            ) from None
        finally:
            connection.close()


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
