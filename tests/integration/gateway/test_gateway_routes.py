"""What reaches a replica, what does not, and how it is refused."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import ipaddress
import json
import os
import socket
import ssl
import stat
from pathlib import Path

import pytest

from lepton_ai.errors import Invalid
from lepton_ai.gateway.envoy import EnvoyGateway
from lepton_ai.gateway.listener import Listen


def test_urls_lead_to_the_replica_and_the_prefix_is_stripped(place, route):
    one = place.replica("one")
    place.publish(route("movies", [one]))
    for path, seen in (
        ("/default/movies/a/b?x=1", "/a/b?x=1"),
        ("/default/movies", "/"),
        ("/default/movies?x=1", "/?x=1"),
        ("/default/movies/", "/"),
    ):
        assert place.get(path)[1]["path"] == seen
    assert place.get("/a", host=f"movies.default.localhost:{place.port}")[1]["path"] == "/a"
    assert place.get("/a", host="movies.default.localhost")[1]["path"] == "/a"
    for path in ("/", "/default", "/default/moviesx", "/default/other/a", "/default%2fmovies/a"):
        status, body = place.get(path)
        assert (status, body["code"]) == (404, "NotFound")
        assert body["message"]
        assert body["hint"]


def test_a_caller_cannot_steer_the_gateway_by_headers(place, route):
    place.publish(route("movies", [place.replica("one")]))
    headers = {"x-envoy-upstream-rq-timeout-ms": "1", "x-lepton-route": "default/other", "x-sleep": "0.1"}
    status, body = place.get("/default/movies/a", **headers)
    assert status == 200
    assert body["fields"]["x-lepton-route"] == "default/movies"


TRICKS = (
    "/default/open/../locked/a",
    "/default/open/%2e%2e/locked/a",
    "/default/open/%2E%2e/locked/a",
    "/default/open/./../locked/a",
    "/default/open//../locked/a",
    "/default/open/..%2flocked/a",
    "/default/open/%2e%2e%2flocked/a",
    "/default/open/..%5clocked/a",
    "/default/open\\..\\locked/a",
    "/default/open/..;/locked/a",
    "/default//locked/a",
    "//default/locked/a",
    "/default/open/../../default/locked/a",
    "/default%2flocked/a",
    "/default/locked%2fa",
    "/default/lock%65d/a",
    "http://x/default/locked/a",
)


@pytest.mark.parametrize("path", TRICKS)
def test_no_path_reaches_a_locked_route_without_its_token(shared, path):
    status, body = shared.get(path)
    assert status in (200, 400, 401, 404)
    if status == 200:
        assert body["name"] == "open"
        assert body["fields"]["x-lepton-route"] == "default/open"


def test_tokens_are_per_route_and_exact(shared):
    assert shared.get("/default/locked/a", Authorization="Bearer right")[1]["name"] == "locked"
    for value in ("Bearer wrong", "right", "Bearer right2", "bearer right", "Bearer other", "Bearer ", "Basic right"):
        status, body = shared.get("/default/locked/a", Authorization=value)
        assert (status, body["code"]) == (401, "Unauthorized")
    assert shared.get("/default/locked/a")[0] == 401
    assert shared.get("/a", host="locked.default.localhost")[0] == 401
    assert shared.get("/default/nobody/a", Authorization="Bearer right")[0] == 401
    assert shared.get("/default/open/a")[0] == 200


def test_files_are_readable_by_their_owner_only(shared):
    for path in [shared.folder, *shared.folder.rglob("*")]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode & 0o077 == 0, f"{path} has mode {mode:o}"
    wanted = (shared.folder / "activator.json").read_text()
    assert "right" not in wanted


def test_no_replica_and_too_slow_are_said_as_json(place, route):
    one = place.replica("one")
    place.publish(route("empty"), route("slow", [one], request_timeout_s=0.2))
    status, body = place.get("/default/empty/a")
    assert (status, body["code"]) == (503, "Unavailable")
    status, body = place.get("/default/slow/a", x_hold="for ever")
    assert (status, body["code"]) == (504, "Timeout")


def test_an_answer_of_the_replica_is_not_touched(place, route):
    one = place.replica("one")
    place.publish(route("movies", [one]))
    place.get("/default/movies/drain")
    status, body = place.get("/default/movies/work")
    assert status == 503
    assert body["name"] == "one"


def test_events_stream_and_websockets_pass(place, route):
    one = place.replica("one")
    place.publish(route("movies", [one]))

    async def talk() -> tuple[list[bytes], bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"GET /default/movies/sse HTTP/1.1\r\nHost: x\r\nx-hold: 1\r\n\r\n")
        events = []
        while len(events) < 3:
            line = await asyncio.wait_for(reader.readline(), 30)
            if line.startswith(b"data:"):
                events.append(line.strip())
                if len(events) == 1:  # the second is sent only after the first has come through
                    await asyncio.to_thread(one.release)
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"GET /default/movies/ws HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).startswith(b"HTTP/1.1 101")
        writer.write(b"hello")
        echo = await asyncio.wait_for(reader.readexactly(5), 30)
        writer.close()
        return events, echo

    assert asyncio.run(talk()) == ([b"data: 0", b"data: 1", b"data: 2"], b"HELLO")


def test_canary_gets_about_its_share(place, route):
    old, new = place.replica("old"), place.replica("new")
    place.publish(route("movies", [old], [new], weights=(90, 10)))
    names = [place.get("/default/movies/a")[1]["name"] for _ in range(400)]
    assert 10 <= names.count("new") <= 90
    place.publish(route("movies", [old], [], weights=(50, 50)))
    assert {place.get("/default/movies/a")[1]["name"] for _ in range(20)} == {"old"}


def test_statistics_count_requests_and_what_is_in_flight(place, route):
    one, two = place.replica("one"), place.replica("two")
    place.publish(route("movies", [one, two]), route("empty"))
    place.until(lambda: place.get("/default/movies/a")[0] == 200)
    place.gateway.stats()
    before = place.gateway.stats()[0].requests
    for _ in range(10):
        place.get("/default/movies/a")
    place.get("/default/empty/a")
    load = place.load("/default/movies/slow", connections=1)
    load.stop()
    movies, empty = place.gateway.stats(now_ms=1234)
    assert movies.requests - before == 10 + load.ok
    assert (movies.failed, movies.last_request_ms) == (0, 1234)
    assert (empty.requests, empty.failed) == (1, 1)
    assert set(movies.in_flight_by_replica) == {"one", "two"}


def test_requests_in_flight_are_seen_by_replica(place, route):
    one = place.replica("one")
    place.publish(route("movies", [one], request_timeout_s=60))

    async def slow() -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", place.port)
        writer.write(b"GET /default/movies/a HTTP/1.1\r\nHost: x\r\nx-hold: 1\r\n\r\n")
        await asyncio.to_thread(place.until, lambda: place.gateway.stats()[0].in_flight == 1)
        assert place.gateway.stats()[0].in_flight_by_replica == {"one": 1}
        await asyncio.to_thread(one.release)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)
        writer.close()
        return head

    assert asyncio.run(slow()).startswith(b"HTTP/1.1 200")


def test_tls_on_the_listener(tmp_path, place):
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make_certificate(cert, key)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    gateway = EnvoyGateway(tmp_path / "tls", Listen("127.0.0.1", port, str(cert), str(key)), 1)
    place._run("tls", gateway.argv(1))
    place.until(gateway.ready)
    context = ssl.create_default_context(cafile=str(cert))
    connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=context)
    with contextlib.closing(connection):
        connection.request("GET", "/nothing")
        assert json.loads(connection.getresponse().read())["code"] == "NotFound"


def test_beyond_loopback_only_with_tls():
    with pytest.raises(Invalid, match="without TLS"):
        Listen("0.0.0.0", 8000)


def make_certificate(cert: Path, key: Path) -> None:
    import datetime

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cell.test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(secret, hashes.SHA256())
    )
    cert.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    pem = serialization.Encoding.PEM
    plain = serialization.NoEncryption()
    key.write_bytes(secret.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain))
    os.chmod(key, 0o600)
