"""The command ``moescope verdict``, and ``moescope`` alone: what is the matter, and what to do."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from moescope.service.cli.asking import ask
from moescope.service.cli.codes import ExitCode
from moescope.service.cli.options import Deployment, EndOption, PoolOption
from moescope.service.cli.output import Form, Output, show
from moescope.service.cli.sheets import Column, Line, Readers, Sheet, View, whose, word

VERDICT_HELP: Final = """Say what is the matter with each deployment, what that rests on, and what to do.

It is what `moescope` says without a command. The exit code is the gravest verdict's: 0 is ok or info, 3 is a
warning, 4 is critical. The others are those of every command: moescope --help lists them.

Examples:

  moescope

  moescope verdict --url http://gpu-7:9890 --model my-model

  moescope verdict --start=-15m -o wide                 each number with a link to its proof

  moescope verdict -o json | jq .severity
"""
EXIT_CODES: Final = {
    "ok": ExitCode.DONE,
    "info": ExitCode.DONE,
    "warning": ExitCode.WARNING,
    "critical": ExitCode.CRITICAL,
}
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
    output: Output,
    pool: PoolOption = None,
    start: _StartOption = None,
    end: EndOption = None,
) -> None:
    """Print the verdicts of a running service; the exit code tells the gravest."""
    params = {**deployment.params, "pool": pool, "start": start, "end": end}
    answer = ask(deployment.url, "/v1/verdict", params, timeout_s=30.0)
    wide = output.wanted is Form.WIDE
    show(output, answer, lambda found: _view(found, deployment.url.rstrip("/"), wide))
    raise typer.Exit(EXIT_CODES[answer["severity"]])


_COLUMNS: Final = (
    *whose(),
    word("kind", "kind"),
    word("severity", "severity"),
    word("words", "words"),
    word("action", "what to do"),
    word("also", "besides"),
    word("enough_data", "enough data"),
    Column("tokens", "tokens"),
    Column("seconds", "seconds"),
    Column("steps", "steps"),
    Column("layers", "layers"),
    Column("start", "start"),
    Column("end", "end"),
)
_STYLES: Final = {"ok": "bold green", "info": "bold", "warning": "bold yellow", "critical": "bold red"}


def _view(answer: dict[str, Any], url: str, wide: bool) -> View:
    """The verdicts in the service's own words, one below the other."""
    rows = [_row(found) for found in answer["verdicts"]]
    parts: list[Sheet | Line] = [Sheet("", _COLUMNS, rows, readers=Readers.PROGRAMS)]
    for i, found in enumerate(answer["verdicts"]):
        parts += [*([Line("")] if i else []), *_lines(found, url, wide)]
    return View(parts if rows else (*parts, Line(answer["words"])))


def _row(found: dict[str, Any]) -> list[Any]:
    confidence = found["confidence"]
    return [
        *(found[name] for name in ("server", "model", "kind", "severity", "words")),
        found["action"]["words"],
        [item["kind"] for item in found["also"]],
        *(confidence[name] for name in ("enough", "tokens", "seconds", "steps", "layers")),
        *(found[name] for name in ("start", "end")),
    ]


def _lines(found: dict[str, Any], url: str, wide: bool) -> list[Line]:
    confidence = found["confidence"]
    rests = " ".join([confidence["words"], *(_sentence(note) for note in confidence["caveats"])])
    numbers = (*found["numbers"], *found["action"]["numbers"])
    severity = found["severity"]
    return [
        Line(f"{severity.upper()}: {found['model']} on {found['server']}", _STYLES[severity], hang=2),
        Line(found["words"], indent=2),
        Line(f"What to do: {found['action']['words']}", indent=2),
        *(
            Line(
                f"Besides ({item['severity']}): {item['words']} What to do: {item['action']['words']}",
                indent=2,
            )
            for item in found["also"]
        ),
        Line(rests, indent=2),
        *(line for number in numbers for line in _number(number, url, wide)),
        *([Line(f"Proof: {url}/{numbers[0]['view']}", indent=2, exact=True)] if numbers else []),
    ]


def _number(number: dict[str, Any], url: str, wide: bool) -> list[Line]:
    lines = [Line(f"{number['text']:>12}  {number['name']}", indent=4, exact=True)]
    if wide:
        lines += [Line(f"{url}/{number[link]}", "dim", indent=18, exact=True) for link in ("view", "api")]
    return lines


def _sentence(note: str) -> str:
    return f"{note[:1].upper()}{note[1:]}."
