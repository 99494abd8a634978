"""The model server's process: ``python -m lepton_ai.serve --model FILE [--name N] [--version V] --port P``.

Owns the command line, the socket, signals and the order of things: the model loads on a thread while the socket is
opened already (live, not ready); TERM makes it not ready at once, answers what is in flight, and exits 0.
"""

from __future__ import annotations

import time

_LAUNCHED_S = time.perf_counter()

import argparse  # noqa: E402  # the clock above comes first on purpose
import asyncio  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from concurrent.futures import Future, ThreadPoolExecutor  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import TYPE_CHECKING, Any  # noqa: E402

from lepton_ai.errors import LeptonError, Unavailable  # noqa: E402

if TYPE_CHECKING:
    from lepton_ai.serve.runtime import Runtime

logger = logging.getLogger("lepton_ai.serve")

TOKEN_VARIABLE = "LEPTON_AI_SERVE_TOKEN"


def main() -> int:
    """Serve until TERM; the process's exit status (0 stopped, 1 could not serve, 2 usage)."""
    options = _options()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
    loading = worker.submit(_load, options.model)  # imports and loads while the server's own imports go on
    try:
        listener = _listen(options.host, options.port)
        _serve(options, listener, worker, loading)
    except LeptonError as error:
        logger.error("%s", error)
        return 1
    finally:
        worker.shutdown(wait=False, cancel_futures=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m lepton_ai.serve",
        description="Serve one model: Open Inference Protocol V2 and plain JSON.",
        epilog=f"{TOKEN_VARIABLE} in the environment: every request but the health routes must bear this token.",
    )
    parser.add_argument("--model", type=Path, required=True, help="a saved model, or a bare .onnx file")
    parser.add_argument("--name", help="the model's name in paths (default: its own, or the file's)")
    parser.add_argument("--version", default="1", help="the model's version in paths (default: 1)")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    port = os.environ.get("PORT", "")
    parser.add_argument(
        "--port", type=int, default=int(port) if port.isdigit() else None, help="default: the environment's PORT"
    )
    parser.add_argument("--batch-rows-max", type=int, default=128, help="rows of a batch; 1 turns batching off")
    parser.add_argument("--body-bytes-max", type=int, default=4 << 20, help="a larger request gets 413")
    parser.add_argument("--waiting-max", type=int, default=1024, help="requests that may wait; more get 429")
    parser.add_argument("--drain-s", type=float, default=0.3, help="after TERM, accept connections for so long")
    parser.add_argument("--grace-s", type=float, default=8.0, help="after that, wait so long for requests in flight")
    options = parser.parse_args()
    if options.port is None or not 0 <= options.port <= 65535:
        parser.error("--port (or the environment's PORT) must be between 0 and 65535")
    if min(options.batch_rows_max, options.waiting_max, options.body_bytes_max) < 1:
        parser.error("limits must be positive")
    if options.drain_s < 0 or options.grace_s < 0:
        parser.error("times must be positive")
    return options


def _load(path: Path) -> tuple[Runtime, dict[str, Any]]:
    from lepton_ai.serve.container import Container
    from lepton_ai.serve.runtime import Runtime

    container = Container.read(path)
    runtime = Runtime(container)
    runtime.warm()
    return runtime, container.meta


def _listen(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise Unavailable(
            f"cannot listen on {host}:{port}: {error.strerror or error}",
            hint="choose another --port, or stop its owner",
        ) from None
    return listener


def _serve(
    options: argparse.Namespace,
    listener: socket.socket,
    worker: ThreadPoolExecutor,
    loading: Future[tuple[Runtime, dict[str, Any]]],
) -> None:
    import uvicorn
    import uvloop

    from lepton_ai.serve.app import App
    from lepton_ai.serve.protocol import Protocol
    from lepton_ai.serve.server import Server

    app = App(token=os.environ.pop(TOKEN_VARIABLE, None), body_bytes_max=options.body_bytes_max)
    server = Server(
        uvicorn.Config(
            app,
            http=Protocol,
            loop="uvloop",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=options.grace_s,
            timeout_keep_alive=75,
            backlog=2048,
        ),
        app,
        drain_s=options.drain_s,
    )
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    connections = server.server_state.connections

    async def attach() -> None:
        runtime, meta = await asyncio.wrap_future(loading)
        name = options.name or str(meta.get("name") or options.model.stem)
        app.attach(
            runtime,
            worker,
            name=name,
            version=options.version,
            rows_max=options.batch_rows_max,
            waiting_max=options.waiting_max,
            lone=lambda: len(connections) == 1,
        )
        logger.info(
            "%s/%s is ready on port %d after %.0f ms (%s, %s)",
            name,
            options.version,
            listener.getsockname()[1],
            (time.perf_counter() - _LAUNCHED_S) * 1e3,
            "batching" if runtime.batches else "one call at a time",
            "on the event loop" if runtime.inline(runtime.signature.row_elements) else "on a worker thread",
        )

    async def run() -> None:
        attaching = asyncio.create_task(attach())
        attaching.add_done_callback(lambda done: setattr(server, "should_exit", True) if _failed(done) else None)
        await server.serve(sockets=[listener])
        if _failed(attaching):
            raise attaching.exception() or AssertionError("a failed task has an exception")
        attaching.cancel()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def _failed(task: asyncio.Task[None]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is not None


if __name__ == "__main__":
    code = main()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # a model that still loads or runs on its thread would hold the process
