"""The command ``moescope top``: ranks and layers of a running service, live."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Final

import typer

from moescope.service.cli.options import Deployment
from moescope.service.cli.terminal import ending_at, failure, is_terminal, terminal
from moescope.service.cli.top_facts import take
from moescope.service.cli.top_feed import Feed, asking
from moescope.service.cli.top_screen import draw
from moescope.service.cli.top_state import State, keys_of
from moescope.service.cli.top_terminal import Screen, stop_until_continued
from moescope.service.client.http import ServiceUnavailableError
from moescope.service.settings import SettingsError

TOP_HELP: Final = """Watch ranks and layers of a running service, live, as htop shows processes.

Above stands the verdict. Below it are the EP ranks with their part in the waiting, the layers, or the DP
ranks. Keys choose the view, the column to sort by, the deployment and the window, and ? lists them. Where the
service does not answer, the last numbers stay, with their age. In a pipe use `moescope balance --watch`.

Examples:

  moescope top

  moescope top --url http://gpu-7:9890 --server prod --start=-5m
"""
_CLOCK_S: Final = 1.0  # an age on the screen is not older


def top(
    deployment: Deployment,
    start: Annotated[
        str, typer.Option(help="Begin of the window, which ends now: so long ago, as -90s, -5m or -1h.")
    ] = "-1m",
    interval_s: Annotated[float, typer.Option(min=0.2, help="Time between questions, seconds.")] = 2.0,
) -> None:
    """Show the screen until q or Ctrl-C."""
    state = State(start, (deployment.server, deployment.model))
    with ending_at(ServiceUnavailableError, SettingsError):  # a mistake is said before the screen is taken
        first = take(asking(deployment.url), state.deployment, start, time.time())
    if not (is_terminal() and sys.stdin.isatty()) or terminal().is_dumb_terminal:
        raise failure("top needs a terminal; elsewhere use `moescope balance --watch`, or -o csv")
    feed = Feed(deployment.url, interval_s, first)
    try:
        while not state.ended:
            with Screen() as screen:
                _run(screen, state, feed)
            if screen.suspended:
                stop_until_continued()
    except (KeyboardInterrupt, EOFError):
        return


def _run(screen: Screen, state: State, feed: Feed) -> None:
    """Draw and take keys until the user quits, or wants the shell for a while."""
    moment = feed.moment()
    with feed.telling(screen.wake):
        feed.want(state)
        while not (state.ended or screen.suspended):
            moment = moment if state.paused else feed.moment()
            screen.show(draw(moment, state, *screen.size))
            for key in keys_of(screen.wait(_CLOCK_S)):
                if state.press(key, moment.snapshot):
                    feed.want(state)
