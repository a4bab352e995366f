"""The commands behind ``moescope requests``: questions about many traced requests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final, Literal

import typer

from moescope.service.cli.asking import ask_telling
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import LayerOption, UrlOption
from moescope.service.cli.output import Output, show
from moescope.service.cli.sheets import Column, Line, Readers, Sheet, View, count, fixed, percent, word
from moescope.service.cli.terminal import utc

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


_REQUEST: Final = (
    word("id", "id", key=True),
    word("request_id", "request", readers=Readers.PROGRAMS),
    word("server", "server", same=True),
    word("model", "model", readers=Readers.PROGRAMS),
    Column("tokens", "tokens", count),
    word("ended_at", "ended (UTC)", form=utc, spare=1),
)
_UNUSUAL: Final = (
    *_REQUEST,
    Column("surprise_score", "score", fixed(1)),
    Column("divergence_bits", "divergence (bits)", fixed(3)),
    Column("surprise_bits", "surprise (bits)", fixed(3)),
    word("experts", "experts", prose=True, form=" ".join),
)
_CONCENTRATED: Final = (
    *_REQUEST,
    Column("busiest_ep_rank", "EP rank"),
    Column("busiest_ep_rank_share", "share", percent),
    Column("of_an_even_share", "of an even share", lambda times: f"{times:.2f}x"),
    word(
        "earlier_placement", "placed", form=lambda earlier: "otherwise then" if earlier else "as now", spare=2
    ),
)
_SIMILAR: Final = (
    *_REQUEST,
    Column("similarity", "similarity", fixed(4)),
    Column("layers", "layers"),
)


def list_unusual(
    url: UrlOption,
    among: Among,
    output: Output,
    layer: LayerOption = None,
    by: Annotated[
        Literal["surprise_score", "divergence_bits", "surprise_bits"],
        typer.Option(help="What ranks them; docs/measures.md defines all three."),
    ] = "surprise_score",
) -> None:
    """Print a line for each request."""
    answer = ask_telling(url, "/v1/requests/unusual", {**asdict(among), "layer": layer, "by": by}, _READING)
    show(output, answer, _unusual_view)


def _unusual_view(answer: dict[str, Any]) -> View:
    rows = [
        (
            *_whose(item),
            *(item[name] for name in ("surprise_score", "divergence_bits", "surprise_bits")),
            [f"{one['layer']}:{one['expert']}" for one in item["telling"]],
        )
        for item in answer["requests"]
    ]
    return _view(_UNUSUAL, rows, answer)


def list_concentrated(url: UrlOption, among: Among, output: Output, layer: LayerOption = None) -> None:
    """Print a line for each request."""
    answer = ask_telling(url, "/v1/requests/concentrated", {**asdict(among), "layer": layer}, _READING)
    show(output, answer, _concentrated_view)


def _concentrated_view(answer: dict[str, Any]) -> View:
    rows = [
        (
            *(*_whose(item), item["busiest_ep_rank"], item["busiest_ep_rank_share"]),
            item["busiest_ep_rank_share"] * answer["ep_size"],
            item["earlier_placement"],
        )
        for item in answer["requests"]
    ]
    lines = [] if answer["partial"] is None else [Line(f"The placement is {answer['partial']}")]
    if unplaced := answer["unplaced_layers"]:
        lines.append(Line(f"Layers that don't count, since it isn't known where they are: {unplaced}"))
    return _view(_CONCENTRATED, rows, answer) + View(lines)


def list_similar(
    like: Annotated[str, typer.Argument(help="The completion's id, the X-Request-Id or vLLM's internal id.")],
    url: UrlOption,
    among: Among,
    output: Output,
    like_server: Annotated[
        str | None,
        typer.Option(help="Deployment of that request; when absent, the only one that has it."),
    ] = None,
    like_model: Annotated[
        str | None,
        typer.Option(help="Model of that request; when absent, the only one that has it."),
    ] = None,
    layer: LayerOption = None,
) -> None:
    """Print a line for each request."""
    of_it = {"like": like, "like_server": like_server, "like_model": like_model}
    params = {**asdict(among), **of_it, "layer": layer}
    answer = ask_telling(url, "/v1/requests/similar", params, _READING)
    show(output, answer, _similar_view)


def _similar_view(answer: dict[str, Any]) -> View:
    rows = [(*_whose(item), item["similarity"], item["layers"]) for item in answer["requests"]]
    return _view(_SIMILAR, rows, answer)


def _whose(item: dict[str, Any]) -> list[Any]:
    request = item["request"]
    fields = (request[name] for name in ("request_id", "server", "model", "tokens", "ended_at"))
    return [request["names"][-1], *fields]


def _view(columns: Sequence[Column], rows: list[Any], answer: dict[str, Any]) -> View:
    compared = answer["compared"]
    sheet = Sheet("", columns, rows, readers=Readers.ALL if rows else Readers.PROGRAMS)
    lines = [] if rows else [Line("No traced request matches.")]
    lines.append(Line(f"{compared['requests']} requests were compared, with {compared['tokens']} tokens."))
    if compared["left_out"] or compared["truncated"]:
        older = f"{compared['left_out']} older ones" if compared["left_out"] else "Still older ones"
        lines.append(
            Line(
                f"{older} match too and were not compared: give a narrower --start and --end, or set "
                "request_counts_mib of the service."
            )
        )
    if compared["unreadable"]:
        lines.append(Line(f"{compared['unreadable']} more can't be read: the service's log says why."))
    return View((sheet, *lines))
