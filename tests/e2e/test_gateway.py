"""What callers meet at the gateway of a real cell: networks, host names, and endpoints that leave."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest
from cell import Cell, eventually, service

from lepton_ai.errors import LeptonError

# Answers "/" at once, and "/hold" when the file appears that it was told of.
HOLDS = """
import os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        while self.path == "/hold" and not os.path.exists(sys.argv[2]):
            time.sleep(0.01)
        self.send_response(200)
        self.send_header("content-length", "4")
        self.end_headers()
        self.wfile.write(b"done")
    def log_message(self, *_): pass
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


@pytest.fixture(scope="module")
def http(cell: Cell) -> Any:
    """The API as this workspace's owner has it."""
    token = cell.state.token_path.read_text("utf-8").strip()
    base = f"{cell.state.api_url}/api/v2/workspaces/default"
    with httpx.Client(base_url=base, headers={"authorization": f"Bearer {token}"}, timeout=60, trust_env=False) as made:
        yield made


def get(cell: Cell, path: str, host: str = "x", source: str | None = None) -> httpx.Response:
    transport = httpx.HTTPTransport(local_address=source)
    with httpx.Client(transport=transport, timeout=60, trust_env=False) as client:
        return client.get(f"{cell.state.gateway_url}{path}", headers={"host": host})


def there(cell: Cell, name: str) -> bool:
    try:
        return bool(cell.cloud.deployment(name))
    except LeptonError:
        return False


def test_requests_under_way_at_an_endpoint_that_is_removed_are_answered(cell: Cell, tmp_path: Path) -> None:
    flag = tmp_path / "go"
    command = [sys.executable, "-I", "-S", "-c", HOLDS, "{port}", str(flag)]
    template = {
        "command": command,
        "resources": {"cpu_milli": 50, "memory_mib": 64},
        "drain_s": 60,
        "health": {"path": "/"},
    }
    cell.cloud.deploy({"name": "leaves", "template": template, "replicas": 2})
    answers: list[tuple[int, str]] = []

    def call() -> None:
        found = get(cell, "/default/leaves/hold")
        answers.append((found.status_code, found.text))

    callers = [threading.Thread(target=call) for _ in range(8)]
    for caller in callers:
        caller.start()

    def draining() -> bool:
        return {item.phase for item in cell.cloud.replicas("leaves")} == {"draining"}

    uids = {item.uid for item in cell.cloud.replicas("leaves")}
    # All of them have arrived: their replicas' own connections are there to see.
    eventually(lambda: _connections(cell, uids) >= len(callers), "the requests are under way")
    cell.cloud.delete("leaves")
    eventually(draining, "its replicas finish what they have")
    eventually(lambda: get(cell, "/default/leaves/").status_code in (404, 503), "and take nothing new")
    assert answers == []
    flag.touch()
    for caller in callers:
        caller.join(60)
    assert answers == [(200, "done")] * len(callers)
    eventually(lambda: not there(cell, "leaves"), "then it is gone")
    eventually(lambda: get(cell, "/default/leaves/").status_code == 404, "and its address too")


def _connections(cell: Cell, uids: set[str]) -> int:
    """Established connections to the ports of these replicas."""
    ports = {item.port for item in cell.cloud.replicas("leaves") if item.uid in uids}
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[3] == "01" and int(row[1].split(":")[1], 16) in ports for row in rows)


def test_an_allow_list_and_a_host_name_hold_together(cell: Cell, http: httpx.Client) -> None:
    cell.cloud.deploy({"name": "near", "template": service("near"), "replicas": 1})
    answer = http.patch("/deployments/near", json={"spec": {"auth_config": {"ip_allowlist": ["127.0.0.2"]}}})
    assert answer.status_code == 200, answer.text
    made = http.post("/ingress", json={"metadata": {}, "spec": {
        "domain_name": "near.example.com", "endpoints": [{"deployment": "near", "weight": 1}]}})  # fmt: skip
    assert made.status_code == 201, made.text
    eventually(lambda: get(cell, "/", "near.example.com", "127.0.0.2").status_code == 200, "the name is served")
    for path, host in (("/default/near/", "x"), ("/", "near.example.com"), ("/", "near.default.localhost")):
        assert get(cell, path, host, "127.0.0.2").status_code == 200
        refused = get(cell, path, host, "127.0.0.3")
        assert (refused.status_code, refused.json()["code"]) == (403, "Forbidden")
    name = made.json()["metadata"]["name"]
    assert http.get(f"/ingress/{name}").json()["status"]["validation_status"] == "active"
    cell.cloud.delete("near")
    eventually(lambda: not there(cell, "near"), "it is gone")
    kept = http.get(f"/ingress/{name}").json()
    assert kept["status"]["validation_status"] == "failed"
    assert "near does not exist" in kept["status"]["message"]
    assert get(cell, "/", "near.example.com", "127.0.0.2").status_code == 404
    assert http.delete(f"/ingress/{name}").status_code == 200


def test_a_request_by_a_host_name_wakes_what_sleeps(cell: Cell, http: httpx.Client) -> None:
    cell.cloud.deploy(
        {"name": "sleepy", "template": service("sleepy"), "replicas": {"min": 1, "max": 1}, "idle_timeout_s": 1}
    )
    made = http.post("/ingress", json={"metadata": {}, "spec": {
        "domain_name": "sleepy.example.com", "endpoints": [{"deployment": "sleepy", "weight": 1}]}})  # fmt: skip
    assert made.status_code == 201, made.text
    eventually(lambda: get(cell, "/", "sleepy.example.com").status_code == 200, "the name is served")
    eventually(lambda: cell.cloud.deployment("sleepy").state == "idle", "it sleeps")
    assert get(cell, "/", "sleepy.example.com").status_code == 200
    cell.cloud.delete("sleepy")
    assert http.delete(f"/ingress/{made.json()['metadata']['name']}").status_code == 200
