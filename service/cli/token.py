"""The command ``moescope token``."""

from __future__ import annotations

import hashlib
import os
from datetime import date
from pathlib import Path
from typing import Annotated, Final

import typer

from moescope.service.auth.tokens import NAME, Scope, TokenError, new_token, tokens_of
from moescope.service.cli.terminal import ending_at, failure, say
from moescope.service.files.text import FileError, read_text

MAKE_HELP: Final = """Make a token, and the entry for the service's file of tokens.

The token goes to standard output. The entry has only its digest; it goes into the file that --add-to names,
once the whole file was checked, else to standard error. A running service reads its file again by itself.

Examples:

  moescope token vllm --scope ingest --add-to tokens.toml > vllm.token

  moescope token prometheus --scope read --add-to tokens.toml > prometheus.token

  moescope serve --tokens-file tokens.toml
"""


def token(
    name: Annotated[
        str, typer.Argument(help="Whose it is: 1 to 64 letters, digits, dots, dashes or underscores.")
    ],
    scope: Annotated[list[Scope], typer.Option(help="What it allows; may be repeated.")],
    expires: Annotated[
        str | None, typer.Option(help="Day from which it is refused, as 2027-01-31; never when absent.")
    ] = None,
    add_to: Annotated[
        Path | None,
        typer.Option(help="File of tokens to add the entry to; standard error gets it when absent."),
    ] = None,
) -> None:
    """Make a token."""
    if not NAME.fullmatch(name):
        raise failure("name: 1 to 64 letters, digits, dots, dashes or underscores are needed")
    if expires is not None and not _is_date(expires):
        raise failure(f"--expires: {expires!r} is no date such as 2027-01-31")
    made = new_token()
    lines = [
        "[[tokens]]",
        f'name = "{name}"',
        f"scopes = {[item.value for item in dict.fromkeys(scope)]}".replace("'", '"'),
        f'sha256 = "{hashlib.sha256(made.encode()).hexdigest()}"',
        *([] if expires is None else [f"expires = {expires}"]),
    ]
    entry = "\n".join(lines) + "\n"
    if add_to is None:
        say(made)
        say(entry, err=True)
        return
    with ending_at(TokenError):
        _add_entry(add_to, entry)
    say(made)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text  # as TOML writes it
    except ValueError:
        return False


def _add_entry(path: Path, entry: str) -> None:
    """Append to a file of tokens that is good with it, or make one that only its owner reads.

    Raises:
        TokenError: the file can't be read or written, or would not be good.
    """
    try:
        old = read_text(path) if path.exists() else ""
        more = f"{chr(10) if old and not old.endswith(chr(10)) else ''}{entry}\n"
        tokens_of(path, old + more)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as file:
            file.write(more)
    except (OSError, FileError) as error:
        raise TokenError(f"{path} can't be added to: {error}") from error
