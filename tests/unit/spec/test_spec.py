"""The vocabulary refuses what cannot be meant and survives a round trip."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lepton_ai.spec.base import is_name, uuid7
from lepton_ai.spec.workload import BlobRef, DeploymentSpec, Replicas, Template


def test_uuid7_values_increase_and_do_not_repeat() -> None:
    values = [uuid7() for _ in range(10_000)]
    assert values == sorted(values)
    assert len(set(values)) == len(values)
    assert all(value[14] == "7" and value[19] in "89ab" for value in values)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "1a", "a_b", "a.b", "a/b", "../a", "a" * 64, "a\n"])
def test_bad_names(name: str) -> None:
    assert not is_name(name)


@given(st.from_regex(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", fullmatch=True))
def test_good_names(name: str) -> None:
    assert is_name(name)


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../b", "a//b", "./a", "a\0b", "a\\b", ""])
def test_blob_paths_stay_inside(path: str) -> None:
    with pytest.raises(ValidationError):
        BlobRef(digest="sha256:" + "0" * 64, size_bytes=1, path=path)


@pytest.mark.parametrize("env", [{"1A": "x"}, {"A B": "x"}, {"": "x"}, {"A": "a\0b"}, {"A": "x" * 70_000}, {"Ä": "x"}])
def test_bad_environment(env: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        Template(command=("true",), env=env)


def test_unknown_fields_are_errors() -> None:
    with pytest.raises(ValidationError, match="replica"):
        DeploymentSpec.model_validate({"template": {"command": ["true"]}, "replica": {"min": 1}})


def test_bounds_and_contradictions() -> None:
    with pytest.raises(ValidationError, match="over max"):
        Replicas(min=3, max=2)
    template = Template(command=("true",), exclusive=True)
    with pytest.raises(ValidationError, match="exclusive"):
        DeploymentSpec(template=template, replicas=Replicas(min=1, max=2))
    with pytest.raises(ValidationError, match="exclusive"):
        DeploymentSpec(template=template, survive={"node": 1})


def test_round_trip_through_json() -> None:
    spec = DeploymentSpec(template=Template(command=("serve", "{port}"), env={"A": "ü"}), survive={"node": 1})
    assert DeploymentSpec.model_validate_json(spec.model_dump_json()) == spec
