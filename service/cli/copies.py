"""The commands ``moescope backup`` and ``restore``: copies of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from moescope.service.cli.options import StoreOption
from moescope.service.cli.terminal import ending_at, failure, say, working
from moescope.service.settings import ClickHouseUrl, store_named
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.backup import back_up
from moescope.service.store.sqlite.backup import restore as put_back

BACKUP_HELP: Final = """Copy the store to a file, as of one moment, while the service runs.

Examples:

  moescope backup /backup/moescope-monday.sqlite --store /var/lib/moescope
"""
RESTORE_HELP: Final = """Put a copy of the store back; the service must not run.

The copy is checked first. A store that is there already stays unless --force is given, and then it is
kept beside the new one.

Examples:

  moescope restore /backup/moescope-monday.sqlite --store /var/lib/moescope
"""


def backup(
    file: Annotated[Path, typer.Argument(help="File to write, which must not exist.")], store: StoreOption
) -> None:
    """Copy the store."""
    folder = _folder(store)
    with ending_at(StoreError), working(f"copying the store in {folder}"):
        contents = back_up(folder, file)
    say(f"{file}: {contents}")


def restore(
    file: Annotated[Path, typer.Argument(help="Copy that `moescope backup` made.")],
    store: StoreOption,
    force: Annotated[bool, typer.Option("--force", help="Also where a store is already.")] = False,
) -> None:
    """Put a copy back."""
    folder = _folder(store)
    with ending_at(StoreError), working(f"checking and copying {file}"):
        contents, aside = put_back(file, folder, force)
    say(f"{folder}: {contents}")
    if aside is not None:
        say(f"What was there before is {aside}")


def _folder(store: str) -> Path:
    """The folder that --store or its variable names. Where it names none, the command ends.

    The message does not quote the setting, because the URL of a ClickHouse may hold a password.
    """
    name = "--store or MOESCOPE_STORE"
    try:
        named = store_named(store)
    except ValueError as error:
        raise failure(f"{name}: {error}") from None
    match named:
        case Path():
            return named
        case None:
            raise failure(f"{name} says that there is no store")
        case ClickHouseUrl():
            raise failure(f"{name} is a ClickHouse: copy its database with its own BACKUP")
