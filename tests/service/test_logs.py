"""The log's format, and its throttle."""

from __future__ import annotations

import json
import logging
import sys

from moescope.service.logs import JsonFormatter, TextFormatter, Throttle, printable


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


def test_nothing_in_a_line_moves_the_terminals_cursor() -> None:
    hostile = "\x1b[2J\r\x9b31m\u202e\u2066x\ny"
    record = logging.LogRecord("moescope.x", logging.ERROR, "f", 1, "name %s", (hostile,), None)
    for formatter in (JsonFormatter(), TextFormatter()):
        line = formatter.format(record)
        assert line.isprintable()
    assert json.loads(JsonFormatter().format(record))["message"] == f"name {hostile}"
    try:
        raise ValueError(hostile)
    except ValueError:
        record = logging.LogRecord("moescope.x", logging.ERROR, "f", 1, "bad", (), sys.exc_info())
    assert all(line.isprintable() for line in TextFormatter().format(record).splitlines())
    assert printable("a\nb\u00e4 \u65e5") == "a\nb\u00e4 \u65e5"
