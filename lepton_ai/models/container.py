"""The file of a saved model: a zip of JSON, arrays and one ONNX graph; nothing in it is ever executed.

Owns the format: `model.json`, `arrays/NAME.npy`, `model.onnx`, all stored uncompressed with fixed times, so that
equal models are equal bytes. Reading trusts nothing: a stored zip cannot grow when it is opened, member names come
from a closed set, arrays hold numbers, flags or text only, and each member's digest is checked.
"""

from __future__ import annotations

import errno
import hashlib
import io
import json
import math
import os
import re
import struct
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lepton_ai.errors import Corrupt, DiskFull, Invalid, NotFound, TooLarge

FORMAT = 1
MANIFEST_BYTES_MAX = 16 << 20
MEMBERS_MAX = 256
NPY_HEADER_BYTES_MAX = 10_000
_PIECE_BYTES = 1 << 20
_ARRAY = re.compile(r"arrays/([a-z][a-z0-9_]{0,62})\.npy\Z")
_NPY = re.compile(
    rb"\x93NUMPY\x01\x00[\x00-\xff]{2}\{'descr': "
    rb"'(\|b1|\|[iu]1|<[iu][248]|<f[248]|<U[1-9][0-9]{0,4})', 'fortran_order': False, "
    rb"'shape': \(((?:[0-9]{1,18},?(?: [0-9]{1,18})?)?)\), \} *\n"
)
_PARTS = ("settings", "signature", "metrics", "protocol", "lineage")
_TIME = (1980, 1, 1, 0, 0, 0)
_DAMAGE = (zipfile.BadZipFile, struct.error, EOFError, RuntimeError, UnicodeDecodeError, OverflowError)
_HINT_SAVE = "make one with model.save(path)"
_HINT_PICKLE = "it was not opened, because a pickle can run code; fit the model again and save it: model.save(path)"


@dataclass(frozen=True)
class Container:
    """What a saved model holds: the manifest (`model.json`), its arrays by name, the graph's bytes (or None)."""

    manifest: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    onnx: bytes | None = None

    def pack(self) -> bytes:
        """The bytes of the file; equal contents give equal bytes."""
        members = {f"arrays/{name}.npy": _pack_array(name, array) for name, array in self.arrays.items()}
        if self.onnx is not None:
            members["model.onnx"] = self.onnx
        listed = {
            name: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
            for name, data in sorted(members.items())
        }
        manifest = {**self.manifest, "format": FORMAT, "members": listed}
        text = json.dumps(manifest, sort_keys=True, ensure_ascii=False, allow_nan=False, indent=1)
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
            for name, data in [("model.json", text.encode()), *sorted(members.items())]:
                info = zipfile.ZipInfo(name, _TIME)
                info.external_attr = 0o600 << 16
                info.create_system = 3
                archive.writestr(info, data)
        return out.getvalue()

    def save(self, path: str | Path) -> Path:
        """Writes the file at once (temporary file, then rename). Raises DiskFull and keeps nothing half written."""
        target = Path(path)
        data = self.pack()
        try:
            descriptor, name = tempfile.mkstemp(dir=target.absolute().parent, prefix=f".{target.name}.")
        except OSError as error:
            raise Invalid(f"cannot write {target}: {error.strerror}", hint="check the folder and its rights") from None
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, target)
        except OSError as error:
            Path(name).unlink(missing_ok=True)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise DiskFull(f"no room for {target} ({len(data)} bytes)", hint="free some space first") from None
            raise Invalid(f"cannot write {target}: {error.strerror}", hint="check the folder and its rights") from None
        return target

    @classmethod
    def load(cls, path: str | Path, *, only_manifest: bool = False, only_onnx: bool = False) -> Container:
        """Reads a saved model. Raises NotFound, Invalid (a pickle, not a model, another format), Corrupt.

        only_manifest=True checks every member all the same, in pieces, and keeps none of them in memory.
        only_onnx=True reads no array at all: what serves a model needs its graph.
        """
        try:
            with open(path, "rb") as file:
                return cls._read(file, str(path), only_manifest, only_onnx)
        except FileNotFoundError:
            raise NotFound(f"no file {path}", hint="save a model there first: model.save(path)") from None
        except OSError as error:
            raise Invalid(f"cannot read {path}: {error.strerror}", hint="check the path and its rights") from None

    @classmethod
    def unpack(cls, data: bytes, name: str = "model") -> Container:
        """As `load`, from bytes."""
        return cls._read(io.BytesIO(data), name, False)

    @classmethod
    def _read(cls, file: Any, name: str, only_manifest: bool, only_onnx: bool = False) -> Container:
        head = file.read(4)
        if head != b"PK\x03\x04":
            _refuse_head(head, name)
        file.seek(0, os.SEEK_END)
        size_bytes = file.tell()
        file.seek(0)
        try:
            with zipfile.ZipFile(file) as archive:
                infos = _check_members(archive.infolist(), size_bytes, name)
                manifest = _read_manifest(archive, infos, name)
                if only_manifest:
                    for member in manifest["members"]:
                        _check_member(archive, infos[member], manifest["members"][member]["sha256"], name)
                    return cls(manifest, {}, None)
                arrays: dict[str, NDArray[Any]] = {}
                onnx = None
                for member in infos:
                    if member == "model.json" or (only_onnx and member != "model.onnx"):
                        continue
                    data = archive.read(member)
                    if hashlib.sha256(data).hexdigest() != manifest["members"][member]["sha256"]:
                        raise Corrupt(f"{name}: {member} is not what was saved", hint="copy the file again")
                    match = _ARRAY.match(member)
                    if match:
                        arrays[match[1]] = _unpack_array(data, f"{name}: {member}")
                    else:
                        onnx = data
                return cls(manifest, arrays, onnx)
        except _DAMAGE as error:
            raise Corrupt(f"{name} is damaged: {error}", hint="copy the file again, or save the model again") from None


