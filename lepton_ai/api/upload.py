"""A request's body as a blocking stream: what a thread reads while the event loop receives. Owns its bound."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator
from typing import IO

import anyio.from_thread
from starlette.requests import Request

from lepton_ai.errors import DiskFull, Invalid, TooLarge

SILENCE_S = 60.0


class Upload:
    """`read` from a worker thread of the server. Raises TooLarge over `limit`, Invalid after a minute of silence."""

    def __init__(self, request: Request, limit: int) -> None:
        declared = request.headers.get("content-length", "")
        self._limit = limit
        self._total = 0
        if declared.isdigit() and int(declared) > limit:
            raise self._too_large()
        self._chunks: AsyncIterator[bytes] = request.stream().__aiter__()
        self._rest = b""
        self._ended = False

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes; empty at the end of the body."""
        while not self._rest and not self._ended:
            self._rest = anyio.from_thread.run(self._next)
        part, self._rest = self._rest[:size], self._rest[size:]
        return part

    def copy(self, file: IO[bytes]) -> None:
        """Everything into `file`. Raises DiskFull too."""
        try:
            while chunk := self.read(1 << 20):
                file.write(chunk)
            file.flush()
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise DiskFull("no room for the upload", hint="free space on the device of the cell") from error
            raise

    async def _next(self) -> bytes:
        try:
            async with asyncio.timeout(SILENCE_S):
                chunk = await anext(self._chunks, None)
        except TimeoutError:
            raise Invalid(f"nothing came for {SILENCE_S:g} s", hint="send it again") from None
        if chunk is None:
            self._ended = True
            return b""
        self._total += len(chunk)
        if self._total > self._limit:
            raise self._too_large()
        return chunk

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"the body is over {self._limit} bytes",
            hint="make it smaller: compress it, or leave out what is not needed",
        )
