"""``python -m lepton_ai.node``: one node's agent as a process of its own, behind HTTP on loopback or TLS beyond it.

Writes DIR/agent.json {address, port, pid, start_ticks, boot_id, agent_uid, name, started_ms} when it listens, and
DIR/agent.token (0600) if there is none. Ends on TERM or INT; its replicas run on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import ipaddress
import logging
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import uvicorn

from lepton_ai.errors import Conflict, Invalid, LeptonError, Unsupported
from lepton_ai.node import shim
from lepton_ai.node.agent import Agent
from lepton_ai.node.docker import DockerRuntime, answering, socket_of
from lepton_ai.node.enclose import Enclosure, able, home
from lepton_ai.node.engine import Engine
from lepton_ai.node.images import Images
from lepton_ai.node.inlet import Certificates, Inlet
from lepton_ai.node.leave import leave
from lepton_ai.node.network import SHARED, Network
from lepton_ai.node.ports import Ports
from lepton_ai.node.process import ProcessRuntime
from lepton_ai.node.runtime import Runtime
from lepton_ai.node.server import Server
from lepton_ai.node.users import Users
from lepton_ai.spec.base import is_name
from lepton_ai.spec.workload import Resources


def main(argv: list[str] | None = None) -> int:
    """Run an agent until it is told to end; the exit code."""
    args = _parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        if args.end:
            sys.stdout.write(f"{leave(Path(args.dir).absolute())} replicas were ended\n")
        else:
            asyncio.run(_serve(args))
    except LeptonError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    finally:
        logging.shutdown()
    return 0


async def _serve(args: argparse.Namespace) -> None:
    folder = Path(args.dir).absolute()
    if not is_name(args.name):
        raise Invalid(f"{args.name!r} cannot be a node's name", hint="use lower-case letters, digits and dashes")
    certificates, inlet = _certificates(args), None
    tls = None if certificates is None else certificates.context()
    outer = args.address
    if not _is_loopback(outer):
        if certificates is None:
            hint = "give --tls-cert, --tls-key and --tls-ca, or use --address 127.0.0.1"
            raise Invalid(f"the agent would speak plain HTTP on {outer}, beyond this machine", hint=hint)
        # Replicas stay within: others reach them by the inlet. (Servers listen on this loopback address by default.)
        args.address = "127.0.0.1"
        inlet = Inlet(folder / "inlet", outer, certificates, Ports(outer))
    capacity = Resources(
        cpu_milli=args.cpu_milli,
        memory_mib=args.memory_mib,
        accelerator_milli=args.accelerator_milli,
        accelerator_type=args.accelerator_type,
    )
    agent = Agent(folder, args.name, capacity, _runtime(args, folder), address=args.address, inlet=inlet)
    await agent.start()
    if not agent.isolated and sys.platform == "linux" and os.geteuid() == 0 and SHARED.exists():
        # Left from when it was otherwise; not before the folder is this agent's.
        await asyncio.to_thread(Network(folder, args.address, Users(folder.parent / "users.json")).remove)
    # Before listening, as the token is read by whoever sees agent.json.
    sock = _listen(outer, args.port, shim.read_record(str(folder / "agent.json")))
    app = Server(agent, _token(folder / "agent.token"))
    config = uvicorn.Config(
        app, loop="asyncio", ws="none", lifespan="off", log_config=None, access_log=False, timeout_graceful_shutdown=2
    )
    server = _Uvicorn(config)
    if tls is not None:
        config.load()
        config.ssl = tls
    loop = asyncio.get_running_loop()

    def end() -> None:
        app.closing.set()
        server.should_exit = True

    serving = asyncio.create_task(server.serve([sock]))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end)
    while not server.started and not serving.done():
        await asyncio.sleep(0.005)
    _announce(folder, agent, sock)
    gc.freeze()  # what start-up made stays: later collections need not walk it
    try:
        await serving
    finally:
        await agent.close()


def _certificates(args: argparse.Namespace) -> Certificates | None:
    """Raises Invalid when only some of them are given."""
    given = (args.tls_cert, args.tls_key, args.tls_ca)
    if not any(given):
        return None
    if not all(given):
        raise Invalid("--tls-cert, --tls-key and --tls-ca go together", hint="give all three, or none")
    return Certificates(*(Path(path).absolute() for path in given))


def _runtime(args: argparse.Namespace, folder: Path) -> Runtime:
    """What runs the replicas. Raises Unsupported when this machine cannot isolate as told."""
    if args.runtime.startswith("docker://"):
        return _docker(args, folder)
    enclosure = Enclosure(folder, (home(folder),))
    if args.isolation == "none":
        return ProcessRuntime(args.name, enclosure=enclosure)
    users = Users(folder.parent / "users.json")
    network = Network(folder, args.address, users)
    if why := able() or network.available():
        raise Unsupported(f"isolation uid is not possible here: {why}", hint="use --isolation none, or another machine")
    return ProcessRuntime(args.name, enclosure=enclosure, users=users, network=network)


def _docker(args: argparse.Namespace, folder: Path) -> Runtime:
    """Containers; as root with networks of our own making, else with the engine's."""
    engine = Engine(socket_of(args.runtime))
    if why := answering(engine.path):  # what runs goes on without it, and has to be looked after
        logging.getLogger(__name__).warning("%s", why)
    images = Images(
        engine, folder.parent / "images.json", max_mib=args.images_max_gib << 10, max_days=args.images_max_days
    )
    network = Network(folder, args.address, Users(folder.parent / "users.json"))
    if why := network.available():
        logging.getLogger(__name__).warning("replicas use the engine's own networks: %s", why)
        return DockerRuntime(args.name, folder, engine, images, address=args.address)
    return DockerRuntime(args.name, folder, engine, images, network)


