"""Clients that mean harm, or do it: too much, too slow, too many, too odd. Each is refused; others go on.

A real server on a real socket. Bounds of time are made short here, so that waiting for them is not waiting long.
"""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import uvicorn

from lepton_ai.api import server, shares

BASE = "/api/v2/workspaces/default"
PATIENCE_S = 60.0
BUCKET = {"name": "same", "object": {"bucket": "abc", "provider": {"type": "aws", "aws": {"region": "x"}}}}


class Short(server.Connection):
    head_s = 1.0
    linger_s = 1.0
    reader_s = 1.0
    connections_max = 40


class Served:
    """The stand's application on a port of its own."""

    def __init__(self, stand: Any) -> None:
        self.stand = stand
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        self.socket.bind(("127.0.0.1", 0))
        self.port = int(self.socket.getsockname()[1])
        made = server.config(stand.app, protocol=Short, lifespan="off", loop="asyncio", timeout_graceful_shutdown=1)
        self.server = uvicorn.Server(made)
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.socket]}, daemon=True)
        self.thread.start()
        until(lambda: self.server.started)

    def http(self, token: str | None = None, workspace: str = "default", **options: Any) -> httpx.Client:
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.port}/api/v2/workspaces/{workspace}",
            headers={"authorization": f"Bearer {token or self.stand.tokens['owner']}"},
            timeout=PATIENCE_S,
            limits=httpx.Limits(max_connections=300),
            **options,
        )

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_S)

    def head(self, method: str, path: str, *lines: str) -> bytes:
        token = self.stand.tokens["owner"]
        head = [f"{method} {BASE}{path} HTTP/1.1", "host: cell", f"authorization: Bearer {token}", *lines, "", ""]
        return "\r\n".join(head).encode()

    def answers(self) -> bool:
        with self.http() as http:
            return http.get("/x/cell").status_code == 200

    def close(self) -> None:
        self.server.should_exit = True
        self.server.force_exit = True
        self.thread.join(timeout=PATIENCE_S)
        self.socket.close()


@pytest.fixture(scope="module")
def served(stand: Any) -> Iterator[Served]:
    made = Served(stand)
    yield made
    made.close()


def until(true: Any) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < deadline_s, "it did not happen"
        time.sleep(0.01)


def ended(sock: socket.socket) -> bytes:
    """All that comes until the server closes."""
    got = b""
    with contextlib.suppress(ConnectionError):
        while chunk := sock.recv(65536):
            got += chunk
    return got


