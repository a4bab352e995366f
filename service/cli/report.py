"""The command ``moescope report``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from moescope.service.client.http import ServiceUnavailableError

REPORT_HELP: Final = """Write a window of a running service as one HTML page with plots, to keep or to send.

The page needs no network and no service: balance over time, worst layers, a heatmap of experts, ranks and
stragglers, in light and dark. It has counts only, no traces.

Examples:

  moescope report                               the last hour, to report.html

  moescope report --since 7d -o week.html       with --store the service remembers that long

  moescope report --url http://gpu-7:9890 --model my-model
"""


def report(
    since: Annotated[str, typer.Option(help="Length of the window until now: 90s, 15m, 1h, 7d.")] = "1h",
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")] = Path("report.html"),
    url: Annotated[str, typer.Option(help="Address of the running service.")] = "http://127.0.0.1:9890",
    server: Annotated[str | None, typer.Option(help="vLLM deployment, when there are several.")] = None,
    model: Annotated[str | None, typer.Option(help="Model, when there are several.")] = None,
) -> None:
    """Ask the service, write the page."""
    from moescope.service.report.document import document
    from moescope.service.report.facts import gather, parse_since

    try:
        facts = gather(url, parse_since(since), server, model)
        output.write_text(document(facts), encoding="utf-8")
    except (ValueError, ServiceUnavailableError) as error:
        raise _failure(str(error)) from None
    except OSError as error:
        raise _failure(f"can't write {output}: {error.strerror}") from None
    typer.echo(f"{output}: {facts.balance['tokens']:,} tokens of {facts.balance['model']}")


def _failure(message: str) -> typer.Exit:
    typer.echo(f"moescope: {message}", err=True)
    return typer.Exit(2)
