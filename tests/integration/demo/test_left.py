"""The look for what a removed cell left behind sees what is there, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lepton_ai.demo import cell
from lepton_ai.demo.cell import look, processes


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cell, "LEFT_WAIT_S", 0.0)


def test_nothing_is_left_of_nothing(tmp_path: Path) -> None:
    assert look((tmp_path / "gone",), ()).count == 0


def test_a_folder_and_a_port_are_seen(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        left = look((tmp_path,), (port,))
        assert (left.ports, left.folders, left.processes) == ((port,), (str(tmp_path),), ())


@pytest.mark.parametrize("by", ["its words", "its folder"])
def test_a_process_is_seen_by(by: str, tmp_path: Path) -> None:
    words = [str(tmp_path)] if by == "its words" else []
    where = tmp_path if by == "its folder" else Path("/")
    command = [sys.executable, "-I", "-S", "-c", "print(1, flush=True); input()", *words]
    process = subprocess.Popen(command, cwd=where, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        assert list(processes((tmp_path,))) == [process.pid]
        assert os.getpid() not in processes((Path("/"),))
    finally:
        process.communicate(b"\n")
