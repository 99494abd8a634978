"""The model server as a process of its own: its socket, its signals, its ends, and callers that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lepton_ai.models import RecommenderModel

WAIT_S = 60.0
ROOT = str(Path(__file__).resolve().parents[3])


class Server:
    """One `python -m lepton_ai.serve`, and what a test asks of it."""

    def __init__(self, *arguments: str, env: dict[str, str] | None = None) -> None:
        argv = [sys.executable, "-m", "lepton_ai.serve", *arguments]
        plain = {name: value for name, value in os.environ.items() if name not in ("PORT", "LEPTON_AI_SERVE_TOKEN")}
        environment = {**plain, "PYTHONPATH": ROOT, **(env or {})}
        self.process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment)
        self.said: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.http = httpx.Client(timeout=WAIT_S, trust_env=False)
        self.port = 0

    def ready(self) -> Server:
        found = until(lambda: re.search(r"is ready on port (\d+)", "".join(self.said)) or self.process.poll())
        assert isinstance(found, re.Match), "".join(self.said)
        return self.at(int(found[1]))

    def at(self, port: int) -> Server:
        self.port = port
        self.http.close()
        self.http = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_S, trust_env=False)
        return self

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=WAIT_S)

    def term(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def ended(self) -> int:
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code

    def end(self) -> None:
        self.http.close()
        if self.process.poll() is None:
            self.process.kill()
        self.ended()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(iter(self.process.stderr.readline, ""))


def until(check: Callable[[], Any]) -> Any:
    end_s = time.monotonic() + WAIT_S
    while not (value := check()):
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)
    return value


def request(body: bytes, length: int | None = None) -> bytes:
    head = f"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def everything(connection: socket.socket) -> bytes:
    """What comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    made: list[Server] = []

    def start(*arguments: object, env: dict[str, str] | None = None) -> Server:
        made.append(Server(*map(str, arguments), env=env))
        return made[-1]

    yield start
    for server in made:
        server.end()


@pytest.fixture
def movies(graphs: Any, tmp_path: Path) -> Path:
    """A saved model in miniature: user -> items [10 user, 10 user + 1] and score user ÷ 2."""
    path: Path = graphs.container(tmp_path / "movies.lepton", graphs.lookup())
    return path


def test_a_saved_recommender_answers_as_it_predicts(serve: Any, tmp_path: Path) -> None:
    rows = [(user, item, 3.0) for user in range(30) for item in range(user % 7, user % 7 + 12, 1 + user % 3)]
    model = RecommenderModel().fit(rows)
    path = model.save(tmp_path / "recommender_model.pkl")
    server = serve("--model", path, "--name", "movies", "--version", "3", "--port", "0").ready()
    users = list(range(-1, 31))
    best = model.predict(users)
    tensor = {"name": "user", "shape": [len(users)], "datatype": "INT64", "data": users}
    answer = server.http.post("/v2/models/movies/versions/3/infer", json={"inputs": [tensor]}).json()
    outputs = {output["name"]: output["data"] for output in answer["outputs"]}
    assert outputs["items"] == best.items.ravel().tolist()
    assert outputs["known"] == best.known.tolist() == [False, *[True] * 30, False]
    one = server.http.post("/", json={"user": 7}).json()
    assert one["items"] == best.items[8].tolist()
    assert (answer["model_name"], answer["model_version"]) == ("movies", "3")


def test_a_bare_graph_is_served_on_the_port_of_the_environment(serve: Any, graphs: Any, tmp_path: Path) -> None:
    path = tmp_path / "lookup.onnx"
    path.write_bytes(graphs.lookup())
    port = free_port()
    server = serve("--model", path, env={"PORT": str(port)}).ready()
    assert server.port == port
    assert server.http.get("/v2/models/lookup").json()["versions"] == ["1"]


def test_every_one_of_many_callers_gets_its_own_answer(serve: Any, movies: Path) -> None:
    server = serve("--model", movies, "--port", "0").ready()
    calls = 40

    async def caller(http: httpx.AsyncClient, first: int) -> None:
        for number in range(calls):
            user = (first * 7 + number) % 220
            answer = await http.post("/", json={"user": user})
            assert answer.status_code == (200 if user < 200 else 400), answer.text
            assert user >= 200 or answer.json() == {"items": [10 * user, 10 * user + 1], "scores": user / 2}

    async def main() -> None:
        limits = httpx.Limits(max_connections=24)
        async with httpx.AsyncClient(
            base_url=server.http.base_url, limits=limits, timeout=WAIT_S, trust_env=False
        ) as http:
            await asyncio.gather(*(caller(http, first) for first in range(24)))

    asyncio.run(main())
    figures = dict(
        line.rsplit(" ", 1) for line in server.http.get("/metrics").text.splitlines() if not line.startswith("#")
    )
    counted = [int(value) for name, value in figures.items() if name.startswith("lepton_serve_requests_total")]
    assert sum(counted) == 24 * calls


