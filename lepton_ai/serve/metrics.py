"""Counters of one model server, as Prometheus text. Owns counting only; cheap enough to be always on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator

LATENCY_BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BATCH_BOUNDS_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Requests and failures by HTTP status, latency, rows a run, requests in flight. Used by one thread."""

    def __init__(self, model: str = "", version: str = "") -> None:
        self.in_flight = 0
        self.model = model
        self.version = version
        self._requests: dict[int, int] = {}
        self._failures: dict[str, int] = {}
        self._latency = [0] * (len(LATENCY_BOUNDS_S) + 1)
        self._latency_sum_s = 0.0
        self._batch = [0] * (len(BATCH_BOUNDS_ROWS) + 1)
        self._batch_sum_rows = 0

    def answered(self, status: int, took_s: float) -> None:
        """An inference request was answered with ``status`` after ``took_s`` seconds."""
        self._requests[status] = self._requests.get(status, 0) + 1
        self._latency[bisect_left(LATENCY_BOUNDS_S, took_s)] += 1
        self._latency_sum_s += took_s

    def failed(self, code: str) -> None:
        """It was answered with an error of this code."""
        self._failures[code] = self._failures.get(code, 0) + 1

    def batched(self, rows: int) -> None:
        """The model ran over so many rows."""
        self._batch[bisect_left(BATCH_BOUNDS_ROWS, rows)] += 1
        self._batch_sum_rows += rows

    def render(self, *, ready: bool, waiting: int) -> str:
        """The Prometheus text format, version 0.0.4."""
        return "\n".join(self._lines(ready, waiting)) + "\n"

    def _lines(self, ready: bool, waiting: int) -> Iterator[str]:
        base = f'model="{_escape(self.model)}",version="{_escape(self.version)}"'
        yield from _head("requests_total", "counter", "Inference requests answered, by HTTP status.")
        for status, count in sorted(self._requests.items()):
            yield f'lepton_serve_requests_total{{{base},status="{status}"}} {count}'
        yield from _head("failures_total", "counter", "Inference requests answered with an error, by code.")
        for code, count in sorted(self._failures.items()):
            yield f'lepton_serve_failures_total{{{base},code="{code}"}} {count}'
        yield from _head("request_seconds", "histogram", "Time from reading a request to its answer.")
        yield from _histogram("request_seconds", base, LATENCY_BOUNDS_S, self._latency, self._latency_sum_s)
        yield from _head("batch_rows", "histogram", "Rows of each run of the model.")
        yield from _histogram("batch_rows", base, BATCH_BOUNDS_ROWS, self._batch, self._batch_sum_rows)
        for name, value, text in (
            ("in_flight", self.in_flight, "Inference requests being worked on."),
            ("waiting", waiting, "Requests in the queue for the model."),
            ("ready", int(ready), "1 when requests are accepted."),
        ):
            yield from _head(name, "gauge", text)
            yield f"lepton_serve_{name}{{{base}}} {value}"


def _head(name: str, kind: str, text: str) -> tuple[str, str]:
    return f"# HELP lepton_serve_{name} {text}", f"# TYPE lepton_serve_{name} {kind}"


def _histogram(name: str, base: str, bounds: tuple[float, ...], counts: list[int], total: float) -> Iterator[str]:
    running = 0
    for bound, count in zip((*bounds, "+Inf"), counts, strict=True):
        running += count
        yield f'lepton_serve_{name}_bucket{{{base},le="{bound}"}} {running}'
    yield f"lepton_serve_{name}_sum{{{base}}} {total}"
    yield f"lepton_serve_{name}_count{{{base}}} {running}"


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
