"""Objects: bytes by key, whole or not at all, with conditional puts; on folders and buckets, through obstore.

Owns keys, conditions and errors; with a `seal`, every object lies encrypted (see `codec`, `keys`). The engine
(`obstore`) is imported when first used.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import queue
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from lepton_ai.errors import Conflict, Corrupt, DiskFull, Forbidden, Invalid, LeptonError, NotFound, Unavailable
from lepton_ai.lake import codec
from lepton_ai.lake.place import Place

KEY_BYTES_MAX = 900
PART_BYTES_MAX = 200
PIECE_BYTES = 5 << 20
"""What is put in pieces goes in parts of this size (the least that S3 takes)."""


READ_TRIES = 5


class _Changed(Exception):
    """The object has another version by now."""


class Seal(Protocol):
    """Content keys; `keys.Keyring` has them."""

    def active(self) -> tuple[str, bytes]: ...
    def key(self, key_id: str, /) -> bytes: ...


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it. `size_bytes` is what it takes in the store (sealed: more)."""

    key: str
    size_bytes: int
    modified_ms: int
    etag: str | None


class Objects:
    """The objects of a place. Keys are `a/b/c`: no empty part, no `.` or `..`, no control characters.

    With `seal` all are encrypted, and what is not is refused: a store must not pass off plain bytes as sealed ones.
    """

    def __init__(self, place: Place | Path, seal: Seal | None = None) -> None:
        self.place = place if isinstance(place, Place) else Place.of(place)
        self._seal = seal

    def put(
        self, key: str, data: bytes | Iterable[bytes] | Path, *, create: bool = False, replaces: str | None = None
    ) -> None:
        """Stores bytes, pieces or a file under `key`; readers see the old bytes or the new ones. Raises DiskFull.

        create=True: only if there is none yet; replaces=ETAG: only if it is (still) that version; else Conflict.
        Of several such writers at once, one wins. Pieces and files go in parts: memory stays small.
        """
        import obstore

        if create and replaces is not None:
            raise Invalid("create and replaces exclude each other", hint="give one of them")
        body, small = self._body(check(key), data)
        mode: Any = "create" if create else "overwrite"
        with self._faults(key), self._condition(key, replaces) as conditional:
            if conditional is not None:
                mode = {"e_tag": conditional}
            # A conditional put cannot be made in parts everywhere, so its body is taken whole.
            if small or create or conditional is not None:
                whole = body if isinstance(body, bytes) else b"".join(body)
                obstore.put(self._store(), check(key), whole, mode=mode, use_multipart=False)
            else:
                parts = [body] if isinstance(body, bytes) else body
                with _aside(parts) as coming:
                    obstore.put(self._store(), check(key), coming, use_multipart=True, chunk_size=PIECE_BYTES)

    def get(self, key: str) -> bytes:
        """The bytes of `key`. Raises NotFound, Corrupt (sealed and changed, or not sealed)."""
        return b"".join(self.stream(key))

    def stream(self, key: str) -> Iterator[bytes]:
        """The bytes of `key` in pieces. Raises as `get`, when the piece that is wrong is reached."""
        import obstore

        with self._faults(key):
            pieces = iter(obstore.get(self._store(), check(key)).stream())
        raw = self._raw(key, pieces)
        if self._seal is not None:
            yield from codec.unseal(raw, self._seal.key, f"the object {key}", context=key)
            return
        first = next(raw, b"")
        if first.startswith(codec.MAGIC) and codec.is_sealed(first):
            raise Corrupt(f"the object {key} is sealed", hint="open the lake with its key")
        yield first
        yield from raw

    def read(self, key: str, start: int, end: int) -> bytes:
        """The bytes [start, end) of `key`, fewer where it ends before. Only what holds them is fetched.

        All of one version, also while others put it anew.
        """
        if not 0 <= start <= end:
            raise Invalid(f"[{start}, {end}) is not a range", hint="give 0 <= start <= end")
        for _ in range(READ_TRIES):
            info = self.head(key)
            try:
                return self._read(info, start, end)
            except _Changed:
                continue
        return self._passing(key, start, end)

    def _passing(self, key: str, start: int, end: int) -> bytes:
        """The range from one stream of the whole object, which is of one version however often it is put."""
        kept, at = bytearray(), 0
        for piece in self.stream(key):
            kept += piece[max(0, start - at) : max(0, end - at)]
            at += len(piece)
            if at >= end:
                break
        return bytes(kept)

    def _read(self, info: ObjectInfo, start: int, end: int) -> bytes:
        if self._seal is None:
            return self._range(info, start, min(end, info.size_bytes))
        found = self._index(info)
        end = min(end, found.size_bytes)
        if start >= end:
            return b""
        first, begin, stop = found.span(start, end)
        name = f"the object {info.key}"
        plain = codec.frames(found, self._range(info, begin, stop), first, self._seal.key, name)
        offset = first * found.head.frame_bytes
        return plain[start - offset : end - offset]

    def size(self, key: str) -> int:
        """How many bytes `get` gives. Raises NotFound, Corrupt."""
        for _ in range(READ_TRIES):
            info = self.head(key)
            if self._seal is None:
                return info.size_bytes
            try:
                return self._index(info).size_bytes
            except _Changed:
                continue
        return sum(map(len, self.stream(key)))

    def copy(self, key: str, to: str) -> None:
        """A second object with the same bytes: made within the store, or sealed anew. Raises NotFound."""
        import obstore

        if self._seal is not None:
            self.put(to, self.stream(key))
            return
        with self._faults(key), self._shared():
            obstore.copy(self._store(), check(key), check(to))

    def head(self, key: str) -> ObjectInfo:
        """Size and time of `key`. Raises NotFound."""
        import obstore

        with self._faults(key):
            return _info(obstore.head(self._store(), check(key)))

    def list(self, prefix: str = "") -> tuple[ObjectInfo, ...]:
        """Every object below `prefix` (whole parts: `models/` or `models`), by key."""
        import obstore

        cleaned = prefix.rstrip("/")
        with self._faults(prefix):
            store = self._store()
            found = [
                _info(item)
                for batch in obstore.list(store, prefix=check(cleaned) if cleaned else None)
                for item in batch
            ]
        return tuple(sorted(found, key=lambda item: item.key))

    def keys(self, prefix: str = "") -> tuple[str, ...]:
        """The keys of `list(prefix)`."""
        return tuple(item.key for item in self.list(prefix))

    def delete(self, key: str) -> None:
        """Removes `key`; one that is not there is no error."""
        import obstore

        check(key)
        with contextlib.suppress(NotFound), self._faults(key), self._shared():
            obstore.delete(self._store(), key)

    def path(self, key: str) -> Path:
        """The file that holds `key`, for readers on this machine. Raises NotFound, Invalid (a bucket, or sealed)."""
        folder = self.place.folder
        if folder is None or self._seal is not None:
            raise Invalid(f"the object {key} is no plain file of this machine", hint="read it: lake.objects.get(key)")
        path = folder.joinpath(*check(key).split("/"))
        if not path.is_file():
            raise NotFound(f"no object {key}", hint="list them: lake.objects.keys()")
        return path

    # -- within

    def _body(self, key: str, data: bytes | Iterable[bytes] | Path) -> tuple[bytes | Iterable[bytes], bool]:
        """(what is stored, whether it is small enough to go in one part)."""
        small = isinstance(data, bytes) and len(data) <= PIECE_BYTES
        pieces: Iterable[bytes] = [data] if isinstance(data, bytes) else _file(data) if isinstance(data, Path) else data
        if self._seal is None:
            return (data, small) if isinstance(data, bytes) else (pieces, False)
        # Bound to its key: a store must not pass off one object as another.
        sealed = codec.seal(pieces, *self._seal.active(), context=key)
        return (b"".join(sealed), True) if small else (sealed, False)

    def _index(self, info: ObjectInfo) -> codec.Index:
        assert self._seal is not None
        name = f"the object {info.key}"
        return codec.index(
            lambda a, b: self._range(info, a, b), info.size_bytes, self._seal.key, name, context=info.key
        )

    def _range(self, info: ObjectInfo, start: int, end: int) -> bytes:
        """Bytes of the version that `info` is of. Raises _Changed when there is another by now."""
        import obstore
        from obstore.exceptions import PreconditionError

        if start >= end:
            return b""
        options: Any = {"range": (start, end), "if_match": info.etag} if info.etag else {"range": (start, end)}
        with self._faults(info.key):
            try:
                return bytes(obstore.get(self._store(), check(info.key), options=options).bytes())
            except PreconditionError:
                raise _Changed from None

    def _raw(self, key: str, pieces: Iterator[Any]) -> Iterator[bytes]:
        while True:
            with self._faults(key):
                piece = next(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    def _store(self) -> Any:
        self.place.make()
        return self.place.store()

    @contextlib.contextmanager
    def _condition(self, key: str, etag: str | None) -> Iterator[str | None]:
        """What the store is told of a condition. A folder knows none: there it holds among users of this class."""
        if etag is None or self.place.folder is None:
            with self._shared():
                yield etag
            return
        with self._locked(fcntl.LOCK_EX):
            if self.head(key).etag != etag:
                raise Conflict(f"the object {key} was changed meanwhile", hint="read it again")
            yield None

    @contextlib.contextmanager
    def _shared(self) -> Iterator[None]:
        """Beside other changes, but not between the look and the write of a conditional one."""
        if self.place.folder is None:
            yield
            return
        with self._locked(fcntl.LOCK_SH):
            yield

    @contextlib.contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        self.place.make()
        folder = self.place.folder
        assert folder is not None
        lock = os.open(folder.with_name(f"{folder.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, how)
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def _faults(self, key: str) -> Iterator[None]:
        """The engine's errors as errors of this package; anything else is a bug of ours."""
        from obstore import exceptions

        try:
            yield
        except (exceptions.BaseError, OSError) as error:
            raise _explain(error, key, self.place) from None


def check(key: str) -> str:
    """The key itself. Raises Invalid for one that could leave the store, or that some stores refuse."""
    parts = key.split("/")
    bad = not key or len(key.encode("utf-8", "replace")) > KEY_BYTES_MAX or not key.isprintable() or "\\" in key
    if bad or any(part in ("", ".", "..") or len(part.encode()) > PART_BYTES_MAX or "#" in part for part in parts):
        raise Invalid(f"{key!r} is not an object key", hint="use parts joined by /, for example: data/ratings.csv")
    return key


def _file(path: Path) -> Iterator[bytes]:
    try:
        with path.open("rb") as file:
            while piece := file.read(1 << 20):
                yield piece
    except OSError as error:
        raise Invalid(f"cannot read {path}: {error.strerror}", hint="check the path and its rights") from None


@contextlib.contextmanager
def _aside(parts: Iterable[bytes]) -> Iterator[Iterator[bytes]]:
    """`parts` made on a thread of their own: the engine takes them on its own, where nothing may ask it again."""
    coming: queue.Queue[bytes | BaseException | None] = queue.Queue(4)
    given_up = threading.Event()

    def offer(item: bytes | BaseException | None) -> bool:
        while not given_up.is_set():
            with contextlib.suppress(queue.Full):
                coming.put(item, timeout=0.1)
                return True
        return False

    def make() -> None:
        try:
            if all(offer(part) for part in parts):
                offer(None)
        except BaseException as error:  # noqa: BLE001 - raised where the parts are taken
            offer(error)

    def take() -> Iterator[bytes]:
        while (item := coming.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    maker = threading.Thread(target=make, name="parts", daemon=True)
    maker.start()
    try:
        yield take()
    finally:
        given_up.set()
        maker.join()


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 1000), meta.get("e_tag"))


def _explain(error: Exception, key: str, place: Place) -> LeptonError:
    """The error of this package for one of the engine."""
    from obstore import exceptions

    text = str(error)
    if "No space left" in text or "Disk quota" in text or "os error 28" in text:
        return DiskFull(f"no room for the object {key}", hint="free some space; nothing half written was kept")
    if isinstance(error, exceptions.AlreadyExistsError):
        return Conflict(f"the object {key} exists already", hint="read it, or choose another key")
    if isinstance(error, exceptions.PreconditionError):
        return Conflict(f"the object {key} was changed meanwhile", hint="read it again")
    if "NoSuchBucket" in text:
        return NotFound(f"there is no bucket {place.bucket}", hint="make it first, or check the address")
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
        return NotFound(f"no object {key}", hint="list them: lake.objects.keys()")
    cause = (text.splitlines()[0] if text else type(error).__name__)[:300]
    if isinstance(error, exceptions.PermissionDeniedError | exceptions.UnauthenticatedError):
        hint = "check the credentials in the environment"
        return Forbidden(f"{place.scheme}://{place.bucket} refuses the object {key}: {cause}", hint=hint)
    if place.folder is None:
        hint = "check that the store runs and the address is right; nothing half written was kept"
        return Unavailable(f"{place.scheme}://{place.bucket} does not serve the object {key}: {cause}", hint=hint)
    return Invalid(f"the object {key} cannot be used: {cause}", hint="check the lake's folder and its rights")
