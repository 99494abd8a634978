"""Bytes on their way out of a cell: compressed where it pays, encrypted always, cut into frames that stand alone.

Owns the form of a sealed stream. Knows no keys' home (`keys`), no store and no network. A sealed stream is

    LPC1 | u16 length of head | head (JSON: key id, salt, frame size) | frames | index | u32 length of index

A frame is its length (u32, the top bit set on the last one) and AES-256-GCM over one method byte (0 raw, 1 zstd) and
up to `frame_bytes` of data. Frames follow the STREAM construction (Hoang, Reyhanitabar, Rogaway, Vizár, CRYPTO 2015):
the nonce is the frame's number and whether it is the last, under a key derived (HKDF-SHA256) from the content key and
a salt of this stream alone, so that no nonce ever serves twice and frames cannot be dropped, repeated, reordered or
cut off unseen. The index (sealed like a frame) holds the plain size and the frames' lengths, so that a range is read
without what lies before it.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from lepton_ai.errors import Corrupt

MAGIC = b"LPC1"
FRAME_BYTES = 256 << 10
FRAME_BYTES_MAX = 16 << 20
HEAD_BYTES_MAX = 1024
TAG_BYTES = 16
PAYS = 0.9
"""A frame is sent compressed when that makes it smaller than this share of itself."""
SKIP = 16
"""After a frame that did not pay, so many go raw before the next try (weights stay weights)."""
LEVEL = 1
_INFO = b"lepton/lake/stream/1"
_INDEX = 0xFFFFFFFF
_LAST = 0x80000000


@dataclass(frozen=True, slots=True)
class Head:
    """What opens a stream: which content key, this stream's salt, plain bytes a frame."""

    key_id: str
    salt: bytes
    frame_bytes: int

    def encode(self) -> bytes:
        value = {"k": self.key_id, "s": self.salt.hex(), "f": self.frame_bytes}
        text = json.dumps(value, separators=(",", ":")).encode()
        return MAGIC + struct.pack(">H", len(text)) + text


def seal(
    parts: Iterable[bytes], key_id: str, key: bytes, *, context: str = "", frame_bytes: int = FRAME_BYTES
) -> Iterator[bytes]:
    """`parts` as a sealed stream under the content key `key` (32 bytes), in pieces; memory: a few frames.

    `context` says what it is (the name of an object): it opens only where the same is expected.
    """
    head = Head(key_id, os.urandom(32), frame_bytes)
    opening = head.encode()
    cipher, bound = _cipher(head, key), _bound(opening, context)
    yield opening
    lengths: list[int] = []
    size = rest = 0
    for frame, last in _framed(parts, frame_bytes):
        body, rest = _packed(frame, rest)
        piece = cipher.encrypt(_nonce(len(lengths), last=last), body, bound)
        lengths.append(len(piece))
        size += len(frame)
        yield struct.pack(">I", len(piece) | (_LAST if last else 0)) + piece
    listed = struct.pack(f">Q{len(lengths)}I", size, *lengths)
    closing = cipher.encrypt(_nonce(_INDEX, last=True), listed, bound)
    yield closing + struct.pack(">I", len(closing))


def unseal(
    parts: Iterable[bytes], key_of: Callable[[str], bytes], name: str = "the stream", *, context: str = ""
) -> Iterator[bytes]:
    """The plain bytes of a sealed stream, in pieces. `key_of` gives the content key of an id.

    Raises Corrupt for anything that was not sealed so, was changed, ends early or goes on; pieces given out before
    that are right. What `key_of` raises passes through.
    """
    source = _Source(parts)
    head, bound = _head(source.take, name, context)
    cipher = _cipher(head, key_of(head.key_id))
    lengths: list[int] = []
    size, last = 0, False
    while not last:
        prefix = source.take(4)
        if len(prefix) < 4:
            raise _broken(name, "it ends early")
        (length,) = struct.unpack(">I", prefix)
        last, length = bool(length & _LAST), length & ~_LAST
        if length > head.frame_bytes + 1 + TAG_BYTES:
            raise _broken(name, "a frame is too long")
        plain = _plain(_open(cipher, len(lengths), last, source.take(length), bound, name), head, name)
        lengths.append(length)
        size += len(plain)
        yield plain
    tail = source.take(12 + TAG_BYTES + 4 * len(lengths) + 1)
    listed = _open(cipher, _INDEX, True, tail[:-4], bound, name)
    if listed != struct.pack(f">Q{len(lengths)}I", size, *lengths) or tail[-4:] != struct.pack(">I", len(tail) - 4):
        raise _broken(name, "its frames and its index differ")


