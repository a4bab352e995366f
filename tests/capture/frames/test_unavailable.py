"""What can't be told is said once: in one line at the start, in a line of its own later."""

from __future__ import annotations

import pytest

from moescope.capture.frames.unavailable import Unavailable


def test_one_line_at_the_start_and_one_for_each_later_loss(caplog: pytest.LogCaptureFixture) -> None:
    made = Unavailable()
    made.note("phases", "no order")
    made.note("steps", "no placement")
    made.note("phases", "another reason")
    assert caplog.messages == []
    made.announce("9.9.0")
    [line] = caplog.messages
    assert "vLLM 9.9.0: phases (no order); steps (no placement)" in line
    made.note("traces", "a fault")
    made.note("traces", "again")
    assert len(caplog.messages) == 2
    assert "traces (a fault)" in caplog.messages[1]
    assert made.reasons() == {"phases": "no order", "steps": "no placement", "traces": "a fault"}


def test_nothing_is_said_where_all_can_be_told(caplog: pytest.LogCaptureFixture) -> None:
    made = Unavailable()
    made.announce("9.9.0")
    assert (caplog.messages, made.reasons()) == ([], {})
