"""A shim owns its child whatever dies around it: real processes, each ended by its number."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lepton_ai.errors import Conflict
from lepton_ai.node import shim
from lepton_ai.node.identity import Identity
from lepton_ai.node.launch import ShimSpec, State, launch, renew, state, stop

WAIT_S = 30.0


def until(check: Callable[[], object], timeout_s: float = WAIT_S) -> None:
    end_s = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < end_s, "did not happen in time"
        time.sleep(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "shim"
    if (tmp_path / "shim").exists():
        stop(tmp_path / "shim", 0)


def python(folder: Path, code: str, **fields: object) -> ShimSpec:
    env = {"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1"}
    return ShimSpec((sys.executable, "-S", "-c", code), env, str(folder / "work"), **fields)  # type: ignore[arg-type]


def ended(folder: Path) -> State:
    until(lambda: state(folder).phase != "running")
    return state(folder)


def lines(folder: Path) -> list[tuple[int, str, str]]:
    result = []
    for path in sorted((folder / "log").glob("*.log")):
        for line in path.read_text().splitlines():
            stamp, stream, text = line.split(" ", 2)
            result.append((int(stamp), stream, text))
    return result


def test_code_and_log_of_a_child_that_ends(folder: Path) -> None:
    launch(folder, python(folder, "import sys; print('out'); print('err', file=sys.stderr); sys.exit(7)"))
    end = ended(folder)
    assert (end.phase, end.exit and end.exit.code) == ("exited", 7)
    assert sorted((stream, text) for _, stream, text in lines(folder)) == [("e", "err"), ("o", "out")]
    assert (folder / "exit.json").stat().st_mode & 0o077 == 0


def test_signal_of_a_killed_child(folder: Path) -> None:
    launch(folder, python(folder, "import time; time.sleep(600)"))
    child = state(folder).child
    assert child is not None
    assert child.kill(signal.SIGKILL)
    end = ended(folder)
    assert end.exit is not None
    assert (end.exit.code, end.exit.signal, end.exit.out_of_memory) == (None, signal.SIGKILL, False)


def test_a_command_that_does_not_exist(folder: Path) -> None:
    launch(folder, ShimSpec(("no-such-command",), {"PATH": "/bin"}, str(folder / "work")))
    end = ended(folder)
    assert end.exit is not None
    assert end.exit.code == 127
    assert "no-such-command" in end.exit.reason


def test_launch_is_idempotent_and_refuses_another_spec(folder: Path) -> None:
    spec = python(folder, "import time; time.sleep(600)")
    first = launch(folder, spec)
    assert launch(folder, spec) == first
    with pytest.raises(Conflict):
        launch(folder, python(folder, "pass"))


def test_a_child_that_ignores_term_is_killed_after_its_grace(folder: Path) -> None:
    code = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    launch(folder, python(folder, code))
    until(lambda: lines(folder))
    end = stop(folder, 0.2, reason="asked")
    assert end.exit is not None
    assert end.exit.signal == signal.SIGKILL
    assert end.exit.reason == "asked"


def test_a_child_that_cleans_up_on_term(folder: Path) -> None:
    code = (
        "import signal, sys, time; signal.signal(15, lambda *_: sys.exit(3)); print('on', flush=True); time.sleep(600)"
    )
    launch(folder, python(folder, code))
    until(lambda: lines(folder))
    end = stop(folder)
    assert end.exit is not None
    assert end.exit.code == 3
    assert stop(folder).exit == end.exit


def test_grandchildren_in_other_sessions_end_with_the_child(folder: Path) -> None:
    code = (
        "import os, time\n"
        "for depth in range(3):\n"
        "    if os.fork() == 0:\n"
        "        os.setsid()\n"
        "        if os.fork(): os._exit(0)\n"
        "        os.write(1, b'%d\\n' % os.getpid()); time.sleep(600)\n"
        "time.sleep(600)\n"
    )
    launch(folder, python(folder, code))
    until(lambda: len(lines(folder)) == 3)
    family = [Identity.of(int(text)) for _, _, text in lines(folder)]
    assert all(one is not None and one.alive() for one in family)
    stop(folder, 0.1)
    assert not any(one is not None and one.alive() for one in family)


def test_a_fork_bomb_ends_with_its_group(folder: Path) -> None:
    code = (
        "import os, time\n"
        "end = time.monotonic() + 20\n"
        "made = 0\n"
        "while time.monotonic() < end and made < 60:\n"
        "    if os.fork() == 0: made += 20\n"
        "    made += 1; time.sleep(0.002)\n"
        "time.sleep(20)\n"
    )
    launch(folder, python(folder, code))
    child = shim.read_record(str(folder / "child.json"))
    assert child is not None
    until(lambda: len(list(shim._members(child, []))) > 20)
    stop(folder, 0)
    assert list(shim._members(child, [])) == []


def test_an_orphan_of_a_killed_shim_is_killed_before_the_next_start(folder: Path) -> None:
    spec = python(folder, "import time; time.sleep(600)")
    first = launch(folder, spec)
    orphan = state(folder).child
    assert orphan is not None
    first.kill(signal.SIGKILL)
    until(lambda: not first.alive())
    assert state(folder).phase == "lost"
    assert orphan.alive()
    launch(folder, spec)
    assert not orphan.alive()
    assert state(folder).attempt == 2


def test_restart_always_and_hold(folder: Path) -> None:
    launch(folder, python(folder, "print('again'); import time; time.sleep(600)", restart="always"))
    until(lambda: len(lines(folder)) == 1)
    first = state(folder).child
    assert first is not None
    first.kill(signal.SIGKILL)
    until(lambda: len(lines(folder)) == 2)
    (folder / "hold").touch()
    second = state(folder).child
    assert second is not None
    second.kill(signal.SIGKILL)
    until(lambda: state(folder).child is None)
    time.sleep(0.4)
    assert state(folder).attempt == 2
    (folder / "hold").unlink()
    until(lambda: len(lines(folder)) == 3)
    assert state(folder).attempt == 3
    assert stop(folder, 1).phase == "exited"


def test_what_a_cell_cannot_be_without_is_never_left_away_for_long(folder: Path) -> None:
    """Ten quick ends in a row would otherwise mean half a minute of waiting, 5 s before the next start."""
    launch(folder, python(folder, "pass", restart="always", backoff_max_s=0.05))
    until(lambda: state(folder).attempt >= 12, timeout_s=20.0)


def test_stamps_grow_across_restarts_of_the_shim(folder: Path) -> None:
    spec = python(folder, "for i in range(2000): print(i)")
    for _ in range(2):
        launch(folder, spec)
        ended(folder)
    stamps = [stamp for stamp, _, _ in lines(folder)]
    assert len(stamps) == 4000
    assert stamps == sorted(set(stamps))


def test_a_loud_child_is_bounded_and_not_blocked(folder: Path) -> None:
    code = "import sys\nblock = ('x' * 99 + '\\n') * 1000\nfor _ in range(400): sys.stdout.write(block)\n"
    spec = python(folder, code, log_max_bytes=1 << 20, log_rate_bytes_s=1 << 20)
    launch(folder, spec)
    end = ended(folder)
    assert end.exit is not None
    assert end.exit.ok
    size = sum(path.stat().st_size for path in (folder / "log").iterdir())
    assert size <= 1 << 20
    dropped = [text for _, _, text in lines(folder) if "dropped" in text]
    assert dropped


def test_long_lines_and_broken_text(folder: Path) -> None:
    code = (
        "import sys; w = sys.stdout.buffer.write\n"
        "w(b'a' * 40000 + b'\\n'); w(b'\\xff\\xfe ok\\n'); w('é'.encode() * 20000)\n"
    )
    launch(folder, python(folder, code))
    ended(folder)
    texts = [text for _, _, text in lines(folder)]
    assert "".join(texts[:3]) == "a" * 40000
    assert texts[3] == "\ufffd\ufffd ok"
    assert "".join(texts[4:]) == "é" * 20000
    assert max(len(text.encode()) for text in texts) <= shim.LINE_BYTES


def test_a_lease_that_is_not_renewed_ends_the_child(folder: Path) -> None:
    folder.mkdir()
    first_ns = shim.clock_ns() + 2_000_000_000
    renew(folder, first_ns)
    launch(folder, python(folder, "import time; time.sleep(600)", lease_s=2.0, grace_s=0.2))
    renew(folder, first_ns + 1_000_000_000)
    end = ended(folder)
    assert shim.clock_ns() > first_ns, "ended before the last renewal had run out"
    assert end.exit is not None
    assert end.exit.reason == "lease lost"


def test_a_log_that_cannot_be_written_does_not_stop_the_child(folder: Path) -> None:
    code = "import os\nwhile not os.path.exists('go'): pass\nfor i in range(20000): print(i)\nopen('done', 'w').close()"
    launch(folder, python(folder, code))
    (folder / "log").rmdir()
    (folder / "log").write_text("not a folder: every write of the log fails")
    (folder / "work" / "go").touch()
    end = ended(folder)
    assert end.exit is not None
    assert end.exit.ok
    assert (folder / "work" / "done").exists()
