"""The command ``moescope verdict``, and ``moescope`` alone: what is the matter, and what to do."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from moescope.service.cli.asking import ask
from moescope.service.cli.options import Deployment, EndOption, JsonOption, PoolOption
from moescope.service.cli.terminal import print_json, say

VERDICT_HELP: Final = """Say what is the matter with each deployment, what that rests on, and what to do.

It is what `moescope` says without a command. The exit code is the gravest verdict's: 0 is ok or info, 3 is a
warning, 4 is critical; 2, as for every command, is a bad option, no service, or one that refuses.

Examples:

  moescope

  moescope verdict --url http://gpu-7:9890 --model my-model

  moescope verdict --start=-15m --json                  the numbers with links to their proofs
"""
EXIT_CODES: Final = {"ok": 0, "info": 0, "warning": 3, "critical": 4}
"""From the severity of a verdict to the exit code."""
_StartOption = Annotated[
    str | None,
    typer.Option(
        help="Begin of the window: so long ago, as -90s, -5m, -1h or -7d, or Unix time in seconds; when "
        "absent, as long before its end as the gauges' windows are, a minute."
    ),
]


def verdict(
    deployment: Deployment,
    pool: PoolOption = None,
    start: _StartOption = None,
    end: EndOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print the verdicts of a running service; the exit code tells the gravest."""
    params = {**deployment.params, "pool": pool, "start": start, "end": end}
    answer = ask(deployment.url, "/v1/verdict", params, timeout_s=30.0)
    if as_json:
        print_json(answer)
    else:
        say("\n\n".join(_text(item, deployment.url) for item in answer["verdicts"]) or answer["words"])
    raise typer.Exit(EXIT_CODES[answer["severity"]])


def _text(found: dict[str, Any], url: str) -> str:
    lines = [
        f"{found['severity'].upper()}: {found['model']} on {found['server']}",
        f"  {found['words']}",
        f"  What to do: {found['action']['words']}",
    ]
    lines += [
        f"  Besides ({item['severity']}): {item['words']} What to do: {item['action']['words']}"
        for item in found["also"]
    ]
    confidence = found["confidence"]
    lines.append(f"  {' '.join([confidence['words'], *(_sentence(note) for note in confidence['caveats'])])}")
    numbers = (*found["numbers"], *found["action"]["numbers"])
    lines += [f"    {number['text']:>12}  {number['name']}" for number in numbers]
    if numbers:
        lines.append(f"  Proof: {url.rstrip('/')}/{numbers[0]['view']}")
    return "\n".join(lines)


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."