class TestBodies:
    @pytest.mark.parametrize("chunked", [False, True])
    def test_too_large(self, served: Served, chunked: bool) -> None:
        data = b'{"name":"' + b"x" * (2 << 20) + b'"}'
        with served.http() as http:
            content = iter([data[:65536]] * 40) if chunked else data
            with contextlib.suppress(httpx.TransportError):  # it may be cut off while it still sends
                response = http.post("/x/jobs", content=content)
                assert response.status_code == 413
                assert response.json()["code"] == "TooLarge"
        assert served.answers()

    def test_a_length_that_is_not_true(self, served: Served) -> None:
        for length in ("99999999999999999999", "-1", "0x10", "1e9"):
            with served.connect() as sock:
                sock.sendall(served.head("POST", "/x/jobs", f"content-length: {length}") + b"{}")
                sock.shutdown(socket.SHUT_WR)
                assert b" 500 " not in ended(sock)[:40]
        assert served.answers()

    @pytest.mark.parametrize(
        "text",
        [
            "1e400", "-1e400", "NaN", "Infinity", "-Infinity", "9" * 5000, "-0", "[" * 100_000,
            "[" * 100_000 + "]" * 100_000, '[{"name":"A","value":"b","value":"c"}]',
            '{"a":' * 50_000 + "1" + "}" * 50_000, "[" + ",".join(["[]"] * 300_000) + "]",
            "{" + ",".join(f'"k{n}":{n}' for n in range(70_000)) + "}", '{"name":"a","name":"b","template":{}}',
            '"\\ud800"', "\ufeff{}", "{}{}", "nul", '{"a":"\\u0000"}', " " * 1_000_000, '{"name":1e400}',
        ],
    )  # fmt: skip
    def test_odd_json(self, served: Served, text: str) -> None:
        """Everywhere where JSON is read: 4xx in our form, and soon."""
        with served.http() as http:
            for method, path in (
                ("POST", "/x/jobs"), ("PUT", "/x/deployments/web"), ("POST", "/deployments"), ("POST", "/jobs"),
                ("POST", "/usersecrets"), ("PATCH", "/deployments/web"), ("POST", "/x/tokens"), ("POST", "/ingress"),
                ("POST", "/storage-permission/local"), ("PUT", "/x/templates/a"), ("POST", "/x/reservations"),
                ("POST", "/dedicated-node-groups/local/volumes"), ("POST", "/x/query"),
            ):  # fmt: skip
                response = http.request(method, path, content=text.encode("utf-8", "surrogatepass"))
                assert 400 <= response.status_code < 500, (method, path, response.text[:300])
                assert {"code", "message", "hint", "details"} == set(response.json())
        assert served.answers()

    @pytest.mark.parametrize("number", [10**30, -(10**30), 1e308, 2**63, -1, 0.5, 1e18, True, "1", None, [1], {}])
    def test_absurd_numbers(self, served: Served, number: Any) -> None:
        job = {"name": "j", "template": {"command": ["true"]}}
        wire = {"metadata": {"id": "j"}, "spec": {"container": {"command": ["true"]}}}
        with served.http() as http:
            bodies: list[tuple[str, str, Any]] = [
                ("POST", "/x/jobs", {**job, "workers": number}),
                ("POST", "/x/jobs", {**job, "ttl_s": number}),
                ("POST", "/x/jobs", {**job, "template": {"command": ["true"], "resources": {"cpu_milli": number}}}),
                ("PUT", "/x/deployments/n", {"name": "n", "replicas": number, "template": {"command": ["true"]}}),
                ("POST", "/x/tokens", {"name": "n", "days": number}),
            ]
            spec = wire["spec"]
            for field in ("completions", "shared_memory_size", "max_failure_retry", "ttl_seconds_after_finished"):
                bodies.append(("POST", "/jobs", {**wire, "spec": {**spec, field: number}}))  # type: ignore[dict-item]
            for method, path, body in bodies:
                response = http.request(method, path, content=json.dumps(body).encode())
                assert response.status_code < 500, (path, body, response.text)
            for query in ("page", "page_size", "start", "end", "limit"):
                for path in ("/jobs", "/logs", "/x/events"):
                    assert http.get(path, params={query: str(number)}).status_code < 500


