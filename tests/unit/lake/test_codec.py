"""Sealed streams: everything comes back, nothing that was changed does."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lepton_ai.errors import Corrupt
from lepton_ai.lake import codec

KEY = bytes(range(32))


def keys(key_id: str) -> bytes:
    assert key_id == "k1"
    return KEY


def sealed(data: bytes, frame_bytes: int = 1000) -> bytes:
    return b"".join(codec.seal([data], "k1", KEY, frame_bytes=frame_bytes))


def opened(data: bytes) -> bytes:
    return b"".join(codec.unseal([data], keys))


def pieces(data: bytes, rng: random.Random) -> Iterator[bytes]:
    at = 0
    while at < len(data):
        step = rng.randrange(1, 700)
        yield data[at : at + step]
        at += step


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=5000), st.integers(1, 2000), st.randoms(use_true_random=False))
def test_what_is_sealed_comes_back_in_whatever_pieces(data: bytes, frame_bytes: int, rng: random.Random) -> None:
    stream = b"".join(codec.seal(pieces(data, rng), "k1", KEY, frame_bytes=frame_bytes))

    assert b"".join(codec.unseal(pieces(stream, rng), keys)) == data


@pytest.mark.parametrize("size", [0, 1, 999, 1000, 1001, 5000])
def test_any_range_is_read_from_the_frames_that_hold_it(size: int) -> None:
    data = random.Random(size).randbytes(size)
    stream = sealed(data)
    found = codec.index(lambda start, end: stream[start:end], len(stream), keys, "it")

    assert found.size_bytes == size
    for start, end in ((0, size), (size // 3, size // 2), (max(0, size - 1), size)):
        first, begin, stop = found.span(start, end)
        plain = codec.frames(found, stream[begin:stop], first, keys, "it")
        offset = first * 1000
        assert plain[start - offset : end - offset] == data[start:end]
        assert stop - begin < (end - start) + 2 * 1100


def test_every_changed_byte_is_noticed() -> None:
    stream = sealed(b"some words " * 200, frame_bytes=500)
    for at in range(len(stream)):
        changed = bytearray(stream)
        changed[at] ^= 1
        with pytest.raises((Corrupt, AssertionError)):  # the assertion: another key's id is asked for
            opened(bytes(changed))


def test_frames_cannot_be_dropped_repeated_reordered_or_cut_off() -> None:
    data = os.urandom(3000)
    stream = sealed(data)
    found = codec.index(lambda start, end: stream[start:end], len(stream), keys, "it")
    cut = [stream[: found.offsets[0]]]
    cut += [stream[found.offsets[n] : found.offsets[n + 1]] for n in range(found.frames)]
    tail = stream[found.offsets[-1] :]
    for order in ([0, 2, 3], [0, 1, 1, 2, 3], [0, 2, 1, 3], [0, 1, 2], [0, 1], [0]):
        with pytest.raises(Corrupt):
            opened(b"".join(cut[n] for n in order) + tail)
    for end in (5, 20, found.offsets[1], found.offsets[-1], len(stream) - 1):
        with pytest.raises(Corrupt):
            opened(stream[:end])
    with pytest.raises(Corrupt):
        opened(stream + b"x")


def test_another_key_opens_nothing() -> None:
    with pytest.raises(Corrupt, match="another key"):
        b"".join(codec.unseal([sealed(b"x" * 10)], lambda _: bytes(32)))


def test_the_same_bytes_are_never_sealed_alike() -> None:
    first, second = sealed(b"x" * 4000), sealed(b"x" * 4000)
    shared = sum(a == b for a, b in zip(first[70:], second[70:], strict=False))

    assert first != second
    assert shared < len(first) / 8


def test_text_shrinks_and_noise_hardly_grows() -> None:
    assert len(sealed(b"the same line again and again\n" * 10_000, codec.FRAME_BYTES)) < 30_000
    assert len(sealed(os.urandom(1 << 20), codec.FRAME_BYTES)) < (1 << 20) + 400


def test_a_head_that_lies_about_sizes_takes_no_memory() -> None:
    stream = sealed(b"x" * 10)
    lied = stream.replace(b'"f":1000', b'"f":9999999999')

    with pytest.raises(Corrupt):
        opened(lied)
