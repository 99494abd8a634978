"""Requests that never stop while something else happens; every answer is checked."""

from __future__ import annotations

import http.client
import itertools
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

WORKERS = 4
PAUSE_S = 0.01


@dataclass
class Seen:
    """What came back. `failed` holds why, `releases` who answered."""

    ok: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    releases: Counter[str] = field(default_factory=Counter)


@contextmanager
def traffic(url: str) -> Iterator[Seen]:
    """Posts to tests/e2e/service.py through `url` from a few clients until the block ends."""
    seen, lock, stop, numbers = Seen(), threading.Lock(), threading.Event(), itertools.count()
    threads = [threading.Thread(target=_client, args=(url, seen, lock, stop, numbers)) for _ in range(WORKERS)]
    for thread in threads:
        thread.start()
    try:
        yield seen
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    assert seen.ok > 0


def _client(url: str, seen: Seen, lock: threading.Lock, stop: threading.Event, numbers: Iterator[int]) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    while not stop.is_set():
        value = next(numbers)
        why, release = "", ""
        try:
            connection.request("POST", parts.path, json.dumps({"value": value}))
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                why = f"{answer.status} {body[:200]!r}"
            else:
                found = json.loads(body)
                release = found["release"]
                why = "" if found["echo"] == value else "another row's answer"
        except (OSError, http.client.HTTPException) as error:
            why = type(error).__name__
            connection.close()
        with lock:
            if why:
                seen.failed[why] += 1
            else:
                seen.ok += 1
                seen.releases[release] += 1
        time.sleep(PAUSE_S)
    connection.close()
