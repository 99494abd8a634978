"""The doctor's looks, on machines that are made up."""

from __future__ import annotations

import json
import platform
import socket
from pathlib import Path

import pytest

from lepton_ai import cloud, doctor
from lepton_ai.cli.__main__ import main
from lepton_ai.doctor import Check
from lepton_ai.errors import Unavailable, Unsupported
from lepton_ai.settings import Settings


def one(check: object, settings: Settings) -> Check:
    return next(iter(check(settings)))  # type: ignore[operator]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(home=tmp_path / "home")


@pytest.mark.parametrize(
    ("system", "machine", "libc", "level"),
    [
        ("Linux", "x86_64", ("glibc", "2.36"), "ok"),
        ("Linux", "aarch64", ("glibc", "2.31"), "ok"),
        ("Linux", "x86_64", ("glibc", "2.28"), "fail"),
        ("Linux", "x86_64", ("", ""), "fail"),
        ("Linux", "riscv64", ("glibc", "2.40"), "fail"),
        ("Windows", "AMD64", ("", ""), "fail"),
    ],
)
def test_platforms(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, system: str, machine: str, libc: tuple[str, str], level: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    found = one(doctor._platform, settings)
    assert found.level == level
    assert (found.hint == "") == (level == "ok")


@pytest.mark.parametrize(
    ("wanted", "why", "level"),
    [("none", "", "ok"), ("none", "it needs root", "ok"), ("uid", "", "ok"), ("uid", "it needs root", "fail")],
)
def test_isolation(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, wanted: str, why: str, level: str) -> None:
    monkeypatch.setattr("lepton_ai.node.enclose.able", lambda: why)
    monkeypatch.setattr("lepton_ai.node.network.Network.available", lambda self: "")
    found = one(doctor._isolation, Settings(home=tmp_path, isolation=wanted))
    assert found.level == level
    assert why in found.message
    assert bool(found.hint) == (level == "fail")


def test_a_cell_that_cannot_isolate_does_not_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lepton_ai.cloud.able", lambda: "it needs root")
    with pytest.raises(Unsupported, match="it needs root") as caught:
        cloud.up("test", settings=Settings(home=tmp_path, isolation="uid"))
    assert caught.value.hint is not None
    assert "isolation = none" in caught.value.hint
    assert not (tmp_path / "cells").exists()


def test_a_port_in_use_is_a_failure_with_its_number(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        found = one(doctor._ports, Settings(home=tmp_path, gateway_port=port))
        assert found.level == "fail"
        assert str(port) in found.message
        assert str(port) in found.hint
    assert one(doctor._ports, Settings(home=tmp_path)).level == "ok"


def test_little_memory(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    levels = []
    for free in (4096, 800, 100):
        monkeypatch.setattr(doctor, "_memory_mib", lambda free=free: (free, 8192))
        levels.append(one(doctor._memory, settings).level)
    assert levels == ["ok", "warn", "fail"]


def test_a_home_that_others_can_read(settings: Settings) -> None:
    settings.home.mkdir(mode=0o755)
    settings.home.chmod(0o755)
    found = one(doctor._home, settings)
    assert found.level == "warn"
    assert found.hint == f"chmod 700 {settings.home}"
    settings.home.chmod(0o700)
    assert one(doctor._home, settings).level == "ok"


def test_a_home_on_a_network_disk(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(doctor, "_filesystem", lambda _: "nfs4")
    assert one(doctor._home, settings).level == "fail"


def test_leftovers_of_a_dead_cell_are_found(settings: Settings) -> None:
    from lepton_ai.node.identity import Identity

    me = Identity.of(__import__("os").getpid())
    assert me is not None
    folder = settings.home / "cells" / "old" / "system" / "envoy-1"
    folder.mkdir(parents=True)
    record = {"pid": me.pid, "start_ticks": me.start_ticks, "boot_id": me.boot_id}
    (folder / "child.json").write_text(json.dumps(record))
    found = one(doctor._cells, settings)
    assert found.level == "warn"
    assert "lepton down old" in found.hint
    (folder / "child.json").write_text(json.dumps({**record, "start_ticks": me.start_ticks + 1}))
    assert one(doctor._cells, settings).level == "ok"  # the number was given to another process


def test_a_look_that_breaks_does_not_hide_the_others(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    def _broken(_: Settings) -> object:
        raise OSError("gone")

    monkeypatch.setattr(doctor, "CHECKS", (_broken, doctor._python))
    assert [check.level for check in doctor.examine(settings)] == ["warn", "ok"]


@pytest.mark.parametrize(("level", "code"), [("ok", 0), ("warn", 0), ("fail", 1)])
def test_the_command_exits_1_only_for_a_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], level: str, code: int
) -> None:
    monkeypatch.setattr(doctor, "examine", lambda _: [Check("thing", level, "so it is", "do that")])  # type: ignore[arg-type]
    assert main(["doctor"]) == code
    out = capsys.readouterr().out
    assert "so it is" in out
    assert ("hint: do that" in out) == (level != "ok")
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)[0]["level"] == level


def test_an_engine_that_does_not_answer(tmp_path: Path) -> None:
    url = f"docker://{tmp_path}/none.sock"
    found = one(doctor._containers, Settings(home=tmp_path, runtime=url))
    assert (found.level, "none.sock" in found.message) == ("fail", True)
    assert "docker.io" in found.hint
    assert one(doctor._containers, Settings(home=tmp_path)).level == "ok"
    with pytest.raises(Unavailable, match=r"no container engine answers at .*none\.sock") as caught:
        cloud.up("test", settings=Settings(home=tmp_path, runtime=url))
    assert caught.value.hint is not None
    assert "docker.io" in caught.value.hint
    assert not (tmp_path / "cells").exists()