def test_it_is_live_but_not_ready_while_it_loads_and_term_ends_it_then_too(serve: Any, tmp_path: Path) -> None:
    pipe = tmp_path / "movies.onnx"
    os.mkfifo(pipe)  # a file that takes for ever to read
    server = serve("--model", pipe, "--port", free_port_text(), "--drain-s", "0")
    server.at(int(server.process.args[-3]))
    until(lambda: answers(server, "/v2/health/live"))
    assert server.http.get("/v2/health/ready").status_code == 503
    refused = server.http.post("/", json={"user": 1})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    server.term()
    assert server.ended() == 0


def test_a_model_that_cannot_be_loaded_ends_the_server_with_its_reason(serve: Any, tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"not a model")
    server = serve("--model", tmp_path / "broken.onnx", "--port", "0")
    assert server.ended() == 1
    assert "does not accept the model" in "".join(server.said)
    assert "Traceback" not in "".join(server.said)


class Touch:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_malicious_pickle_is_refused_and_does_not_run(serve: Any, tmp_path: Path, protocol: int) -> None:
    marker = tmp_path / "ran"
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(Touch(marker), protocol))
    server = serve("--model", tmp_path / "model.pkl", "--port", "0")
    assert server.ended() == 1
    said = "".join(server.said)
    assert "pickle" in said
    assert "model.save(PATH)" in said
    assert not marker.exists()


def test_a_port_in_use_is_said_with_a_hint(serve: Any, movies: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = serve("--model", movies, "--port", taken.getsockname()[1])
        assert server.ended() == 1
    assert re.search(r"cannot listen on 127\.0\.0\.1:\d+: Address already in use", "".join(server.said))
    assert "hint: choose another --port" in "".join(server.said)


def test_a_missing_port_is_a_matter_of_usage(serve: Any, movies: Path) -> None:
    assert serve("--model", movies).ended() == 2
    assert serve("--model", movies, "--port", "70000").ended() == 2


def test_term_answers_what_is_in_flight_and_exits_0(serve: Any, movies: Path) -> None:
    server = serve("--model", movies, "--port", "0", "--drain-s", "0", "--grace-s", "60").ready()
    body = json.dumps({"user": 7}).encode()
    with server.connect() as connection:
        connection.sendall(request(body)[:-3])  # the request has begun; its end comes after the signal
        until(lambda: in_flight(server) == 1)
        server.term()
        until(lambda: not answers(server, "/v2/health/live"))  # it listens no more
        assert server.process.poll() is None
        connection.sendall(request(body)[-3:])
        answer = everything(connection)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"[70,71]" in answer
    assert server.ended() == 0


def test_while_it_drains_it_is_not_ready_and_still_answers_and_a_second_signal_ends_it(
    serve: Any, movies: Path
) -> None:
    server = serve("--model", movies, "--port", "0", "--drain-s", "600", "--grace-s", "600").ready()
    with server.connect() as stuck:
        stuck.sendall(request(b'{"user"', length=10))
        until(lambda: in_flight(server) == 1)
        server.term()
        until(lambda: server.http.get("/v2/health/ready").status_code == 503)
        late = server.http.post("/", json={"user": 7})
        assert (late.status_code, late.headers["connection"]) == (200, "close")
        server.term()
        assert server.ended() == 0


def test_who_has_no_token_is_refused_and_the_token_is_not_inherited(serve: Any, movies: Path) -> None:
    server = serve("--model", movies, "--port", "0", env={"LEPTON_AI_SERVE_TOKEN": "hush"}).ready()
    assert server.http.post("/", json={"user": 1}).status_code == 401
    assert server.http.get("/v2/health/ready").status_code == 200
    assert server.http.post("/", json={"user": 1}, headers={"authorization": "Bearer hush"}).status_code == 200
    assert "hush" not in "".join(server.said)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"\x00\xff" * 500,
        b"GET",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 100_000,
        b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_a_caller_that_misbehaves_and_leaves_harms_nobody(serving: Server, sent: bytes) -> None:
    with serving.connect() as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            assert b" 200 " not in everything(connection)[:20]
    assert serving.http.post("/", json={"user": 7}).json()["items"] == [70, 71]
    until(lambda: in_flight(serving) == 0)
    assert "Traceback" not in "".join(serving.said)


@pytest.fixture(scope="module")
def serving(graphs: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for the callers that misbehave."""
    path = graphs.container(tmp_path_factory.mktemp("serving") / "movies", graphs.lookup())
    server = Server("--model", str(path), "--port", "0").ready()
    yield server
    server.end()


def in_flight(server: Server) -> int:
    found = re.search(r"^lepton_serve_in_flight\S* (\d+)$", server.http.get("/metrics").text, re.MULTILINE)
    assert found is not None
    return int(found[1])


def answers(server: Server, path: str) -> bool:
    try:
        return server.http.get(path).status_code == 200
    except httpx.TransportError:
        return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def free_port_text() -> str:
    return str(free_port())
