"""A signal ends the demo where everything can be found again, waits where it cannot, and never ends the removal."""

from __future__ import annotations

import os
import signal

import pytest

from lepton_ai.demo.interrupts import Interrupted, Interrupts


def send(number: int = signal.SIGINT) -> None:
    os.kill(os.getpid(), number)
    signal.getsignal(number)  # a bytecode boundary: the handler runs here


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_is_raised_at_once(number: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as caught:
        with Interrupts():
            send(number)
    assert caught.value.number == number
    assert signal.getsignal(number) == before


def test_it_waits_for_what_is_being_started() -> None:
    said: list[str] = []
    done = []

    def start(interrupts: Interrupts) -> None:
        with interrupts, interrupts.held():
            send()
            done.append(True)

    with pytest.raises(Interrupted):
        start(Interrupts(lambda: said.append("later")))
    assert (said, done) == (["later"], [True])


def test_a_second_signal_does_not_wait() -> None:
    done = []

    def start(interrupts: Interrupts) -> None:
        with interrupts, interrupts.held():
            send()
            send()
            done.append(True)

    with pytest.raises(Interrupted):
        start(Interrupts())
    assert done == []


def test_what_failed_meanwhile_is_what_is_raised() -> None:
    def start(interrupts: Interrupts) -> None:
        with interrupts, interrupts.held():
            send()
            raise ValueError

    with pytest.raises(ValueError):
        start(Interrupts())


def test_the_removal_is_not_interrupted() -> None:
    with Interrupts() as interrupts:
        with interrupts.ignored():
            send()
            send(signal.SIGTERM)


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts():
            send(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)
