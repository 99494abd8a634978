"""Who may do what, through a real gateway and the real API: endpoint tokens, API tokens with roles, secrets."""

from __future__ import annotations

import hashlib
import os
import stat
import sys

import pytest
from cell import Cell, eventually, service

from lepton_ai.errors import NotFound, Unauthorized

KEY = "an-endpoint-key-of-the-test"
SECRET = "s3cr3t-of-the-test"


def test_an_endpoint_with_tokens_lets_only_them_in(cell: Cell) -> None:
    cloud = cell.cloud
    cloud.deploy({"name": "closed", "template": service("one"), "tokens": [KEY]})
    with pytest.raises(Unauthorized):
        cloud.call("closed", {"value": 1})
    with pytest.raises(Unauthorized):
        cloud.call("closed", {"value": 1}, token="another")
    assert cloud.call("closed", {"value": 1}, token=KEY)["echo"] == 1
    cloud.deploy({"name": "closed", "template": service("one"), "tokens": []})
    eventually(lambda: opened(cell), "it is open")


def opened(cell: Cell) -> bool:
    try:
        return bool(cell.cloud.call("closed", {"value": 2})["echo"] == 2)
    except Unauthorized:
        return False


def test_no_key_lies_where_others_could_read_it(cell: Cell) -> None:
    cell.cloud.deploy({"name": "keys", "template": service("one"), "tokens": [KEY]})
    assert KEY.encode() not in (cell.state.dir / "store.db").read_bytes()
    token = cell.state.token_path.read_bytes()
    for path in cell.state.dir.rglob("*"):
        if path.is_file() and path != cell.state.token_path and "work" not in path.parts:
            data = path.read_bytes()
            assert token not in data, path
            if KEY.encode() in data:
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
                assert path.is_relative_to(cell.state.dir / "gateway"), path
    assert stat.S_IMODE(cell.state.dir.stat().st_mode) == 0o700


def test_a_role_is_held_to_through_the_command_line(cell: Cell) -> None:
    text = cell.cloud.create_token("watcher", role="viewer")
    env = {"LEPTON_AI_URL": cell.state.api_url, "LEPTON_AI_TOKEN": text}
    assert cell.lepton("ps", env=env).code == 0
    refused = cell.lepton("run", "true", env=env)
    assert refused.code == 1
    assert "viewer" in refused.err
    assert "hint: " in refused.err
    cell.cloud.delete_token("watcher")
    gone = cell.lepton("ps", env=env)
    assert gone.code == 1
    assert "token is not valid" in gone.err
    with pytest.raises(NotFound):
        cell.cloud.delete_token("watcher")


def test_a_secret_reaches_the_environment_and_nothing_else(cell: Cell) -> None:
    assert cell.lepton("secret", "set", "api-key", "--file", written(cell)).code == 0
    assert cell.lepton("secret", "ls", "--json").json == ["api-key"]
    digest = hashlib.sha256(SECRET.encode()).hexdigest()
    code = "import hashlib, os; print(hashlib.sha256(os.environ['KEY'].encode()).hexdigest())"
    template = {"command": [sys.executable, "-I", "-c", code], "secrets": {"KEY": "api-key"}}
    job = cell.cloud.run({"name": "uses", "template": template})
    assert cell.cloud.wait(job.name).state == "succeeded"
    assert digest in [line.line for line in cell.cloud.logs(job.name)]
    for path in cell.state.dir.glob("store.db*"):
        assert SECRET.encode() not in path.read_bytes(), path
    assert cell.lepton("secret", "rm", "api-key", "--yes").code == 0
    with pytest.raises(NotFound):
        cell.cloud.run({"name": "uses", "template": template})


def written(cell: Cell) -> str:
    path = cell.home / "key.txt"
    with open(os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(SECRET)
    return str(path)
