"""Endpoints through the real `lep`: served, guarded, scaled, updated under requests, broken, stopped, brought back."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from typing import Any

from cell import SERVICE, eventually
from lep import HTTP, Lep, document, rows
from traffic import traffic

KEY, OTHER = "first-key-of-the-test", "second-key-of-the-test"


def command(release: str) -> str:
    """The service on the port that the platform gives it."""
    return f"exec {sys.executable} {SERVICE} $PORT {release}"


def create(lep: Lep, name: str, *more: str, release: str = "one") -> str:
    words = ["-n", name, "--container-image", "python:3.11", "--container-command", command(release), *more]
    return lep("endpoint", "create", "-rs", "cpu.small", *words).out


def get(lep: Lep, name: str) -> dict[str, Any]:
    found: dict[str, Any] = lep.ask(f"/deployments/{name}")
    return found


def reaches(lep: Lep, name: str, wanted: str) -> str:
    """Waits for the state; the URL that callers are told."""
    eventually(lambda: get(lep, name)["status"]["state"] == wanted, f"{name} is {wanted}")
    return str(get(lep, name)["status"]["endpoint"]["external_endpoint"])


def ask(url: str, key: str | None = None) -> int:
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return HTTP.post(url, json={"value": 7}, headers=headers).status_code


def listed(lep: Lep, *words: str) -> dict[str, list[str]]:
    return {row[0].split()[0]: row for row in rows(lep("endpoint", "list", *words).out)[1:]}


def test_from_creation_to_removal(lep: Lep) -> None:
    lep("secret", "create", "-n", "endpoint-key", "-v", "v")
    create(lep, "web", "-e", "A=b", "-s", "K=endpoint-key", "--public", "-ng", "test", "--replicas-static", "1")
    url = reaches(lep, "web", "Ready")
    assert HTTP.post(url, json={"value": 7}).json() == {"echo": 7, "release": "one"}
    row = listed(lep)["web"]
    assert (row[2], row[4], row[6]) == ("Ready", "test-0001", "cpu.small"), row
    assert row[5].startswith("1"), row
    assert row[3], "who made it is shown"
    assert listed(lep, "-n", "nothing-of-this-name") == {}
    assert set(listed(lep, "-s", "ready", "-q", "WE")) == {"web"}
    # Our own command sees it too, and the client sees what ours made.
    assert "web" in lep.cell.lepton("ps").out

    shown = document(lep("endpoint", "get", "-n", "web").out)["spec"]
    assert shown["container"]["image"] == "python:3.11"
    assert {"name": "A", "value": "b"} in [{k: v for k, v in item.items() if v is not None} for item in shown["envs"]]
    assert shown["resource_requirement"]["min_replicas"] == 1

    status = lep("endpoint", "status", "-n", "web").out
    assert re.search(r"State: +(LeptonDeploymentState\.Ready|Ready)", status), status
    assert re.search(r"IP Access: +Any IP", status), status
    table = rows(status, ruled=False)
    assert any(row[1].endswith("Ready") for row in table[1:]), status
    events = rows(lep("endpoint", "events", "-n", "web").out, ruled=False)[1:]
    assert all(row[0] == "web" for row in events), events
    assert "ImageNotUsed" in [row[2] for row in events], events

    clash = lep("endpoint", "create", "-n", "web", "--container-image", "a", "--container-command", "true", code=1)
    assert "web" in clash.out
    assert "deleted successfully" in lep("endpoint", "remove", "-n", "web").out
    eventually(lambda: "web" not in [item.name for item in lep.cell.cloud.ps()], "it is gone")
    assert "web" not in listed(lep)
    assert "404" in lep("endpoint", "get", "-n", "web", code=1).out
    lep("secret", "remove", "-n", "endpoint-key")


def test_a_fixed_port_is_where_the_work_listens(lep: Lep) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ["-n", "fixed", "--container-image", "python:3.11", "--container-port", str(port), "--public"]
    run = f"exec {sys.executable} {SERVICE} {port} fixed"
    lep("endpoint", "create", "-rs", "cpu.small", *words, "--container-command", run)
    url = reaches(lep, "fixed", "Ready")
    assert HTTP.post(url, json={}).json()["release"] == "fixed"
    assert get(lep, "fixed")["spec"]["container"]["ports"][0]["container_port"] == port
    lep("endpoint", "remove", "-n", "fixed")


def test_tokens_and_allow_lists_are_kept_by_the_gateway(lep: Lep) -> None:
    create(lep, "closed", "--tokens", KEY)
    url = reaches(lep, "closed", "Ready")
    assert [ask(url), ask(url, "wrong"), ask(url, KEY)] == [401, 401, 200]
    assert KEY not in lep("endpoint", "get", "-n", "closed").out
    for path in lep.cell.state.dir.glob("store.db*"):
        assert KEY.encode() not in path.read_bytes(), path
    lep("endpoint", "update", "-n", "closed", "--tokens", OTHER)
    eventually(lambda: (ask(url, KEY), ask(url, OTHER)) == (401, 200), "the other key counts")
    lep("endpoint", "update", "-n", "closed", "--allow-unauthenticated-access")
    eventually(lambda: ask(url) == 200, "it is open")
    lep("endpoint", "update", "-n", "closed", "--ip-whitelist", "10.20.30.0/24")
    eventually(lambda: ask(url) == 403, "this address is not let in")
    assert "Restricted" in lep("endpoint", "status", "-n", "closed").out
    lep("endpoint", "update", "-n", "closed", "--ip-whitelist", "127.0.0.0/8")
    eventually(lambda: ask(url) == 200, "this address is let in")
    lep("endpoint", "update", "-n", "closed", "--public")
    eventually(lambda: get(lep, "closed")["spec"].get("auth_config", {}).get("ip_allowlist", []) == [], "anyone is")
    assert ask(url) == 200
    lep("endpoint", "remove", "-n", "closed")


def test_scaled_updated_and_restarted_under_requests(lep: Lep) -> None:
    create(lep, "busy", "--public", "--replicas-static", "1")
    url = reaches(lep, "busy", "Ready")
    with traffic(url) as seen:
        lep("endpoint", "update", "-n", "busy", "--replicas-static", "2")
        eventually(lambda: get(lep, "busy")["status"].get("ready_replicas") == 2, "two are ready")
        before = {copy.name for copy in lep.cell.cloud.replicas("busy") if copy.phase == "ready"}
        lep("endpoint", "update", "-n", "busy", "--shared-memory-size", "64")
        eventually(lambda: len(fresh(lep, before)) == 2, "both were replaced by the new release")
        before = {copy.name for copy in lep.cell.cloud.replicas("busy") if copy.phase == "ready"}
        lep("endpoint", "restart", "-n", "busy")
        eventually(lambda: len(fresh(lep, before)) == 2, "both were started again")
        lep("endpoint", "update", "-n", "busy", "--load-balance", "sticky-routing")
        eventually(lambda: "maglev" in (get(lep, "busy")["spec"].get("load_balance_config") or {}), "it is sticky")
        lep("endpoint", "update", "-n", "busy", "--load-balance", "least-request")
        shown = get(lep, "busy")["spec"].get("load_balance_config") or {}
        assert shown.get("maglev") is None, "the other policy was taken back"
    assert not seen.failed, seen.failed
    assert seen.ok > 100
    lep("endpoint", "remove", "-n", "busy")


def fresh(lep: Lep, before: set[str]) -> set[str]:
    copies = [copy for copy in lep.cell.cloud.replicas("busy") if copy.phase != "exited"]
    ready = {copy.name for copy in copies if copy.phase == "ready"}
    return ready - before if not before & {copy.name for copy in copies} else set()


def test_stopped_and_brought_back(lep: Lep) -> None:
    create(lep, "pause", "--public", "--min-replicas", "1", "--max-replicas", "2", "--no-traffic-timeout", "600")
    url = reaches(lep, "pause", "Ready")
    assert "stopped successfully" in lep("endpoint", "stop", "-n", "pause").out
    eventually(lambda: get(lep, "pause")["status"].get("phase") == "Stopped", "it is stopped")
    kept = get(lep, "pause")["spec"]
    assert kept["resource_requirement"]["min_replicas"] == 0
    assert kept["resource_requirement"]["max_replicas"] == 2
    assert kept["auto_scaler"]["scale_down"]["no_traffic_timeout"] == 600
    eventually(lambda: ask(url) >= 400, "nobody answers, and nobody waits")
    lep("endpoint", "update", "-n", "pause", "--replicas-static", "1")
    reaches(lep, "pause", "Ready")
    assert ask(url) == 200
    lep("endpoint", "remove", "-n", "pause")


def test_asleep_until_somebody_calls(lep: Lep) -> None:
    # The client's own options begin at a minute; a file says what it likes.
    spec = {
        "container": {"image": "python:3.11", "command": ["/bin/bash", "-c", command("one")]},
        "resource_requirement": {"resource_shape": "cpu.small", "min_replicas": 1},
        "auto_scaler": {"scale_down": {"no_traffic_timeout": 2}},
    }
    path = lep.cache / "nap.json"
    path.write_text(json.dumps(spec), "utf-8")
    lep("endpoint", "create", "-n", "nap", "-f", str(path), "--public")
    url = reaches(lep, "nap", "Ready")
    eventually(lambda: not [c for c in lep.cell.cloud.replicas("nap") if c.phase != "exited"], "it falls asleep")
    assert HTTP.post(url, json={"value": 1}).json()["echo"] == 1, "the first request is held, not failed"
    lep("endpoint", "remove", "-n", "nap")


def test_what_breaks_is_said(lep: Lep) -> None:
    words = ["-n", "crash", "--container-image", "python:3.11", "--public"]
    lep("endpoint", "create", "-rs", "cpu.small", *words, "--container-command", "echo cannot start; exit 7")
    eventually(lambda: lep.cell.cloud.deployment("crash").state == "failed", "it failed")
    status = lep("endpoint", "status", "-n", "crash").out
    assert re.search(r"\(7\)|\b7\b", status), f"the exit code is shown: {status}"
    assert "Ready" not in re.findall(r"State: +(.*)", status)[0].replace("Not Ready", ""), status
    assert "failed" in lep("endpoint", "events", "-n", "crash").out
    lep("endpoint", "remove", "-n", "crash")

    create(lep, "shot", "--public")
    url = reaches(lep, "shot", "Ready")
    first = next(copy for copy in lep.cell.cloud.replicas("shot") if copy.phase == "ready")
    os.kill(first.pid, signal.SIGKILL)
    eventually(
        lambda: {c.name for c in lep.cell.cloud.replicas("shot") if c.phase == "ready"} - {first.name}, "another"
    )
    assert ask(url) == 200
    status = lep("endpoint", "status", "-n", "shot").out
    assert "earlier terminations" in status, status
    assert first.name in status
    lep("endpoint", "remove", "-n", "shot")


def test_the_live_log_follows_and_ends(lep: Lep) -> None:
    create(lep, "talks", "--public", release="spoken")
    reaches(lep, "talks", "Ready")
    with lep.start("endpoint", "log", "-n", "talks") as following:
        try:
            assert following.stdout is not None
            assert any("release spoken listens on" in line for line in following.stdout), "its first line"
            lep("endpoint", "stop", "-n", "talks")
            assert "End of log" in following.stdout.read()
            assert following.wait(60) == 0
        finally:
            following.kill()
    lep("endpoint", "remove", "-n", "talks")


def test_a_private_one_does_not_exist_for_others(lep: Lep) -> None:
    create(lep, "hidden", "--visibility", "private", "--public")
    reaches(lep, "hidden", "Ready")
    token = lep.cell.cloud.create_token("another-one", role="developer")
    other = Lep(lep.cell, lep.bin, lep.cache, token)
    assert "hidden" not in listed(other)
    assert "404" in other("endpoint", "get", "-n", "hidden", code=1).out
    assert "hidden" in listed(lep)
    lep.cell.cloud.delete_token("another-one")
    lep("endpoint", "remove", "-n", "hidden")
