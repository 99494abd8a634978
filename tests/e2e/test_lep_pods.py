"""Pods through the real `lep`: created, listed with ports that can be reached, restarted, stopped, removed."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import Any

from cell import eventually
from lep import Lep, document, rows

ANSWERS = """exec python3 -c "
import os, socketserver
class Say(socketserver.BaseRequestHandler):
    def handle(self): self.request.sendall(b'pod of ' + os.environ['A'].encode())
socketserver.ThreadingTCPServer.allow_reuse_address = True
socketserver.ThreadingTCPServer(('', 18888), Say).serve_forever()
" """


def get(lep: Lep, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lep.ask(f"/deployments/{name}")
    return found


def create(lep: Lep, name: str, *more: str, code: int = 0) -> str:
    words = ["-n", name, "-rs", "cpu.small", "--container-image", "python:3.11", *more]
    return lep("pod", "create", *words, code=code).out


def listed(lep: Lep, *words: str) -> dict[str, list[str]]:
    return {row[0].split()[0]: row for row in rows(lep("pod", "list", *words).out) if len(row) > 4}


def said(port: int) -> str:
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            return connection.recv(64).decode()
    except OSError as error:
        return f"not reached: {error}"


def test_from_creation_to_removal(lep: Lep) -> None:
    ports = ["--container-port", "18888:tcp:hostmap"]
    made = create(lep, "desk", *ports, "-e", "A=alice", "-ng", "test", "--container-command", ANSWERS)
    assert "Pod launched as desk" in made
    eventually(lambda: get(lep, "desk")["status"]["state"] == "Ready", "it is ready")
    row = listed(lep, "--detail")["desk"]
    assert (row[1], row[2], row[8]) == ("test-0001", "Ready", "cpu.small"), row
    mapped = re.match(r"18888 -> (\d+)", row[5])
    assert mapped, row
    eventually(lambda: said(int(mapped[1])) == "pod of alice", "its port is reached where the list says")
    assert "desk" not in lep("endpoint", "list").out, "a pod is no endpoint"
    shown = document(lep("pod", "get", "-n", "desk").out)
    assert shown["spec"]["is_pod"] is True
    assert shown["status"]["container_port_status"][0]["host_port"] == int(mapped[1])
    assert "desk" in lep.cell.lepton("ps").out
    assert "409" in create(lep, "desk", code=1), "names are unique, and the server says so"

    before = next(copy for copy in lep.cell.cloud.replicas("desk") if copy.phase == "ready")
    os.kill(before.pid, signal.SIGKILL)
    eventually(
        lambda: {c.name for c in lep.cell.cloud.replicas("desk") if c.phase == "ready"} - {before.name},
        "a pod that ended is started again",
    )

    assert "stopped successfully" in lep("pod", "stop", "-n", "desk").out
    eventually(lambda: get(lep, "desk")["status"].get("phase") == "Stopped", "it is stopped")
    eventually(lambda: said(int(mapped[1])).startswith("not reached"), "nobody answers at its port")
    assert "Pod desk removed" in lep("pod", "remove", "-n", "desk").out
    eventually(lambda: "desk" not in [item.name for item in lep.cell.cloud.ps()], "it is gone")
    assert "No pods found" in lep("pod", "list").out


def test_a_pod_and_an_endpoint_share_one_space_of_names(lep: Lep) -> None:
    create(lep, "shared", "--container-command", "sleep 600")
    eventually(lambda: get(lep, "shared")["status"]["state"] == "Ready", "it is ready")
    words = ["-n", "shared", "--container-image", "python:3.11", "--container-command", "sleep 600"]
    refused = lep("endpoint", "create", "-rs", "cpu.small", *words, code=1)
    assert "409" in refused.out or "already exists" in refused.out, refused
    assert "is not a pod" not in lep("pod", "get", "-n", "shared").out
    assert set(listed(lep, "-s", "ready", "-q", "SHA")) >= {"shared"}
    lep("pod", "remove", "-n", "shared")
