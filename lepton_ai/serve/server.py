"""uvicorn with our own end: it drains first, and a TERM that was obeyed is a success."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator

import uvicorn

from lepton_ai.serve.app import App


class Server(uvicorn.Server):
    """Serves `app`; after TERM or INT it accepts connections for `drain_s` more, a second one ends it at once."""

    def __init__(self, config: uvicorn.Config, app: App, *, drain_s: float) -> None:
        super().__init__(config)
        self._app = app
        self._drain_s = drain_s

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        yield

    def stop(self) -> None:
        if self._app.draining:  # a second signal waits for nobody
            self.force_exit = self.should_exit = True
            return
        self._app.drain()
        asyncio.get_running_loop().call_later(self._drain_s, setattr, self, "should_exit", True)