class TestNames:
    @pytest.mark.parametrize(
        "name",
        [
            "..", "../../etc/passwd", "%2e%2e", "..%2f..%2fetc", "a%2fb", "a%00b", "%00", "a\\b", "x" * 10_000, "é",
            "%ff", "%f0%9f%98%80", "a b", "A", "-a", "a-", "con", "*", "'; drop table records; --", "%25%32%66", ";",
            "~", "?", "#", "a?b=c", "%0d%0ax-evil:1", "{name}", "default/web", "/", "//", "%e2%80%ae",
        ],
    )  # fmt: skip
    def test_a_path_trick_finds_nothing_and_breaks_nothing(self, served: Served, name: str) -> None:
        bodies: dict[str, Any] = {"PUT": {"value": "x"}}
        with served.http() as http:
            for method, path in (
                ("GET", "/x/deployments/"), ("GET", "/deployments/"), ("GET", "/jobs/"), ("GET", "/x/logs/"),
                ("GET", "/x/models/"), ("GET", "/x/tables/"), ("GET", "/x/blobs/"), ("DELETE", "/usersecrets/"),
                ("DELETE", "/x/tokens/"), ("GET", "/templates/private/"), ("GET", "/ingress/"), ("PUT", "/x/blobs/"),
                ("DELETE", "/x/workspaces/"), ("GET", "/dedicated-node-groups/"), ("GET", "/storage-permission/"),
                ("DELETE", "/storage-permission/local/"), ("DELETE", "/dedicated-node-groups/local/volumes/"),
            ):  # fmt: skip
                request = http.build_request(method, path, json=bodies.get(method))
                try:  # as it stands: httpx would tidy it up
                    request.url = request.url.copy_with(raw_path=(BASE + path + name).encode())
                    response = http.send(request)
                except (httpx.RemoteProtocolError, httpx.LocalProtocolError, httpx.InvalidURL, UnicodeDecodeError):
                    continue  # not HTTP at all: refused before it had a path
                assert "x-evil" not in response.headers
                assert response.status_code < 500, (method, path, response.text)
                assert b"root:" not in response.content
        assert served.answers()

    def test_names_in_bodies(self, served: Served) -> None:
        before = {record.name for record in served.stand.store.list("deployment")}
        with served.http() as http:
            for name in (
                "..",
                "a/b",
                "a\0b",
                "x" * 10_000,
                "é",
                "A",
                "",
                "-a",
                "a" * 64,
                " ",
                "a\n",
                "\ud800",
                None,
                1,
                {},
            ):
                for path, body in (
                    (
                        "/deployments",
                        {"metadata": {"id": name, "name": name}, "spec": {"container": {"command": ["x"]}}},
                    ),
                    ("/jobs", {"metadata": {"id": name}, "spec": {"container": {"command": ["x"]}}}),
                    ("/x/tokens", {"name": name}),
                    ("/x/workspaces", {"name": name, "force": True}),
                    ("/usersecrets", [{"name": name, "value": "v"}]),
                ):
                    if path == "/usersecrets" and name in ("A", "a" * 64):
                        continue  # names of environment variables may be so
                    response = http.post(path, content=json.dumps(body).encode())
                    assert 400 <= response.status_code < 500, (path, name, response.text)
        assert {record.name for record in served.stand.store.list("deployment")} == before


class TestSlow:
    def test_heads_that_never_end(self, served: Served) -> None:
        """Many at once; somebody else is served meanwhile, and they are all cut off."""
        socks = [served.connect() for _ in range(30)]
        for sock in socks:
            sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
        assert served.answers()
        for sock in socks:
            ended(sock)
            sock.close()
        assert served.answers()

    def test_a_head_without_bound(self, served: Served) -> None:
        with served.connect() as sock:
            got = b""
            with contextlib.suppress(ConnectionError):
                sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n")
                for number in range(4000):
                    sock.sendall(b"x-%d: %s\r\n" % (number, b"y" * 1000))
            got += ended(sock)
            assert got == b"" or b" 431 " in got or b" 400 " in got
        assert served.answers()

    def test_bodies_that_do_not_come(self, served: Served) -> None:
        """Without a token nobody waits for a body; with one, only that workspace's share is taken."""
        with served.connect() as sock:
            head = f"POST {BASE}/x/jobs HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{"
            sock.sendall(head.encode())
            got = ended(sock)  # answered at once, and closed when the rest stays away
            assert got.startswith(b"HTTP/1.1 401")
        socks = [served.connect() for _ in range(20)]
        for sock in socks:
            sock.sendall(served.head("POST", "/x/jobs", "content-length: 100") + b"{")
        assert served.answers()
        for sock in socks:
            sock.close()
        assert served.answers()

    def test_idle_connections_make_room(self, served: Served) -> None:
        socks = [served.connect() for _ in range(Short.connections_max + 60)]
        try:
            for _ in range(5):
                assert served.answers()
            assert len(served.server.server_state.connections) <= Short.connections_max + 1
        finally:
            for sock in socks:
                sock.close()

    def test_who_does_not_read_is_cut_off(self, served: Served) -> None:
        """An answer larger than what the kernel takes, asked for again and again and never read."""
        for number in range(40):
            form = {"name": f"big-{number}", "template": {"command": ["true"], "env": {"A": "x" * 60_000}}}
            assert served.stand.client().put(f"/x/deployments/big-{number}", json=form).status_code == 200
        with served.connect() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            for _ in range(20):
                sock.sendall(served.head("GET", "/x/deployments"))
            assert served.answers()
            until(lambda: not any(not item.is_idle for item in list(served.server.server_state.connections)))
        for number in range(40):
            served.stand.store.delete(served.stand.store.get("default", "deployment", f"big-{number}"))

    def test_pipelined_requests_are_answered_in_order(self, served: Served) -> None:
        with served.connect() as sock:
            paths = [f"/x/deployments/none-{number}" for number in range(100)]
            close = served.head("GET", "/x/deployments/none-100", "connection: close")
            sock.sendall(b"".join(served.head("GET", path) for path in paths) + close)
            got = ended(sock).decode()
        assert [int(part.split("'")[0]) for part in got.split("deployment 'none-")[1:]] == list(range(101))


