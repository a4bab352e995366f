"""Entry point of the command ``moescope``.

The commands need the packages of the extra ``service``, which are missing where only capture was installed.
So this module imports none of them itself, and :func:`main` says in one line what to install.
"""

from __future__ import annotations

import os
import select
import sys
from typing import Final

_EXTRA: Final = frozenset(
    {
        "fastapi",
        "httpx",
        "prometheus_client",
        "pydantic",
        "pydantic_settings",
        "rich",
        "starlette",
        "typer",
        "uvicorn",
        "yaml",
        "zstandard",
    }
)
_DISTRIBUTIONS: Final = {"yaml": "pyyaml"}
_STDOUT: Final = 1
_BROKEN_PIPE: Final = 141  # what a shell says of a program that SIGPIPE ended


def main() -> int:
    """Run the command line.

    Returns:
        The exit code where a package of the extra is missing, the reader of the output went away, or Ctrl-C
        came during the imports. Else it does not return: the command ends the process with a code of its own.
    """
    try:
        output = os.dup(_STDOUT)  # a handle that nothing else closes or points elsewhere
    except OSError:
        output = -1  # there is no stdout
    try:
        # Not at the top of the file: a missing package would end the import of this module with a traceback.
        from moescope.service.cli.commands import command_line

        command_line()(prog_name="moescope")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.stderr.write(f"moescope: {_DISTRIBUTIONS.get(missing, missing)} is not installed; ")
        sys.stderr.write("run: pip install 'moescope[service]'\n")
        return 1
    except KeyboardInterrupt:
        return 130
    except SystemExit as end:
        if end.code != 1 or not _nobody_reads(output):
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), _STDOUT)  # what is left in buffers has no reader
        return _BROKEN_PIPE
    finally:
        if output >= 0:
            os.close(output)
    return 0


def _nobody_reads(output: int) -> bool:
    """Whether this is a pipe whose reader went away, as ``head`` does after its lines."""
    if output < 0:
        return False
    poll = select.poll()
    poll.register(output, 0)
    return any(event & select.POLLERR for _, event in poll.poll(0))
