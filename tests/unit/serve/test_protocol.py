"""The head of an answer and its body are one write; what has no body goes out all the same."""

from __future__ import annotations

import asyncio
from typing import Any

from lepton_ai.serve.protocol import Joined

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Transport:
    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(data)

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


def run(act: Any) -> Transport:
    transport = Transport()

    async def main() -> None:
        act(Joined(transport, asyncio.get_running_loop()))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    asyncio.run(main())
    return transport


def test_head_and_body_are_one_write() -> None:
    def act(joined: Joined) -> None:
        for _ in range(2):
            joined.write(HEAD)
            joined.write(b"{}")

    assert run(act).writes == [HEAD + b"{}"] * 2


def test_an_empty_body_lets_the_head_go() -> None:
    assert run(lambda joined: (joined.write(HEAD), joined.write(b""))).writes == [HEAD]


def test_a_head_alone_goes_out_in_the_next_turn() -> None:
    assert run(lambda joined: joined.write(HEAD)).writes == [HEAD]


def test_a_stream_is_not_held_back() -> None:
    def act(joined: Joined) -> None:
        joined.write(HEAD)
        joined.write(b"5\r\nfirst\r\n")
        joined.write(b"6\r\nsecond\r\n")

    assert run(act).writes == [HEAD + b"5\r\nfirst\r\n", b"6\r\nsecond\r\n"]


def test_closing_loses_nothing() -> None:
    transport = run(lambda joined: (joined.write(HEAD), joined.close()))
    assert transport.writes == [HEAD]
    assert transport.closed


def test_everything_else_is_the_transports_own() -> None:
    assert run(lambda joined: joined.close() if not joined.is_closing() else None).closed
