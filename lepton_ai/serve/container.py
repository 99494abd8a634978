"""The file a model is served from: a saved model (a zip with ``model.json`` and ``model.onnx``) or a bare ONNX file.

Owns telling them apart. The format of saved models, and reading one safely, are those of ``lepton_ai.models``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lepton_ai.errors import Corrupt, Invalid, NotFound
from lepton_ai.models import container

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
            saved = container.Container.load(path, only_onnx=True)
            if saved.onnx is None:
                raise Corrupt(f"the model file {path} has no graph", hint="save the model again with model.save(PATH)")
            return cls(onnx=saved.onnx, meta=saved.manifest)
        if head.startswith(_PICKLE):
            raise Invalid(
                f"{path} is a Python pickle, which can run any code when loaded; it is not served",
                hint="load it where you trust it, and save it with model.save(PATH)",
            )
        if not head:
            raise Corrupt(f"the model file {path} is empty", hint="save the model again")
        return cls(onnx=str(path), meta={"name": path.stem})
