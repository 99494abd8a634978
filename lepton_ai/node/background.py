"""Waiting for something long in a thread of its own, so that the few that everybody shares stay free."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def background(work: Callable[[Callable[[], bool]], T]) -> T:
    """What `work` returns or raises. It is given a function that says whether nobody waits for it any more."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def succeed(value: T) -> None:
        if not done.done():
            done.set_result(value)

    def fail(error: Exception) -> None:
        if not done.done():
            done.set_exception(error)

    def run() -> None:
        try:
            value = work(done.cancelled)
        except Exception as error:  # noqa: BLE001 - it is raised where it is waited for
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(fail, error)
            return
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(succeed, value)

    threading.Thread(target=run, daemon=True).start()
    return await done
