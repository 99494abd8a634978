"""Which streams: the one place where the URL of a bus is read.

RocketMQ would be one more sibling of `kafka.py`, and one more case here; no broker of it could be had to test against,
so there is none.
"""

from __future__ import annotations

import os
from urllib.parse import parse_qsl, urlsplit

from lepton_ai.errors import Invalid, Unsupported
from lepton_ai.lake.bus import Bus


def connect(url: str) -> Bus:
    """The streams at `url`: memory://NAME, sql:///PATH, kafka://HOST:PORT[,HOST:PORT]. Raises Invalid, Unsupported."""
    parts = urlsplit(url)
    if parts.scheme == "memory":
        from lepton_ai.lake.memory import MemoryBus

        return MemoryBus.named(parts.netloc)
    if parts.scheme == "sql":
        from lepton_ai.lake.sqlite import SqliteBus

        if parts.netloc or not parts.path.startswith("/") or parts.query:
            raise Invalid(f"{url!r} does not name a file", hint="use sql:///PATH with three slashes")
        return SqliteBus(os.path.normpath(parts.path))
    if parts.scheme == "kafka":
        from lepton_ai.lake.kafka import KafkaBus

        if not parts.netloc or "@" in parts.netloc or parts.path.strip("/"):
            raise Invalid(f"{url!r} does not name brokers", hint="use kafka://HOST:PORT[,HOST:PORT]")
        return KafkaBus(parts.netloc, dict(parse_qsl(parts.query)))
    raise Unsupported(
        f"streams on {parts.scheme[:40]}:// cannot be had here", hint="use memory://, sql:/// or kafka://"
    )
