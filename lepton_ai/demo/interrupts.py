"""Ctrl-C and its kin (TERM, HUP): an exception at a moment when everything that was started can be found again.

Owns the signals while it is entered. It removes nothing itself.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(BaseException):
    """A signal asked for the end. Not an Exception: nothing that handles errors may swallow it."""

    def __init__(self, number: int) -> None:
        super().__init__("interrupted")
        self.number = number


class Interrupts:
    """Raises Interrupted on a signal; inside `held` at its end, inside `ignored` never.

    `say` is called when a signal has to wait. In a thread other than the main one no signal is taken.
    """

    def __init__(self, say: Callable[[], None] = lambda: None) -> None:
        self._say = say
        self._held = False
        self._ignored = False
        self._pending = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            # What is ignored already (nohup, a shell's background) stays ignored.
            taken = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._handle) for number in taken}
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[None]:
        """What is done here is finished first. A second signal does not wait."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._pending:
            number, self._pending = self._pending, 0
            raise Interrupted(number)

    @contextmanager
    def ignored(self) -> Iterator[None]:
        """The removal: it must end."""
        self._ignored = True
        try:
            yield
        finally:
            self._ignored = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._ignored:
            return
        if self._held and not self._pending:
            self._pending = number
            self._say()
            return
        raise Interrupted(number)
