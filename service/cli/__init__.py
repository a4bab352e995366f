"""Entry point of the command ``moescope``.

The commands need the packages of the extra ``service``, which are missing where only capture was installed.
So this module imports none of them itself, and :func:`main` says in one line what to install.
"""

from __future__ import annotations

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
        "zstandard",
    }
)


def main() -> int:
    """Run the command line.

    Returns:
        1 where a package of the extra is missing, 130 where Ctrl-C came during the imports. Else it does not
        return: the command ends the process with an exit code of its own.
    """
    try:
        # Not at the top of the file: a missing package would end the import of this module with a traceback.
        from moescope.service.cli.commands import command_line

        command_line()(prog_name="moescope")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _EXTRA:
            raise
        sys.stderr.write(f"moescope: {missing} is not installed; run: pip install 'moescope[service]'\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
