"""The commands behind ``moescope traces``."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, TypeVar
from urllib.parse import quote

import typer
from rich.table import Table

from moescope.service.cli.terminal import printable, terminal
from moescope.service.client.http import ServiceUnavailableError, get_bytes, get_json

UrlOption = Annotated[str, typer.Option(help="Address of the running service.")]
IdArgument = Annotated[
    str, typer.Argument(help="The completion's id, the X-Request-Id or vLLM's internal id.")
]
LayerOption = Annotated[list[int] | None, typer.Option(help="Only this layer; may be repeated.")]

_URL = "http://127.0.0.1:9890"
_SUFFIXES = ("json", "npz", "parquet", "raw")

_LIST_HELP = """List traced requests, newest first.

Examples:

  moescope traces list --start=-1h --min-tokens 100

  moescope traces list --layer 3 --expert 17
"""
_SHOW_HELP = """Show the experts that each token of a request took.

Examples:

  moescope traces show my-request

  moescope traces show my-request --first 100 --end 120 --layer 3
"""
_EXPORT_HELP = """Write a trace to a file, whose suffix is the format: .json, .npz, .parquet or .raw.

Examples:

  moescope traces export my-request my-request.npz
"""

_T = TypeVar("_T")


def trace_commands() -> typer.Typer:
    """``list``, ``show`` and ``export``."""
    app = typer.Typer(help="Routing traces of requests.", no_args_is_help=True)
    app.command(name="list", help=_LIST_HELP)(list_traces)
    app.command(help=_SHOW_HELP)(show)
    app.command(help=_EXPORT_HELP)(export)
    return app


def list_traces(
    url: UrlOption = _URL,
    server: Annotated[str | None, typer.Option(help="Only this vLLM deployment.")] = None,
    model: Annotated[str | None, typer.Option(help="Only this model.")] = None,
    start: Annotated[str | None, typer.Option(help="Stored since, as -1h.")] = None,
    end: Annotated[str | None, typer.Option(help="Stored before, as -5m.")] = None,
    min_tokens: Annotated[int | None, typer.Option(help="Only with so many tokens computed.")] = None,
    layer: Annotated[int | None, typer.Option(help="With --expert: the layer it was taken in.")] = None,
    expert: Annotated[int | None, typer.Option(help="Only those that took this expert.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to list.")] = 20,
) -> None:
    """Print a line for each trace."""
    numbers = {"min_tokens": min_tokens, "layer": layer, "expert": expert, "limit": limit}
    params: dict[str, str | None] = {"server": server, "model": model, "start": start, "end": end}
    params |= {name: None if value is None else str(value) for name, value in numbers.items()}
    page = _ask(lambda: get_json(url, "/v1/traces", params))
    table = Table()
    for name in ("id", "DP", "tokens", "prompt", "cached", "preempted", "outcome", "ended (UTC)"):
        table.add_column(name, overflow="fold")
    for trace in page["traces"]:
        table.add_row(
            printable(trace["names"][-1]),
            *(
                str(trace[name])
                for name in ("dp_rank", "tokens", "prompt_tokens", "cached_tokens", "preemptions")
            ),
            trace["outcome"],
            datetime.fromtimestamp(trace["ended_at"], UTC).strftime("%F %T"),
        )
    terminal().print(table if page["traces"] else "No traces.")
    if page["next_cursor"] is not None:
        typer.echo(f"There are more than {limit}: give --limit, or a narrower --start.")


def show(
    request_id: IdArgument,
    url: UrlOption = _URL,
    layer: LayerOption = None,
    first: Annotated[int, typer.Option(min=0, help="First position.")] = 0,
    end: Annotated[
        int | None, typer.Option(min=0, help="Position to end before; first + 32 when absent.")
    ] = None,
) -> None:
    """Print a line for each position."""
    params: dict[str, str | None] = {"first": str(first), "end": str(first + 32 if end is None else end)}
    path = _path(request_id, "json", layer)
    trace: dict[str, Any] = _ask(lambda: get_json(url, path, params))
    table = Table(
        title=f"{printable(trace['request_id'])}: {trace['tokens']} tokens computed, {trace['outcome']}"
    )
    table.add_column("position", justify="right")
    for number in trace["layers"]:
        table.add_column(f"layer {number}")
    for offset, experts in enumerate(trace["routed_experts"]):
        cells = [" ".join(str(expert) for expert in row if expert >= 0) or "not computed" for row in experts]
        table.add_row(str(trace["first_position"] + offset), *cells)
    terminal().print(table)


def export(
    request_id: IdArgument,
    file: Annotated[Path, typer.Argument(help="Where to write.")],
    url: UrlOption = _URL,
    layer: LayerOption = None,
) -> None:
    """Write a file."""
    suffix = file.suffix.removeprefix(".")
    if suffix not in _SUFFIXES:
        raise _failure(f"{file} has no suffix of a format: give one of .{', .'.join(_SUFFIXES)}")
    content = _ask(lambda: get_bytes(url, _path(request_id, suffix, layer), {}, timeout_s=60))
    try:
        file.write_bytes(content)
    except OSError as error:
        raise _failure(f"{file} can't be written: {error.strerror}") from None
    typer.echo(f"{file}: {len(content)} bytes")


def _path(request_id: str, suffix: str, layers: list[int] | None) -> str:
    chosen = "&".join(f"layer={layer}" for layer in layers or ())
    return f"/v1/traces/{quote(request_id)}.{suffix}{'?' if chosen else ''}{chosen}"


def _ask(question: Callable[[], _T]) -> _T:
    try:
        return question()
    except ServiceUnavailableError as error:
        raise _failure(str(error)) from None


def _failure(message: str) -> typer.Exit:
    typer.echo(f"moescope: {message}", err=True)
    return typer.Exit(2)
