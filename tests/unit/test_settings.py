"""Settings: order of sources, unknown keys, bounds."""

from __future__ import annotations

from pathlib import Path

import pytest

from lepton_ai import settings
from lepton_ai.errors import Invalid


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in list(__import__("os").environ):
        if key.startswith("LEPTON_AI_"):
            monkeypatch.delenv(key)
    monkeypatch.setenv("LEPTON_AI_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    (tmp_path / "cwd").mkdir()


def test_flag_beats_environment_beats_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cwd = tmp_path / "cwd"
    (tmp_path / "home/config.toml").write_text("gateway_port = 1001\napi_port = 1002\ncell = 'a'\nlease_s = 7\n")
    (cwd / "lepton.toml").write_text("[settings]\ngateway_port = 2001\napi_port = 2002\ncell = 'b'\n")
    monkeypatch.setenv("LEPTON_AI_GATEWAY_PORT", "3001")
    monkeypatch.setenv("LEPTON_AI_API_PORT", "3002")
    found = settings.load({"gateway_port": 4001, "cell": None}, cwd=cwd)
    assert (found.gateway_port, found.api_port, found.cell, found.lease_s) == (4001, 3002, "b", 7.0)
    sources = {key: source for key, _, source, _ in settings.explain({"gateway_port": 4001}, cwd=cwd)}
    assert sources["gateway_port"] == "flag"
    assert sources["api_port"] == "LEPTON_AI_API_PORT"
    assert sources["cell"].endswith("lepton.toml")
    assert sources["lease_s"].endswith("config.toml")
    assert sources["tick_s"] == "default"


def test_home_flag_decides_which_config_is_read(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.toml").write_text("cell = 'elsewhere'\n")
    found = settings.load({"home": str(other)}, cwd=tmp_path / "cwd")
    assert (found.home, found.cell_dir) == (other, other / "cells" / "elsewhere")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"gatway_port": 1}, "gateway_port"),
        ({"gateway_port": 70000}, "65535"),
        ({"gateway_port": "x"}, "int"),
        ({"gateway_port": True}, "int"),
        ({"gateways": 0}, "1 to 8"),
        ({"isolation": "container"}, "none or uid"),
        ({"runtime": "docker"}, "docker://"),
        ({"runtime": "docker://localhost:2375"}, "docker:///path"),
        ({"runtime": "podman://"}, "process://"),
        ({"gateways": float("inf")}, "int"),
        ({"cell": ["a"]}, "str"),
        ({"home": 5.5}, "Path"),
        ({"workspace": 7}, "str"),
        ({"log_retention_days": -5}, "out of range"),
        ({"images_max_days": -1}, "out of range"),
        ({"lease_s": float("nan")}, "out of range"),
        ({"gateway_host": "0.0.0.0"}, "TLS"),
        ({"tls_cert": "a.pem"}, "together"),
        ({"trusted_proxies": "10.0.0.0/8, nowhere"}, "'nowhere' is not an address"),
        ({"gateway_domain": "http://a.b"}, "host name"),
    ],
)
def test_bad_values_are_refused_with_a_hint(tmp_path: Path, flags: dict[str, object], says: str) -> None:
    with pytest.raises(Invalid) as caught:
        settings.load(flags, cwd=tmp_path / "cwd")
    assert says in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("url", ["process://", "docker://", "docker:///run/user/1000/docker.sock"])
def test_runtimes(tmp_path: Path, url: str) -> None:
    assert settings.load({"runtime": url}, cwd=tmp_path / "cwd").runtime == url


def test_a_file_that_is_not_toml_is_named(tmp_path: Path) -> None:
    (tmp_path / "cwd/lepton.toml").write_text("= 3")
    with pytest.raises(Invalid, match=r"lepton\.toml"):
        settings.load({}, cwd=tmp_path / "cwd")


def test_secrets_are_masked_when_explained(tmp_path: Path) -> None:
    values = {key: value for key, value, _, _ in settings.explain({"token": "lta_verysecret"}, cwd=tmp_path / "cwd")}
    assert values["token"] == "lta_…"


def test_a_misspelt_variable_is_refused_and_others_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DEBUG", "SOAK", "NODE", "REPLICA_UID", "SHIM_MARK", "KAFKA_BROKER"):
        monkeypatch.setenv(f"LEPTON_AI_{name}", "x")
    settings.load({}, cwd=tmp_path / "cwd")
    monkeypatch.setenv("LEPTON_AI_ISOLATON", "uid")
    with pytest.raises(Invalid, match="LEPTON_AI_ISOLATON") as caught:
        settings.load({}, cwd=tmp_path / "cwd")
    assert caught.value.hint == "did you mean LEPTON_AI_ISOLATION?"
