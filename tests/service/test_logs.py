"""The log's format, and its throttle."""

from __future__ import annotations

import json
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn

from moescope.service.logs import JsonFormatter, TextFormatter, Throttle, printable, set_up_logging
from moescope.service.settings import LogFormat, LogLevel


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


@pytest.fixture
def logging_is_put_back() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in ("moescope", "uvicorn", "uvicorn.error", "uvicorn.access")]
    before = [(item.handlers, item.propagate, item.level, item.filters) for item in loggers]
    yield
    for item, (handlers, propagate, level, filters) in zip(loggers, before, strict=True):
        item.handlers, item.propagate, item.filters = handlers, propagate, filters
        item.setLevel(level)


@pytest.mark.usefixtures("logging_is_put_back")
def test_bad_requests_fill_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(LogLevel.INFO, LogFormat.TEXT)
    log = logging.getLogger("uvicorn.error")
    for _ in range(100):
        log.warning("Invalid HTTP request received.")
        log.info("is told each time")
    log.error("a bug")
    lines = capsys.readouterr().err.splitlines()
    assert sum("Invalid HTTP request received. (logged once a minute)" in line for line in lines) == 1
    assert sum("is told each time" in line for line in lines) == 100
    assert sum("a bug" in line for line in lines) == 1


@pytest.mark.usefixtures("logging_is_put_back")
def test_answers_that_are_cut_off_fill_no_log(capsys: pytest.CaptureFixture[str]) -> None:
    """uvicorn itself logs what it says of them."""
    set_up_logging(LogLevel.INFO, LogFormat.TEXT)

    async def cut_off(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    config = uvicorn.Config(cut_off, log_config=None, lifespan="off", ws="none")
    server = uvicorn.Server(config)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()  # so that nobody is refused before the server has begun
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        for _ in range(5):
            with pytest.raises(httpx.RemoteProtocolError):
                httpx.get(url, timeout=60)
        server.should_exit = True
        thread.join(60)
    lines = capsys.readouterr().err.splitlines()
    assert sum("without completing response. (logged once a minute)" in line for line in lines) == 1
    assert sum("without completing response" in line for line in lines) == 1


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
