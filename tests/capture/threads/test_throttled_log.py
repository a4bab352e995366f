"""The throttled log writes at most one line a minute for each kind."""

import logging

import pytest

from moescope.capture.threads.throttled_log import ThrottledLog


def test_repeats_are_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = ThrottledLog(logging.getLogger("throttled"), clock=lambda: now)
    for second in range(125):
        now = float(second)
        log.log("down", logging.WARNING, "service down")
        if second == 30:
            log.log("other", logging.WARNING, "something else")
    assert [record.message for record in caplog.records] == [
        "service down",
        "something else",
        "service down (59 more like this since the last line)",
        "service down (59 more like this since the last line)",
    ]
