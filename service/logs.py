"""The log: text for people, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, Final

from moescope.service.settings import LogFormat, LogLevel

_CUT_OFF: Final = "ASGI callable returned without completing response."
"""uvicorn's error for an answer that ended before its last byte; it closes the connection."""


def printable(text: str) -> str:
    """A text that others chose, such as a deployment's name, with U+FFFD for what a terminal obeys.

    That are control characters, and marks that change the direction of what follows; line breaks stay.
    """
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


class TextFormatter(logging.Formatter):
    """A line for people: time, level, logger, message. Nothing in it moves the terminal's cursor."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the library's name
        """One line, whatever the message holds."""
        return printable(super().formatMessage(record)).replace("\n", " ")

    def formatException(self, ei: Any) -> str:  # noqa: N802 - the library's name
        """The exception's lines."""
        return printable(super().formatException(ei))


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and exception if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON, without line breaks."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return "".join(
            char if char.isprintable() else json.dumps(char)[1:-1]
            for char in json.dumps(line, ensure_ascii=False)
        )


class Throttle:
    """Lets a message of each kind through once in ``period_s`` seconds, so that no error floods the log."""

    def __init__(self, clock: Callable[[], float], period_s: float = 60.0) -> None:
        self._clock = clock
        self._period = period_s
        self._last: dict[str, float] = {}

    def allows(self, kind: str) -> bool:
        """Whether a message of this kind may be logged now; if so, the period begins again."""
        now = self._clock()
        last = self._last.get(kind)
        if last is not None and now - last < self._period:
            return False
        self._last[kind] = now
        return True


class OnceAMinute(logging.Filter):
    """Lets each warning of a logger through once a minute, for loggers that have a line for each bad request.

    uvicorn has one for each request that is no HTTP, or that asks for a WebSocket: whoever reaches the port
    could fill the disk. It calls it an error when an answer is cut off. The service does that on purpose, and
    says why itself; so that is treated likewise.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._throttle = Throttle(clock)

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether to log it."""
        if record.levelno != logging.WARNING and record.msg != _CUT_OFF:
            return True
        if not self._throttle.allows(str(record.msg)):
            return False
        record.msg = f"{record.msg} (logged once a minute)"
        return True


def set_up_logging(level: LogLevel, style: LogFormat) -> None:
    """Send moescope's and uvicorn's log to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if style is LogFormat.JSON else TextFormatter())
    for name in ("moescope", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.propagate = False
        logger.setLevel(level.value.upper())
    logging.getLogger("uvicorn.error").filters = [OnceAMinute()]
    # A frame a second from each worker would drown everything else.
    logging.getLogger("uvicorn.access").setLevel(logging.INFO if level is LogLevel.DEBUG else logging.WARNING)
