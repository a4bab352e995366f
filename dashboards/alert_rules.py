"""Writes the rules of the alerts: ``python -m moescope.dashboards.alert_rules``.

Options say where your copies of the runbook and of the boards are, so that links in notifications open, and
into which folder all files of rules go. Links are paths without them: nobody knows here where your copies
are.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import yaml  # type: ignore[import-untyped]

from moescope.dashboards.alerts.balance import BALANCE, CAUSES
from moescope.dashboards.alerts.capture import CAPTURE
from moescope.dashboards.alerts.drift import DRIFT
from moescope.dashboards.alerts.pools import POOLS
from moescope.dashboards.alerts.service import SERVICES
from moescope.dashboards.alerts.spec import Alert, selecting

GROUPS: Final = (BALANCE, CAUSES, DRIFT, POOLS, CAPTURE, SERVICES)
ALERTS: Final = tuple(alert for group in GROUPS for alert in group.alerts)
FOLDER: Final = Path(__file__).resolve().parent / "rules"
FILE: Final = "moescope-alerts.yml"
_HEAD: Final = """\
# Alerts, made by `python -m moescope.dashboards.alert_rules` of dashboards/alerts/*.py. Its --help says how
# links become absolute. The alerts need the recording rules of the other files. docs/runbook.md has a section
# for each.
"""
_VARIABLES: Final = {
    "moescope-model": ("cluster", "server", "model"),
    "moescope-health": ("cluster", "job", "instance", "server", "model"),
    "moescope-pools": ("cluster", "pool", "model"),
}
"""The variables of the boards that an alert may set, where it has their labels."""


@dataclass(frozen=True, slots=True)
class Links:
    """Where the links of notifications lead.

    Attributes:
        runbook: address of ``docs/runbook.md``.
        grafana: address of Grafana without a slash at its end; empty: links are paths in Grafana.

    Raises:
        ValueError: one is no address.
    """

    runbook: str = "docs/runbook.md"
    grafana: str = ""

    def __post_init__(self) -> None:
        if self.grafana and not urlsplit(self.grafana).netloc:
            raise ValueError(
                f"--grafana-url {self.grafana}: write an address such as https://grafana.example.org"
            )
        if self.runbook != "docs/runbook.md" and not urlsplit(self.runbook).netloc:
            raise ValueError(
                f"--runbook-url {self.runbook}: write an address such as https://HOST/docs/runbook.md"
            )


def rule(alert: Alert, links: Links) -> dict[str, Any]:
    """An alert as Prometheus' rule."""
    chosen = "".join(
        f"{{{{ with $labels.{name} }}}}&var-{name}={{{{ . | urlquery }}}}{{{{ end }}}}"
        for name in _VARIABLES[alert.board]
        if name in alert.labels
    )
    made: dict[str, Any] = {"alert": alert.name, "expr": _of_lines(alert.query)}
    made |= {"for": f"{alert.minutes}m"} if alert.minutes else {}
    description = alert.description
    return made | {
        "labels": {"severity": alert.severity, "kind": alert.kind},
        "annotations": {
            "summary": alert.summary,
            "description": (selecting(alert.labels) if "$of" in description else "") + description,
            "runbook_url": f"{links.runbook}#{alert.name.lower()}",
            "dashboard_url": f"{links.grafana}/d/{alert.board}?orgId=1{chosen}",
        },
    }


def groups(links: Links) -> Iterator[dict[str, Any]]:
    """All groups of alerts as Prometheus' rules."""
    for group in GROUPS:
        yield {"name": group.name, "rules": [rule(alert, links) for alert in group.alerts]}


def document(links: Links) -> str:
    """The file of the alerts."""
    text = _HEAD + "groups:\n"
    for group, made in zip(GROUPS, groups(links), strict=True):
        body = yaml.dump([made], Dumper=_Dumper, sort_keys=False, width=1 << 20, allow_unicode=True)
        text += f"  # {group.note}\n" + "".join(f"  {line}\n" for line in body.splitlines())
    return text


class _Dumper(yaml.SafeDumper):  # type: ignore[misc]
    """Writes expressions of several lines as they are."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _of_lines(expr: str) -> str:
    return f"{expr}\n" if "\n" in expr else expr


def arguments() -> argparse.ArgumentParser:
    """The options of the commands that write rules."""
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument(
        "--runbook-url", default="docs/runbook.md", help="address of your copy of docs/runbook.md"
    )
    parser.add_argument("--grafana-url", default="", help="address of the Grafana that has the boards")
    return parser


def links_of(chosen: argparse.Namespace) -> Links:
    """The links that the options name."""
    return Links(chosen.runbook_url, chosen.grafana_url.rstrip("/"))


def main(words: Sequence[str] | None = None) -> None:
    """Write the file; into another folder, the files of the recording rules too."""
    parser = arguments()
    parser.description = __doc__
    parser.add_argument("--out", type=Path, default=FOLDER, help="folder for all files of rules")
    chosen = parser.parse_args(words)
    try:
        text = document(links_of(chosen))
    except ValueError as error:
        parser.error(str(error))
    chosen.out.mkdir(parents=True, exist_ok=True)
    if chosen.out.resolve() != FOLDER:
        for path in sorted(FOLDER.glob("*.yml")):
            shutil.copy(path, chosen.out)
    (chosen.out / FILE).write_text(text)


if __name__ == "__main__":
    main()
