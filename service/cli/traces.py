"""The commands behind ``moescope traces``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import quote

import typer
from rich.table import Table

from moescope.service.cli.asking import ask, download
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import LayerOption, UrlOption
from moescope.service.cli.terminal import failure, say, terminal, utc, write_file

IdArgument = Annotated[
    str, typer.Argument(help="The completion's id, the X-Request-Id or vLLM's internal id.")
]

_SUFFIXES: Final = ("json", "npz", "parquet", "raw")

_LIST_HELP: Final = """List traced requests, newest first.

Examples:

  moescope traces list --start=-1h --min-tokens 100

  moescope traces list --layer 3 --expert 17
"""
_SHOW_HELP: Final = """Show the experts that each token of a request took.

Examples:

  moescope traces show my-request

  moescope traces show my-request --first 100 --end 120 --layer 3
"""
_EXPORT_HELP: Final = """Write a trace to a file, whose suffix is the format: .json, .npz, .parquet or .raw.

Examples:

  moescope traces export my-request my-request.npz
"""


def traces_group() -> typer.Typer:
    """``list``, ``show`` and ``export``."""
    app = typer.Typer(help="Routing traces of requests.", no_args_is_help=True)
    add_command(app, list_traces, _LIST_HELP, name="list")
    add_command(app, show, _SHOW_HELP)
    add_command(app, export, _EXPORT_HELP)
    return app


@dataclass(frozen=True, slots=True)
class Filter:
    """Which traces are listed."""

    server: Annotated[str | None, typer.Option(help="Only this vLLM deployment; all when absent.")] = None
    model: Annotated[str | None, typer.Option(help="Only this model; all when absent.")] = None
    start: Annotated[
        str | None, typer.Option(help="Stored since, as -1h; all that are kept when absent.")
    ] = None
    end: Annotated[str | None, typer.Option(help="Stored before, as -5m; until now when absent.")] = None
    min_tokens: Annotated[
        int | None, typer.Option(help="Only with so many tokens computed or more; all when absent.")
    ] = None
    layer: Annotated[
        int | None, typer.Option(help="With --expert: the layer it was taken in; any when absent.")
    ] = None
    expert: Annotated[int | None, typer.Option(help="Only those that took this expert; all when absent.")] = (
        None
    )
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to list.")] = 20


def list_traces(url: UrlOption, wanted: Filter) -> None:
    """Print a line for each trace."""
    page = ask(url, "/v1/traces", asdict(wanted))
    table = Table()
    for name in ("id", "DP", "tokens", "prompt", "cached", "preempted", "outcome", "ended (UTC)"):
        table.add_column(name, overflow="fold")
    for trace in page["traces"]:
        table.add_row(
            trace["names"][-1],
            *(
                str(trace[name])
                for name in ("dp_rank", "tokens", "prompt_tokens", "cached_tokens", "preemptions")
            ),
            trace["outcome"],
            utc(trace["ended_at"]),
        )
    terminal().print(table if page["traces"] else "No traces.")
    if page["next_cursor"] is not None:
        say(f"There are more than {wanted.limit}: give --limit, or a narrower --start.")


@dataclass(frozen=True, slots=True)
class Whose:
    """Which of several traces of one request: a prefill and a decode deployment have one each."""

    server: Annotated[
        str | None, typer.Option(help="Of this vLLM deployment; when absent, the only one that has it.")
    ] = None
    model: Annotated[
        str | None, typer.Option(help="Of this model; when absent, the only one that has it.")
    ] = None


def show(
    request_id: IdArgument,
    url: UrlOption,
    whose: Whose,
    layer: LayerOption = None,
    first: Annotated[int, typer.Option(min=0, help="First position, counted in tokens from 0.")] = 0,
    end: Annotated[
        int | None, typer.Option(min=0, help="Position to end before; first + 32 when absent.")
    ] = None,
) -> None:
    """Print a line for each position."""
    params = {**asdict(whose), "layer": layer, "first": first, "end": first + 32 if end is None else end}
    trace = ask(url, _path(request_id, "json"), params)
    table = Table(title=f"{trace['request_id']}: {trace['tokens']} tokens computed, {trace['outcome']}")
    table.add_column("position", justify="right")
    for number in trace["layers"]:
        table.add_column(f"layer {number}")
    for offset, experts in enumerate(trace["routed_experts"]):
        cells = [" ".join(str(expert) for expert in row if expert >= 0) or "not computed" for row in experts]
        table.add_row(str(trace["first_position"] + offset), *cells)
    terminal().print(table)


def export(
    request_id: IdArgument,
    file: Annotated[Path, typer.Argument(help="File to write; its suffix is the format.")],
    url: UrlOption,
    whose: Whose,
    layer: LayerOption = None,
) -> None:
    """Write a file."""
    suffix = file.suffix.removeprefix(".")
    if suffix not in _SUFFIXES:
        raise failure(f"{file} has no suffix of a format: give one of .{', .'.join(_SUFFIXES)}")
    content = download(url, _path(request_id, suffix), {**asdict(whose), "layer": layer}, timeout_s=60)
    write_file(file, content)
    say(f"{file}: {len(content)} bytes")


def _path(request_id: str, suffix: str) -> str:
    return f"/v1/traces/{quote(request_id)}.{suffix}"
