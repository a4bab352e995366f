"""The commands behind ``moescope``: a new one is a module here and a line below."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Annotated, Final

import typer

from moescope.capture.wire import WIRE_MAJOR, WIRE_MINOR
from moescope.service.cli.advise import ADVISE_HELP, advise
from moescope.service.cli.baseline import baseline_group
from moescope.service.cli.check_config import CHECK_HELP, check_config
from moescope.service.cli.copies import BACKUP_HELP, RESTORE_HELP, backup, restore
from moescope.service.cli.drift import DRIFT_HELP, drift
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import Deployment, url_of_environment, url_of_flag
from moescope.service.cli.placement import PLACEMENT_HELP, placement
from moescope.service.cli.pools import POOLS_HELP, pools
from moescope.service.cli.report import REPORT_HELP, report
from moescope.service.cli.requests import requests_group
from moescope.service.cli.serve import SERVE_HELP, serve
from moescope.service.cli.show import (
    BALANCE_HELP,
    RANKS_HELP,
    STRAGGLERS_HELP,
    balance,
    ranks,
    stragglers,
)
from moescope.service.cli.simulate import SIMULATE_HELP, simulate
from moescope.service.cli.terminal import failure, say
from moescope.service.cli.token import MAKE_HELP, token
from moescope.service.cli.traces import traces_group
from moescope.service.cli.verdict import VERDICT_HELP, verdict

_HELP: Final = """Always-on, exact telemetry of Mixture-of-Experts routing for vLLM.

Commands that ask a service take its address from --url, else from MOESCOPE_URL, and its token from
MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE. Without a command `moescope` asks that service for its verdict, as
`moescope verdict` does: what is the matter, and what to do.

Exit codes: 0, the command did its work; 1, nothing could be delivered; 2, a bad option, setting or file, no
service, or one that refuses. Of a verdict: 0, ok or info; 3, warning; 4, critical.
"""
_VERSION_HELP: Final = """Print the versions of moescope and of its wire.

Example:

  moescope version
"""


def command_line() -> typer.Typer:
    """The application with its commands."""
    app = typer.Typer(
        name="moescope",
        help=_HELP,
        invoke_without_command=True,
        callback=_without_a_command,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    add_command(app, serve, SERVE_HELP)
    add_command(app, verdict, VERDICT_HELP)
    add_command(app, ranks, RANKS_HELP)
    add_command(app, pools, POOLS_HELP)
    add_command(app, balance, BALANCE_HELP)
    add_command(app, stragglers, STRAGGLERS_HELP)
    add_command(app, placement, PLACEMENT_HELP)
    add_command(app, advise, ADVISE_HELP)
    add_command(app, drift, DRIFT_HELP)
    app.add_typer(baseline_group(), name="baseline")
    add_command(app, report, REPORT_HELP)
    add_command(app, simulate, SIMULATE_HELP)
    app.add_typer(traces_group(), name="traces")
    app.add_typer(requests_group(), name="requests")
    add_command(app, check_config, CHECK_HELP, name="check-config")
    add_command(app, token, MAKE_HELP)
    add_command(app, backup, BACKUP_HELP)
    add_command(app, restore, RESTORE_HELP)
    add_command(app, version, _VERSION_HELP)
    return app


def _without_a_command(
    context: typer.Context,
    url: Annotated[
        str | None, typer.Option(help="Address of the running service, where there is no command.")
    ] = None,
) -> None:
    """Ask a service for its verdict, unless there is a command."""
    command = context.invoked_subcommand
    if command is not None and url is not None:
        raise failure(f"give --url after the command: moescope {command} --url {url}")
    if command is None:
        verdict(Deployment(url=url_of_environment() if url is None else url_of_flag(url)))


def version() -> None:
    """Print the versions."""
    say(f"moescope {version_of('moescope')} (wire {WIRE_MAJOR}.{WIRE_MINOR})")
