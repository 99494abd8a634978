"""What needs no engine: bodies, frames, and what is said when something cannot be had."""

from __future__ import annotations

import random
from typing import Any

import pytest

from lepton_ai.errors import Conflict, DiskFull, Failed, Forbidden, NotFound, Unavailable
from lepton_ai.node import contain
from lepton_ai.node.container import container, visible
from lepton_ai.node.engine import Away, Engine, frames
from lepton_ai.node.hold import _image
from lepton_ai.node.images import Image, refused
from lepton_ai.spec.replica import RegistryLogin, ReplicaSpec
from lepton_ai.spec.workload import Resources

LOGIN = RegistryLogin(registry="nvcr.io", username="ann", password="a secret")


def spec(**fields: Any) -> ReplicaSpec:
    values: dict[str, Any] = {"uid": "u", "workspace": "default", "name": "x", "owner_kind": "job", "owner": "x"}
    return ReplicaSpec(**{**values, "command": ("true",), "image": "a/b:1", **fields})


def test_frames_come_out_however_they_are_cut() -> None:
    chance = random.Random(3)
    sent = [(chance.choice((1, 2)), chance.randbytes(chance.randrange(0, 200))) for _ in range(200)]
    data = b"".join(bytes([stream, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for stream, text in sent)
    found, rest = [], b""
    while data:
        size = chance.randrange(1, 300)
        more, rest = frames(rest + data[:size])
        data = data[size:]
        found += more
    assert (found, rest) == (sent, b"")


def test_limits_and_rights_of_a_container() -> None:
    order = spec(resources=Resources(cpu_milli=1500, memory_mib=512), shared_memory_mib=64)
    body = container(order, Image("sha256:1", "a/b@sha256:2", {}), ["run"], {"A": "b"}, {"x": "y"})
    host = body["HostConfig"]
    assert (body["Image"], body["Entrypoint"], body["Cmd"], body["Env"]) == ("sha256:1", ["run"], [], ["A=b"])
    assert (host["Memory"], host["MemorySwap"], host["NanoCpus"]) == (512 << 20, 512 << 20, 1_500_000_000)
    assert (host["ShmSize"], host["PidsLimit"]) == (64 << 20, 4096)
    assert (host["CapDrop"], host["SecurityOpt"]) == (["ALL"], ["no-new-privileges"])
    assert not {"SYS_ADMIN", "SYS_PTRACE", "NET_ADMIN", "NET_RAW", "MKNOD", "SYS_MODULE", "DAC_READ_SEARCH"} & {
        *host["CapAdd"]
    }
    for way_out in ("Privileged", "PidMode", "UsernsMode", "Devices", "Binds", "VolumesFrom"):
        assert way_out not in host
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert not host["Mounts"]


def test_a_container_gets_its_own_gpus_and_no_others() -> None:
    two = spec(devices=(1, 3), resources=Resources(accelerator_milli=2000))
    host = container(two, Image("sha256:1", "", {}), ["run"], {}, {})["HostConfig"]
    assert host["DeviceRequests"] == [{"Driver": "nvidia", "DeviceIDs": ["1", "3"], "Capabilities": [["gpu"]]}]
    assert visible(two) == {"CUDA_VISIBLE_DEVICES": "0,1"}  # in the container they are numbered from 0
    assert visible(spec()) == {"NVIDIA_VISIBLE_DEVICES": "void"}
    assert "DeviceRequests" not in container(spec(), Image("sha256:1", "", {}), ["run"], {}, {})["HostConfig"]


def test_a_command_of_the_images_own() -> None:
    image = Image("sha256:1", "", {"Cmd": ["serve"]})
    assert "Entrypoint" not in container(spec(command=()), image, [], {}, {})
    with pytest.raises(Conflict, match="no command of its own"):
        container(spec(command=()), Image("sha256:1", "", {}), [], {}, {})


@pytest.mark.parametrize(
    ("said", "login", "kind", "words"),
    [
        ("manifest for nvcr.io/a:1 not found: manifest unknown: manifest unknown", None, NotFound, "no such image"),
        ("Head \"https://nvcr.io/v2/a\": no basic auth credentials", None, Forbidden, "wants a login"),
        ("unauthorized: authentication required", LOGIN, Forbidden, "refuses user ann"),
        ("pull access denied for a, repository does not exist or may require 'docker login'", None, Forbidden,
         "wants a login, or has no such image"),
        ("dial tcp: lookup nvcr.io: no such host", None, Unavailable, "there is no host nvcr.io"),
        ("dial tcp 10.0.0.1:443: connect: connection refused", None, Unavailable, "does not answer"),
        ("net/http: request canceled (Client.Timeout exceeded while awaiting headers)", None, Unavailable, "answer"),
        ("x509: certificate signed by unknown authority", None, Unavailable, "does not answer"),
        ("write /var/lib/docker/tmp/x: no space left on device", None, DiskFull, "no space left"),
        ("failed to register layer: something new", None, Failed, "something new"),
    ],
)  # fmt: skip
def test_why_an_image_cannot_be_had(said: str, login: RegistryLogin | None, kind: type, words: str) -> None:
    error = refused("nvcr.io/a:1", said, login)
    assert type(error) is kind
    assert words in error.message
    assert said[:40] in error.message
    assert LOGIN.password not in str(error)


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ('failed to create shim task: OCI runtime create failed: unable to start container process: '
         'exec: "nope": executable file not found in $PATH: unknown', 127, 'exec: "nope": executable file not found'),
        ("OCI runtime create failed: unable to start container process: exec: \"/x\": permission denied: unknown", 126,
         "permission denied"),
        ("Conflict. The container name is in use", 126, "in use"),
    ],
)  # fmt: skip
def test_why_a_container_does_not_start(said: str, code: int, words: str) -> None:
    error = contain.refused(said)
    assert error.code == code
    assert words in str(error)
    assert "OCI" not in str(error)


def test_an_engine_that_is_not_there(tmp_path: Any) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(Away):
            Engine(str(path)).ask("GET", "/_ping")
        with pytest.raises(Away):
            Engine(str(path)).attach("x")


@pytest.mark.parametrize("arch", ["amd64", "arm64"])
def test_the_image_that_holds_a_network_is_the_same_each_time(arch: str) -> None:
    assert _image(arch) == _image(arch)
    assert b"\x7fELF" in _image(arch)
