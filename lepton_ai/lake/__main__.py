"""`python -m lepton_ai.lake --url URL`: the sealed worker. Frames in on stdin, frames out on stdout, one at a time.

Ends when stdin ends, when its parent is gone, or by itself when a query overstays: it never outlives who asked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import threading
import time
from dataclasses import asdict
from typing import Any

from lepton_ai.errors import Failed, LeptonError
from lepton_ai.lake import sealed
from lepton_ai.lake.lake import Lake
from lepton_ai.lake.place import Place
from lepton_ai.lake.query import GRACE_S, Limits

OPEN_FILES_MAX = 4096
ORPHAN_CHECK_S = 1.0
FRAME_IN_BYTES_MAX = 4 << 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m lepton_ai.lake", description="sealed SQL worker of one lake")
    parser.add_argument("--url", required=True)
    lake = Lake(Place.of(parser.parse_args(argv).url))
    # The engines may print: keep frames on a descriptor of their own and send the rest nowhere.
    out = os.dup(1)
    os.dup2(2, 1)
    _restrict()
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    _warm()
    _write(out, {"ready": True})
    while (payload := _read(0)) is not None:
        _write(out, _reply(lake, json.loads(payload)))
    return 0


def _reply(lake: Lake, request: dict[str, Any]) -> dict[str, Any]:
    limits = Limits(**request["limits"]) if "limits" in request else Limits()
    overstay = threading.Timer(limits.timeout_s + 2 * GRACE_S, os._exit, (124,))
    overstay.daemon = True
    overstay.start()
    try:
        if request["do"] == "query":
            return asdict(sealed.answer(lake, request["sql"], limits))
        if request["do"] == "tables":
            return {"tables": sealed.tables(lake)}
        return {"history": sealed.history(lake, request["table"])}
    except LeptonError as error:
        return {"error": {"code": error.code, "message": error.message, "hint": error.hint, "details": error.details}}
    except Exception as error:  # noqa: BLE001 - the worker must answer; the caller sees what it was
        message = f"the query worker failed: {type(error).__name__}: {error}"[:1000]
        hint = "this is a bug: please report it"
        return {"error": {"code": Failed.code, "message": message, "hint": hint, "details": {}}}
    finally:
        overstay.cancel()


def _restrict() -> None:
    """No file can grow, no core is dumped, no privilege is gained: what DuckDB's own seal should never let happen."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = OPEN_FILES_MAX if hard == resource.RLIM_INFINITY else min(OPEN_FILES_MAX, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_S)
    os._exit(1)


def _warm() -> None:
    """Loads the engines before the first query's clock starts."""
    import deltalake  # noqa: F401
    import duckdb  # noqa: F401
    import pyarrow.dataset  # noqa: F401


def _read(descriptor: int) -> bytes | None:
    head = _exactly(descriptor, 4)
    if head is None or int.from_bytes(head) > FRAME_IN_BYTES_MAX:
        return None
    return _exactly(descriptor, int.from_bytes(head))


def _exactly(descriptor: int, count: int) -> bytes | None:
    data = bytearray()
    while len(data) < count:
        piece = os.read(descriptor, count - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _write(descriptor: int, reply: dict[str, Any]) -> None:
    payload = json.dumps(reply, ensure_ascii=False).encode("utf-8", "replace")
    view = memoryview(len(payload).to_bytes(4) + payload)
    while view:
        view = view[os.write(descriptor, view) :]


if __name__ == "__main__":
    sys.exit(main())
