"""What a connection makes of answers: repeated when that is safe, errors of ours whatever was said."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from lepton_ai.client import Cloud
from lepton_ai.errors import (
    Conflict,
    Failed,
    Invalid,
    LeptonError,
    NotFound,
    Unauthorized,
    Unavailable,
)

FORM: dict[str, Any] = {"name": "web", "template": {"command": ["python", "-m", "http.server", "{port}"]}}


def answering(*responses: Response) -> tuple[Starlette, list[str]]:
    """An application that gives these answers in turn (the last one from then on), and what it was asked."""
    asked: list[str] = []
    left = list(responses)

    async def endpoint(request: Request) -> Response:
        asked.append(f"{request.method} {request.url.path}")
        return left.pop(0) if len(left) > 1 else left[0]

    methods = ["GET", "POST", "PUT", "DELETE"]
    return Starlette(routes=[Route("/{path:path}", endpoint, methods=methods)]), asked


def served(stand: Any, application: Starlette) -> str:
    stand.app, before = application, stand.app
    try:
        return str(stand.serve().url)
    finally:
        stand.app = before


def test_reads_are_repeated_while_the_cell_is_unavailable_and_writes_are_not(stand: Any) -> None:
    away = JSONResponse({"code": "Unavailable", "message": "the store is closed"}, 503)
    application, asked = answering(away, away, JSONResponse([]))
    cloud = stand.cloud(served(stand, application))
    assert cloud.jobs() == []
    assert len(asked) == 3
    application, asked = answering(away)
    cloud = stand.cloud(served(stand, application))
    with pytest.raises(Unavailable, match="the store is closed"):
        cloud.run("true")
    assert len(asked) == 1


def test_a_removal_whose_answer_was_lost_is_no_error(stand: Any) -> None:
    away = JSONResponse({"code": "Unavailable", "message": "x"}, 503)
    gone = JSONResponse({"code": "NotFound", "message": "no token"}, 404)
    application, asked = answering(away, gone)
    stand.cloud(served(stand, application)).delete_token("ci")
    assert len(asked) == 2
    application, _ = answering(gone)
    with pytest.raises(NotFound):
        stand.cloud(served(stand, application)).delete_token("ci")


@pytest.mark.parametrize(
    ("response", "kind", "says"),
    [
        (PlainTextResponse("bad gateway", 502), Failed, "answered 502: bad gateway"),
        (JSONResponse({"code": "Unheard", "message": "of"}, 409), Conflict, "of"),
        (JSONResponse({"code": "Unheard", "message": "of"}, 418), Failed, "of"),
        (JSONResponse(["x"], 400), Failed, "answered 400"),
        (PlainTextResponse("<html>", 200), Unavailable, "did not answer in JSON"),
        (
            JSONResponse({"code": "Busy", "message": "full", "hint": "later", "details": {"n": 1}}, 429),
            LeptonError,
            "full",
        ),
    ],
)
def test_other_answers_become_errors_of_ours(stand: Any, response: Response, kind: type, says: str) -> None:
    application, _ = answering(response)
    cloud = stand.cloud(served(stand, application))
    with pytest.raises(kind, match=says):
        cloud.jobs()


def test_an_address_that_is_none_is_refused() -> None:
    for url in ("", "127.0.0.1:80", "ftp://x", "http://"):
        with pytest.raises(Invalid):
            Cloud(url)


# -- the endpoint itself


def test_call_goes_through_the_gateway_with_the_endpoints_token_only(stand: Any) -> None:
    seen: list[dict[str, Any]] = []

    async def endpoint(request: Request) -> Response:
        body = await request.body()
        seen.append(
            {"method": request.method, "path": request.url.path, "token": request.headers.get("authorization"),
             "body": json.loads(body) if body else None}
        )  # fmt: skip
        if request.url.path.endswith("/text"):
            return PlainTextResponse("hello")
        if request.url.path.endswith("/refused"):
            return JSONResponse({"code": "Unauthorized", "message": "a token is missing", "hint": "send one"}, 401)
        if request.url.path.endswith("/broken"):
            return PlainTextResponse("oops", 500)
        return JSONResponse({"items": [1]})

    gateway = served(stand, Starlette(routes=[Route("/{path:path}", endpoint, methods=["GET", "POST"])]))
    cloud = stand.cloud(stand.serve().url, gateway_url=gateway)
    made = cloud.deploy(FORM, wait=False)
    assert made.call(user=7) == {"items": [1]}
    assert made.call({"user": 7}, path="/v2/infer", token="endpoint-key") == {"items": [1]}
    assert cloud.call("web") == {"items": [1]}
    assert cloud.call("web", path="text") == "hello"
    assert [(item["method"], item["path"], item["token"]) for item in seen] == [
        ("POST", "/default/web/", None),
        ("POST", "/default/web/v2/infer", "Bearer endpoint-key"),
        ("GET", "/default/web/", None),
        ("GET", "/default/web/text", None),
    ]
    assert seen[0]["body"] == {"user": 7}
    with pytest.raises(Unauthorized, match="a token is missing"):
        cloud.call("web", path="/refused")
    with pytest.raises(Failed, match="web answered 500: oops"):
        cloud.call("web", path="/broken")
    away = stand.cloud(stand.serve().url)
    with pytest.raises(Unavailable, match="the gateway at http"):
        away.call("web", 1)


# -- the lake, looks, the command line
