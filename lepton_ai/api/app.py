"""The application: every route of a cell, under one roof. Owns nothing but their assembly and the way of errors."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from lepton_ai.api import (
    absent,
    access,
    blobs,
    deployments,
    ingress,
    jobs,
    lake,
    logs,
    measures,
    models,
    nodes,
    reservations,
    storage,
    templates,
    tenants,
    workspace,
)
from lepton_ai.api.call import Router, answer, guarded, refused
from lepton_ai.api.cell import Cell
from lepton_ai.api.lanes import Lanes
from lepton_ai.api.openapi import PATH, document

REST_S = 30.0


def app(cell: Cell) -> Starlette:
    """The API of `cell` as an ASGI application. Its lifespan ends the query workers."""
    router = Router(cell)
    workspace.add(router, cell)
    blobs.add(router, cell)
    for family in (deployments, jobs, logs, nodes, measures, lake, models, access):
        family.add(router)
    for family in (tenants, templates, storage, reservations, ingress, absent):
        family.add(router)
    described = answer(document(router.entries))

    async def describe(_: Request) -> Response:
        return described

    router.routes.append(Route(PATH, guarded(describe), methods=["GET"]))
    made = Starlette(
        routes=router.routes,
        exception_handlers={HTTPException: _refused},
        lifespan=_lifespan,
    )
    made.router.redirect_slashes = False
    made.add_middleware(_Slashes)
    made.state.cell = cell
    made.state.lanes = Lanes()
    return made


@asynccontextmanager
async def _lifespan(made: Starlette) -> AsyncIterator[None]:
    resting = asyncio.create_task(_rest(made.state.lanes))
    yield
    resting.cancel()
    await anyio.to_thread.run_sync(made.state.lanes.close)


async def _rest(lanes: Lanes) -> None:
    while True:
        await asyncio.sleep(REST_S)
        await anyio.to_thread.run_sync(lanes.rest)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return refused(error)


class _Slashes:
    """Doubled and closing slashes mean nothing: the public client sends both when its base URL ends in one."""

    def __init__(self, inner: ASGIApp) -> None:
        self._inner = inner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = re.sub(r"/{2,}", "/", scope["path"])
            scope = {**scope, "path": path if path == "/" else path.rstrip("/")}
        await self._inner(scope, receive, send)
