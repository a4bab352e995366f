"""Commands for those who run the service: its settings, its tokens, copies of its store."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import stat
from datetime import date
from pathlib import Path
from typing import Annotated

import typer

from moescope.service.auth.sessions import open_book
from moescope.service.auth.tokens import NAME, Scope, TokenBook, TokenError, new_token, tokens_of
from moescope.service.metrics.alerts import what_is_silent
from moescope.service.serving.tls import Tls, TlsError
from moescope.service.settings import (
    Settings,
    SettingsError,
    is_loopback,
    load_settings,
    unknown_variables,
)
from moescope.service.store.records import StoreError
from moescope.service.store.sqlite.backup import back_up
from moescope.service.store.sqlite.backup import restore as put_back

StoreOption = Annotated[Path, typer.Option(envvar="MOESCOPE_STORE", help="Folder of the store.")]

CHECK_HELP = """Check the settings that `moescope serve` would use, without serving.

Reads the file and the environment, the files of tokens and the certificate, and looks at the store's folder.
It takes no port, opens no store and does not ask ClickHouse. Exit code 0: the settings can be used (there may
be warnings). 2: they can't, and every line says what to mend.

Examples:

  moescope check-config --config /etc/moescope.toml

  moescope check-config && systemctl restart moescope
"""
MAKE_HELP = """Make a token, and the entry for the service's file of tokens.

The token goes to standard output. The entry has only its digest; it goes into the file that --add-to names,
once the whole of it was checked, else to standard error. A running service reads its file again by itself.

Examples:

  moescope token vllm --scope ingest --add-to tokens.toml > vllm.token

  moescope token prometheus --scope read --add-to tokens.toml > prometheus.token

  moescope serve --tokens-file tokens.toml
"""
BACKUP_HELP = """Copy the store to a file, as of one moment, while the service runs.

Examples:

  moescope backup /backup/moescope-monday.sqlite --store /var/lib/moescope
"""
RESTORE_HELP = """Put a copy of the store back; the service must not run.

The copy is checked first. A store that is there already stays unless --force is given, and then it is
kept beside the new one.

Examples:

  moescope restore /backup/moescope-monday.sqlite --store /var/lib/moescope
"""


def add_operations(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(name="check-config", help=CHECK_HELP)(check_config)
    app.command(help=MAKE_HELP)(token)
    app.command(help=BACKUP_HELP)(backup)
    app.command(help=RESTORE_HELP)(restore)


def check_config(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
) -> None:
    """Check settings."""
    try:
        settings = load_settings(config, {})
        book = open_book(settings)
        if settings.tls_cert is not None:
            Tls(settings)
    except (SettingsError, TokenError, TlsError) as error:
        raise _failure(str(error)) from None
    for problem in _problems(settings):
        raise _failure(problem)
    for name in sorted(set(Settings.model_fields)):
        value = getattr(settings, name)
        default = Settings.model_fields[name].default
        typer.echo(f"{name} = {value}{'' if value == default else '   (default: ' + str(default) + ')'}")
    for item in book.tokens:
        typer.echo(f"token {item.name}: {', '.join(sorted(item.scopes))}")
    for warning in _warnings(settings, book):
        typer.echo(f"warning: {warning}", err=True)
    typer.echo("The settings can be used.")


def token(
    name: Annotated[str, typer.Argument(help="Whose it is: letters, digits, dots, dashes.")],
    scope: Annotated[list[Scope], typer.Option(help="What it allows; may be repeated.")],
    expires: Annotated[str | None, typer.Option(help="Last day, exclusive, as 2027-01-31.")] = None,
    add_to: Annotated[Path | None, typer.Option(help="File of tokens to add the entry to.")] = None,
) -> None:
    """Make a token."""
    if not NAME.fullmatch(name):
        raise _failure("name: 1 to 64 letters, digits, dots, dashes or underscores are needed")
    if expires is not None and not _is_date(expires):
        raise _failure(f"--expires: {expires!r} is no date such as 2027-01-31")
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
        typer.echo(made)
        typer.echo(entry, err=True)
        return
    try:
        _add_entry(add_to, entry)
    except TokenError as error:
        raise _failure(str(error)) from None
    typer.echo(made)


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
        old = path.read_text(encoding="utf-8") if path.exists() else ""
        more = f"{chr(10) if old and not old.endswith(chr(10)) else ''}{entry}\n"
        tokens_of(path, old + more)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "w") as file:
            file.write(more)
    except (OSError, UnicodeDecodeError) as error:
        raise TokenError(f"{path} can't be added to: {error}") from error


def backup(
    file: Annotated[Path, typer.Argument(help="File to write, which must not exist.")], store: StoreOption
) -> None:
    """Copy the store."""
    try:
        contents = back_up(_folder(store), file)
    except StoreError as error:
        raise _failure(str(error)) from None
    typer.echo(f"{file}: {contents}")


def restore(
    file: Annotated[Path, typer.Argument(help="Copy that `moescope backup` made.")],
    store: StoreOption,
    force: Annotated[bool, typer.Option("--force", help="Also where a store is already.")] = False,
) -> None:
    """Put a copy back."""
    try:
        contents, aside = put_back(file, _folder(store), force)
    except StoreError as error:
        raise _failure(str(error)) from None
    typer.echo(f"{store}: {contents}")
    if aside is not None:
        typer.echo(f"What was there before is {aside}")


def _folder(store: Path) -> Path:
    """A store's folder, as these commands need it.

    Raises:
        StoreError: it is a ClickHouse, whose address may hold a password.
    """
    if store.parts and store.parts[0] in ("clickhouse:", "clickhouses:"):
        raise StoreError("--store or MOESCOPE_STORE is a ClickHouse: copy its database with its own BACKUP")
    return store


def _problems(settings: Settings) -> list[str]:
    """What would keep the service from starting, besides the settings themselves."""
    folder = settings.store
    if folder is None:
        return []
    if not isinstance(folder, Path):
        found = importlib.util.find_spec("clickhouse_connect")
        return [] if found else ["store: ClickHouse needs its client: pip install 'moescope[clickhouse]'"]
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return [f"store: {there} is not a folder"]
    return [] if os.access(there, os.W_OK | os.X_OK) else [f"store: {there} can't be written to"]


def _warnings(settings: Settings, book: TokenBook) -> list[str]:
    """What works and is unwise."""
    found = []
    if not is_loopback(settings.host):
        if not settings.authenticates:
            found.append("insecure: whoever reaches the port may read and send frames")
        if settings.tls_cert is None:
            found.append("tls_cert: beyond loopback tokens and counts go over the network in clear text")
    if settings.open_read and book:
        found.append("open_read: whoever reaches the port may read, routing traces too")
    if settings.token is not None and len(settings.token.get_secret_value()) < 16:
        found.append("token: it is shorter than 16 characters; `moescope token` makes a good one")
    found += [
        f"{path}: every user of this machine may read it; chmod o-rwx"
        for path in (settings.token_file, settings.tls_key)
        if path is not None and stat.S_IMODE(path.stat().st_mode) & 0o007
    ]
    if silent := what_is_silent(settings.metrics_level):
        found.append(f"metrics_level: {silent}")
    found += [f"{name}: no variable of moescope; is it misspelt?" for name in unknown_variables()]
    if settings.store is None:
        found.append("store: totals and history are in memory only")
    elif not isinstance(settings.store, Path):
        found.append("store: whether ClickHouse answers was not tried")
    return found


def _failure(message: str) -> typer.Exit:
    typer.echo(f"moescope: {message}", err=True)
    return typer.Exit(2)
