"""The command ``moescope report``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Final

import typer

from moescope.service.cli.options import Deployment
from moescope.service.cli.output import Form, text_of
from moescope.service.cli.terminal import ending_at, failure, say, working, write_file
from moescope.service.client.http import ServiceUnavailableError
from moescope.service.report.document import document
from moescope.service.report.facts import gather, parse_since

REPORT_HELP: Final = """Write a window of a running service as one HTML page with plots, to keep or to send.

The page needs no network and no service: balance over time, worst layers, a heatmap of experts, ranks and
stragglers, in light and dark. It has counts only, no traces.

Examples:

  moescope report                               the last hour, to report.html

  moescope report --since 7d -o week.html       with --store the service remembers that long

  moescope report --url http://gpu-7:9890 --model my-model

  moescope report -o json | jq .trend           the answers that the page is made of
"""


def report(
    deployment: Deployment,
    since: Annotated[str, typer.Option(help="Length of the window until now: 90s, 15m, 1h, 7d.")] = "1h",
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            metavar="<file>",
            help="File to write. json or yaml: print the answers that the page is made of instead.",
        ),
    ] = "report.html",
) -> None:
    """Ask the service, write the page."""
    form = Form(output) if output in tuple(Form) else None
    if form not in (None, Form.JSON, Form.YAML):
        raise failure(f"--output: {output} is no form of a report: give a file, json or yaml")
    with ending_at(ValueError, ServiceUnavailableError), working(f"asking {deployment.url}") as tell:
        facts = gather(deployment.url, parse_since(since), deployment.server, deployment.model, tell)
    if form is not None:
        say(text_of(form, asdict(facts)))
        return
    with working("drawing the page"):
        page = document(facts).encode()
    path = Path(output)
    write_file(path, page)
    say(f"{path}: {facts.tokens} tokens of {facts.balance['model']}")
