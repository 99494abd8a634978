"""A served command for the tests: answers {"echo": VALUE, "release": NAME}; `service.py PORT NAME [MODE]`.

MODE "sick" never becomes healthy: it prints why and goes on without listening.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(6, 1, 1)  # TCP_NODELAY: head and body are two writes

    def do_GET(self) -> None:
        self.answer({"healthy": True})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("content-length", 0))) or b"{}")
        time.sleep(float(body.get("sleep_s", 0)))
        self.answer({"echo": body.get("value"), "release": sys.argv[2]})

    def answer(self, value: dict[str, Any]) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    request_queue_size = 256
    daemon_threads = True


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if sys.argv[3:] == ["sick"]:
        print("sick: cannot reach the database", flush=True)
        time.sleep(3600)
    print(f"release {sys.argv[2]} listens on {sys.argv[1]}", flush=True)
    Server(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
