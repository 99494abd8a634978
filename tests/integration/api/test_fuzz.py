"""The API fuzzed from its own description, on a real server: no request makes it fail, hang or speak another form.

What schemathesis makes of the document (right and wrong alike) and good bodies with one thing wrong. `make test` runs
a seeded sample, `make soak` many more.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode

ANSWER_S = 30.0
"""No answer within it is a hang; an ordinary one takes milliseconds."""
KNOWN = {
    "name": ["web", "count", "API_KEY", "hub", "node-1", "data", "r1", "movies@1", "movies", "ratings", "team", "none"],
    "owner": ["web", "none"],
    "id": ["local-0001", "local", "python", "mine", "none"],
    "volume": ["local", "data", "none"],
    "prefix": ["a", "a/b", "none"],
    "digest": ["sha256:" + "0" * 64, "none"],
    "deployment": ["web"],
}
HOSTILE: list[Any] = [
    None, True, -1, 0, 10**30, 1e308, -0.0, "", "x" * 5000, "\0", "../..", "%2e%2e/", "é\U0001f600\u202e", [], {},
    [[]], [None], {"": None}, {"a": {"b": {"c": []}}}, "*", "\ud800", float(2**63),
]  # fmt: skip
GOOD: dict[str, Any] = {
    "PUT /x/deployments/{name}": {
        "name": "web", "replicas": {"min": 1, "max": 2}, "survive": {"node": 1}, "tokens": ["literal-key"],
        "labels": {"a": "b"}, "template": {
            "command": ["true"], "env": {"A": "b"}, "secrets": {"K": "API_KEY"}, "resources": {"cpu_milli": 100},
            "health": {"path": "/"}, "ports": [{"number": 80}], "mounts": [{"volume": "local", "target": "/mnt/x"}]},
    },
    "POST /x/plan": {"name": "web", "replicas": 2, "template": {"command": ["true"], "nodes": ["node-1"]}},
    "POST /x/jobs": {"name": "count", "workers": 2, "retries": 1, "ttl_s": 60, "template": {"command": ["true"]}},
    "PATCH /x/jobs/{name}": {"stopped": True},
    "POST /deployments": {
        "metadata": {"id": "e1", "name": "e1", "labels": {"a": "b"}, "visibility": "private"},
        "spec": {
            "container": {"image": "a", "command": ["/bin/bash", "-c", "true"], "ports": [{"container_port": 80}]},
            "resource_requirement": {
                "resource_shape": "cpu.small", "min_replicas": 1, "max_replicas": 2, "shared_memory_size": 64,
                "affinity": {"allowed_dedicated_node_groups": ["local-0001"]}},
            "auto_scaler": {
                "scale_down": {"no_traffic_timeout": 3600}, "target_throughput": {"qpm": 1.5}},
            "api_tokens": [{"value": "literal-key"}], "auth_config": {"ip_allowlist": ["10.0.0.0/8"]},
            "envs": [{"name": "A", "value": "b"}, {"name": "K", "value_from": {"secret_name_ref": "API_KEY"}}],
            "mounts": [{"path": "/data", "from": "node-local", "mount_path": "/mnt/x"}],
            "load_balance_config": {"least_request": {"choice_count": 2}}, "ingress_timeout_seconds": 600,
            "health": {"liveness": {"initial_delay_seconds": 5}}, "queue_config": {"priority_class": "mid-5000"},
        },
    },
    "PATCH /deployments/{name}": {"spec": {"resource_requirement": {"min_replicas": 2, "max_replicas": 2}}},
    "POST /jobs": {
        "metadata": {"id": "j1"},
        "spec": {
            "resource_shape": "cpu.small", "container": {"image": "a", "command": ["true"]}, "completions": 2,
            "parallelism": 2, "envs": [{"name": "A", "value": "b"}], "mounts": [], "image_pull_secrets": ["hub"],
            "ttl_seconds_after_finished": 60, "intra_job_communication": True, "max_failure_retry": 1,
            "time_schedule": {"start_at": 4_000_000_000}, "queue_config": {"priority_class": "mid-5000"},
        },
    },
    "PATCH /jobs/{name}": {"spec": {"stopped": True}},
    "POST /x/tokens": {"name": "t", "role": "viewer", "days": 1},
    "PUT /x/secrets/{name}": {"value": "v"},
    "POST /usersecrets": [{"name": "A", "value": "v", "visibility": "private", "tags": ["t"]}],
    "PUT /x/registries/{name}": {"registry": "r.example.com", "username": "u", "password": "p"},
    "POST /x/workspaces": {"name": "team-b", "force": True},
    "POST /x/reservations": {
        "metadata": {"name": "r2"},
        "spec": {"users": ["a"], "desired_nodes": 1, "time_rule": {"start_timestamp": 1, "end_timestamp": 2}},
    },
    "POST /dedicated-node-groups/{id}/volumes": {
        "name": "v1", "from": "local", "from_path": "/srv", "size_in_gb": 1, "creation_mode": "mkdir",
        "workspaces": ["default"], "default_mount_path": "/mnt/a"},
    "POST /storage-permission/{volume}": {"path_prefix": "/a", "allowed_users": ["*"], "subfolder_policy": ""},
    "POST /dedicated-node-groups/{id}/datasources": {
        "name": "b1", "object": {
            "bucket": "abc", "provider": {"type": "aws", "aws": {"region": "x"}}, "aistore": {"enabled": True},
            "credentials": {"type": "leptonSecret", "leptonSecret": {
                "s3Credentials": {"accessKeySecretName": "API_KEY", "secretKeySecretName": "API_KEY"}}}},
        "permissions": {"allowed_users": ["a"]}, "description": "d"},
    "PUT /x/templates/{id}": {
        "metadata": {"name": "n"},
        "spec": {"workload_type": "job", "content": {"spec": {"a": "{{run}}"}},
                 "json_schema": {"type": "object", "properties": {"run": {"type": "string"}}}}},
    "POST /templates/public/{id}/render": {"run": "true"},
    "POST /ingress": {
        "metadata": {}, "spec": {"domain_name": "a.example.com", "endpoints": [{"deployment": "web", "weight": 1}]}},
}  # fmt: skip


class Fuzzed:
    """A served cell with something of everything, and the rules that each of its answers is held to."""

    def __init__(self, stand: Any, folder: Path) -> None:
        self.stand, self.folder = stand, folder
        self.url = stand.serve().url
        self.document = httpx.get(f"{self.url}/api/openapi.json").json()
        self.schema = schemathesis.openapi.from_dict(self.document)
        self.http = httpx.Client(timeout=ANSWER_S, headers={"authorization": f"Bearer {stand.tokens['owner']}"})
        self.client = stand.client()
        stand.node("node-1", state="ready")

    def seed(self) -> None:
        """What paths name is there, whatever the requests before have removed."""
        client = self.client
        for kind in ("deployment", "job"):
            for record in self.stand.store.list(kind):
                if record.deleting:  # no loop removes it here, and a creation waits for that
                    self.stand.store.delete(record)
        form = {"name": "web", "template": {"command": ["true"]}}
        client.put("/x/deployments/web", json=form)
        client.put("/x/secrets/API_KEY", json={"value": "hush"})
        client.put("/x/registries/hub", json={"registry": "r.example.com", "username": "u", "password": "p"})
        client.put("/x/templates/mine", json=GOOD["PUT /x/templates/{id}"])
        volume = {"name": "data", "from": "local", "from_path": str(self.folder / "data"), "creation_mode": "mkdir"}
        client.post("/dedicated-node-groups/local/volumes", json=volume)
        client.post("/x/workspaces", json={"name": "team", "force": True})

    def operations(self) -> list[tuple[str, str, dict[str, Any]]]:
        return [
            (method.upper(), path, operation)
            for path, item in self.document["paths"].items()
            for method, operation in item.items()
        ]

    def send(self, method: str, path: str, operation: dict[str, Any], **options: Any) -> None:
        """One request, and what must be true of its answer. Raises AssertionError."""
        body = options.get("json")
        if isinstance(body, dict) and str(body.get("from_path", "")).startswith("/"):
            # What is made must lie in the test's folder.
            body["from_path"] = f"{self.folder}/v/{body['from_path'].strip('/').replace(chr(0), '')[:40]}"
        if "json" in options:
            options["content"] = _json(options.pop("json"))
            options["headers"] = {**options.get("headers", {}), "content-type": "application/json"}
        with self.http.stream(method, self.url + path, **options) as response:
            where = f"{method} {path} {str(options)[:600]} -> {response.status_code}"
            documented = operation["responses"]
            if response.status_code >= 500:
                assert response.status_code == 501, f"{where} {response.read()[:300]!r}"
                assert "501" in documented, where
            elif response.status_code < 400:
                assert str(response.status_code) in documented, where
            media = _media(documented, response.status_code)
            if media in (["text/plain"], ["application/x-ndjson"]):
                return  # it may go on for as long as its owner does
            data = response.read()
        assert response.headers["content-type"].startswith(tuple(media)), where
        if response.status_code >= 400:
            error = response.json()
            assert set(error) == {"code", "message", "hint", "details"}, f"{where} {data[:300]!r}"
            assert error["message"], where
        elif "json" in response.headers["content-type"]:
            schema = documented[str(response.status_code)]["content"]["application/json"]["schema"]
            jsonschema_rs.validate(schema, response.json())


def _json(value: Any) -> bytes:
    import json

    return json.dumps(value, ensure_ascii=True).encode()


def _media(documented: dict[str, Any], status: int) -> list[str]:
    return list(documented[str(status)]["content"]) if status < 400 else ["application/json"]


@pytest.fixture(scope="module")
def fuzzed(stand: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fuzzed]:
    made = Fuzzed(stand, tmp_path_factory.mktemp("volumes"))
    yield made
    made.http.close()


def _path(case: Any, pick: int, known: bool) -> str:
    """The path of a case in the workspace of its token, often with names that are there."""
    values = dict(case.path_parameters or {})
    for number, name in enumerate(sorted(values)):
        if name in KNOWN and known:
            values[name] = KNOWN[name][(pick + number) % len(KNOWN[name])]
        elif name != "ws":
            values[name] = str(values[name]) or "x"
    values["ws"] = "default"
    path = str(case.operation.path)
    for name, value in values.items():
        path = path.replace("{" + name + "}", quote(value, safe="%@:") if known else value)
    return path


def test_what_the_document_makes_of_itself(fuzzed: Fuzzed, soak: bool) -> None:
    examples = 60 if soak else 6
    problems: list[str] = []
    for result in fuzzed.schema.get_all_operations():
        operation = result.ok()
        fuzzed.seed()
        raw = fuzzed.document["paths"][operation.path][operation.method]
        for mode in GenerationMode:

            @seed(20_260_101)
            @settings(
                max_examples=3 if operation.path.endswith("/x/query") else examples,
                database=None,
                deadline=None,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy(generation_mode=mode), st.integers(0, 50), st.booleans())
            def one(case: Any, pick: int, known: bool) -> None:
                _send(fuzzed, case, raw, _path(case, pick, known))  # noqa: B023 - it is called in this round

            try:
                one()
            except Unsatisfiable:
                continue  # nothing about it can be wrong
            except (AssertionError, jsonschema_rs.ValidationError, httpx.HTTPError) as problem:
                problems.append(f"{type(problem).__name__}: {str(problem)[:900]}")
    assert not problems, "\n\n".join(problems)


def _send(fuzzed: Fuzzed, case: Any, raw: dict[str, Any], path: str) -> None:
    options: dict[str, Any] = {}
    if case.query:
        options["params"] = {
            key: [_text(item) for item in value] if isinstance(value, list) else _text(value)
            for key, value in case.query.items()
        }
    key = (case.headers or {}).get("idempotency-key")
    if isinstance(key, str) and key.isascii() and key.isprintable() and key.strip() == key:
        options["headers"] = {"idempotency-key": key}
    body = case.body if "requestBody" in raw else None
    if body is not None and type(body).__name__ != "NotSet":
        octets = "application/octet-stream" in raw["requestBody"]["content"]
        if octets or isinstance(body, bytes):
            options["content"] = body if isinstance(body, bytes) else repr(body).encode("utf-8", "replace")
        else:
            options["json"] = body
    fuzzed.send(case.operation.method.upper(), path, raw, **options)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else str(value)


def _places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _places(item, (*at, key))


def _changed(value: Any, at: tuple[Any, ...], into: Any) -> Any:
    if not at:
        return into
    whole = copy.deepcopy(value)
    inner = whole
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = into
    return whole


def test_good_bodies_with_one_thing_wrong(fuzzed: Fuzzed, soak: bool) -> None:
    shuffled = random.Random(20_260_101)
    operations = {
        f"{method} {path.partition('{ws}')[2]}": (method, path, raw) for method, path, raw in fuzzed.operations()
    }
    assert set(GOOD) <= set(operations)
    problems: list[str] = []
    for name, good in GOOD.items():
        fuzzed.seed()
        method, path, raw = operations[name]
        wrong = list(itertools.product(_places(good), HOSTILE))
        shuffled.shuffle(wrong)
        for number, (at, into) in enumerate(wrong if soak else wrong[:60]):
            where = path.replace("{ws}", "default")
            for parameter, values in KNOWN.items():
                where = where.replace("{" + parameter + "}", values[number % len(values)])
            try:
                fuzzed.send(method, where, raw, json=_changed(good, at, into))
            except (AssertionError, jsonschema_rs.ValidationError, httpx.HTTPError) as problem:
                problems.append(f"{name} {at} {into!r}: {type(problem).__name__}: {str(problem)[:300]}")
                break
    assert not problems, "\n\n".join(problems)


def test_good_bodies_are_good(fuzzed: Fuzzed) -> None:
    """Or the test above would only ever meet the first check."""
    for name in ("POST /x/jobs", "POST /jobs", "PUT /x/templates/{id}", "POST /x/plan", "POST /usersecrets"):
        fuzzed.seed()
        method, path = name.split(" ")
        response = fuzzed.client.request(method, path.replace("{id}", "mine"), json=GOOD[name])
        assert response.status_code < 300, (name, response.text)
