"""The commands behind ``moescope``."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from importlib.metadata import version as version_of
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.live import Live

from moescope.capture.wire import WIRE_MAJOR, WIRE_MINOR
from moescope.service.cli.advise import ADVISE_HELP, advise
from moescope.service.cli.drift import DRIFT_HELP, baseline_commands, drift
from moescope.service.cli.operations import add_operations
from moescope.service.cli.report import REPORT_HELP, report
from moescope.service.cli.simulate import SIMULATE_HELP, simulate
from moescope.service.cli.tables import balance_tables, ranks_table, stragglers_tables
from moescope.service.cli.terminal import terminal
from moescope.service.cli.traces import trace_commands
from moescope.service.client.http import ServiceUnavailableError, get_json
from moescope.service.logs import set_up_logging
from moescope.service.metrics.alerts import what_is_silent
from moescope.service.serving.allocator import return_large_arrays
from moescope.service.settings import (
    LogFormat,
    LogLevel,
    MetricsLevel,
    Settings,
    SettingsError,
    load_settings,
)

UrlOption = Annotated[str, typer.Option(help="Address of the running service.")]
ServerOption = Annotated[str | None, typer.Option(help="vLLM deployment, when there are several.")]
ModelOption = Annotated[str | None, typer.Option(help="Model, when there are several.")]

_URL = "http://127.0.0.1:9890"

_SERVE_HELP = """Run the side service: frames from vLLM's workers in; /metrics, /v1 and /docs out.

Every flag can also be set in the environment (MOESCOPE_PORT, MOESCOPE_STORE, ...) or in a TOML file (port =
9890); a flag wins over the environment, which wins over the file. What has no flag, such as limits and how
long things are kept, is in docs/settings.md; `moescope check-config` prints all settings.

Examples:

  moescope serve

  moescope serve --host 0.0.0.0 --tokens-file tokens.toml --tls-cert tls.crt --tls-key tls.key

  moescope serve --config moescope.toml --metrics-level layer_expert

Then start vLLM with it:

  MOESCOPE_ENDPOINT=http://127.0.0.1:9890 vllm serve MODEL --worker-cls moescope.capture.worker.RoutingWorker
"""
_RANKS_HELP = """Show who reports: ranks, totals, state, coverage.

Examples:

  moescope ranks

  moescope ranks --url http://gpu-7:9890 --model my-model
"""
_BALANCE_HELP = """Show the balance of every layer over EP ranks, DP ranks and experts.

Examples:

  moescope balance

  moescope balance --start=-5m --watch
"""
_STRAGGLERS_HELP = """Show what waiting for the busiest EP rank costs, layer by layer, from single steps.

Beside it stands what the window's sums say: where the hot rank changes from step to step they look balanced.

Examples:

  moescope stragglers

  moescope stragglers --start=-5m --watch