@dataclass(frozen=True, slots=True)
class Index:
    """A sealed stream known well enough to read any part of it. `size_bytes` of plain data."""

    head: Head
    bound: bytes
    size_bytes: int
    offsets: tuple[int, ...]
    """where each frame begins, and where the last one ends"""

    @property
    def frames(self) -> int:
        return len(self.offsets) - 1

    def span(self, start: int, end: int) -> tuple[int, int, int]:
        """(first frame, where it begins, where the last one ends) that hold the plain bytes [start, end)."""
        first = min(start // self.head.frame_bytes, self.frames - 1)
        last = min(max(start, end - 1) // self.head.frame_bytes, self.frames - 1)
        return first, self.offsets[first], self.offsets[last + 1]


def index(
    read: Callable[[int, int], bytes], size: int, key_of: Callable[[str], bytes], name: str, *, context: str = ""
) -> Index:
    """The index of a sealed stream of `size` bytes that `read(start, end)` reads. Raises Corrupt."""
    begin = read(0, min(size, len(MAGIC) + 2 + HEAD_BYTES_MAX))
    source = _Source([begin])
    head, bound = _head(source.take, name, context)
    opened = len(begin) - source.left
    if size < opened + 4:
        raise _broken(name, "it ends early")
    (length,) = struct.unpack(">I", read(size - 4, size))
    if not TAG_BYTES + 8 < length <= size - opened - 4 or (length - TAG_BYTES - 8) % 4:
        raise _broken(name, "it ends early")
    cipher = _cipher(head, key_of(head.key_id))
    listed = _open(cipher, _INDEX, True, read(size - 4 - length, size - 4), bound, name)
    plain_bytes, *lengths = struct.unpack(f">Q{(len(listed) - 8) // 4}I", listed)
    offsets = [opened]
    for one in lengths:
        offsets.append(offsets[-1] + 4 + one)
    if offsets[-1] != size - 4 - length:
        raise _broken(name, "its frames and its index differ")
    return Index(head, bound, plain_bytes, tuple(offsets))


def frames(found: Index, data: bytes, first: int, key_of: Callable[[str], bytes], name: str) -> bytes:
    """The plain bytes of whole frames from number `first` on; `data` are their sealed bytes. Raises Corrupt."""
    cipher = _cipher(found.head, key_of(found.head.key_id))
    out, at, number = bytearray(), 0, first
    while at < len(data):
        length = found.offsets[number + 1] - found.offsets[number]
        sealed = data[at + 4 : at + length]
        out += _plain(_open(cipher, number, number == found.frames - 1, sealed, found.bound, name), found.head, name)
        at, number = at + length, number + 1
    return bytes(out)


class _Source:
    """Pieces as one stream of bytes."""

    def __init__(self, parts: Iterable[bytes]) -> None:
        self._parts = iter(parts)
        self._data = bytearray()

    @property
    def left(self) -> int:
        return len(self._data)

    def take(self, count: int) -> bytes:
        """The next `count` bytes, fewer at the end."""
        while len(self._data) < count and (part := next(self._parts, None)) is not None:
            self._data += part
        taken = bytes(self._data[:count])
        del self._data[:count]
        return taken


def _framed(parts: Iterable[bytes], frame_bytes: int) -> Iterator[tuple[bytes, bool]]:
    """Frames of `frame_bytes`, each with whether it is the last; one empty frame for no data at all."""
    data = bytearray()
    for part in parts:
        data += part
        while len(data) > frame_bytes:
            yield bytes(data[:frame_bytes]), False
            del data[:frame_bytes]
    yield bytes(data), True


def _packed(frame: bytes, rest: int) -> tuple[bytes, int]:
    """(method byte and data, how many frames go raw before compression is tried again)."""
    if rest <= 0 and frame:
        import pyarrow

        smaller = pyarrow.Codec("zstd", LEVEL).compress(frame, asbytes=True)
        if len(smaller) + 4 < PAYS * len(frame):
            return b"\1" + struct.pack(">I", len(frame)) + smaller, 0
        rest = SKIP + 1
    return b"\0" + frame, rest - 1


def _plain(body: bytes, head: Head, name: str) -> bytes:
    if body[:1] == b"\0":
        return body[1:]
    import pyarrow

    (size,) = struct.unpack(">I", body[1:5])
    if body[:1] != b"\1" or size > head.frame_bytes:
        raise _broken(name, "a frame has no known form")
    try:
        return bytes(pyarrow.decompress(body[5:], decompressed_size=size, codec="zstd", asbytes=True))
    except (OSError, ValueError) as error:
        raise _broken(name, str(error)) from None


def is_sealed(opening: bytes) -> bool:
    """Whether what begins so is a sealed stream, and not something that happens to begin with its first letters."""
    try:
        _head(_Source([opening]).take, "it", "")
    except Corrupt:
        return False
    return True


def _bound(opening: bytes, context: str) -> bytes:
    return hashlib.sha256(len(opening).to_bytes(4) + opening + context.encode("utf-8", "surrogatepass")).digest()


def _head(take: Callable[[int], bytes], name: str, context: str) -> tuple[Head, bytes]:
    opening = take(len(MAGIC) + 2)
    if len(opening) < len(MAGIC) + 2 or not opening.startswith(MAGIC):
        raise _broken(name, "it does not begin as a sealed stream")
    (length,) = struct.unpack(">H", opening[len(MAGIC) :])
    text = take(min(length, HEAD_BYTES_MAX))
    try:
        value = json.loads(text)
        head = Head(str(value["k"]), bytes.fromhex(value["s"]), int(value["f"]))
    except (ValueError, KeyError, TypeError):
        raise _broken(name, "its head cannot be read") from None
    if length > HEAD_BYTES_MAX or len(head.salt) != 32 or not 1 <= head.frame_bytes <= FRAME_BYTES_MAX:
        raise _broken(name, "its head cannot be right")
    return head, _bound(opening + text, context)


def _cipher(head: Head, key: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return AESGCM(HKDF(SHA256(), 32, head.salt, _INFO).derive(key))


def _nonce(number: int, *, last: bool) -> bytes:
    return struct.pack(">3xBQ", last, number)


def _open(cipher: Any, number: int, last: bool, sealed: bytes, bound: bytes, name: str) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        return bytes(cipher.decrypt(_nonce(number, last=last), sealed, bound))
    except (InvalidTag, ValueError, OverflowError):
        what = "its index" if number == _INDEX else f"frame {number}"
        raise _broken(name, f"{what} was changed, cut off, or sealed under another key") from None


def _broken(name: str, why: str) -> Corrupt:
    return Corrupt(f"{name} is damaged: {why}", hint="fetch it again from where it came from")
