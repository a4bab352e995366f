"""The commands behind ``moescope traces``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal
from urllib.parse import quote

import typer

from moescope.service.cli.asking import ask_working
from moescope.service.cli.grouping import add_command
from moescope.service.cli.options import LayerOption, UrlOption
from moescope.service.cli.output import Output
from moescope.service.cli.output import show as show_answer
from moescope.service.cli.terminal import failure, say
from moescope.service.cli.trace_client import trace_client
from moescope.service.cli.trace_export import Question, export_folder
from moescope.service.cli.trace_views import trace_view, traces_view

IdArgument = Annotated[
    str, typer.Argument(help="The completion's id, the X-Request-Id or vLLM's internal id.")
]

_SUFFIXES: Final = ("json", "npz", "parquet", "arrow", "raw")
_TIMEOUT_S: Final = 60.0

_LIST_HELP: Final = """List traced requests, newest first.

Examples:

  moescope traces list --start=-1h --min-tokens 100

  moescope traces list --layer 3 --expert 17
"""
_SHOW_HELP: Final = """Show the experts that each token of a request took.

Examples:

  moescope traces show my-request

  moescope traces show my-request --first 100 --end 120 --layer 3

  moescope traces show my-request -o csv                a line for each position and layer
"""
_EXPORT_HELP: Final = """Write one trace to a file, or many into a folder.

Of one request the file's suffix is the format: .json, .npz, .parquet, .arrow or .raw.

Many go into a folder with --into, newest first, in parts. The same command goes on with a folder that it did
not finish; -1h is then one hour before the folder's first part.

Examples:

  moescope traces export my-request my-request.npz

  moescope traces export my-request my-request.npz --form vllm

  moescope traces export --into exports --model my-model --start=-1h

  moescope traces export --into exports --model my-model --format arrow --columns packed

With --joined a request is whole: the positions that other instances, attempts and earlier requests computed
for it are filled in, and each request is there once.

  moescope traces export my-request my-request.npz --joined

  moescope traces export --into exports --model my-model --joined
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
    pool: Annotated[
        str | None, typer.Option(help="Only of this pool of deployments; of all when absent.")
    ] = None
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


def list_traces(url: UrlOption, wanted: Filter, output: Output) -> None:
    """Print a line for each trace."""
    answer = ask_working(url, "/v1/traces", asdict(wanted), _TIMEOUT_S)
    show_answer(output, answer, partial(traces_view, limit=wanted.limit))


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
    output: Output,
    layer: LayerOption = None,
    first: Annotated[int, typer.Option(min=0, help="First position, counted in tokens from 0.")] = 0,
    end: Annotated[
        int | None, typer.Option(min=0, help="Position to end before; first + 32 when absent.")
    ] = None,
) -> None:
    """Print a line for each position."""
    last = first + 32 if end is None else end
    params = {**asdict(whose), "layer": layer, "first": first, "end": last}
    answer = ask_working(url, f"/v1/traces/{quote(request_id, safe='')}", params, _TIMEOUT_S)
    show_answer(output, answer, trace_view)


@dataclass(frozen=True, slots=True)
class Shape:
    """The shape of an array of experts."""

    form: Annotated[
        Literal["moescope", "vllm"],
        typer.Option(
            help="`moescope`: MoE layers, -1 where not computed. `vllm`: as vLLM's own routed_experts."
        ),
    ] = "moescope"
    missing: Annotated[
        Literal["refuse", "zero"],
        typer.Option(help="With --form vllm: refuse positions that nobody computed, or write zeros."),
    ] = "refuse"
    decoder_layers: Annotated[
        int | None,
        typer.Option(min=1, help="With --form vllm: layers of the model; when absent, as its workers tell."),
    ] = None

    @property
    def params(self) -> dict[str, Any]:
        """What a question has of it."""
        return asdict(self) if self.form == "vllm" else {}


@dataclass(frozen=True, slots=True)
class Many:
    """Which traces go into a folder, and how."""

    into: Annotated[
        Path | None, typer.Option(help="Folder for many traces; one is written to FILE when absent.")
    ] = None
    kind: Annotated[
        Literal["ndjson", "arrow", "parquet"],
        typer.Option("--format", help="With --into: format of the parts."),
    ] = "parquet"
    columns: Annotated[
        Literal["layers", "packed"],
        typer.Option(help="With --into: a column for each layer, or one column of bytes."),
    ] = "layers"
    pool: Annotated[
        str | None, typer.Option(help="With --into: only of this pool of deployments; of all when absent.")
    ] = None
    dp_rank: Annotated[
        int | None, typer.Option(min=0, help="With --into: only of this DP rank; of all when absent.")
    ] = None
    lora: Annotated[
        str | None,
        typer.Option(help="With --into: only of this LoRA adapter; none: only without one; all when absent."),
    ] = None
    start: Annotated[
        str | None, typer.Option(help="With --into: stored since, as -1h; all that are kept when absent.")
    ] = None
    end: Annotated[
        str | None, typer.Option(help="With --into: stored before, as -5m; until now when absent.")
    ] = None
    min_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="With --into: only with so many tokens computed or more; all when absent."),
    ] = None
    part_requests: Annotated[
        int, typer.Option(min=1, max=10_000, help="With --into: most requests of a part.")
    ] = 1000

    @property
    def where(self) -> dict[str, Any]:
        """The filter."""
        names = ("pool", "dp_rank", "lora", "start", "end", "min_tokens")
        return {name: getattr(self, name) for name in names}


def export(
    url: UrlOption,
    whose: Whose,
    shape: Shape,
    many: Many,
    request_id: Annotated[
        str | None,
        typer.Argument(help="The completion's id, the X-Request-Id or vLLM's internal id; none with --into."),
    ] = None,
    file: Annotated[
        Path | None, typer.Argument(help="File to write; its suffix is the format; none with --into.")
    ] = None,
    layer: LayerOption = None,
    joined: Annotated[
        bool,
        typer.Option(help="Whole requests; when absent, what the deployment of each trace computed for it."),
    ] = False,
) -> None:
    """Write a file, or a folder of them."""
    if many.into is not None:
        if request_id is not None:
            raise failure("give a request and a file, or --into and a folder, not both")
        options: dict[str, Any] = {"layers": layer, "columns": many.columns, **shape.params}
        options |= {"joined": True} if joined else {}
        question = Question(many.kind, {**asdict(whose), **many.where}, options)
        with trace_client(url) as client:
            export_folder(client, many.into, question, many.part_requests)
        return
    if request_id is None or file is None:
        raise failure("give a request and a file, as in `moescope traces export my-request t.npz`, or --into")
    suffix = file.suffix.removeprefix(".")
    if suffix not in _SUFFIXES:
        raise failure(f"{file} has no suffix of a format: give one of .{', .'.join(_SUFFIXES)}")
    with trace_client(url) as client:
        params = {**asdict(whose), "layer": layer, **shape.params}
        nbytes = client.download(request_id, file, suffix, params, joined=joined)
    say(f"{file}: {nbytes} bytes")
