"""The commands behind ``moescope baseline``."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import quote

import typer
from rich.table import Table

from moescope.service.cli.asking import ask, change
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import (
    Deployment,
    EndOption,
    JsonOption,
    StartOption,
    UrlOption,
    WeightsOption,
)
from moescope.service.cli.terminal import print_json, say, terminal, utc
from moescope.service.counts.weights import WeightsWish

NameArgument = Annotated[str, typer.Argument(help="Name of the baseline.")]

_PIN_HELP: Final = """Pin the routing of a window under a name; a baseline of the same name is replaced.

Needs a token with the scope admin where the service asks for one: MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE.

Examples:

  moescope baseline pin release-1 --note "before the new checkpoint"

  moescope baseline pin monday --start=-24h
"""
_REMOVE_HELP: Final = """Remove a baseline.

Needs a token with the scope admin where the service asks for one: MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE.

Example:

  moescope baseline remove release-1
"""
_LIST_HELP: Final = """List all baselines: name, deployment, tokens, window and note.

Examples:

  moescope baseline list

  moescope baseline list --json
"""


def baseline_group() -> typer.Typer:
    """``pin``, ``list`` and ``remove``."""
    app = typer.Typer(
        help="Routing pinned under a name, to compare later routing with.", no_args_is_help=True
    )
    add_command(app, pin, _PIN_HELP)
    add_command(app, list_baselines, _LIST_HELP, name="list")
    add_command(app, remove, _REMOVE_HELP)
    return app


def pin(
    name: NameArgument,
    deployment: Deployment,
    start: StartOption = "-1h",
    end: EndOption = None,
    note: Annotated[str, typer.Option(help="What it is, for people; none when absent.")] = "",
    weights: WeightsOption = WeightsWish.LATEST,
) -> None:
    """Pin a baseline."""
    body = {**deployment.params, "name": name, "start": start, "end": end, "note": note}
    if weights is not WeightsWish.LATEST:
        body["weights"] = weights.value
    made = change("POST", deployment.url, "/v1/baselines", {}, body)
    say(
        f"{made['name']}: {made['tokens']:,} tokens of {made['model']} on {made['server']}, "
        f"{utc(made['start'])} to {utc(made['end'])} UTC"
    )


def list_baselines(url: UrlOption, as_json: JsonOption = False) -> None:
    """Print a line for each baseline."""
    answer = ask(url, "/v1/baselines", {})
    if as_json:
        print_json(answer)
        return
    if not answer["baselines"]:
        say("No baselines: `moescope baseline pin NAME` pins one.")
        return
    table = Table()
    for column in ("name", "deployment", "tokens", "window (UTC)", "note"):
        table.add_column(column, overflow="fold")
    for item in answer["baselines"]:
        table.add_row(
            item["name"],
            f"{item['model']} on {item['server']}",
            f"{item['tokens']:,}",
            f"{utc(item['start'])} to {utc(item['end'])}",
            item["note"],
        )
    terminal().print(table)


def remove(name: NameArgument, deployment: Deployment) -> None:
    """Remove a baseline."""
    change("DELETE", deployment.url, f"/v1/baselines/{quote(name, safe='')}", deployment.params, None)
    say(f"{name} is removed")
