"""One look at a replica's health: `probe`. When to look, and what follows, is the replica's (see `replica`)."""

from __future__ import annotations

import asyncio
import contextlib

from lepton_ai.spec.workload import Health


async def probe(address: str, port: int, health: Health) -> str | None:
    """None when the replica can take requests, else why not, in a few words.

    With a path an HTTP GET must answer 200-399, else a connection must be accepted; either within `timeout_s`.
    """
    try:
        async with asyncio.timeout(health.timeout_s):
            reader, writer = await asyncio.open_connection(address, port, limit=16 * 1024)
            try:
                if health.path is None:
                    return None
                request = f"GET {health.path} HTTP/1.1\r\nHost: {address}:{port}\r\nUser-Agent: lepton-probe\r\n"
                writer.write(f"{request}Accept: */*\r\nConnection: close\r\n\r\n".encode())
                return _verdict(health.path, await reader.readline())
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except TimeoutError:
        return f"no answer on port {port} within {health.timeout_s:g} s"
    except ConnectionRefusedError:
        return f"nothing listens on port {port}"
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        return f"port {port}: {error}"


def _verdict(path: str, line: bytes) -> str | None:
    words = line.split(None, 2)
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return f"{path} does not answer in HTTP"
    return None if 200 <= int(words[1]) < 400 else f"{path} answers {int(words[1])}"