"""


def _said(name: str) -> str:
    """What a setting means and its default, as the help shows it."""
    field = Settings.model_fields[name]
    default = "" if field.default is None or field.default is False else f" \\[{field.default}]"
    return f"{field.description}{default}"


def command_line() -> typer.Typer:
    """The application with its commands."""
    app = typer.Typer(
        name="moescope",
        help="Always-on, exact telemetry of Mixture-of-Experts routing for vLLM.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.command(help=_SERVE_HELP)(serve)
    app.command(help=_RANKS_HELP)(ranks)
    app.command(help=_BALANCE_HELP)(balance)
    app.command(help=_STRAGGLERS_HELP)(stragglers)
    app.command(help=ADVISE_HELP)(advise)
    app.command(help=DRIFT_HELP)(drift)
    app.add_typer(baseline_commands(), name="baseline")
    app.command(help=REPORT_HELP)(report)
    app.command(help=SIMULATE_HELP)(simulate)
    app.add_typer(trace_commands(), name="traces")
    add_operations(app)
    app.command(help="Print the versions of moescope and of its wire.")(version)
    return app


def serve(
    config: Annotated[Path | None, typer.Option(help="TOML file with settings.")] = None,
    host: Annotated[str | None, typer.Option(help=_said("host"))] = None,
    port: Annotated[int | None, typer.Option(help=_said("port"))] = None,
    token_file: Annotated[Path | None, typer.Option(help=_said("token_file"))] = None,
    tokens_file: Annotated[Path | None, typer.Option(help=_said("tokens_file"))] = None,
    open_read: Annotated[bool | None, typer.Option("--open-read", help=_said("open_read"))] = None,
    tls_cert: Annotated[Path | None, typer.Option(help=_said("tls_cert"))] = None,
    tls_key: Annotated[Path | None, typer.Option(help=_said("tls_key"))] = None,
    tls_client_ca: Annotated[Path | None, typer.Option(help=_said("tls_client_ca"))] = None,
    insecure: Annotated[bool | None, typer.Option("--insecure", help=_said("insecure"))] = None,
    window_s: Annotated[float | None, typer.Option(help=_said("window_s"))] = None,
    min_tokens: Annotated[int | None, typer.Option(help=_said("min_tokens"))] = None,
    stale_after_s: Annotated[float | None, typer.Option(help=_said("stale_after_s"))] = None,
    expire_after_s: Annotated[float | None, typer.Option(help=_said("expire_after_s"))] = None,
    history_mib: Annotated[int | None, typer.Option(help=_said("history_mib"))] = None,
    store: Annotated[str | None, typer.Option(help=_said("store"))] = None,
    store_mib: Annotated[int | None, typer.Option(help=_said("store_mib"))] = None,
    max_body_mib: Annotated[int | None, typer.Option(help=_said("max_body_mib"))] = None,
    metrics_level: Annotated[MetricsLevel | None, typer.Option(help=_said("metrics_level"))] = None,
    log_level: Annotated[LogLevel | None, typer.Option(help=_said("log_level"))] = None,
    log_format: Annotated[LogFormat | None, typer.Option(help=_said("log_format"))] = None,
) -> None:
    """Serve until SIGINT or SIGTERM."""
    # Here, so that the other commands start without a web framework.
    from moescope.service.api.app import create_app
    from moescope.service.auth.tokens import TokenError
    from moescope.service.serving.server import ListenError, address_of, listen, make_server
    from moescope.service.serving.tls import TlsError
    from moescope.service.store.open import open_writer
    from moescope.service.store.records import StoreError

    flags = {
        "host": host,
        "port": port,
        "token_file": token_file,
        "tokens_file": tokens_file,
        "open_read": open_read,
        "tls_cert": tls_cert,
        "tls_key": tls_key,
        "tls_client_ca": tls_client_ca,
        "insecure": insecure,
        "window_s": window_s,
        "min_tokens": min_tokens,
        "stale_after_s": stale_after_s,
        "expire_after_s": expire_after_s,
        "history_mib": history_mib,
        "store": store,
        "store_mib": store_mib,
        "max_body_mib": max_body_mib,
        "metrics_level": metrics_level,
        "log_level": log_level,
        "log_format": log_format,
    }
    try:
        settings = load_settings(config, flags)
        listener = listen(settings)
    except (SettingsError, ListenError) as error:
        raise _failure(str(error)) from None
    set_up_logging(settings.log_level, settings.log_format)
    return_large_arrays()
    try:
        with listener, open_writer(settings, time.time) as writer:
            app = create_app(settings, writer=writer)
            server = make_server(app)
            at = address_of(listener, settings.tls_cert is not None)
            logging.getLogger(__name__).info("moescope serves at %s", at)
            if silent := what_is_silent(settings.metrics_level):
                logging.getLogger(__name__).info("metrics_level: %s", silent)
            server.run(sockets=[listener])
    except (StoreError, TokenError, TlsError) as error:
        raise _failure(str(error)) from None


def ranks(url: UrlOption = _URL, server: ServerOption = None, model: ModelOption = None) -> None:
    """Print the ranks of a running service."""
    _show(lambda: ranks_table(_ask(url, "/v1/ranks", {"server": server, "model": model})), None)


def balance(
    url: UrlOption = _URL,
    server: ServerOption = None,
    model: ModelOption = None,
    start: Annotated[str | None, typer.Option(help="Begin of the window, as -5m; all when absent.")] = None,
    end: Annotated[str | None, typer.Option(help="End of the window, as -1m; now when absent.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Fewer tokens are no sample.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option(min=0.1, help="Time between refreshes, seconds.")] = 1.0,
) -> None:
    """Print the balance of a running service, once or until Ctrl-C."""
    gate = None if min_tokens is None else str(min_tokens)
    params = {"server": server, "model": model, "start": start, "end": end, "min_tokens": gate}
    _show(lambda: balance_tables(_ask(url, "/v1/balance", params)), interval_s if watch else None)


def stragglers(
    url: UrlOption = _URL,
    server: ServerOption = None,
    model: ModelOption = None,
    start: Annotated[str | None, typer.Option(help="Begin of the window, as -5m; all when absent.")] = None,
    end: Annotated[str | None, typer.Option(help="End of the window, as -1m; now when absent.")] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Refresh until Ctrl-C.")] = False,
    interval_s: Annotated[float, typer.Option(min=0.1, help="Time between refreshes, seconds.")] = 1.0,
) -> None:
    """Print the straggler cost of a running service, once or until Ctrl-C."""
    params = {"server": server, "model": model, "start": start, "end": end}
    _show(lambda: stragglers_tables(_ask(url, "/v1/stragglers", params)), interval_s if watch else None)


def version() -> None:
    """Print the versions."""
    typer.echo(f"moescope {version_of('moescope')} (wire {WIRE_MAJOR}.{WIRE_MINOR})")


def _show(render: Callable[[], RenderableType], interval_s: float | None) -> None:
    console = terminal()
    if interval_s is None:
        console.print(render())
        return
    try:
        while not console.is_terminal:  # a file or a pipe gets one after the other, Live only the last
            console.print(render())
            time.sleep(interval_s)
        with Live(render(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                live.update(render(), refresh=True)
    except KeyboardInterrupt:
        return


def _ask(url: str, path: str, params: dict[str, str | None]) -> dict[str, Any]:
    try:
        return get_json(url, path, params)
    except ServiceUnavailableError as error:
        raise _failure(str(error)) from None


def _failure(message: str) -> typer.Exit:
    """Print what is wrong; raising the result ends the command with exit code 2."""
    typer.echo(f"moescope: {message}", err=True)
    return typer.Exit(2)
