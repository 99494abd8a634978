"""Reading a replica's log segments, which its shim writes, while they grow and rotate."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import NamedTuple

CHUNK_BYTES = 256 * 1024
TAIL_BYTES = 32 * 1024
POLL_S = 0.1


class LogLine(NamedTuple):
    """A line with its stamp (ns since 1970, distinct within a replica) and stream: "o" output, "e" errors."""

    ns: int
    stream: str
    line: str


class ReplicaLog:
    """The log in `folder` (a shim's folder/log); absent is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def last(self, size_bytes: int = TAIL_BYTES) -> list[LogLine]:
        """The last lines, as many as `size_bytes` hold."""
        for path in reversed(self._segments()):
            try:
                with open(path, "rb") as file:
                    file.seek(max(0, path.stat().st_size - size_bytes))
                    lines = [line for text in file.read().split(b"\n") if (line := parse(text))]
            except OSError:
                continue
            if lines:
                return lines
        return []

    async def read(
        self, start_ns: int = 0, end_ns: int | None = None, *, ended: Callable[[], bool] | None = None
    ) -> AsyncIterator[LogLine]:
        """Lines with start_ns <= ns < end_ns in order. With `ended`, goes on until it says that no more will come."""
        number, offset, rest = self._first(start_ns), 0, b""
        while True:
            last_look = ended is None or ended()  # asked before reading: what was written until then is read
            while (step := self._chunk(number, offset)) is not None:
                number, offset, chunk, fresh = step
                *texts, rest = ((b"" if fresh else rest) + chunk).split(b"\n")
                for text in texts:
                    line = parse(text)
                    if line is None or line.ns < start_ns:
                        continue
                    if end_ns is not None and line.ns >= end_ns:
                        return
                    yield line
                await asyncio.sleep(0)
            if last_look:
                return
            await asyncio.sleep(POLL_S)

    def _segments(self) -> list[Path]:
        try:
            return sorted(path for path in self.folder.iterdir() if path.suffix == ".log" and path.stem.isdigit())
        except OSError:
            return []

    def _first(self, start_ns: int) -> int:
        """Number of the last segment that begins at or before `start_ns`."""
        number = 0
        for path in self._segments():
            try:
                with open(path, "rb") as file:
                    line = parse(file.readline(64 * 1024))
            except OSError:
                continue
            if line is not None and line.ns > start_ns:
                break
            number = int(path.stem)
        return number

    def _chunk(self, number: int, offset: int) -> tuple[int, int, bytes, bool] | None:
        """The next bytes after (segment, offset): (segment, offset after them, bytes, whether a segment begins)."""
        for path in self._segments():
            current = int(path.stem)
            if current < number:
                continue
            begin = offset if current == number else 0
            try:
                with open(path, "rb") as file:
                    file.seek(begin)
                    chunk = file.read(CHUNK_BYTES)
            except OSError:
                continue
            if chunk:
                return current, begin + len(chunk), chunk, begin == 0
        return None


def parse(text: bytes) -> LogLine | None:
    """A line of a segment, or None when it was torn."""
    stamp, _, tail = text.partition(b" ")
    stream, space, line = tail.partition(b" ")
    if not stamp.isdigit() or stream not in (b"o", b"e") or not space:
        return None
    return LogLine(int(stamp), stream.decode(), line.decode("utf-8", "replace").rstrip("\n"))
