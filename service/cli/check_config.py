"""The command ``moescope check-config``."""

from __future__ import annotations

import importlib.util
import os
import stat
from pathlib import Path
from typing import Final

from moescope.service.auth.book import TokenBook
from moescope.service.auth.sessions import open_book
from moescope.service.auth.tokens import TokenError
from moescope.service.cli.options import ConfigOption
from moescope.service.cli.terminal import ending_at, failure, say
from moescope.service.metrics.alerts import what_is_silent
from moescope.service.serving.tls import Tls, TlsError
from moescope.service.settings import ClickHouseUrl, Settings, SettingsError, default_of, is_loopback
from moescope.service.settings_sources import load_settings, unknown_variables

CHECK_HELP: Final = """Check the settings that `moescope serve` would use, without serving.

Reads the file and the environment, the files of tokens and the certificate, and looks at the store's folder.
It takes no port, opens no store and does not ask ClickHouse. Exit code 0: the settings can be used (there may
be warnings). Exit code 2: they can't, and every line says what to mend.

Examples:

  moescope check-config --config /etc/moescope.toml

  moescope check-config && systemctl restart moescope
"""


def check_config(config: ConfigOption = None) -> None:
    """Check settings."""
    with ending_at(SettingsError, TokenError, TlsError):
        settings = load_settings(config, {})
        book = open_book(settings)
        if settings.tls_cert is not None:
            Tls(settings)
    if (problem := _problem(settings)) is not None:
        raise failure(problem)
    for name in sorted(Settings.model_fields):
        value = getattr(settings, name)
        default = default_of(Settings.model_fields[name])
        chosen = value != default and (name != "store" or not settings.store_is_default)
        say(f"{name} = {value}{f'   (default: {default})' if chosen else ''}")
    for item in book.tokens:
        say(f"token {item.name}: {', '.join(sorted(item.scopes))}")
    for warning in _warnings(settings, book):
        say(f"warning: {warning}", err=True)
    say("The settings can be used.")


def _problem(settings: Settings) -> str | None:
    """What would keep the service from starting, besides the settings themselves."""
    match settings.store:
        case None:
            return None
        case ClickHouseUrl():
            found = importlib.util.find_spec("clickhouse_connect")
            return None if found else "store: ClickHouse needs its client: pip install 'moescope[clickhouse]'"
        case Path() as folder:
            return _folder_problem(folder)


def _folder_problem(folder: Path) -> str | None:
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        return f"store: {there} is not a folder"
    return None if os.access(there, os.W_OK | os.X_OK) else f"store: {there} can't be written to"


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
    found += unknown_variables()
    match settings.store:
        case None:
            found.append("store: totals and history are in memory only: after a restart they begin again")
        case ClickHouseUrl():
            found.append("store: whether ClickHouse answers was not tried")
        case Path():
            pass
    return found
