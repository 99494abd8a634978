"""The routes, in process: what each answers, and the limits of bodies, queues and readiness."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from lepton_ai.serve import app as serve_app
from lepton_ai.serve.app import App
from lepton_ai.serve.call import Call
from lepton_ai.serve.codec import Codec
from lepton_ai.serve.container import Container
from lepton_ai.serve.runtime import Runtime

INFER = "/v2/models/movies/infer"


def body(user: int, **more: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "user", "shape": [1], "datatype": "INT64", "data": [user]}], **more}


@pytest.fixture(scope="module")
def runtime(graphs: Any) -> Runtime:
    made = Runtime(Container(graphs.lookup()))
    made.warm()
    return made


def use(app: App, main: Callable[[httpx.AsyncClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
            await main(client)

    asyncio.run(run())


def ready(runtime: Runtime, **more: Any) -> App:
    app = App(**more)
    # Nothing in these tests is slow enough to reach the worker, so it is never started.
    app.attach(runtime, ThreadPoolExecutor(1), name="movies", version="3")
    return app


def test_every_route_answers(runtime: Runtime) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for path in ("/", "/v2", "/v2/health/live", "/v2/health/ready", "/healthz", "/openapi.json", "/metrics"):
            assert (await client.get(path)).status_code == 200, path
        for base in ("/v2/models/movies", "/v2/models/movies/versions/3"):
            about = (await client.get(base)).json()
            assert (about["name"], about["versions"], about["inputs"][0]["name"]) == ("movies", ["3"], "user")
            assert (await client.get(base + "/ready")).json() == {"name": "movies", "ready": True}
            answer = (await client.post(base + "/infer", json=body(7, id="q"))).json()
            assert answer["id"] == "q"
            assert answer["outputs"][0] == {"name": "items", "datatype": "INT64", "shape": [1, 2], "data": [70, 71]}
        assert (await client.post("/", json={"user": 7})).json() == {"items": [70, 71], "scores": 3.5}
        assert (await client.post("/", json={"user": [7, 8]})).json()["items"] == [[70, 71], [80, 81]]
        document = (await client.get("/openapi.json")).json()
        assert INFER in document["paths"]

    use(ready(runtime), main)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("POST", "/v2/models/other/infer", 404),
        ("POST", "/v2/models/movies/versions/4/infer", 404),
        ("DELETE", "/v2", 405),
        ("POST", "/metrics", 405),
        ("PUT", "/", 405),
        ("GET", INFER, 400),
    ],
)
def test_other_routes_are_refused_in_json(runtime: Runtime, method: str, path: str, status: int) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        answer = await client.request(method, path)
        assert answer.status_code == status
        assert answer.json()["code"]
        assert answer.json()["message"] == answer.json()["error"]

    use(ready(runtime), main)


def test_a_bad_row_among_good_ones_fails_alone(runtime: Runtime) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        users = [1, 2, 10_000, 4, -5_000, 6]
        answers = await asyncio.gather(*(client.post("/", json={"user": user}) for user in users))
        assert [a.status_code for a in answers] == [200, 200, 400, 200, 400, 200]
        assert [a.json()["items"][0] for a in answers if a.status_code == 200] == [10, 20, 40, 60]
        assert "out of data bounds" in answers[2].json()["message"]
        text = (await client.get("/metrics")).text
        assert 'requests_total{model="movies",version="3",status="200"} 4' in text
        assert 'failures_total{model="movies",version="3",code="InvalidParameter"} 2' in text
        assert 'in_flight{model="movies",version="3"} 0' in text
        assert 'batch_rows_bucket{model="movies",version="3",le="8"} 7' in text  # one joint try, then six

    use(ready(runtime), main)


def test_a_body_over_the_limit_is_refused_however_it_comes(runtime: Runtime) -> None:
    async def parts() -> AsyncIterator[bytes]:
        for _ in range(10):
            yield b" " * 50

    async def main(client: httpx.AsyncClient) -> None:
        for content in (b" " * 301, parts()):
            answer = await client.post("/", content=content)
            assert answer.status_code == 413
            assert answer.json()["code"] == "TooLarge"
            assert answer.headers["connection"] == "close"
        assert (await client.post("/", json={"user": 1})).status_code == 200

    use(ready(runtime, body_bytes_max=300), main)


def test_memory_for_bodies_is_bounded_and_given_back(runtime: Runtime) -> None:
    async def parts() -> AsyncIterator[bytes]:
        yield b" " * 200
        yield b'{"user":1}'

    async def main(client: httpx.AsyncClient) -> None:
        for _ in range(3):
            answer = await client.post("/", content=parts())
            assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
        for _ in range(50):
            assert (await client.post("/", json={"user": 1})).status_code == 200

    use(ready(runtime, held_bytes_max=205), main)


def test_a_body_that_does_not_come_is_given_up(runtime: Runtime) -> None:
    async def run() -> None:
        sent: list[dict[str, Any]] = []
        first = iter([{"type": "http.request", "body": b"{", "more_body": True}])

        async def receive() -> dict[str, Any]:
            message = next(first, None)
            return message if message is not None else await asyncio.Future()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/", "headers": []}
        await ready(runtime, body_timeout_s=0.0)(scope, receive, send)
        assert sent[0]["status"] == 408
        assert json.loads(sent[1]["body"])["code"] == "Timeout"

    asyncio.run(run())


def test_a_client_that_leaves_in_its_body_gets_no_answer_and_holds_nothing(runtime: Runtime) -> None:
    async def run() -> None:
        messages = iter([{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}])
        sent: list[Any] = []

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message)

        app = ready(runtime)
        await app({"type": "http", "method": "POST", "path": "/", "headers": []}, receive, send)
        assert sent == []
        assert app.metrics.in_flight == 0

    asyncio.run(run())


def test_live_before_ready_and_not_ready_after_drain(runtime: Runtime) -> None:
    app = App()

    async def main(client: httpx.AsyncClient) -> None:
        assert (await client.get("/v2/health/live")).status_code == 200
        for path in ("/v2/health/ready", "/healthz", "/v2/models/movies"):
            assert (await client.get(path)).status_code == 503
        early = await client.post("/", json={"user": 1})
        assert (early.status_code, early.headers["retry-after"]) == (503, "1")
        app.attach(runtime, ThreadPoolExecutor(1), name="movies", version="3")
        good = await client.post("/", json={"user": 1})
        assert good.status_code == 200
        assert "connection" not in good.headers
        app.drain()
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/v2/models/movies/ready")).status_code == 503
        late = await client.post("/", json={"user": 1})
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        assert (await client.get("/v2/health/live")).status_code == 200

    use(app, main)


def test_a_token_is_wanted_everywhere_but_on_the_health_routes(runtime: Runtime) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        for token, status in ((None, 401), ("wrong", 401), ("secret", 200)):
            headers = {"authorization": f"Bearer {token}"} if token else {}
            assert (await client.post("/", json={"user": 1}, headers=headers)).status_code == status
            assert (await client.get("/metrics", headers=headers)).status_code == status
        assert (await client.get("/v2/health/ready")).status_code == 200

    use(ready(runtime, token="secret"), main)


@pytest.mark.parametrize("header", [("content-encoding", "gzip"), ("inference-header-content-length", "10")])
def test_encodings_that_are_not_read_are_refused(runtime: Runtime, header: tuple[str, str]) -> None:
    async def main(client: httpx.AsyncClient) -> None:
        answer = await client.post(INFER, json=body(1), headers=[header])
        assert answer.status_code == 400
        assert "not accepted" in answer.json()["message"]

    use(ready(runtime), main)


def test_strings_go_in_and_out(graphs: Any) -> None:
    runtime = Runtime(Container(graphs.words()))
    runtime.warm()

    async def main(client: httpx.AsyncClient) -> None:
        assert (await client.post("/", json={"text": "日本"})).json() == {"same": "日本"}
        tensor = {"name": "text", "shape": [2], "datatype": "BYTES", "data": ["a", "é"]}
        answer = (await client.post(INFER, json={"inputs": [tensor]})).json()
        assert answer["outputs"][0]["data"] == ["a", "é"]

    use(ready(runtime), main)


class Watched(Codec):
    """Says which threads decoded and encoded."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.threads: list[tuple[str, bool]] = []

    def _seen(self) -> None:
        self.threads.append((threading.current_thread().name, gc.isenabled()))

    def decode_plain(self, body: bytes) -> Call:
        self._seen()
        return super().decode_plain(body)

    def encode_plain(self, call: Call, results: Any) -> bytes:
        self._seen()
        return super().encode_plain(call, results)


