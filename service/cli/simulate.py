"""The command ``moescope simulate``."""

from __future__ import annotations

import re
import time
from contextlib import closing
from typing import Annotated, Final

import typer

from moescope.service.client.http import ServiceUnavailableError
from moescope.service.client.settings import client_settings
from moescope.service.simulation.feed import Poster, Progress, feed
from moescope.service.simulation.fleet import Outage, Plan
from moescope.service.simulation.routing import Habits, Shape

SIMULATE_HELP: Final = """Feed a running service with frames of a simulated fleet: for demos, load and tests.

The frames are real wire frames, from a model of routing: each rank computes tokens, each token chooses top-k
experts in every layer, slots are conserved exactly. The default is DeepSeek-V3's shape on 32 ranks. The
same seed gives the same popularity of experts. MOESCOPE_TOKEN is the bearer token, if the service wants one.

Examples:

  moescope simulate                                     32 ranks, 58 layers of 256 experts, until Ctrl-C

  moescope simulate --ranks 8 --layers 4 --experts 16 --top-k 4 --duration 60

  moescope simulate --rank-imbalance 2 --skew 1         rank 0 has twice its share, few experts most slots

  moescope simulate --hot 0.6 --hot-moves-s 120         one expert a layer gets 60 % of the tokens, and moves

  moescope simulate --fail 3@60 --fail 5@60-120         rank 3 dies after a minute, rank 5 comes back

  moescope simulate --rearrange-s 300                   experts move by load every 5 minutes, as with EPLB

  moescope simulate --alternate 3 --skew 0              in each step another EP rank has three times its share

  moescope simulate --decode-share 0.5 --decode-shift 1 half the tokens are of decode and choose other experts

  moescope simulate --lost-steps 0.1                    ranks lose the loads of a tenth of their steps

  moescope simulate --trace-rate 0.002                  of 2 requests in 1000 the trace; wants serve --store
"""
_SECONDS_BETWEEN_LINES: Final = 10.0