def _refuse_head(head: bytes, name: str) -> None:
    # Protocols 2 to 5 start with 0x80; 0 and 1 with an opcode such as "(", "c", "]", "}" or ".
    if head[:1] == b"\x80" or (head[:1] in b"(c]}lI.X" and head):
        raise Invalid(f"{name} is a Python pickle, not a saved model", hint=_HINT_PICKLE)
    raise Invalid(f"{name} is not a saved model", hint=_HINT_SAVE)


def _check_members(infos: list[zipfile.ZipInfo], size_bytes: int, name: str) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    if any(info.filename.endswith((".pkl", ".pickle")) for info in infos):
        raise Invalid(f"{name} holds a Python pickle, not a saved model", hint=_HINT_PICKLE)
    if len(infos) > MEMBERS_MAX:
        raise TooLarge(f"{name} holds {len(infos)} members", hint="a saved model has at most 256")
    total = 0
    for info in infos:
        if info.filename not in ("model.json", "model.onnx") and not _ARRAY.match(info.filename):
            raise Invalid(f"{name} holds {info.filename!r}, which no saved model has", hint=_HINT_SAVE)
        if info.filename in found:
            raise Corrupt(f"{name} holds {info.filename} twice", hint="save the model again")
        # Stored members cannot grow when opened; all together cannot be more than the file (no overlaps).
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise Invalid(f"{name}: {info.filename} is compressed or encrypted", hint=_HINT_SAVE)
        total += info.file_size
        found[info.filename] = info
    if total > size_bytes:
        raise Corrupt(f"{name}: its members claim {total} bytes in a file of {size_bytes}", hint="save the model again")
    if "model.json" not in found:
        raise Invalid(f"{name} is a zip file, but not a saved model", hint=_HINT_SAVE)
    if found["model.json"].file_size > MANIFEST_BYTES_MAX:
        raise TooLarge(f"{name}: model.json is larger than {MANIFEST_BYTES_MAX} bytes", hint="save the model again")
    return found


