"""Content keys of a lake, wrapped by a key that lies elsewhere: envelope encryption with cheap rotation.

Owns the ring: `keys/ring-N.json`, of which the largest N holds. Data is sealed with content keys (see `codec`), the
ring holds them wrapped (AES-256-GCM) by the key-encryption key of the lake's owner. To rotate that key rewrites the
ring, a few hundred bytes, and not one byte of data. Each ring is written under a number that did not exist, which
every store can do for one winner alone.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from typing import Any

from lepton_ai.errors import Conflict, Corrupt, Invalid, NotFound
from lepton_ai.lake.objects import Objects
from lepton_ai.lake.place import Place
from lepton_ai.spec.base import uuid7

KEY_BYTES = 32
LOOK_S = 60.0
"""A ring that another process renewed is noticed for new data after so long at the latest."""
TRIES = 20
_NAME = re.compile(r"ring-([0-9]{8})\.json\Z")
_WRAP = b"lepton/lake/wrap/1"
_NAMED = b"lepton/lake/kek/1"


class Keyring:
    """The content keys of the lake at `place`, opened with `kek` (32 bytes). Made at the first use. Thread-safe."""

    def __init__(self, place: Place, kek: bytes) -> None:
        if len(kek) != KEY_BYTES:
            raise Invalid(f"a lake's key has {len(kek)} bytes, not {KEY_BYTES}", hint="head -c 32 /dev/urandom > key")
        self._rings = Objects(place.below("keys"))
        self._kek = kek
        self._lock = threading.Lock()
        self._keys: dict[str, bytes] = {}
        self._active = ""
        self._looked_s = 0.0

    def active(self) -> tuple[str, bytes]:
        """(id, key) of the content key for new data. Raises Corrupt when `kek` is not the ring's."""
        with self._lock:
            if not self._active or time.monotonic() - self._looked_s > LOOK_S:
                self._load()
            return self._active, self._keys[self._active]

    def key(self, key_id: str) -> bytes:
        """The content key of that id. Raises Corrupt when the ring has none, or `kek` is not the ring's."""
        with self._lock:
            if key_id not in self._keys:
                self._load()
            if key_id not in self._keys:
                raise Corrupt(f"the lake has no content key {key_id[:60]!r}", hint="restore keys/ from a backup")
            return self._keys[key_id]

    def renew(self) -> str:
        """A new content key for what is written from now on; its id. What is there stays readable.

        Others that have the lake open seal under it within a minute.
        """
        return str(self._change(self._kek, fresh=True)["active"])

    def rotate(self, kek: bytes) -> None:
        """Wrap every content key by `kek` instead, and seal new data under a new one; no data is rewritten.

        The old key opens nothing any more: earlier rings are removed. (Who had it may have kept a copy of a ring, or
        the content keys: what was readable with a key that leaked is to be taken for read.) Raises Invalid, Conflict,
        Corrupt.
        """
        if len(kek) != KEY_BYTES:
            raise Invalid(f"a lake's key has {len(kek)} bytes, not {KEY_BYTES}", hint="head -c 32 /dev/urandom > key")
        self._change(kek, fresh=True)
        with self._lock:
            self._kek = kek

    def _load(self) -> None:
        number, ring = self._newest()
        if number == 0:
            first = uuid7()
            try:
                ring = self._write(1, self._kek, first, {first: os.urandom(KEY_BYTES)})
            except Conflict:  # another made the first ring meanwhile: its keys are the lake's
                ring = self._newest()[1]
        self._keys, self._active = _opened(ring, self._kek), str(ring["active"])
        self._looked_s = time.monotonic()

    def _change(self, kek: bytes, *, fresh: bool) -> dict[str, Any]:
        with self._lock:
            self._load()
            for _ in range(TRIES):
                number, ring = self._newest()
                keys, active = _opened(ring, self._kek), str(ring["active"])
                if fresh:
                    active = uuid7()
                    keys[active] = os.urandom(KEY_BYTES)
                try:
                    ring = self._write(number + 1, kek, active, keys)
                except Conflict:
                    continue
                self._tidy(number + 1)
                self._keys, self._active = keys, active
                return ring
        raise Conflict("others change the lake's keys all the time", hint="try again later")

    def _write(self, number: int, kek: bytes, active: str, keys: dict[str, bytes]) -> dict[str, Any]:
        """Ring `number`. Raises Conflict when there is one."""
        wrapped = {key_id: _wrap(kek, key_id, key) for key_id, key in keys.items()}
        ring = {"form": 1, "active": active, "kek": _name(kek), "keys": wrapped}
        self._rings.put(f"ring-{number:08d}.json", json.dumps(ring).encode(), create=True)
        return ring

    def _tidy(self, newest: int) -> None:
        """Earlier rings go: they may be wrapped by a key that is not to open anything any more."""
        for number in self._numbers():
            if number < newest:
                self._rings.delete(f"ring-{number:08d}.json")

    def _numbers(self) -> list[int]:
        return [int(match[1]) for key in self._rings.keys() if (match := _NAME.match(key))]  # noqa: SIM118

    def _newest(self) -> tuple[int, dict[str, Any]]:
        numbers = self._numbers()
        if not numbers:
            return 0, {}
        number = max(numbers)
        try:
            ring = json.loads(self._rings.get(f"ring-{number:08d}.json"))
        except NotFound:
            return self._newest()  # it was tidied away meanwhile: there is a newer one
        except ValueError:
            ring = None
        if not isinstance(ring, dict) or ring.get("form") != 1 or not isinstance(ring.get("keys"), dict):
            raise Corrupt(f"the lake's key ring {number} cannot be read", hint="restore keys/ from a backup")
        return number, ring


def _opened(ring: dict[str, Any], kek: bytes) -> dict[str, bytes]:
    if ring.get("kek") != _name(kek):
        raise Corrupt(
            "the lake's content keys are wrapped by another key", hint="open the lake with the key it has now"
        )
    return {str(key_id): _unwrap(kek, str(key_id), str(wrapped)) for key_id, wrapped in ring["keys"].items()}


def _wrap(kek: bytes, key_id: str, key: bytes) -> str:
    nonce = os.urandom(12)
    sealed: bytes = _cipher(kek).encrypt(nonce, key, key_id.encode())
    return (nonce + sealed).hex()


def _unwrap(kek: bytes, key_id: str, wrapped: str) -> bytes:
    from cryptography.exceptions import InvalidTag

    try:
        data = bytes.fromhex(wrapped)
        return bytes(_cipher(kek).decrypt(data[:12], data[12:], key_id.encode()))
    except (InvalidTag, ValueError):
        raise Corrupt(f"content key {key_id[:60]!r} was changed", hint="restore keys/ from a backup") from None


def _cipher(kek: bytes) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_derived(kek, _WRAP))


def _name(kek: bytes) -> str:
    """A name of the key that tells nothing of it."""
    return _derived(kek, _NAMED)[:8].hex()


def _derived(kek: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(SHA256(), KEY_BYTES, None, info).derive(kek)
