"""The image whose container does nothing but exist: it holds a network while that is made ready.

As Kubernetes' pause image does. Made here, byte by byte, so that none has to be fetched: one program of a few
instructions that sleeps for good.
"""

from __future__ import annotations

import io
import struct
import tarfile

from lepton_ai.errors import Failed, Unsupported
from lepton_ai.node.engine import Away, Engine, Refused
from lepton_ai.node.images import away

HOLD = "/hold"
NAME = "lepton_ai/hold"
TAG = "1"
_CODE = {
    # mov eax, 34 (pause); syscall; jmp back
    "amd64": (62, bytes.fromhex("b8 22 00 00 00 0f 05 eb f7")),
    # mov x0..x3, 0; mov x8, 73 (ppoll of nothing, for ever); svc 0; b back
    "arm64": (183, bytes.fromhex("000080d2 010080d2 020080d2 030080d2 280980d2 010000d4 faffff17")),
}
_BASE = 0x400000


def hold(engine: Engine) -> str:
    """The image's name, after making it if it is not there. Raises Unavailable, Unsupported, Failed."""
    name = f"{NAME}:{TAG}"
    try:
        try:
            engine.ask("GET", f"/images/{name}/json")
        except Refused as error:
            if error.status != 404:
                raise
            arch = str(engine.ask("GET", "/version").get("Arch"))
            engine.ask("POST", "/images/create", _image(arch), query={"fromSrc": "-", "repo": NAME, "tag": TAG})
    except Refused as error:
        raise Failed(f"the container engine takes no image: {error.message}", hint="check: docker info") from error
    except Away as error:
        raise away(engine, error) from error
    return name


def _image(arch: str) -> bytes:
    if arch not in _CODE:
        raise Unsupported(f"containers with a network of their own are not possible on {arch}", hint="use process://")
    machine, code = _CODE[arch]
    ident = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    size = 64 + 56 + len(code)
    header = ident + struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, _BASE + 64 + 56, 64, 0, 0, 64, 56, 1, 64, 0, 0)
    data = header + struct.pack("<IIQQQQQQ", 1, 5, 0, _BASE, _BASE, size, size, 4096) + code
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        info = tarfile.TarInfo(HOLD.lstrip("/"))
        info.size, info.mode = len(data), 0o755
        tar.addfile(info, io.BytesIO(data))
    return file.getvalue()
