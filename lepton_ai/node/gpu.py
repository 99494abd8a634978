"""The GPUs of this machine, by NVIDIA's management library where it and a driver are there; else nothing is measured.

Owns the library's handle. It is imported only where a driver is loaded: it costs memory and is an extra (`gpu`).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, NamedTuple

DRIVER = Path("/proc/driver/nvidia/version")
DEVICE = Path("/dev/nvidiactl")

_log = logging.getLogger(__name__)


class GpuUse(NamedTuple):
    """All GPUs together: how many, the mean share of time in which one was busy, and their memory."""

    cards: int
    used: float
    memory_mib: float
    memory_used_mib: float


class Gpus:
    """Looks at the GPUs; `look` is None where there are none or nobody can say."""

    def __init__(self, library: Any = None) -> None:
        self._library = library or _load()
        self._handles: list[Any] = []
        if self._library is not None:
            try:
                self._library.nvmlInit()
                count = self._library.nvmlDeviceGetCount()
                self._handles = [self._library.nvmlDeviceGetHandleByIndex(index) for index in range(count)]
            except self._library.NVMLError as error:
                _log.warning("GPUs are not measured: %s", error)

    def look(self) -> GpuUse | None:
        """One look; a GPU that answers nothing just now is left out of it."""
        busy, total, used = [], 0, 0
        for handle in self._handles:
            try:
                rate, memory = (
                    self._library.nvmlDeviceGetUtilizationRates(handle).gpu,
                    self._library.nvmlDeviceGetMemoryInfo(handle),
                )
            except self._library.NVMLError as error:
                _log.debug("a GPU does not answer: %s", error)
                continue
            busy.append(rate / 100)
            total, used = total + memory.total, used + memory.used
        if not busy:
            return None
        return GpuUse(len(busy), sum(busy) / len(busy), total / 2**20, used / 2**20)


def _load() -> Any:
    if not (DRIVER.exists() or DEVICE.exists()):
        return None
    try:
        import pynvml  # type: ignore[import-untyped, import-not-found, unused-ignore]
    except ImportError:
        _log.info("there is a GPU driver, but no nvidia-ml-py: pip install 'lepton-cloud[gpu]' measures GPUs")
        return None
    return pynvml
