"""The commands behind ``moescope baseline``."""

from __future__ import annotations

from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from moescope.service.cli.asking import ask, change
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import (
    Deployment,
    EndOption,
    StartOption,
    UrlOption,
    WeightsOption,
)
from moescope.service.cli.output import Output, show
from moescope.service.cli.sheets import Column, Line, Readers, Sheet, View, count, whose, word
from moescope.service.cli.terminal import say, utc
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

  moescope baseline list -o json
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


_COLUMNS: Final = (
    word("name", "name", key=True),
    *whose(),
    word("deployment", "deployment", readers=Readers.PEOPLE, same=True),
    Column("tokens", "tokens", count),
    word("start", "begin (UTC)", form=utc),
    word("end", "end (UTC)", form=utc, spare=1),
    word("note", "note", prose=True),
)


def list_baselines(url: UrlOption, output: Output) -> None:
    """Print a line for each baseline."""
    show(output, ask(url, "/v1/baselines", {}), _list_view)


def _list_view(answer: dict[str, Any]) -> View:
    rows = [
        (
            *(item["name"], item["server"], item["model"], f"{item['model']} on {item['server']}"),
            *(item[name] for name in ("tokens", "start", "end", "note")),
        )
        for item in answer["baselines"]
    ]
    if rows:
        return View((Sheet("", _COLUMNS, rows),))
    none = Line("No baselines: `moescope baseline pin NAME` pins one.")
    return View((Sheet("", _COLUMNS, (), readers=Readers.PROGRAMS), none))


def remove(name: NameArgument, deployment: Deployment) -> None:
    """Remove a baseline."""
    change("DELETE", deployment.url, f"/v1/baselines/{quote(name, safe='')}", deployment.params, None)
    say(f"{name} is removed")
