"""The command ``moescope migrate``: the store of a single service becomes one for several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Annotated, Final

import typer

from moescope.service.cli.codes import ExitCode
from moescope.service.cli.options import ConfigOption
from moescope.service.cli.output import Output, show
from moescope.service.cli.sheets import Column, Line, Sheet, View, count, word
from moescope.service.cli.terminal import ending_at, failure, utc, working
from moescope.service.remote.address import parse_address
from moescope.service.settings import ClickHouseUrl, Settings, SettingsError
from moescope.service.settings_sources import load_settings
from moescope.service.store.moving.mover import Mover
from moescope.service.store.moving.source import Source
from moescope.service.store.moving.tally import Place, Tally, Teller
from moescope.service.store.moving.target import Target
from moescope.service.store.moving.way import Way
from moescope.service.store.open import open_clickhouse, retention_of
from moescope.service.store.records import StoreAwayError, StoreError

MIGRATE_HELP: Final = """Move the store of a single service, a folder, into a ClickHouse for several services.

Stop the service first: its workers go on, and deliver what they count to the next one. The folder stays as it
is. A command that was ended in the middle, however it was, goes on where it stopped when it is given again,
and writes nothing twice. At the end both sides are counted, and the exit code is 9 where they differ.

What the services on the ClickHouse would remove for its age is not moved: set keep_* as for them.

Examples:

  export MOESCOPE_STORE=clickhouse://me:secret@db:8123/moescope    the password is on no command line

  moescope migrate --from /var/lib/moescope

  moescope serve
"""
_SHOWN: Final = 3


def migrate(
    folder: Annotated[Path, typer.Option("--from", metavar="<path>", help="Folder of the store to move.")],
    to: Annotated[
        str | None,
        typer.Option(
            metavar="<url>",
            help="ClickHouse to move it to, without a password; MOESCOPE_STORE, or store of --config, when "
            "absent.",
        ),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="Also where the ClickHouse has data of other services.")
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Move a folder's store."""
    settings, url = _target(to, config)
    with working(f"opening {folder}") as say, ending_at(StoreError):
        try:
            view, differs = _moved(folder, settings, url, merge, say)
        except StoreAwayError as error:
            raise failure(f"{error}. Give the command again: it goes on", ExitCode.SERVICE_FAILED) from None
    show(Output(), None, lambda _: view)
    if differs:
        raise typer.Exit(ExitCode.DIFFERENT)


def _moved(
    folder: Path, settings: Settings, url: ClickHouseUrl, merge: bool, say: Callable[[str], None]
) -> tuple[View, bool]:
    """Move and count; what to show, and whether something differs."""
    with closing(Source(folder)) as source, closing(open_clickhouse(url, settings)) as store:
        target = Target(store.connection, source.name)
        way = Way(source, target, retention_of(settings), store.clock, say)
        mover = Mover(way)
        mover.check(merge)
        done_ms = mover.done_ms
        if not done_ms:
            mover.move()
        tally = Teller(way).tally(mover.theirs)
        if not done_ms:
            mover.end(not tally.differs)
        return _view(tally, mover, str(folder), store.connection.name), bool(tally.differs)


def _target(to: str | None, config: Path | None) -> tuple[Settings, ClickHouseUrl]:
    """The settings of the services, and where their store is. The command ends where it is no ClickHouse."""
    if to is not None:
        with ending_at(ValueError):
            if parse_address(to).password:
                raise failure(
                    "--to: others can see a password on a command line: give the URL as MOESCOPE_STORE"
                )
    with ending_at(SettingsError):
        settings = load_settings(config, {"store": to})
    if not isinstance(settings.store, ClickHouseUrl):
        raise failure(
            "where to? Give --to, or MOESCOPE_STORE, as clickhouse://user:password@host:8123/database "
            "(clickhouses:// for TLS)"
        )
    return settings, settings.store


def _view(tally: Tally, mover: Mover, folder: str, name: str) -> View:
    columns = (
        word("what", "", key=True),
        Column("folder", folder, count),
        Column("clickhouse", name, count),
        word("verdict", "", form=str),
    )
    rows = [
        (
            f"  {what}" if what else kind,
            tally.ours[kind, what],
            tally.theirs[kind, what],
            _same(tally, (kind, what)),
        )
        for kind, what in tally.places()
    ]
    return View((Sheet("", columns, rows), *(Line(said) for said in _said(tally, mover, name))))


def _same(tally: Tally, place: Place) -> str:
    return "" if tally.ours[place] == tally.theirs[place] else "DIFFERS"


def _said(tally: Tally, mover: Mover, name: str) -> Iterator[str]:
    for kind, which in tally.left_out.items():
        more = f", and {len(which) - _SHOWN} more" if len(which) > _SHOWN else ""
        yield f"Left out, since they can't be read: {len(which)} {kind}: {'; '.join(which[:_SHOWN])}{more}."
    for kind, number in tally.too_old.items():
        if number:
            yield f"Left out for their age, by keep_*: {number:,} {kind}."
    if mover.theirs:
        yield (
            f"{len(mover.theirs)} documents were in {name} already, and say something else: they stay "
            f"({', '.join(f'{kind} {which}' for kind, which in sorted(mover.theirs)[:_SHOWN])})."
        )
    if mover.done_ms:
        yield (
            f"This was moved on {utc(mover.done_ms / 1000)} UTC, and nothing is written again. Services "
            "that work on it change what they find."
        )
    elif tally.differs:
        yield "They differ: give the command again, which writes all once more."
    else:
        yield f"All is in {name}. The folder is as it was: keep it until you trust the copy."
