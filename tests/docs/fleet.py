"""The service that the documents' commands ask, fed by the simulated fleet that they tell readers to start.

Its clock is turned by hand, so ten minutes take seconds, and the same answers come each time.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import typer
from typer.testing import CliRunner

from moescope.service.cli.commands import command_line
from moescope.service.settings import Settings
from moescope.service.simulation.plan import Plan
from tests.browser.serving import Clock, Serving, feed, push_traces

STEP_S = 20
"""Seconds between two frames of a rank."""


def plan_of(command: str) -> Plan:
    """The plan that ``moescope simulate ...`` makes of its options."""
    words = shlex.split(command, comments=True)
    assert words[:2] == ["moescope", "simulate"], command
    plans: list[Plan] = []

    def note(plan: Plan, *_: Any) -> None:
        plans.append(plan)
        raise typer.Exit

    with patch("moescope.service.cli.simulate.feed", note):
        told = CliRunner().invoke(command_line(), words[1:])
    assert told.exit_code == 0, told.output
    return plans[0]


@contextmanager
def serving(plan: Plan, seconds: int) -> Iterator[Serving]:
    """A service with a store, after the fleet of a plan has run for a while."""
    clock = Clock()
    with (
        TemporaryDirectory(prefix="moescope-docs-") as store,
        Serving(clock, store=Path(store), min_tokens=Settings().min_tokens) as made,
    ):
        fleet = feed(made, clock, plan, seconds, STEP_S)
        if plan.trace_rate:
            push_traces(made, *fleet.traces(float(seconds)))
        yield made
