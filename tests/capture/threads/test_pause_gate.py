"""Nobody is let through while a pause lasts, and a pause waits for who is inside."""

from __future__ import annotations

import threading

from moescope.capture.threads.pause_gate import PauseGate
from tests.waiting import PATIENCE_S


def test_one_at_a_time_is_let_through() -> None:
    gate = PauseGate()
    assert gate.enter()
    assert not gate.enter()
    gate.leave()
    assert gate.enter()


def test_nobody_is_let_through_between_pause_and_resume() -> None:
    gate = PauseGate()
    gate.pause()
    assert not gate.enter()
    gate.pause()  # again: it must not wait for itself
    gate.resume()
    assert gate.enter()
    gate.leave()
    gate.resume()  # without a pause: nobody's place is given away
    assert gate.enter()
    assert not gate.enter()


def test_a_pause_waits_until_who_is_inside_has_left() -> None:
    gate = PauseGate()
    assert gate.enter()
    paused = threading.Event()

    def pause() -> None:
        gate.pause()
        paused.set()

    thread = threading.Thread(target=pause)
    thread.start()
    assert not paused.wait(0.1)
    gate.leave()
    assert paused.wait(PATIENCE_S)
    assert not gate.enter()
    thread.join()
