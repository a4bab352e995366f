"""The commands behind ``moescope``: a new one is a module here and a line below."""

from __future__ import annotations

from importlib.metadata import version as version_of
from typing import Annotated, Final

import typer

from moescope.capture.wire import WIRE_MAJOR, WIRE_MINOR
from moescope.service.cli.advise import ADVISE_HELP, advise
from moescope.service.cli.baseline import baseline_group
from moescope.service.cli.check_config import CHECK_HELP, check_config
from moescope.service.cli.codes import ExitCode
from moescope.service.cli.completion import COMPLETION_HELP, answer_shells, completion
from moescope.service.cli.copies import BACKUP_HELP, RESTORE_HELP, backup, restore
from moescope.service.cli.drift import DRIFT_HELP, drift
from moescope.service.cli.grouping import Ungrouped, add_command
from moescope.service.cli.helping import flowing, listed
from moescope.service.cli.migrate import MIGRATE_HELP, migrate
from moescope.service.cli.options import Deployment, url_of_environment, url_of_flag
from moescope.service.cli.output import Output
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
from moescope.service.cli.terminal import failure, is_terminal, say
from moescope.service.cli.token import MAKE_HELP, token
from moescope.service.cli.top import TOP_HELP, top
from moescope.service.cli.traces import traces_group
from moescope.service.cli.verdict import VERDICT_HELP, verdict

_HELP: Final = """Always-on, exact telemetry of Mixture-of-Experts routing for vLLM.

Commands that ask a service take its address from --url, else from MOESCOPE_URL, and its token from
MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE. Without a command `moescope` asks that service for its verdict, as
`moescope verdict` does: what is the matter, and what to do.

Examples:

  moescope                                    the verdict

  moescope top                                ranks and layers, live

  moescope balance -o csv > balance.csv       each command that shows something takes -o
"""
_VERSION_HELP: Final = """Print the versions of moescope and of its wire.

Example:

  moescope version
"""
_WIDEST_PLAIN: Final = 120  # columns of a help that goes into a pipe


def _say_version(wanted: bool) -> None:
    """Print it and end, whatever else was given."""
    if wanted:
        version()
        raise typer.Exit


def command_line() -> typer.Typer:
    """The application with its commands."""
    answer_shells()
    codes = listed((str(int(code)), code.meaning) for code in ExitCode)
    app = typer.Typer(
        name="moescope",
        help=flowing(_HELP),
        epilog=f"Exit codes:\n\n{codes}",
        invoke_without_command=True,
        callback=Ungrouped(_without_a_command),
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich" if is_terminal() else None,  # without: plain text, no boxes
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": _WIDEST_PLAIN},
    )
    add_command(app, serve, SERVE_HELP)
    add_command(app, verdict, VERDICT_HELP)
    add_command(app, top, TOP_HELP)
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
    add_command(app, migrate, MIGRATE_HELP)
    add_command(app, completion, COMPLETION_HELP)
    add_command(app, version, _VERSION_HELP)
    return app


def _without_a_command(
    context: typer.Context,
    output: Output,
    url: Annotated[
        str | None,
        typer.Option(
            help="Address of the running service, where there is no command; MOESCOPE_URL when absent."
        ),
    ] = None,
    _version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_say_version, help="Print the version, and end."),
    ] = False,
) -> None:
    """Ask a service for its verdict, unless there is a command."""
    command = context.invoked_subcommand
    if command is None:
        verdict(Deployment(url=url_of_environment() if url is None else url_of_flag(url)), output)
    elif url is not None:
        raise failure(f"give --url after the command: moescope {command} --url {url}")
    elif output != Output():
        raise failure(f"give -o after the command: moescope {command} -o {output.wanted}")


def version() -> None:
    """Print the versions."""
    say(f"moescope {version_of('moescope')} (wire {WIRE_MAJOR}.{WIRE_MINOR})")
