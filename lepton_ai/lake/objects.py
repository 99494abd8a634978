"""Objects: bytes by key, whole or not at all, with a conditional put. On folders, through obstore.

Owns keys and errors; the engine (`obstore`) is imported when first used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lepton_ai.errors import Conflict, DiskFull, Invalid, LeptonError, NotFound

KEY_BYTES_MAX = 900
PART_BYTES_MAX = 200


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it."""

    key: str
    size_bytes: int
    modified_ms: int
    etag: str | None


class Objects:
    """The objects below a folder. Keys are `a/b/c`: no empty part, no `.` or `..`, no control characters."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._opened: Any = None

    def put(self, key: str, data: bytes, *, create: bool = False) -> None:
        """Stores `data` under `key`; readers see the old bytes or the new ones. Raises DiskFull.

        create=True: only if there is none yet, else Conflict; of several writers at once, one wins.
        """
        import obstore

        try:
            obstore.put(self._store(), check(key), data, mode="create" if create else "overwrite", use_multipart=False)
        except _faults() as error:
            raise _explain(error, key) from None

    def get(self, key: str) -> bytes:
        """The bytes of `key`. Raises NotFound."""
        import obstore

        try:
            return bytes(obstore.get(self._store(), check(key)).bytes())
        except _faults() as error:
            raise _explain(error, key) from None

    def head(self, key: str) -> ObjectInfo:
        """Size and time of `key`. Raises NotFound."""
        import obstore

        try:
            return _info(obstore.head(self._store(), check(key)))
        except _faults() as error:
            raise _explain(error, key) from None

    def list(self, prefix: str = "") -> tuple[ObjectInfo, ...]:
        """Every object below `prefix` (whole parts: `models/` or `models`), by key."""
        import obstore

        cleaned = prefix.rstrip("/")
        store = self._store()
        try:
            found = [
                _info(item)
                for batch in obstore.list(store, prefix=check(cleaned) if cleaned else None)
                for item in batch
            ]
        except _faults() as error:
            raise _explain(error, prefix) from None
        return tuple(sorted(found, key=lambda item: item.key))

    def keys(self, prefix: str = "") -> tuple[str, ...]:
        """The keys of `list(prefix)`."""
        return tuple(item.key for item in self.list(prefix))

    def delete(self, key: str) -> None:
        """Removes `key`; one that is not there is no error."""
        import obstore

        try:
            obstore.delete(self._store(), check(key))
        except _faults() as error:
            explained = _explain(error, key)
            if not isinstance(explained, NotFound):
                raise explained from None

    def path(self, key: str) -> Path:
        """The file that holds `key`, for readers on this machine. Raises NotFound."""
        path = self._root.joinpath(*check(key).split("/"))
        if not path.is_file():
            raise NotFound(f"no object {key}", hint="list them: lake.objects.keys()")
        return path

    def _store(self) -> Any:
        if self._opened is None:
            from obstore.store import LocalStore

            try:
                self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._opened = LocalStore(os.fspath(self._root))
            except OSError as error:
                raise _explain(error, os.fspath(self._root)) from None
        return self._opened


def check(key: str) -> str:
    """The key itself. Raises Invalid for one that could leave the store, or that some stores refuse."""
    parts = key.split("/")
    bad = not key or len(key.encode("utf-8", "replace")) > KEY_BYTES_MAX or not key.isprintable() or "\\" in key
    if bad or any(part in ("", ".", "..") or len(part.encode()) > PART_BYTES_MAX or "#" in part for part in parts):
        raise Invalid(f"{key!r} is not an object key", hint="use parts joined by /, for example: data/ratings.csv")
    return key


def _info(meta: Any) -> ObjectInfo:
    return ObjectInfo(meta["path"], meta["size"], int(meta["last_modified"].timestamp() * 1000), meta.get("e_tag"))


def _faults() -> tuple[type[Exception], ...]:
    """What the engine raises when it is not a bug of ours."""
    from obstore import exceptions

    return (exceptions.BaseError, OSError)


def _explain(error: Exception, key: str) -> LeptonError:
    """The error of this package for one of the engine."""
    from obstore import exceptions

    text = str(error)
    if "No space left" in text or "Disk quota" in text or "os error 28" in text:
        return DiskFull(f"no room for the object {key}", hint="free some space; nothing half written was kept")
    if isinstance(error, exceptions.AlreadyExistsError):
        return Conflict(f"the object {key} exists already", hint="read it, or choose another key")
    if isinstance(error, exceptions.NotFoundError | FileNotFoundError):
        return NotFound(f"no object {key}", hint="list them: lake.objects.keys()")
    cause = text.splitlines()[0] if text else type(error).__name__
    return Invalid(f"the object {key} cannot be used: {cause}", hint="check the lake's folder and its rights")