class TestMany:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/x/tokens", {"name": "same"}),
            (
                "/deployments",
                {"metadata": {"id": "same", "name": "same"}, "spec": {"container": {"command": ["true"]}}},
            ),
            ("/x/reservations", {"metadata": {"name": "same"}, "spec": {}}),
            ("/x/workspaces", {"name": "same", "force": True}),
            ("/ingress", {"metadata": {}, "spec": {"domain_name": "same.example.com"}}),
            ("/dedicated-node-groups/local/datasources", BUCKET),
        ],
    )
    def test_200_at_once_and_one_wins(self, served: Served, path: str, body: Any) -> None:
        with served.http() as http, ThreadPoolExecutor(32) as pool:
            codes = list(pool.map(lambda _: http.post(path, json=body).status_code, range(200)))
        assert codes.count(201) == 1, sorted(codes)
        assert set(codes) <= {201, 409, 429}

    def test_200_at_once_set_a_secret(self, served: Served) -> None:
        """Setting replaces: whoever was last, what is kept is whole and of one of them."""
        with served.http() as http, ThreadPoolExecutor(32) as pool:
            codes = list(
                pool.map(lambda n: http.put("/x/secrets/SAME", json={"value": f"{n}" * 50}).status_code, range(200))
            )
        assert set(codes) <= {200, 409, 429}, sorted(codes)
        assert codes.count(200) > 0
        value = served.stand.cell.secrets.value("default", "SAME")
        assert value in {f"{n}" * 50 for n in range(200)}
        assert len([item for item in served.stand.store.list("secret") if item.name == "SAME"]) == 1

    def test_one_workspace_holds_up_no_other(self, served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        """All threads of one workspace stand still; another's requests pass, and more of the first get 429."""
        let_go = threading.Event()
        waiting = threading.Semaphore(0)
        before = served.stand.cell.events.list

        def slow(workspace: str, *rest: Any) -> Any:
            if workspace == "default":
                waiting.release()
                assert let_go.wait(PATIENCE_S)
            return before(workspace, *rest)

        monkeypatch.setattr(served.stand.cell.events, "list", slow)
        monkeypatch.setattr(shares, "OPEN", 30)
        with served.http() as http, ThreadPoolExecutor(30) as pool:
            held = [pool.submit(http.get, "/x/events") for _ in range(29)]
            for _ in range(shares.THREADS):
                assert waiting.acquire(timeout=PATIENCE_S)
            assert not waiting.acquire(blocking=False), "more threads than its share"
            with served.http(served.stand.foreign, "other") as other:
                for _ in range(20):
                    assert other.get("/x/events").status_code == 200
            until(lambda: _busy(served))
            let_go.set()
            assert {item.result().status_code for item in held} == {200}
        assert served.answers()


def _busy(served: Served) -> bool:
    """Whether one more request of the workspace is told to come back later."""
    with served.connect() as one, served.connect() as two:
        for sock in (one, two):
            sock.sendall(served.head("POST", "/x/jobs", "content-length: 10"))
        two.settimeout(0.5)
        try:
            got = two.recv(4096)
        except TimeoutError:
            return False
        return b" 429 " in got and b"retry-after" in got.lower()