def simulate(
    url: Annotated[str, typer.Option(help="Address of the running service.")] = "http://127.0.0.1:9890",
    server: Annotated[str, typer.Option(help="Name of the deployment.")] = "simulated",
    model: Annotated[str, typer.Option(help="Name of the model.")] = "simulated/moe",
    ranks: Annotated[int, typer.Option(min=1, help="Workers, each a DP rank and an EP rank.")] = 32,
    layers: Annotated[int, typer.Option(min=1, help="MoE layers.")] = 58,
    first_layer: Annotated[int, typer.Option(min=0, help="Decoder layer that is the first of them.")] = 3,
    experts: Annotated[int, typer.Option(min=1, help="Experts of a layer.")] = 256,
    top_k: Annotated[int, typer.Option(min=1, help="Experts that a token takes.")] = 8,
    tokens: Annotated[float, typer.Option(min=0, help="Tokens per second of a rank, on average.")] = 2000.0,
    skew: Annotated[float, typer.Option(min=0, help="Zipf exponent over experts; 0 is uniform.")] = 0.3,
    drift: Annotated[float, typer.Option(min=0, help="Walk of log-popularity per sqrt(second).")] = 0.005,
    rank_imbalance: Annotated[float, typer.Option(min=1, help="Max / mean of tokens over DP ranks.")] = 1.0,
    hot: Annotated[float, typer.Option(min=0, max=1, help="Share of tokens that take the hot expert.")] = 0.0,
    hot_moves_s: Annotated[float, typer.Option(min=1, help="Seconds until another is the hot one.")] = 60.0,
    steps: Annotated[
        float,
        typer.Option(
            min=0, help="Steps per second, which all ranks do together; fewer for hundreds of ranks."
        ),
    ] = 25.0,
    decode_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of tokens that are of decode.")
    ] = 0.8,
    decode_shift: Annotated[
        float, typer.Option(min=0, help="How far decode's log-popularity of experts is off prefill's.")
    ] = 0.5,
    phases: Annotated[
        bool, typer.Option("--phases/--no-phases", help="Without: frames of wire 1.2, no phases, no steps.")
    ] = True,
    alternate: Annotated[
        float, typer.Option(min=1, help="Max / mean over EP ranks in a step; the hot rank changes each step.")
    ] = 1.0,
    lost_steps: Annotated[
        float, typer.Option(min=0, max=1, help="Share of steps whose loads are lost.")
    ] = 0.0,
    dead: Annotated[int, typer.Option(min=0, help="Experts of a layer that no token takes.")] = 0,
    fail: Annotated[
        list[str] | None, typer.Option(help="RANK@START or RANK@START-END: the rank is silent (seconds).")
    ] = None,
    rearrange_s: Annotated[
        float | None,
        typer.Option(min=1, help="Seconds between rearrangements of experts; never when absent."),
    ] = None,
    uncovered: Annotated[list[int] | None, typer.Option(help="Decoder layer that can't be seen.")] = None,
    trace_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the requests whose routing is traced.")
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.")] = 0,
    interval_s: Annotated[float, typer.Option("--interval", min=0.05, help="Seconds between frames.")] = 1.0,
    duration_s: Annotated[
        float | None, typer.Option("--duration", min=0, help="Seconds to run; until Ctrl-C when absent.")
    ] = None,
) -> None:
    """Feed the service until the duration has passed or Ctrl-C."""
    try:
        plan = Plan(
            server=server,
            model=model,
            ranks=ranks,
            shape=Shape(layers, experts, top_k, first_layer),
            habits=Habits(skew, drift, hot, hot_moves_s, dead, decode_shift),
            tokens_per_s=tokens,
            steps_per_s=steps,
            decode_share=decode_share,
            phases=phases,
            alternate=alternate,
            lost_steps=lost_steps,
            rank_imbalance=rank_imbalance,
            outages=tuple(map(outage, fail or ())),
            rearrange_s=rearrange_s,
            uncovered=tuple(uncovered or ()),
            trace_rate=trace_rate,
            seed=seed,
        )
        with closing(Poster(url, client_settings())) as poster:
            typer.echo(f"{ranks} ranks, {layers} layers of {experts} experts, top-{top_k}: feeding {url}")
            last = feed(plan, poster, interval_s, duration_s, _Teller())
    except (ValueError, ServiceUnavailableError) as error:
        typer.echo(f"moescope: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        return
    typer.echo(line(last))
    if not last.frames:
        raise typer.Exit(1)


def outage(text: str) -> Outage:
    """``3@60`` or ``3@60-120`` as an outage.

    Raises:
        ValueError: anything else.
    """
    found = re.fullmatch(r"(\d+)@(\d+(?:\.\d+)?)(?:-(\d+(?:\.\d+)?))?", text)
    if found is None:
        raise ValueError(f"--fail {text}: write RANK@START or RANK@START-END, as 3@60 or 3@60-120")
    rank, start, end = found.groups()
    return Outage(int(rank), float(start), None if end is None else float(end))


def line(progress: Progress) -> str:
    """One line about how it goes."""
    traces = f" and {progress.traces} traces" if progress.traces else ""
    text = f"{progress.elapsed_s:.0f} s: {progress.frames} frames{traces}, {progress.round_s:.2f} s a round"
    if progress.failed:
        text += f", {progress.failed} not delivered"
    if progress.late_s:
        text += f"; {progress.late_s:.2f} s too slow: give fewer --steps or a longer --interval"
    return f"{text}; {progress.problem}" if progress.problem else text


class _Teller:
    """Prints a line now and then, and when something new is wrong."""

    def __init__(self) -> None:
        self._last = 0.0
        self._problem: str | None = None

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last < _SECONDS_BETWEEN_LINES and progress.problem == self._problem:
            return
        self._last, self._problem = now, progress.problem
        typer.echo(line(progress))
