"""The command ``moescope pools``: replicas of one model side by side."""

from __future__ import annotations

from typing import Annotated, Final
from urllib.parse import quote

import typer

from moescope.service.cli.asking import ask
from moescope.service.cli.completion import pool_names
from moescope.service.cli.options import (
    EndOption,
    MinTokensOption,
    ModelOption,
    StartOption,
    UrlOption,
    Watching,
)
from moescope.service.cli.output import Output, show_again
from moescope.service.cli.pool_views import pool_view, pools_view
from moescope.service.client.http import Parameters

POOLS_HELP: Final = """Compare the replicas of a model, to see which of them is the problem.

A pool is what MOESCOPE_POOL in vLLM's environment names: the deployments of one model that serve the same
traffic. Without a name this lists all pools. With one it shows each replica by itself beside its siblings,
the others of its role: tokens, imbalance over EP and DP ranks, hot experts, straggler cost, and how far its
routing is from theirs. Lines below the table say who stands out. Prefill instances are also compared with
decode instances, layer by layer.

Examples:

  moescope pools

  moescope pools chat --start=-15m

  moescope pools chat --start=-5m --watch

  moescope balance --pool chat                          the balance of each replica in full
"""
PoolArgument = Annotated[
    str | None,
    typer.Argument(metavar="[POOL]", help="The pool; all when absent.", autocompletion=pool_names),
]


def pools(
    url: UrlOption,
    watching: Watching,
    output: Output,
    pool: PoolArgument = None,
    model: ModelOption = None,
    start: StartOption = None,
    end: EndOption = None,
    min_tokens: MinTokensOption = None,
) -> None:
    """Print the pools of a running service, or one of them, once or until Ctrl-C."""
    params: Parameters = {"model": model, "start": start, "end": end}
    path = "/v1/pools"
    if pool is not None:
        path, params = path_of(pool), {**params, "min_tokens": min_tokens}
    view = pools_view if pool is None else pool_view
    show_again(output, lambda: ask(url, path, params), view, watching.period_s)


def path_of(pool: str) -> str:
    """The path of a pool, whatever its name is."""
    return f"/v1/pools/{quote(pool, safe='')}"
