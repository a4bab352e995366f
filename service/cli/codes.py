"""Exit codes: one for each kind of end, the same over all commands.

``docs/cli.md`` has the same table, and ``moescope --help`` shows it.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """How a command ended; ``meaning`` says it in words."""

    meaning: str

    def __new__(cls, code: int, meaning: str) -> ExitCode:
        """A code with its meaning."""
        made = int.__new__(cls, code)
        made._value_ = code
        made.meaning = meaning
        return made

    DONE = 0, "the command did its work; of a verdict: ok or info"
    BROKEN = 1, "moescope failed by itself: a package is missing, or a defect, with its traceback"
    USAGE = 2, "bad usage: an option, an argument, a setting, or a file that can't be used"
    WARNING = 3, "the gravest verdict is a warning"
    CRITICAL = 4, "the gravest verdict is critical"
    UNREACHABLE = 5, "no moescope service answers there"
    REFUSED = 6, "the service refuses: it wants a token, or this one may not do that (401, 403)"
    NOT_KNOWN = 7, "not known: no such deployment, layer or trace (404, 409), or not enough data to judge"
    SERVICE_FAILED = 8, "the service, or ClickHouse, failed or has too much to do (429, 5xx): ask again"
    DIFFERENT = 9, "what was moved differs from what was to be moved: the table says where"
    INTERRUPTED = 130, "Ctrl-C, before the work was done"
    BROKEN_PIPE = 141, "the reader of the output went away, as `head` does"
    TERMINATED = 143, "SIGTERM"


_REFUSALS = (401, 403)
_UNKNOWN = (404, 409, 410)
_TOO_MUCH = 429


def code_of_status(status: int | None) -> ExitCode:
    """The code for a service's answer that is a problem; None: no moescope service answered."""
    if status is None:
        return ExitCode.UNREACHABLE
    if status in _REFUSALS:
        return ExitCode.REFUSED
    if status in _UNKNOWN:
        return ExitCode.NOT_KNOWN
    if status == _TOO_MUCH or status >= 500:
        return ExitCode.SERVICE_FAILED
    return ExitCode.USAGE
