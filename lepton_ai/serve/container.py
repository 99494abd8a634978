"""The file a model is served from: a saved model (a zip with ``model.json`` and ``model.onnx``) or a bare ONNX file.

Owns reading it safely: only those two members are ever opened, nothing is unpacked to disk and nothing is executed.
Writing is in ``lepton_ai.models``.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.errors import Corrupt, Invalid, NotFound

_MODEL_BYTES_MAX = 2 * 1024**3
"""The size limit of an ONNX file itself (protobuf); larger ones keep their weights beside it."""

_JSON_BYTES_MAX = 16 * 1024**2

_PICKLE = (b"\x80", b"c", b"(d", b"(l", b"(i", b"(c", b"(t", b"]", b"}", b"lp", b"I0", b"I1")
"""How pickles begin: protocols 2 to 5 with 0x80, the older ones with an opcode. An ONNX file begins with 0x08."""


@dataclass(frozen=True, slots=True)
class Container:
    """A model to serve: ONNX bytes (or the path of a bare file) and what ``model.json`` says about it."""

    onnx: bytes | str
    meta: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Container:
        """Read ``path``, whatever its ending.

        Raises:
            NotFound: there is no such file.
            Invalid: it is a pickle or another format that is not served.
            Corrupt: it is a container with a missing or damaged member.
        """
        try:
            with path.open("rb") as file:
                head = file.read(8)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            raise NotFound(f"no model file at {path}", hint="save one with model.save(PATH)") from None
        except OSError as error:
            raise Invalid(f"cannot read the model file {path}: {error.strerror}") from None
        if head.startswith(b"PK\x03\x04"):
            return _read_zip(path)
        if head.startswith(_PICKLE):
            raise Invalid(
                f"{path} is a Python pickle, which can run any code when loaded; it is not served",
                hint="load it where you trust it, and save it with model.save(PATH)",
            )
        if not head:
            raise Corrupt(f"the model file {path} is empty", hint="save the model again")
        return cls(onnx=str(path), meta={"name": path.stem})


def _read_zip(path: Path) -> Container:
    hint = "save the model again with model.save(PATH)"
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(_member(archive, "model.json", _JSON_BYTES_MAX))
            onnx = _member(archive, "model.onnx", _MODEL_BYTES_MAX)
    except KeyError as error:
        raise Corrupt(f"the model file {path} has no member {error.args[0]}", hint=hint) from None
    except (zipfile.BadZipFile, EOFError, OSError, ValueError, RuntimeError) as error:
        raise Corrupt(f"the model file {path} is damaged: {error}", hint=hint) from None
    if not isinstance(meta, dict):
        raise Corrupt(f"model.json in {path} is not an object", hint=hint)
    if meta.get("format", 1) != 1:
        raise Invalid(
            f"{path} has container format {meta['format']}, this release reads format 1", hint="upgrade lepton-cloud"
        )
    _check_digest(meta, onnx, path)
    return Container(onnx=onnx, meta=meta)


def _check_digest(meta: dict[str, Any], onnx: bytes, path: Path) -> None:
    """A container of ``lepton_ai.models`` lists its members' digests; one written by hand may not."""
    members = meta.get("members")
    listed = members.get("model.onnx") if isinstance(members, dict) else None
    wanted = listed.get("sha256") if isinstance(listed, dict) else None
    if wanted is not None and hashlib.sha256(onnx).hexdigest() != wanted:
        raise Corrupt(f"model.onnx in {path} does not match its digest", hint="fetch or save the model again")


def _member(archive: zipfile.ZipFile, name: str, bytes_max: int) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise KeyError(name) from None
    if info.file_size > bytes_max:
        raise ValueError(f"{name} has {info.file_size} bytes, more than {bytes_max}")
    with archive.open(info) as file:
        data = file.read(bytes_max + 1)
    if len(data) > bytes_max:
        raise ValueError(f"{name} has more than {bytes_max} bytes")
    return data
