"""Who runs with whom: natural batches, a bounded queue, and that nobody pays for a neighbour."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Executor, Future
from typing import Any

import numpy as np
import pytest

from lepton_ai.errors import Busy, Failed, Invalid
from lepton_ai.serve.batch import Batcher
from lepton_ai.serve.call import Call

Array = np.ndarray[Any, Any]


def call(*values: int, width: int = 0) -> Call:
    array = np.array(values, dtype=np.int64)
    if width:
        array = np.repeat(array[:, None], width, axis=1)
    return Call((array,), len(values), array.size, (0,), ((0,), array.shape[1:]))


class Model:
    """Doubles its input, refuses any batch with a 13 in it, and remembers the rows of each run."""

    def __init__(self) -> None:
        self.runs: list[int] = []

    def __call__(self, arrays: Sequence[Array], outputs: Sequence[int]) -> list[Array]:
        self.runs.append(len(arrays[0]))
        if (arrays[0] == 13).any():
            raise Invalid("13 is unlucky")
        return [arrays[0] * 2]


class Hand(Executor):
    """An executor whose work is done when the test says so."""

    def __init__(self) -> None:
        self.work: list[tuple[Future[Any], Callable[[], Any]]] = []

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.work.append((future, lambda: fn(*args, **kwargs)))
        return future

    def finish(self) -> None:
        future, fn = self.work.pop(0)
        future.set_result(fn())


def batcher(model: Any, *, hand: Hand | None = None, batches: bool = True, **more: Any) -> Batcher:
    return Batcher(model, lambda elements: hand is None, hand or Hand(), batches=batches, **more)


def go(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(main)


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def test_what_arrives_in_one_turn_runs_together_and_each_gets_its_own() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model)
        results = await asyncio.gather(*(batch.infer(call(i, i + 100)) for i in range(20, 40)))
        assert model.runs == [40]
        assert [r[0].tolist() for r in results] == [[2 * i, 2 * i + 200] for i in range(20, 40)]

    go(main())


def test_a_bad_row_fails_alone() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model)
        results = await asyncio.gather(*(batch.infer(call(i)) for i in range(10, 16)), return_exceptions=True)
        assert isinstance(results[3], Invalid)
        others = [r[0].tolist() for r in results if not isinstance(r, BaseException)]
        assert others == [[20], [22], [24], [28], [30]]

    go(main())


def test_a_batch_has_at_most_the_given_rows_and_a_larger_call_runs_in_parts() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model, rows_max=4)
        results = await asyncio.gather(*(batch.infer(call(i)) for i in range(10)), batch.infer(call(*range(20, 29))))
        assert model.runs == [4, 4, 2, 4, 4, 1]
        assert results[-1][0].tolist() == [2 * i for i in range(20, 29)]

    go(main())


@pytest.mark.parametrize("by_hand", [False, True])
def test_every_run_is_observed_whoever_computes(by_hand: bool) -> None:
    """Joint runs, parts of a large call, and the runs one by one after a joint run failed."""

    async def main() -> None:
        model, observed = Model(), list[int]()
        hand = Hand() if by_hand else None
        batch = batcher(model, hand=hand, rows_max=4, observe=observed.append)
        calls = [call(1), call(13), call(2), call(*range(20, 29)), call(3)]
        tasks = [asyncio.ensure_future(batch.infer(one)) for one in calls]
        await turns()
        while hand and hand.work:
            hand.finish()
            await turns()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert observed == model.runs == [3, 1, 1, 1, 4, 4, 1, 1]

    go(main())


def test_rows_of_different_shapes_do_not_meet() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model)
        results = await asyncio.gather(*(batch.infer(call(i, width=1 + i % 2)) for i in range(6)))
        assert model.runs == [3, 3]
        assert [r[0].shape for r in results] == [(1, 1 + i % 2) for i in range(6)]

    go(main())


def test_a_model_without_a_batch_dimension_runs_one_by_one() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model, batches=False)
        results = await asyncio.gather(*(batch.infer(call(i, i)) for i in range(3)))
        assert model.runs == [2, 2, 2]
        assert results[2][0].tolist() == [4, 4]

    go(main())


def test_what_waits_while_the_worker_runs_forms_the_next_batch() -> None:
    async def main() -> None:
        model, hand = Model(), Hand()
        batch = batcher(model, hand=hand)
        first = asyncio.ensure_future(batch.infer(call(1)))
        await turns()
        others = [asyncio.ensure_future(batch.infer(call(i))) for i in range(2, 6)]
        await turns()
        assert len(hand.work) == 1
        assert batch.waiting == 4
        hand.finish()
        await turns()
        hand.finish()
        assert [r[0].tolist() for r in await asyncio.gather(first, *others)] == [[2], [4], [6], [8], [10]]
        assert model.runs == [1, 4]
        assert batch.waiting == 0

    go(main())


def test_a_full_queue_refuses_and_recovers() -> None:
    async def main() -> None:
        hand = Hand()
        batch = batcher(Model(), hand=hand, waiting_max=2)
        tasks = [asyncio.ensure_future(batch.infer(call(0)))]
        await turns()
        tasks += [asyncio.ensure_future(batch.infer(call(i))) for i in (1, 2)]
        await turns()
        with pytest.raises(Busy):
            await batch.infer(call(3))
        hand.finish()
        await turns()
        tasks.append(asyncio.ensure_future(batch.infer(call(4))))
        await turns()
        while hand.work:
            hand.finish()
            await turns()
        assert [r[0].tolist() for r in await asyncio.gather(*tasks)] == [[0], [2], [4], [8]]

    go(main())


def test_a_caller_that_went_away_is_not_run() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model)
        tasks = [asyncio.ensure_future(batch.infer(call(i))) for i in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[1], asyncio.CancelledError)
        assert model.runs == [2]
        assert batch.waiting == 0

    go(main())


def test_a_lone_call_runs_at_once() -> None:
    async def main() -> None:
        model = Model()
        batch = batcher(model, lone=lambda: True)
        task = batch.infer(call(4))
        with pytest.raises(StopIteration) as done:
            task.send(None)
        assert done.value.value[0].tolist() == [8]
        with pytest.raises(Invalid):
            await batch.infer(call(13))

    go(main())


def test_a_model_that_mixes_rows_up_or_breaks_is_noticed() -> None:
    def shrink(arrays: Sequence[Array], outputs: Sequence[int]) -> list[Array]:
        return [arrays[0].sum(keepdims=True)]

    def broken(arrays: Sequence[Array], outputs: Sequence[int]) -> list[Array]:
        raise ZeroDivisionError

    async def main() -> None:
        batch = batcher(shrink)
        results = await asyncio.gather(*(batch.infer(call(i)) for i in range(3)))
        assert [r[0].tolist() for r in results] == [[0], [1], [2]]
        with pytest.raises(Failed, match="ZeroDivisionError"):
            await batcher(broken).infer(call(1))

    go(main())
