"""Natural batching: what waits when the runtime is free forms the batch. There is no timer.

Owns the bounded queue, who runs with whom, and that a failing batch is run again one by one, so that nobody gets an
error for a neighbour's row. It knows nothing of HTTP, JSON or ONNX: it is given a ``run`` function.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np

from lepton_ai.errors import Busy, Failed, LeptonError
from lepton_ai.serve.call import Call

logger = logging.getLogger(__name__)

Array = np.ndarray[Any, Any]
Run = Callable[[Sequence[Array], Sequence[int]], list[Array]]
_Waiting = tuple[Call, "asyncio.Future[list[Array]]"]


class Batcher:
    """Runs calls in batches of at most ``rows_max`` rows (a larger call runs by itself, in parts).

    Args:
        run: (inputs, wanted outputs) -> results; called by one thread at a time.
        inline: whether a run over inputs of so many elements may block the event loop.
        executor: runs the others; one worker is enough.
        batches: whether calls may be joined along the first dimension at all.
        rows_max: rows of a batch.
        waiting_max: calls that may wait; more are refused with Busy.
        lone: says that only one client is connected, whose call then runs at once.
        observe: told the rows of every run, on the event loop's thread.
    """

    def __init__(
        self,
        run: Run,
        inline: Callable[[int], bool],
        executor: Executor,
        *,
        batches: bool,
        rows_max: int = 128,
        waiting_max: int = 1024,
        lone: Callable[[], bool] = lambda: False,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._run = run
        self._inline = inline
        self._executor = executor
        self._rows_max = rows_max if batches else 1
        self._batches = batches
        self._waiting_max = waiting_max
        self._lone = lone
        self._observe = observe
        self._queues: dict[tuple[object, ...], deque[_Waiting]] = {}
        self._waiting = 0
        self._scheduled = False
        self._working = False
        self._runs: list[int] = []  # rows of the runs not yet observed; appended to by whoever computes
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waiting(self) -> int:
        """Calls in the queue (those that run are not counted)."""
        return self._waiting

    async def infer(self, call: Call) -> list[Array]:
        """The results of ``call``, in the order of its outputs.

        Raises:
            Busy: the queue is full.
            Invalid, Failed: what the model says about this very call.
        """
        if not self._waiting and not self._working and self._lone() and self._inline(call.elements):
            result = self._compute([call])[0]
            self._report()
            if isinstance(result, Exception):
                raise result
            return result
        if self._waiting >= self._waiting_max:
            raise Busy(
                f"{self._waiting} requests wait for the model already",
                hint="try again after the time in Retry-After, or add replicas",
            )
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[list[Array]] = self._loop.create_future()
        queue = self._queues.get(call.key)
        if queue is None:
            queue = self._queues[call.key] = deque()
        queue.append((call, future))
        self._waiting += 1
        self._schedule()
        return await future

    def _schedule(self) -> None:
        if not self._scheduled and not self._working and self._loop is not None:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        batch = self._take()
        if not batch:
            return
        calls = [call for call, _ in batch]
        if self._inline(sum([call.elements for call in calls])):
            _settle(batch, self._compute(calls))
            self._report()
            # One batch a turn of the loop: new requests are read in between.
            if self._waiting:
                self._schedule()
            return
        assert self._loop is not None
        self._working = True
        work = self._loop.run_in_executor(self._executor, self._compute, calls)
        work.add_done_callback(lambda done: self._worked(batch, done))

    def _worked(self, batch: list[_Waiting], done: asyncio.Future[list[list[Array] | Exception]]) -> None:
        self._working = False
        self._report()
        error = None if not done.cancelled() else Failed("the server stopped before the model answered")
        error = error or done.exception()  # type: ignore[assignment]  # an executor that was shut down
        _settle(batch, done.result() if error is None else [error] * len(batch))
        if self._waiting:
            self._schedule()

    def _take(self) -> list[_Waiting]:
        """The calls of the next batch: the oldest kind first, and what is left of it goes behind the others."""
        while self._queues:
            key = next(iter(self._queues))
            queue = self._queues.pop(key)
            batch: list[_Waiting] = []
            rows = 0
            while queue and (not batch or (self._batches and rows + queue[0][0].rows <= self._rows_max)):
                call, future = queue.popleft()
                self._waiting -= 1
                if not future.done():  # its caller went away
                    batch.append((call, future))
                    rows += call.rows
            if queue:
                self._queues[key] = queue
            if batch:
                return batch
        return []

    def _compute(self, calls: list[Call]) -> list[list[Array] | Exception]:
        """A result or an error for each call; when a joint run fails, each runs alone and gets its own."""
        if len(calls) == 1:
            return [self._attempt(calls[0])]
        try:
            joint = [np.concatenate(column) for column in zip(*[call.arrays for call in calls], strict=True)]
            rows = len(joint[0])
            results = self._counted(joint, calls[0].outputs, rows)
            if all(result.shape[:1] == (rows,) for result in results):
                return _split(calls, results)
        except Exception as error:  # noqa: BLE001  # whatever it is, it belongs to one of the calls
            logger.debug("a batch of %d calls failed and is run one by one: %s", len(calls), error)
        return [self._attempt(call) for call in calls]

    def _attempt(self, call: Call) -> list[Array] | Exception:
        try:
            if self._batches and call.rows > self._rows_max:
                return self._in_parts(call)
            return self._counted(call.arrays, call.outputs, call.rows)
        except LeptonError as error:
            return error
        except Exception as error:
            logger.exception("the model failed")
            return Failed(f"the model failed: {type(error).__name__}")

    def _in_parts(self, call: Call) -> list[Array]:
        """A large call, ``rows_max`` rows at a time: the memory of a run does not grow with what one caller sends."""
        parts: list[list[Array]] = []
        for start in range(0, call.rows, self._rows_max):
            part = [array[start : start + self._rows_max] for array in call.arrays]
            parts.append(self._counted(part, call.outputs, len(part[0])))
        return [np.concatenate(column) for column in zip(*parts, strict=True)]

    def _counted(self, arrays: Sequence[Array], outputs: Sequence[int], rows: int) -> list[Array]:
        self._runs.append(rows)
        return self._run(arrays, outputs)

    def _report(self) -> None:
        for rows in self._runs:
            self._observe(rows)
        self._runs.clear()


def _split(calls: list[Call], results: list[Array]) -> list[list[Array] | Exception]:
    split: list[list[Array] | Exception] = []
    start = 0
    for call in calls:
        end = start + call.rows
        split.append([result[start:end] for result in results])
        start = end
    return split


def _settle(batch: list[_Waiting], results: Sequence[list[Array] | Exception]) -> None:
    for (_, future), result in zip(batch, results, strict=True):
        if future.done():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
