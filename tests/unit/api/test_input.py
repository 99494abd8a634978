"""What comes in is bounded and checked, and what is wrong is said with a way out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lepton_ai.api.check import MAX_DEPTH, parse, validated
from lepton_ai.api.form import DeployForm, JobForm
from lepton_ai.errors import Invalid, LeptonError
from lepton_ai.spec.workload import Template


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"{", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        (b'{"a": NaN}', "NaN is not a JSON number"),
        (b'{"a": -Infinity}', "-Infinity is not a JSON number"),
        (b"9" * 5000, "not JSON"),
        (b"[" * 100_000, "nested deeper"),
        (b"[" * 40 + b"]" * 40, "nested deeper"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested deeper"),
    ],
)
def test_a_body_that_is_no_bounded_json_is_refused(stand: Any, data: bytes, says: str) -> None:
    response = stand.client().post("/x/plan", content=data)
    assert response.status_code == 400
    assert says in response.json()["message"]
    assert response.json()["hint"]


def test_nesting_up_to_the_bound_is_read() -> None:
    depth = MAX_DEPTH - 1
    assert parse(b"[" * depth + b"]" * depth) is not None
    with pytest.raises(Invalid):
        parse(b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1))


def test_a_body_over_a_mebibyte_is_refused(stand: Any) -> None:
    response = stand.client().post("/x/plan", content=b'{"name": "' + b"a" * (1 << 20) + b'"}')
    assert response.status_code == 413
    assert response.json()["code"] == "TooLarge"


@pytest.mark.parametrize(
    ("method", "path", "bound"),
    [
        ("POST", "/x/plan", "lepton_ai.api.call.BODY_TIMEOUT_S"),
        ("POST", "/x/models/m", "lepton_ai.api.upload.SILENCE_S"),
    ],
)
def test_a_body_that_never_ends_is_given_up(
    stand: Any, monkeypatch: pytest.MonkeyPatch, method: str, path: str, bound: str
) -> None:
    monkeypatch.setattr(bound, 0.05)

    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.Event().wait()

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app=stand.app)
        headers = {"authorization": f"Bearer {stand.tokens['owner']}"}
        base = "http://cell/api/v2/workspaces/default"
        async with httpx.AsyncClient(transport=transport, base_url=base, headers=headers) as client:
            return await client.request(method, path, content=endless())

    response = asyncio.run(asyncio.wait_for(send(), 30))
    assert response.status_code == 400
    assert " s" in response.json()["message"]
    assert stand.client().get("/x/cell").status_code == 200


@pytest.mark.parametrize("body", [[], "text", 5, True])
def test_a_body_that_is_no_object_is_refused(stand: Any, body: object) -> None:
    response = stand.client().post("/x/plan", json=body)
    assert response.status_code == 400
    assert "must be a JSON object" in response.json()["message"]


@pytest.mark.parametrize(
    ("form", "message", "hint"),
    [
        ({"name": "web", "replcas": 2}, "replcas: unknown field", "did you mean 'replicas'?"),
        ({"name": "web", "survive": {"nodes": 1}}, "survive", "send it again"),
        ({"name": "Web!"}, "name: 'Web!' is not a name", "lower-case letters"),
        ({"name": "web", "replicas": {"min": 3, "max": 2}}, "replicas: min 3 is over max 2", "send it again"),
        ({"name": "web", "replicas": {"mni": 3}}, "replicas.mni: unknown field", "did you mean 'min'?"),
        ({"name": "web", "replicas": True}, "replicas", "send it again"),
        ({"name": "web", "tokens": [""]}, "tokens: a token has 1 to 1024", "send it again"),
        ({"name": "web", "tokens": ["with spaces in it"]}, "tokens", "send it again"),
        ({"name": "web"}, "neither a template nor a model is given", "for example"),
        ({"name": "web", "template": {"comand": ["x"]}}, "template.comand: unknown", "did you mean 'command'?"),
        ({"name": "web", "template": {"command": ["x"], "helth": 1}}, "template.helth", "did you mean 'health'?"),
        (
            {"name": "web", "template": {"command": ["x"], "health": {"pth": "/"}}},
            "template.health.pth: unknown field",
            "did you mean 'path'?",
        ),
        ({"name": "web", "template": {"command": ["x"], "env": {"1A": ""}}}, "template.env", "send it again"),
        ({"name": "web", "template": {"command": []}}, "a command or an image", "send it again"),
        ({"name": "web", "template": {"command": ["x"], "resources": {"cpu_milli": 0}}}, "cpu_milli", "send it"),
        (
            {"name": "web", "replicas": 2, "template": {"command": ["x"], "exclusive": True}},
            "exclusive means at most one live copy",
            "send it again",
        ),
        ({"name": "web", "survive": 99, "template": {"command": ["x"]}}, "survive.node must be between", "again"),
        ({"name": "web", "template": {"image": "a/b"}}, "nodes of this cell run no images", "give one"),
        ({"name": "web", "template": {"command": ["x"], "nodes": ["node-99"]}}, "no node 'node-99'", "lepton node ls"),
        (
            {"name": "web", "template": {"command": ["x"], "mounts": [{"volume": "none", "target": "/mnt/a"}]}},
            "has no volume 'none'",
            "volumes: local",
        ),
        (
            {"name": "web", "template": {"command": ["x"], "mounts": [{"target": "/usr/a"}]}},
            "template.mounts.0.target: /usr/a is a folder of the system",
            "send it again",
        ),
        ({"name": "web", "template": {"command": ["x"], "image_pull_secrets": ["no"]}}, "no image-pull secret", "make"),
        (
            {"name": "web", "template": {"command": ["x"], "env": {"LEPTON_JOB_NAME": "a"}}},
            "set by the cell",
            "another",
        ),
        ({"name": "web", "template": {"command": ["x"], "secrets": {"1": "a"}}}, "not a name of an env", "no digit"),
        ({"name": "web", "labels": {"-a": "b"}, "template": {"command": ["x"]}}, "labels", "send it again"),
        ({"name": "web", "allowlist": ["10.0.0.0/40"], "template": {"command": ["x"]}}, "allowlist", "send it again"),
        ({"name": "web", "tokens": [{"secret": "none"}], "template": {"command": ["x"]}}, "no secret 'none'", "set it"),
        ({"name": "web", "pod": True, "replicas": 2, "template": {"command": ["x"]}}, "a pod is one", "send it again"),
        ({"name": "web", "model": "no@such@thing"}, "", ""),
    ],
)
def test_a_wrong_deployment_is_answered_with_the_field_and_a_hint(
    stand: Any, form: dict[str, Any], message: str, hint: str
) -> None:
    for method, path in (("POST", "/x/plan"), ("PUT", "/x/deployments/web")):
        response = stand.client().request(method, path, json=form)
        body = response.json()
        assert response.status_code in (400, 404, 501), body
        assert message in body["message"], body
        assert hint in body["hint"], body
    assert stand.store.list("deployment") == []
    assert stand.store.list("release") == []


def test_secrets_in_a_wrong_body_are_not_repeated(stand: Any) -> None:
    form = {"name": "web", "tokens": ["sw0rdfish with spaces"], "template": {"command": ["x"]}}
    text = stand.client().put("/x/deployments/web", json=form).text
    assert "sw0rdfish" not in text


def test_unknown_paths_and_methods_are_answered_in_json(stand: Any) -> None:
    client = stand.client()
    for response, status in (
        (client.get("/nothing"), 404),
        (client.get("http://cell/"), 404),
        (client.put("/x/cell"), 405),
        (client.request("TRACE", "/x/cell"), 405),
    ):
        assert response.status_code == status
        assert response.json()["hint"].startswith("paths begin with ")


def test_doubled_and_closing_slashes_mean_nothing(stand: Any) -> None:
    client = stand.client()
    base = "http://cell/api/v2/workspaces/default/"
    for path in (base + "/workspace", base + "workspace/", base + "//x///cell//", base):
        assert client.get(path).status_code == 200, path


@pytest.mark.parametrize(
    ("path", "word"),
    [
        ("/x/events?limit=0", "limit"),
        ("/x/events?limit=many", "limit"),
        ("/x/events?kind=" + "k" * 65, "kind"),
        ("/x/jobs?all=perhaps", "all"),
        ("/x/logs/web?lines=0", "lines"),
        ("/x/logs/web?lines=-1", "lines"),
        ("/x/logs/web?follow=2", "follow"),
        ("/x/logs/web?grep=" + "g" * 2000, "grep"),
        ("/jobs?page=0", "page"),
        ("/jobs?page=99999999999999999999", "page"),
        ("/logs?job=x&start=a&end=1", "start"),
    ],
)
def test_a_wrong_query_parameter_is_named(stand: Any, path: str, word: str) -> None:
    stand.deploy()
    response = stand.client().get(path)
    assert response.status_code == 400
    assert word in response.json()["message"]


@pytest.mark.parametrize("name", ["a" * 300, "%00", "%F0%9F%98%80", "%2e%2e", "a%2Fb", "web%23", "%20"])
def test_odd_names_are_not_found_and_break_nothing(stand: Any, name: str) -> None:
    client = stand.client()
    for path in ("/x/deployments/", "/x/jobs/", "/x/logs/", "/deployments/", "/jobs/", "/x/secrets/"):
        response = client.get(path + name)
        assert response.status_code in (400, 404), (path, name, response.text)
        assert response.json()["code"] in ("NotFound", "InvalidParameter")


def test_a_bug_of_ours_is_told_as_such_and_leaks_nothing(stand: Any, caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> None:
        raise RuntimeError("the secret is 42")

    object.__setattr__(stand.cell, "snapshot", broken)
    response = stand.client().post("/x/plan", json={"name": "web", "template": {"command": ["x"]}})
    assert response.status_code == 500
    assert response.json()["code"] == "Internal"
    assert "42" not in response.text
    assert "the secret is 42" in caplog.text


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=12,
)
_keys = st.sampled_from([*DeployForm.model_fields, *Template.model_fields, *JobForm.model_fields, "min", "max", "x"])


@given(st.dictionaries(_keys, _values | st.dictionaries(_keys, _values, max_size=4), max_size=6))
def test_any_json_is_a_form_or_an_error_of_ours(value: dict[str, Any]) -> None:
    for model in (DeployForm, JobForm, Template):
        try:
            made = validated(model, json.loads(json.dumps(value)), "it")
        except LeptonError as error:
            assert error.hint  # noqa: PT017
        else:
            assert made is not None
