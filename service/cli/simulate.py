"""The command ``moescope simulate``."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import closing
from typing import Final

import typer

from moescope.service.cli.options import UrlOption
from moescope.service.cli.simulate_options import (
    FaultOptions,
    FeedOptions,
    FleetOptions,
    RoutingOptions,
    StepOptions,
    plan_of,
)
from moescope.service.cli.terminal import code_of, ending_at, say, working
from moescope.service.client.http import ServiceUnavailableError
from moescope.service.client.settings import client_settings
from moescope.service.settings import SettingsError
from moescope.service.simulation.feed import Poster, Progress, feed
from moescope.service.simulation.plan import Plan

SIMULATE_HELP: Final = """Feed a running service with frames of a simulated fleet: for demos, load and tests.

The frames are real wire frames, from a model of routing: each rank computes tokens, each token chooses top-k
experts in every layer, and slots are conserved exactly. The default is DeepSeek-V3's shape on 32 ranks. The
same seed gives the same popularity of experts.

Examples:

  moescope simulate                                     32 ranks, 58 layers of 256 experts, until Ctrl-C

  moescope simulate --ranks 8 --layers 4 --experts 16 --top-k 4 --duration 60

  moescope simulate --rank-imbalance 2 --skew 1         rank 0 has twice its share, few experts most slots

  moescope simulate --hot 0.6 --hot-moves-s 120         one expert a layer gets 60 % of the tokens, and moves

  moescope simulate --fail 3@60 --fail 5@60-120         rank 3 dies after a minute, rank 5 comes back

  moescope simulate --rearrange-s 300                   experts move by load every 5 minutes, as with EPLB

  moescope simulate --alternate 3 --skew 0              in each step another EP rank has three times its share

  moescope simulate --hot-rank 2 --skew 0               the experts of EP rank 0 are popular in all layers;
                                                        with --hot-rank-by-layer those of another in each

  moescope simulate --decode-share 0.5 --decode-shift 1 half the tokens are of decode and choose other experts

  moescope simulate --replicas 3 --pool chat            three replicas of 32 ranks; --replica-shift 1 makes
                                                        the last one's tokens choose other experts

  moescope simulate --replicas 4 --pool chat --roles    two compute prefill, two decode; see moescope pools

  moescope simulate --unseen 5 --disabled 1 --twice 2   faults of capture, to see what is said of them

  moescope simulate --lost-steps 0.1                    ranks lose the loads of a tenth of their steps

  moescope simulate --trace-rate 0.002                  of 2 requests in 1000 the trace; wants serve --store
"""
_SECONDS_BETWEEN_LINES: Final = 10.0


def simulate(
    url: UrlOption,
    fleet: FleetOptions,
    routing: RoutingOptions,
    steps: StepOptions,
    faults: FaultOptions,
    feeding: FeedOptions,
) -> None:
    """Feed the service until the duration has passed or Ctrl-C."""
    with ending_at(ValueError, ServiceUnavailableError, SettingsError):
        plan = plan_of(fleet, routing, steps, faults, feeding)
        try:
            with closing(Poster(url, client_settings())) as poster:
                say(f"{_summary(plan)}: feeding {url}")
                with working("making the first frames") as tell:
                    last = feed(plan, poster, feeding.pace, _Teller(tell))
        except KeyboardInterrupt:
            return
    say(line(last))
    if last.problem is not None and not last.frames:
        raise typer.Exit(code_of(last.problem))


def _summary(plan: Plan) -> str:
    shape = plan.shape
    replicas = "" if plan.replicas == 1 else f"{plan.replicas} replicas of "
    return (
        f"{replicas}{plan.ranks} ranks, {shape.layers} layers of {shape.experts} experts, top-{shape.top_k}"
    )


def line(progress: Progress) -> str:
    """One line about how the simulation goes."""
    traces = f" and {progress.traces} traces" if progress.traces else ""
    text = f"{progress.elapsed_s:.0f} s: {progress.frames} frames{traces}, {progress.round_s:.2f} s a round"
    if progress.failed:
        text += f", {progress.failed} not delivered"
    if progress.late_s:
        text += f"; {progress.late_s:.2f} s too slow: give fewer --steps or a longer --interval"
    return text if progress.problem is None else f"{text}; {progress.problem}"


class _Teller:
    """Prints a line every 10 s, and one whenever the problem is another one than before.

    Args:
        tell: is called with each line, for a terminal.
    """

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._last = 0.0
        self._problem = ""

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        self._tell(line(progress))
        problem = "" if progress.problem is None else str(progress.problem)
        if now - self._last < _SECONDS_BETWEEN_LINES and problem == self._problem:
            return
        self._last, self._problem = now, problem
        say(line(progress))
