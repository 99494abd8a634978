"""Model versions as files in the lake: `models/NAME/versions/000001.json` beside the containers they name.

Owns numbering and lineage. A version is written once, by a conditional put of its record, so that two writers never
share a number; its container is stored under its digest first, so that a record never names bytes that are missing.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.errors import Conflict, Corrupt, Invalid, NotFound
from lepton_ai.lake.objects import Objects
from lepton_ai.models.container import Container
from lepton_ai.models.model import Model
from lepton_ai.spec.base import NAME_PATTERN, is_name

REGISTER_TRIES = 100


@dataclass(frozen=True)
class ModelVersion:
    """One version, written as `movies@3`. `key` is the object that holds the container."""

    name: str
    version: int
    kind: str
    digest: str
    size_bytes: int
    key: str
    created_ms: int
    signature: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


class Registry:
    """The models of one lake: `Registry(lake.objects)`. `now_ms` is the clock, injected for tests."""

    def __init__(self, objects: Objects, *, now_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000) -> None:
        self._objects = objects
        self._now_ms = now_ms

    def register(
        self, name: str, model: Model | bytes | Path, *, lineage: dict[str, Any] | None = None
    ) -> ModelVersion:
        """Stores a model (or the bytes or the file of a saved one) as the next version of `name`.

        A file is never held in memory as a whole; it must not change meanwhile.

        The same bytes with the same lineage as the newest version are that version: calling twice is once. Raises
        Invalid for a bad name or bytes that are no saved model, DiskFull, and Conflict when others keep winning.
        """
        _check_name(name)
        data: bytes | Path = model.container().pack() if isinstance(model, Model) else model
        if isinstance(data, Path):
            manifest = Container.load(data, only_manifest=True).manifest
            with data.open("rb") as file:
                digest, size_bytes = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}", file.tell()
        else:
            manifest = Container.unpack(data, name).manifest
            digest, size_bytes = f"sha256:{hashlib.sha256(data).hexdigest()}", len(data)
        key = f"models/{name}/containers/{digest.removeprefix('sha256:')}.lepton"
        merged = {**manifest["lineage"], **(lineage or {})}
        stored = False
        for _ in range(REGISTER_TRIES):
            numbers = self._numbers(name)
            if numbers:
                last = self._read(name, numbers[-1])
                if last.digest == digest and last.lineage == merged:
                    return last
            if not stored:
                self._objects.put(key, data)
                stored = True
            version = ModelVersion(
                name=name,
                version=(numbers[-1] if numbers else 0) + 1,
                kind=manifest["kind"],
                digest=digest,
                size_bytes=size_bytes,
                key=key,
                created_ms=self._now_ms(),
                signature=manifest["signature"],
                metrics=manifest["metrics"],
                protocol=manifest["protocol"],
                lineage=merged,
            )
            text = json.dumps(asdict(version), ensure_ascii=False, sort_keys=True, indent=1)
            try:
                self._objects.put(_key(name, version.version), text.encode(), create=True)
                return version
            except Conflict:
                continue
        raise Conflict(f"others kept registering versions of {name}", hint="try again")

    def get(self, ref: str) -> ModelVersion:
        """The version `movies@3`, or the newest of `movies`. Raises NotFound, Invalid, Corrupt."""
        name, separator, number = ref.partition("@")
        _check_name(name)
        if separator:
            if not number.isascii() or not number.isdecimal() or len(number) > 9 or int(number) < 1:
                raise Invalid(f"{ref!r} is not a model version", hint="versions count from 1: movies@1")
            return self._read(name, int(number))
        numbers = self._numbers(name)
        if not numbers:
            raise NotFound(f"no model {name}", hint="list them: lepton model ls")
        return self._read(name, numbers[-1])

    def list(self, name: str | None = None) -> tuple[ModelVersion, ...]:
        """Every version of `name`, or of every model, by name and oldest first."""
        if name is not None:
            _check_name(name)
        names = [name] if name else sorted({key.split("/")[1] for key in self._objects.keys("models")})
        return tuple(self._read(each, number) for each in names for number in self._numbers(each))

    def read(self, version: ModelVersion) -> bytes:
        """The bytes of the version's container, verified. Raises NotFound or Corrupt."""
        data = self._objects.get(version.key)
        if "sha256:" + hashlib.sha256(data).hexdigest() != version.digest:
            raise Corrupt(f"the stored model {version} is not what was registered", hint="register it again")
        return data

    def load(self, ref: str) -> Model:
        """The model of a version, ready to predict."""
        version = self.get(ref)
        return Model.of(Container.unpack(self.read(version), str(version)), str(version))

    def _numbers(self, name: str) -> tuple[int, ...]:
        prefix = f"models/{name}/versions"
        stems = [key.rpartition("/")[2].removesuffix(".json") for key in self._objects.keys(prefix)]
        return tuple(sorted(int(stem) for stem in stems if stem.isdecimal()))

    def _read(self, name: str, number: int) -> ModelVersion:
        try:
            version = ModelVersion(**json.loads(self._objects.get(_key(name, number))))
        except NotFound:
            raise NotFound(f"no model version {name}@{number}", hint="list them: lepton model ls") from None
        except (ValueError, TypeError):
            raise Corrupt(f"the record of {name}@{number} cannot be read", hint="register the model again") from None
        if (version.name, version.version) != (name, number):
            raise Corrupt(f"the record of {name}@{number} names {version}", hint="register the model again")
        return version


def _key(name: str, number: int) -> str:
    return f"models/{name}/versions/{number:06d}.json"


def _check_name(name: str) -> None:
    if not is_name(name):
        raise Invalid(f"{name!r} is not a model name", hint=f"names match {NAME_PATTERN}, for example: movies")