def _read_manifest(archive: zipfile.ZipFile, infos: Mapping[str, zipfile.ZipInfo], name: str) -> dict[str, Any]:
    try:
        manifest = json.loads(archive.read("model.json"), parse_constant=_no_number)
        members = {str(key): (str(of["sha256"]), int(of["size_bytes"])) for key, of in manifest["members"].items()}
        version = manifest["format"]
        kind = manifest["kind"]
        if not all(isinstance(manifest[part], dict) for part in _PARTS):
            raise TypeError
        json.dumps(manifest, ensure_ascii=False).encode()  # halves of surrogate pairs cannot be written again
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise Corrupt(f"{name}: model.json does not describe a model", hint="save the model again") from None
    if version != FORMAT:
        hint = "update: pip install -U lepton-cloud"
        raise Invalid(f"{name} has format {version!r}; this build reads {FORMAT}", hint=hint)
    if not isinstance(kind, str) or members.keys() != infos.keys() - {"model.json"}:
        raise Corrupt(f"{name}: model.json lists other members than the file has", hint="save the model again")
    if any(infos[member].file_size != size for member, (_, size) in members.items()):
        raise Corrupt(f"{name}: a member has another size than was saved", hint="copy the file again")
    return dict(manifest)


def _no_number(word: str) -> None:
    raise ValueError(f"{word} is not JSON")


def _check_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, sha256: str, name: str) -> None:
    digest = hashlib.sha256()
    with archive.open(info) as file:
        head = file.read(NPY_HEADER_BYTES_MAX)
        digest.update(head)
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    if digest.hexdigest() != sha256:
        raise Corrupt(f"{name}: {info.filename} is not what was saved", hint="copy the file again")
    if _ARRAY.match(info.filename):
        _array_form(head, info.file_size, f"{name}: {info.filename}")


def _pack_array(name: str, array: NDArray[Any]) -> bytes:
    assert _ARRAY.match(f"arrays/{name}.npy"), name
    assert array.dtype.kind in "biufU", array.dtype
    out = io.BytesIO()
    np.lib.format.write_array(out, np.ascontiguousarray(array), version=(1, 0), allow_pickle=False)
    return out.getvalue()


def _unpack_array(data: bytes, name: str) -> NDArray[Any]:
    dtype, shape, start = _array_form(data[:NPY_HEADER_BYTES_MAX], len(data), name)
    try:
        array = np.frombuffer(data, dtype=dtype, offset=start).reshape(shape)
    except ValueError:  # no values, and sides whose product does not fit an index
        raise Corrupt(f"{name} has an impossible shape", hint=_HINT_SAVE) from None
    if dtype.kind == "U" and len(data) > start and int(np.frombuffer(data, "<u4", offset=start).max()) > 0x10FFFF:
        raise Corrupt(f"{name} holds text that is no Unicode", hint="save the model again")
    return array


def _array_form(head: bytes, size_bytes: int, name: str) -> tuple[np.dtype[Any], tuple[int, ...], int]:
    """(type, shape, where the values begin) of an array of `size_bytes`, header included, that begins with `head`."""
    # numpy's own reader of headers parses Python: this one knows the single form that numpy writes.
    match = _NPY.match(head)
    if not match or 10 + int.from_bytes(head[8:10], "little") != match.end():
        raise Corrupt(f"{name} is not an array of plain numbers or text", hint=_HINT_SAVE)
    dtype = np.dtype(match[1].decode())
    shape = tuple(int(side) for side in match[2].split(b",") if side.strip())
    rest = size_bytes - match.end()
    claimed = math.prod(shape) * dtype.itemsize
    if claimed != rest:
        raise Corrupt(f"{name} claims {claimed} bytes and has {rest}", hint="save the model again")
    return dtype, shape, match.end()
