"""Entry point of the command ``moescope``; imports the service's dependencies only when it runs."""

from __future__ import annotations

import sys
from typing import Final

_EXTRA: Final = frozenset(
    {
        "fastapi",
        "prometheus_client",
        "pydantic",
        "pydantic_settings",
        "rich",
        "starlette",
        "typer",
        "uvicorn",
        "zstandard",
    }
)


def main() -> int:
    """Run the command line; the exit code when the service's extra is missing, else it exits by itself."""
    try:
        from moescope.service.cli.commands import command_line
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.stderr.write(f"moescope: {missing} is not installed; run: pip install 'moescope[service]'\n")
        return 1
    except KeyboardInterrupt:
        return 130
    command_line()(prog_name="moescope")
    return 0
