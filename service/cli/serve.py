"""The command ``moescope serve``."""

from __future__ import annotations

import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from moescope.service.cli.options import ConfigOption
from moescope.service.cli.terminal import ending_at
from moescope.service.logs import set_up_logging
from moescope.service.metrics.alerts import what_is_silent
from moescope.service.serving.allocator import return_large_arrays, trimming
from moescope.service.serving.garbage import searching
from moescope.service.settings import (
    NO_STORE,
    ClickHouseUrl,
    LogFormat,
    LogLevel,
    MetricsLevel,
    Settings,
    SettingsError,
    default_of,
)
from moescope.service.settings_sources import load_settings, unknown_variables

SERVE_HELP: Final = """Run the side service: frames from vLLM's workers in; /metrics, /v1 and /docs out.

Every flag can also be set in the environment (MOESCOPE_PORT, MOESCOPE_STORE, ...) or in a TOML file (port =
9890); a flag wins over the environment, which wins over the file. What has no flag, such as limits and how
long things are kept, is in docs/settings.md; `moescope check-config` prints all settings.

Examples:

  moescope serve

  moescope serve --host 0.0.0.0 --tokens-file tokens.toml --tls-cert tls.crt --tls-key tls.key

  moescope serve --config moescope.toml --metrics-level layer_expert

Then start vLLM with it:

  MOESCOPE=1 MOESCOPE_ENDPOINT=http://127.0.0.1:9890 vllm serve MODEL
"""


def _said(name: str) -> str:
    """What a setting means, its variable and its default, as the help shows it."""
    field = Settings.model_fields[name]
    default = default_of(field)
    default = "off" if default is False else "none" if default is None else default
    return f"{field.description} (MOESCOPE_{name.upper()}; default: {default})"


@dataclass(frozen=True, slots=True)
class Flags:
    """The settings that have a flag; None: not given."""

    host: Annotated[str | None, typer.Option(help=_said("host"))] = None
    port: Annotated[int | None, typer.Option(help=_said("port"))] = None
    token_file: Annotated[Path | None, typer.Option(help=_said("token_file"))] = None
    tokens_file: Annotated[Path | None, typer.Option(help=_said("tokens_file"))] = None
    open_read: Annotated[bool | None, typer.Option("--open-read", help=_said("open_read"))] = None
    tls_cert: Annotated[Path | None, typer.Option(help=_said("tls_cert"))] = None
    tls_key: Annotated[Path | None, typer.Option(help=_said("tls_key"))] = None
    tls_client_ca: Annotated[Path | None, typer.Option(help=_said("tls_client_ca"))] = None
    insecure: Annotated[bool | None, typer.Option("--insecure", help=_said("insecure"))] = None
    window_s: Annotated[float | None, typer.Option(help=_said("window_s"))] = None
    min_tokens: Annotated[int | None, typer.Option(help=_said("min_tokens"))] = None
    stale_after_s: Annotated[float | None, typer.Option(help=_said("stale_after_s"))] = None
    expire_after_s: Annotated[float | None, typer.Option(help=_said("expire_after_s"))] = None
    history_mib: Annotated[int | None, typer.Option(help=_said("history_mib"))] = None
    store: Annotated[str | None, typer.Option(help=_said("store"))] = None
    no_store: Annotated[
        bool | None, typer.Option("--no-store", help="Keep all in memory: the same as --store none.")
    ] = None
    store_mib: Annotated[int | None, typer.Option(help=_said("store_mib"))] = None
    max_body_mib: Annotated[int | None, typer.Option(help=_said("max_body_mib"))] = None
    metrics_level: Annotated[MetricsLevel | None, typer.Option(help=_said("metrics_level"))] = None
    log_level: Annotated[LogLevel | None, typer.Option(help=_said("log_level"))] = None
    log_format: Annotated[LogFormat | None, typer.Option(help=_said("log_format"))] = None


def serve(flags: Flags, config: ConfigOption = None) -> None:
    """Serve until SIGINT or SIGTERM."""
    # Not at the top of the file: the web framework would more than double the time that every other command
    # takes to start (1.2 s of CPU time become 3 s).
    from moescope.service.api.app import create_app
    from moescope.service.auth.tokens import TokenError
    from moescope.service.serving.server import ListenError, address_of, listen, make_server
    from moescope.service.serving.tls import TlsError
    from moescope.service.store.open import open_writer
    from moescope.service.store.records import StoreError

    with ending_at(SettingsError, ListenError):
        settings = load_settings(config, _chosen(flags))
        listener = listen(settings)
    set_up_logging(settings.log_level, settings.log_format)
    return_large_arrays()
    log = logging.getLogger(__name__)
    with ending_at(StoreError, TokenError, TlsError), listener, open_writer(settings) as writer:
        clock = time.time if writer is None else writer.store.clock
        server = make_server(create_app(settings, clock, writer))
        log.info("moescope serves at %s", address_of(listener, settings.tls_cert is not None))
        log.info("%s", _where_it_keeps(settings))
        for warning in unknown_variables():
            log.warning("%s", warning)
        if silent := what_is_silent(settings.metrics_level):
            log.info("metrics_level: %s", silent)
        with searching(), trimming():
            server.run(sockets=[listener])


def _chosen(flags: Flags) -> dict[str, Any]:
    """The flags as settings.

    Raises:
        SettingsError: two of them contradict each other.
    """
    chosen = asdict(flags)
    if chosen.pop("no_store"):
        if chosen["store"] not in (None, NO_STORE):
            raise SettingsError("--store and --no-store contradict each other: give one of them")
        chosen["store"] = NO_STORE
    return chosen


def _where_it_keeps(settings: Settings) -> str:
    """What the log says of the store at the start."""
    match settings.store:
        case None:
            return "keeps totals and history in memory only, so that they begin again with each start"
        case ClickHouseUrl():
            return "keeps totals and history in ClickHouse"
        case Path() as folder:
            return f"keeps totals and history in {folder}, {settings.store_mib} MiB at most"
