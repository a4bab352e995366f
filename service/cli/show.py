"""The commands ``moescope ranks``, ``balance`` and ``stragglers``: what the service knows, as tables."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from moescope.service.cli.asking import ask
from moescope.service.cli.balance_views import balance_view, stragglers_view
from moescope.service.cli.options import (
    Deployment,
    DpRankOption,
    EndOption,
    LayerOption,
    MinTokensOption,
    PhaseOption,
    PoolOption,
    StartOption,
    Watching,
)
from moescope.service.cli.output import Output, show, show_again
from moescope.service.cli.pools import path_of
from moescope.service.cli.rank_views import ranks_view
from moescope.service.cli.sheets import View
from moescope.service.client.http import Parameters

RANKS_HELP: Final = """Show who reports: ranks, totals, state, coverage.

Examples:

  moescope ranks

  moescope ranks --url http://gpu-7:9890 --model my-model

  moescope ranks --pool chat                            the replicas of a pool: see moescope pools
"""
BALANCE_HELP: Final = """Show the balance of every layer over EP ranks, DP ranks and experts.

Examples:

  moescope balance

  moescope balance --start=-5m --watch

  moescope balance --dp-rank 0 --phase decode --layer 3

  moescope balance -o csv > balance.csv                 numbers in full, for programs

  moescope balance --pool chat                          each replica of a pool: see moescope pools
"""
STRAGGLERS_HELP: Final = """Show what waiting for the busiest EP rank costs, by layer, from single steps.

Beside it stands what the window's sums say. They look balanced where the hot rank changes from step to step.

Examples:

  moescope stragglers

  moescope stragglers --start=-5m --watch
"""


def ranks(deployment: Deployment, output: Output, pool: PoolOption = None) -> None:
    """Print the ranks of a running service."""
    params = {**deployment.params, "pool": pool}
    show(output, ask(deployment.url, "/v1/ranks", params), ranks_view)


def balance(
    deployment: Deployment,
    watching: Watching,
    output: Output,
    start: StartOption = None,
    end: EndOption = None,
    min_tokens: MinTokensOption = None,
    layer: LayerOption = None,
    dp_rank: DpRankOption = None,
    phase: PhaseOption = None,
    pool: PoolOption = None,
) -> None:
    """Print the balance of a running service, once or until Ctrl-C."""
    filters = {"layer": layer, "dp_rank": dp_rank, "phase": phase, "start": start, "end": end}
    params = {**deployment.params, **filters, "min_tokens": min_tokens}
    _show(_Asking(deployment, "/v1/balance", params, pool), balance_view, output, watching)


def stragglers(
    deployment: Deployment,
    watching: Watching,
    output: Output,
    start: StartOption = None,
    end: EndOption = None,
    layer: LayerOption = None,
    pool: PoolOption = None,
) -> None:
    """Print the straggler cost of a running service, once or until Ctrl-C."""
    params = {**deployment.params, "layer": layer, "start": start, "end": end}
    _show(_Asking(deployment, "/v1/stragglers", params, pool), stragglers_view, output, watching)


def _show(
    asking: _Asking, view: Callable[[dict[str, Any]], View], output: Output, watching: Watching
) -> None:
    def whole(answer: Any) -> View:
        answers = answer if isinstance(answer, list) else [answer]
        return sum(map(view, answers), View())

    show_again(output, asking, whole, watching.period_s)


@dataclass(frozen=True, slots=True)
class _Asking:
    """Asks about one deployment, or about each live one of a pool, at each call."""

    deployment: Deployment
    path: str
    params: Parameters
    pool: str | None

    def __call__(self) -> Any:
        """The answer about one deployment, or the answers about all of a pool as a list."""
        url = self.deployment.url
        if self.pool is None or self.deployment.server is not None:
            return ask(url, self.path, {**self.params, "pool": self.pool})
        found = ask(url, path_of(self.pool), {"model": self.deployment.model})
        members = [
            {**self.params, "server": item["server"], "model": found["model"]}
            for item in found["deployments"]
        ]
        return [ask(url, self.path, params) for params in members]
