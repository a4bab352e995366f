"""The command ``moescope report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from moescope.service.cli.options import Deployment
from moescope.service.cli.terminal import ending_at, say, write_file
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
"""


def report(
    deployment: Deployment,
    since: Annotated[str, typer.Option(help="Length of the window until now: 90s, 15m, 1h, 7d.")] = "1h",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
) -> None:
    """Ask the service, write the page."""
    with ending_at(ValueError, ServiceUnavailableError):
        facts = gather(deployment.url, parse_since(since), deployment.server, deployment.model)
        page = document(facts)
    write_file(output, page.encode())
    say(f"{output}: {facts.tokens} tokens of {facts.balance['model']}")
