"""The commands behind ``moescope``: a new one is a module here and a line below."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Final

import typer

from moescope.capture.wire import WIRE_MAJOR, WIRE_MINOR
from moescope.service.cli.advise import ADVISE_HELP, advise
from moescope.service.cli.baseline import baseline_group
from moescope.service.cli.check_config import CHECK_HELP, check_config
from moescope.service.cli.copies import BACKUP_HELP, RESTORE_HELP, backup, restore
from moescope.service.cli.drift import DRIFT_HELP, drift
from moescope.service.cli.grouping import add_command
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
from moescope.service.cli.terminal import say
from moescope.service.cli.token import MAKE_HELP, token
from moescope.service.cli.traces import traces_group

_HELP: Final = """Always-on, exact telemetry of Mixture-of-Experts routing for vLLM.

Commands that ask a service take its address from --url, else from MOESCOPE_URL, and its token from
MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE. Exit codes: 0, the command did its work; 1, nothing could be delivered;
2, a bad option, setting or file, no service, or one that refuses.
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
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    add_command(app, serve, SERVE_HELP)
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


def version() -> None:
    """Print the versions."""
    say(f"moescope {version_of('moescope')} (wire {WIRE_MAJOR}.{WIRE_MINOR})")
