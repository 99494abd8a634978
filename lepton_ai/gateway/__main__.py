"""`python -m lepton_ai.gateway --dir DIR`: the activator of a cell, in a process of its own.

DIR is the gateway's folder (`EnvoyGateway.activator_argv` writes the command line). Ends on TERM.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
from pathlib import Path

from lepton_ai.gateway.activator import Activator, Limits, Proof
from lepton_ai.gateway.sockets import sockets


def main() -> None:
    """Reads the command line and serves until TERM or INT."""
    default = Limits()
    parser = argparse.ArgumentParser(prog="python -m lepton_ai.gateway", description="Hold requests from zero.")
    parser.add_argument("--dir", type=Path, required=True, help="the gateway's folder")
    parser.add_argument("--hold-s", type=float, default=default.seconds, help="a request is held so long at most")
    parser.add_argument("--hold-count", type=int, default=default.count, help="so many requests at most")
    parser.add_argument("--hold-bytes", type=int, default=default.bytes, help="so many bytes of them at most")
    parser.add_argument("--tls-ca", default="", help="the cell's authority, where replicas are on other hosts")
    parser.add_argument("--tls-cert", default="", help="the gateways' certificate by it")
    parser.add_argument("--tls-key", default="", help="the key of that certificate")
    given = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    folder = given.dir.absolute()
    limits = Limits(given.hold_count, given.hold_bytes, given.hold_s)
    proof = Proof(given.tls_ca, given.tls_cert, given.tls_key) if given.tls_ca else None
    asyncio.run(_serve(Activator(sockets(folder) / "activator.sock", folder / "activator.json", limits, proof)))


async def _serve(activator: Activator) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await activator.serve(stop)


if __name__ == "__main__":
    main()
