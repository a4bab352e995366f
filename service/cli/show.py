"""The commands ``moescope ranks``, ``balance`` and ``stragglers``: what the service knows, as tables."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from rich.console import RenderableType
from rich.live import Live

from moescope.service.cli.asking import ask
from moescope.service.cli.options import (
    Deployment,
    DpRankOption,
    EndOption,
    LayerOption,
    MinTokensOption,
    PhaseOption,
    StartOption,
    Watching,
)
from moescope.service.cli.tables import balance_tables, ranks_table, stragglers_tables
from moescope.service.cli.terminal import terminal

RANKS_HELP: Final = """Show who reports: ranks, totals, state, coverage.

Examples:

  moescope ranks

  moescope ranks --url http://gpu-7:9890 --model my-model
"""
BALANCE_HELP: Final = """Show the balance of every layer over EP ranks, DP ranks and experts.

Examples:

  moescope balance

  moescope balance --start=-5m --watch

  moescope balance --dp-rank 0 --phase decode --layer 3
"""
STRAGGLERS_HELP: Final = """Show what waiting for the busiest EP rank costs, by layer, from single steps.

Beside it stands what the window's sums say. They look balanced where the hot rank changes from step to step.

Examples:

  moescope stragglers

  moescope stragglers --start=-5m --watch
"""


def ranks(deployment: Deployment) -> None:
    """Print the ranks of a running service."""
    _show(lambda: ranks_table(ask(deployment.url, "/v1/ranks", deployment.params)), None)


def balance(
    deployment: Deployment,
    watching: Watching,
    start: StartOption = None,
    end: EndOption = None,
    min_tokens: MinTokensOption = None,
    layer: LayerOption = None,
    dp_rank: DpRankOption = None,
    phase: PhaseOption = None,
) -> None:
    """Print the balance of a running service, once or until Ctrl-C."""
    filters = {"layer": layer, "dp_rank": dp_rank, "phase": phase, "start": start, "end": end}
    params = {**deployment.params, **filters, "min_tokens": min_tokens}
    _show(lambda: balance_tables(ask(deployment.url, "/v1/balance", params)), watching.period_s)


def stragglers(
    deployment: Deployment,
    watching: Watching,
    start: StartOption = None,
    end: EndOption = None,
    layer: LayerOption = None,
) -> None:
    """Print the straggler cost of a running service, once or until Ctrl-C."""
    params = {**deployment.params, "layer": layer, "start": start, "end": end}
    _show(lambda: stragglers_tables(ask(deployment.url, "/v1/stragglers", params)), watching.period_s)


def _show(render: Callable[[], RenderableType], interval_s: float | None) -> None:
    """Print what ``render`` gives, once or every ``interval_s`` seconds until Ctrl-C."""
    console = terminal()
    if interval_s is None:
        console.print(render())
        return
    try:
        while not console.is_terminal:  # a file or a pipe gets one after the other, Live only the last
            console.print(render())
            time.sleep(interval_s)
        with Live(render(), console=console, auto_refresh=False) as live:
            while True:
                time.sleep(interval_s)
                live.update(render(), refresh=True)
    except KeyboardInterrupt:
        return
