"""Blobs over HTTP: how bytes come into a cell, and how agents fetch them.

GET PUT x/blobs/DIGEST   GET also with a ticket (blobs.ticket) instead of a token
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from lepton_ai.api.call import BASE, Call, Router, admit, answer, guarded
from lepton_ai.api.cell import Cell
from lepton_ai.api.holdings import hold, holds
from lepton_ai.api.lanes import lanes
from lepton_ai.api.shares import run_in_threadpool
from lepton_ai.api.upload import Upload
from lepton_ai.blobs import ticket
from lepton_ai.errors import Corrupt, Invalid, NotFound

BLOB_BYTES_MAX = 64 << 30


def add(router: Router, cell: Cell) -> None:
    async def get(request: Request) -> Response:
        digest = str(request.path_params["digest"])
        given = request.headers.get(ticket.HEADER)
        if given is not None:
            ticket.verify(cell.blob_key, digest, given, cell.store.now_ms())
        else:
            who = await run_in_threadpool(admit, cell, request, "read")
            if not await run_in_threadpool(holds, cell, who.workspace, digest):
                raise NotFound(f"there is no blob {digest[:80]}", hint="upload it first: PUT x/blobs/DIGEST")
        path = await run_in_threadpool(cell.blobs.path, digest)
        headers = {"cache-control": "no-store", "etag": f'"{digest}"'}
        return FileResponse(path, media_type="application/octet-stream", headers=headers)

    router.routes.append(Route(BASE + "/x/blobs/{digest}", guarded(get), methods=["GET"]))
    router.add("PUT", "/x/blobs/{digest}", "write", _put, body=False)


async def _put(call: Call) -> Response:
    digest = call.path("digest")
    upload = Upload(call.request, BLOB_BYTES_MAX)

    def receive() -> dict[str, object]:
        try:
            blob = call.cell.blobs.put(upload, digest=digest)
        except Corrupt as error:  # what came is not what was named: the caller's to mend, nothing here is broken
            raise Invalid(error.message, hint="name the digest of the bytes, or send them again") from None
        if hold(call.cell, call.ws, digest):
            call.note("upload", "blob", digest, size_bytes=blob.size_bytes)
        return {"digest": blob.digest, "size_bytes": blob.size_bytes}

    return answer(await lanes(call.request).uploads(call.ws).run(receive), 201)
