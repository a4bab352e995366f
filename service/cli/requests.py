"""The commands behind ``moescope requests``: questions about many traced requests."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

import typer
from rich.table import Table

from moescope.service.cli.asking import ask_telling
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import JsonOption, LayerOption, UrlOption
from moescope.service.cli.terminal import print_json, say, terminal, utc

_UNUSUAL_HELP: Final = """List the traced requests whose routing is most unusual.

Each request's experts are compared with those of all requests that match. `experts` are those that the
request took more often than the others did, as layer:expert.

Examples:

  moescope requests unusual --start=-1h --min-tokens 100

  moescope requests unusual --model my-model --by divergence_bits --layer 3
"""
_CONCENTRATED_HELP: Final = """List the traced requests of a deployment that load one EP rank most.

Experts are counted where the present placement has them.

Examples:

  moescope requests concentrated --start=-1h

  moescope requests concentrated --server decode --layer 3 --layer 4
"""
_SIMILAR_HELP: Final = """List the traced requests whose experts are most like those of one of them.

Examples:

  moescope requests similar my-request

  moescope requests similar my-request --like-server prefill --start=-1d --limit 5
"""
_READING: Final = "reading requests"


def requests_group() -> typer.Typer:
    """``unusual``, ``concentrated`` and ``similar``."""
    app = typer.Typer(help="Questions about many traced requests.", no_args_is_help=True)
    add_command(app, list_unusual, _UNUSUAL_HELP, name="unusual")
    add_command(app, list_concentrated, _CONCENTRATED_HELP, name="concentrated")
    add_command(app, list_similar, _SIMILAR_HELP, name="similar")
    return app


@dataclass(frozen=True, slots=True)
class Among:
    """Which requests are compared."""

    server: Annotated[
        str | None, typer.Option(help="Only requests of this vLLM deployment; of all when absent.")
    ] = None
    model: Annotated[
        str | None, typer.Option(help="Only requests of this model; of the only one when absent.")
    ] = None
    pool: Annotated[
        str | None, typer.Option(help="Only requests of this pool of deployments; of all when absent.")
    ] = None
    dp_rank: Annotated[
        int | None, typer.Option(min=0, help="Only requests of this DP rank; of all when absent.")
    ] = None
    start: Annotated[
        str | None, typer.Option(help="Stored since, as -1h; all that are kept when absent.")
    ] = None
    end: Annotated[str | None, typer.Option(help="Stored before, as -5m; until now when absent.")] = None
    min_tokens: Annotated[
        int | None, typer.Option(min=1, help="Only with so many tokens computed or more; all when absent.")
    ] = None
    lora: Annotated[
        str | None, typer.Option(help="Only requests of this LoRA adapter; of all and of none when absent.")
    ] = None
    base: Annotated[bool, typer.Option("--base", help="Only requests of no LoRA adapter.")] = False
    weights_version: Annotated[
        int | None,
        typer.Option(min=0, help="Only those of which these weights computed a token; all when absent."),
    ] = None
    limit: Annotated[int, typer.Option(min=1, max=1000, help="Most to list.")] = 20


def list_unusual(
    url: UrlOption,
    among: Among,
    layer: LayerOption = None,
    by: Annotated[
        Literal["surprise_score", "divergence_bits", "surprise_bits"],
        typer.Option(help="What ranks them; docs/measures.md defines all three."),
    ] = "surprise_score",
    as_json: JsonOption = False,
) -> None:
    """Print a line for each request."""
    answer = ask_telling(url, "/v1/requests/unusual", {**asdict(among), "layer": layer, "by": by}, _READING)
    if as_json:
        print_json(answer)
        return
    table = _table("score", "divergence (bits)", "surprise (bits)", "experts")
    for item in answer["requests"]:
        telling = " ".join(f"{one['layer']}:{one['expert']}" for one in item["telling"])
        _add(
            table,
            item,
            *(f"{item['surprise_score']:.1f}", f"{item['divergence_bits']:.3f}"),
            *(f"{item['surprise_bits']:.3f}", telling),
        )
    _print(table, answer)


def list_concentrated(
    url: UrlOption, among: Among, layer: LayerOption = None, as_json: JsonOption = False
) -> None:
    """Print a line for each request."""
    answer = ask_telling(url, "/v1/requests/concentrated", {**asdict(among), "layer": layer}, _READING)
    if as_json:
        print_json(answer)
        return
    table = _table("EP rank", "share", "of an even share", "placed")
    for item in answer["requests"]:
        share = item["busiest_ep_rank_share"]
        _add(
            table,
            item,
            *(str(item["busiest_ep_rank"]), f"{share:.1%}", f"{share * answer['ep_size']:.2f}x"),
            "otherwise then" if item["earlier_placement"] else "as now",
        )
    _print(table, answer)
    if answer["partial"] is not None:
        say(f"The placement is {answer['partial']}")
    if answer["unplaced_layers"]:
        say(f"Layers that don't count, since it isn't known where they are: {answer['unplaced_layers']}")


def list_similar(
    like: Annotated[str, typer.Argument(help="The completion's id, the X-Request-Id or vLLM's internal id.")],
    url: UrlOption,
    among: Among,
    like_server: Annotated[
        str | None,
        typer.Option(help="Deployment of that request; when absent, the only one that has it."),
    ] = None,
    like_model: Annotated[
        str | None,
        typer.Option(help="Model of that request; when absent, the only one that has it."),
    ] = None,
    layer: LayerOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a line for each request."""
    of_it = {"like": like, "like_server": like_server, "like_model": like_model}
    params = {**asdict(among), **of_it, "layer": layer}
    answer = ask_telling(url, "/v1/requests/similar", params, _READING)
    if as_json:
        print_json(answer)
        return
    table = _table("similarity", "layers")
    for item in answer["requests"]:
        _add(table, item, f"{item['similarity']:.4f}", str(item["layers"]))
    _print(table, answer)


def _table(*columns: str) -> Table:
    table = Table()
    for name in ("id", "server", "tokens", "ended (UTC)", *columns):
        table.add_column(name, overflow="fold")
    return table


def _add(table: Table, item: dict[str, Any], *cells: str) -> None:
    request = item["request"]
    table.add_row(
        *(request["names"][-1], request["server"], str(request["tokens"]), utc(request["ended_at"])), *cells
    )


def _print(table: Table, answer: dict[str, Any]) -> None:
    compared = answer["compared"]
    terminal().print(table if answer["requests"] else "No traced request matches.")
    say(f"{compared['requests']} requests were compared, with {compared['tokens']} tokens.")
    if compared["left_out"] or compared["truncated"]:
        older = f"{compared['left_out']} older ones" if compared["left_out"] else "Still older ones"
        say(
            f"{older} match too and were not compared: give a narrower --start and --end, or set "
            "request_counts_mib of the service."
        )
    if compared["unreadable"]:
        say(f"{compared['unreadable']} more can't be read: the service's log says why.")