class _Uvicorn(uvicorn.Server):
    """A server that leaves signals to us: open streams must be told to end before it waits for them."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _announce(folder: Path, agent: Agent, sock: socket.socket) -> None:
    address, port = sock.getsockname()[:2]
    record = {"address": address, "port": port, "pid": os.getpid(), "start_ticks": shim.start_ticks(os.getpid())}
    record |= {"boot_id": shim.boot_id(), "agent_uid": agent.uid, "name": agent.node}
    shim.write_record(str(folder / "agent.json"), {**record, "started_ms": time.time_ns() // 1_000_000})
    logging.getLogger(__name__).info("node %s listens on %s:%d", agent.node, address, port)


def _listen(address: str, port: int, before: dict[str, object] | None) -> socket.socket:
    """A socket on `port`; for 0 on the port of the agent's last life if it is free, so that callers find it again."""
    last = before.get("port") if before is not None and port == 0 else None
    for wanted in (last, 0) if isinstance(last, int) else (port,):
        # The protocol is named, as asyncio sends without delay only where it sees that it is TCP.
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind((address, wanted))
            sock.listen(256)
        except OSError as error:
            sock.close()
            if wanted == 0 or wanted == port:
                raise Conflict(f"cannot listen on {address}:{wanted}: {error.strerror}", hint="use --port 0") from error
            continue
        return sock
    raise AssertionError("unreachable")


def _token(path: Path) -> str:
    """The agent's token, made at the first start."""
    try:
        text = path.read_text("ascii").strip()
    except FileNotFoundError:
        text = ""
    if not text:
        text = secrets.token_urlsafe(32)
        temporary = path.with_name(path.name + ".tmp")
        temporary.unlink(missing_ok=True)
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w", encoding="ascii") as file:
            file.write(text)
        temporary.rename(path)
    return text


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def _runtime_url(text: str) -> str:
    if text != "process://" and not text.startswith("docker://"):
        raise argparse.ArgumentTypeError(f"{text!r} is neither process:// nor docker://[SOCKET]")
    return text


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m lepton_ai.node", description="Run the agent of one node.")
    parser.add_argument("--dir", required=True, help="the node's folder")
    parser.add_argument("--name", required=True, help="the node's name")
    parser.add_argument("--cpu-milli", type=int, required=True, help="thousandths of a core for replicas")
    parser.add_argument("--memory-mib", type=int, required=True, help="memory for replicas")
    parser.add_argument("--accelerator-milli", type=int, default=0, help="thousandths of an accelerator")
    parser.add_argument("--accelerator-type", default=None, help="kind of accelerator")
    parser.add_argument("--address", default="127.0.0.1", help="to listen on; beyond loopback with certificates only")
    parser.add_argument("--tls-cert", default="", help="PEM file: this node's certificate, by the cell's authority")
    parser.add_argument("--tls-key", default="", help="PEM file with its key")
    parser.add_argument("--tls-ca", default="", help="PEM file: the authority; who has no certificate by it is refused")
    parser.add_argument("--isolation", choices=("none", "uid"), default="none", help="of workspaces from each other")
    parser.add_argument("--runtime", type=_runtime_url, default="process://", help="process:// or docker://[SOCKET]")
    parser.add_argument("--images-max-gib", type=int, default=20, help="images beyond this are removed")
    parser.add_argument("--images-max-days", type=int, default=14, help="images unused for so long are removed")
    parser.add_argument("--port", type=int, default=0, help="0: the last one, or any")
    parser.add_argument("--end", action="store_true", help="end what the agent left running here, and nothing else")
    return parser


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a transfer that still runs in a thread would hold the process; its file is swept later