def test_large_json_never_holds_the_event_loop(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_app, "Codec", Watched)
    app = ready(runtime)
    watched = app._codec
    assert isinstance(watched, Watched)

    async def main(client: httpx.AsyncClient) -> None:
        assert (await client.post("/", json={"user": 1})).status_code == 200
        users = [user % 200 for user in range(20_000)]
        answer = await client.post("/", json={"user": users})
        assert answer.json()["items"][-1] == [1990, 1991]

    use(app, main)
    (decoded, _), (encoded, _), (large, collecting), (wide, _) = watched.threads
    here = threading.current_thread().name
    assert decoded == encoded == here
    assert large.startswith("json")
    assert wide.startswith("json")
    assert not collecting  # a million lists would set it off again and again, with every thread stopped
    assert gc.isenabled()


def test_what_a_large_body_becomes_counts_as_held(runtime: Runtime) -> None:
    text = b'{"user":[' + b",".join([b"1"] * 40_000) + b"]}"  # two bytes a user in JSON, eight in memory

    async def main(client: httpx.AsyncClient) -> None:
        for _ in range(2):
            assert (await client.post("/", content=text)).status_code == 429
        assert (await client.post("/", json={"user": 1})).status_code == 200

    use(ready(runtime, held_bytes_max=200_000), main)
    use(ready(runtime, held_bytes_max=400_000), lambda client: answered(client, text))


async def answered(client: httpx.AsyncClient, text: bytes) -> None:
    assert (await client.post("/", content=text)).status_code == 200
