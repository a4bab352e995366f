"""The log's format, and its throttle."""

from __future__ import annotations

import json
import logging
import sys

from moescope.service.logs import JsonFormatter, Throttle


def test_json_lines_hold_the_exception_too() -> None:
    try:
        raise ValueError("bad")
    except ValueError:
        record = logging.LogRecord("moescope.x", logging.ERROR, "f", 1, "a %s\nb", ("c",), sys.exc_info())
    text = JsonFormatter().format(record)
    assert "\n" not in text
    line = json.loads(text)
    assert (line["level"], line["logger"], line["message"]) == ("error", "moescope.x", "a c\nb")
    assert "ValueError: bad" in line["exception"]
    assert line["time"].endswith("+00:00")


def test_a_kind_of_message_passes_once_in_a_period() -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0], period_s=60)
    assert [throttle.allows("a"), throttle.allows("a"), throttle.allows("b")] == [True, False, True]
    now[0] = 60
    assert throttle.allows("a")
