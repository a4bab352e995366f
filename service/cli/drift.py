"""The commands ``moescope drift`` and ``moescope baseline``."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar
from urllib.parse import quote

import typer
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from moescope.service.cli.terminal import terminal
from moescope.service.client.http import ServiceUnavailableError, get_json, send_json
from moescope.service.counts.phase_split import Phase

UrlOption = Annotated[str, typer.Option(help="Address of the running service.")]
ServerOption = Annotated[str | None, typer.Option(help="vLLM deployment, when there are several.")]
ModelOption = Annotated[str | None, typer.Option(help="Model, when there are several.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the service's answer as JSON.")]
NameArgument = Annotated[str, typer.Argument(help="Name of the baseline.")]

_URL: Final = "http://127.0.0.1:9890"
_MOST_EXPERTS: Final = 8

DRIFT_HELP: Final = """Show how far routing has moved from a baseline, or from the hour before.

For each layer: the Jensen-Shannon divergence of the experts' shares in bits (0 alike, 1 nothing in common)
beside what sampling alone would show, the share of the slots that moved, experts that died or became hot.

Examples:

  moescope drift                              the last five minutes against the hour before

  moescope drift --baseline release-1         against a pinned baseline

  moescope drift --phase decode

  moescope drift --start=-1h --json
"""
_PIN_HELP = """Pin the routing of a window under a name; a baseline of the same name is replaced.

Needs a token with the scope admin where the service asks for one: MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE.

Examples:

  moescope baseline pin release-1 --note "before the new checkpoint"

  moescope baseline pin monday --start=-24h
"""
_REMOVE_HELP = """Remove a baseline.

Needs a token with the scope admin where the service asks for one: MOESCOPE_TOKEN or MOESCOPE_TOKEN_FILE.
"""

_T = TypeVar("_T")


def baseline_commands() -> typer.Typer:
    """``pin``, ``list`` and ``remove``."""
    app = typer.Typer(
        help="Routing pinned under a name, to compare later routing with.", no_args_is_help=True
    )
    app.command(help=_PIN_HELP)(pin)
    app.command(name="list", help="List all baselines.")(list_baselines)
    app.command(help=_REMOVE_HELP)(remove)
    return app


def drift(
    url: UrlOption = _URL,
    server: ServerOption = None,
    model: ModelOption = None,
    baseline: Annotated[str, typer.Option(help="Name of a baseline.")] = "previous_hour",
    phase: Annotated[Phase | None, typer.Option(help="Only tokens of this phase; both when absent.")] = None,
    start: Annotated[str, typer.Option(help="Begin of the window.")] = "-5m",
    end: Annotated[str | None, typer.Option(help="End of the window, as -1m; now when absent.")] = None,
    min_tokens: Annotated[int | None, typer.Option(min=0, help="Fewer tokens are no sample.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Print the drift of a running service."""
    gate = None if min_tokens is None else str(min_tokens)
    params = {"server": server, "model": model, "baseline": baseline, "start": start, "end": end}
    params |= {"phase": None if phase is None else phase.value}
    answer = _ask(lambda: get_json(url, "/v1/drift", {**params, "min_tokens": gate}, 60.0))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    else:
        terminal().print(_drift_view(answer))


def pin(
    name: NameArgument,
    url: UrlOption = _URL,
    server: ServerOption = None,
    model: ModelOption = None,
    start: Annotated[str, typer.Option(help="Begin of the window.")] = "-1h",
    end: Annotated[str | None, typer.Option(help="End of the window, as -1m; now when absent.")] = None,
    note: Annotated[str, typer.Option(help="What it is, for people.")] = "",
) -> None:
    """Pin a baseline."""
    body = {"name": name, "server": server, "model": model, "start": start, "end": end, "note": note}
    made = _ask(lambda: send_json("POST", url, "/v1/baselines", {}, body))
    typer.echo(
        f"{made['name']}: {made['tokens']:,} tokens of {made['model']} on {made['server']}, "
        f"{_time(made['start'])} to {_time(made['end'])} UTC"
    )


def list_baselines(url: UrlOption = _URL, as_json: JsonOption = False) -> None:
    """Print a line for each baseline."""
    answer = _ask(lambda: get_json(url, "/v1/baselines", {}))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
        return
    if not answer["baselines"]:
        typer.echo("No baselines: `moescope baseline pin NAME` pins one.")
        return
    table = Table()
    for column in ("name", "deployment", "tokens", "window (UTC)", "note"):
        table.add_column(column, overflow="fold")
    for item in answer["baselines"]:
        table.add_row(
            item["name"],
            f"{item['model']} on {item['server']}",
            f"{item['tokens']:,}",
            f"{_time(item['start'])} to {_time(item['end'])}",
            item["note"],
        )
    terminal().print(table)


def remove(
    name: NameArgument, url: UrlOption = _URL, server: ServerOption = None, model: ModelOption = None
) -> None:
    """Remove a baseline."""
    path, params = f"/v1/baselines/{quote(name, safe='')}", {"server": server, "model": model}
    _ask(lambda: send_json("DELETE", url, path, params, None))
    typer.echo(f"{name} is removed")


def _drift_view(answer: dict[str, Any]) -> RenderableType:
    where = f"{answer['model']} on {answer['server']}"
    tokens = "tokens" if answer["tokens"] is None else f"{answer['tokens']:,} tokens"
    of = "" if answer["phase"] is None else f" of {answer['phase']}"
    table = Table(title=f"{where}: {tokens}{of} against {answer['baseline']}")
    for name in ("layer", "tokens", "bits", "by sampling", "moved"):
        table.add_column(name, justify="right")
    for name in ("newly dead", "newly hot"):
        table.add_column(name, overflow="fold")
    for layer in answer["layers"]:
        if layer["divergence"] is None:
            continue
        table.add_row(
            str(layer["layer"]),
            f"{layer['tokens']:,}",
            f"{layer['divergence']:.4f}",
            f"{layer['noise']:.4f}",
            f"{layer['moved']:.1%}",
            _some(layer["new_dead"]),
            _some(layer["new_hot"]),
        )
    reasons = sorted({layer["reason"] for layer in answer["layers"] if layer["reason"]})
    return Group(table, _summary(answer), *(Text(f"- {reason}", style="dim") for reason in reasons))


def _summary(answer: dict[str, Any]) -> Text:
    summary = answer["summary"]
    if summary["median"] is None:
        return Text("No sample: no layer has enough tokens in both windows.", style="bold")
    found = summary["median"] > 3 * summary["noise"]
    verdict = "Drifted" if found else "No drift beyond sampling"
    return Text(
        f"{verdict}: median {summary['median']:.4f} bits (sampling alone "
        f"{summary['noise']:.4f}), worst {summary['worst']:.4f} in layer {summary['worst_layer']}; "
        f"{summary['new_dead']} experts newly dead, {summary['new_hot']} newly hot",
        style="bold yellow" if found else "bold",
    )


def _some(experts: list[int]) -> str:
    shown = " ".join(map(str, experts[:_MOST_EXPERTS]))
    return f"{shown} and {len(experts) - _MOST_EXPERTS} more" if len(experts) > _MOST_EXPERTS else shown


def _time(instant: float) -> str:
    return datetime.fromtimestamp(instant, UTC).strftime("%F %T")


def _ask(question: Callable[[], _T]) -> _T:
    try:
        return question()
    except ServiceUnavailableError as error:
        typer.echo(f"moescope: {error}", err=True)
        raise typer.Exit(2) from None
